"""Synthetic lesions to train an anomaly detector.

Most cohorts have no annotated lesions, and most images have none at all. So parts of
images are made brighter or darker, and a network learns to locate them: for that it has
to learn what normal images of the cohort look like :footcite:p:`Tan2022`.

References
----------
.. footbibliography::
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Self

import numpy as np

from dipy_ldm._utils.types import Batches
from dipy_ldm.data._batches import examples_of, read_patches, rescale, stream_of

# Range of mean diameters in pixels or voxels, drawn so that all sizes have the same
# total volume (otherwise the largest would dominate the loss); log range of the
# stretch of each axis; and range of the width of edges.
_DIAMETERS = 4.0, 12.0
_STRETCH = 0.25
_EDGES = 1.0, 2.5
# Range of relative changes of intensity. The strongest lesions are learnt first.
_STRENGTHS = 0.12, 0.5
# Maximum density of lesions: one per cube of this side. With few lesions in a window,
# most of a step would be wasted.
_LESION_SPACING = 16
# Images are deformed, so that the network does not memorise the shapes of training
# brains as normal. Spacing of the control points, and their maximum displacement, in
# pixels or voxels; the image moves by about a fifth of that.
_CONTROL_SPACING = 12
_MAX_SHIFT = 8.0
# Margin read around a window, for parts that move into it.
_MARGIN = 4
# Intensities above this share of the range are not background.
_MIN_TISSUE = 0.1
# Added to the standard deviation of each voxel, as a share of the range.
_MIN_SPREAD = 0.03


class Atlas(NamedTuple):
    """Voxelwise mean and standard deviation ``(*space, channels)`` of a cohort."""

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def learn(cls, images: np.ndarray, bounds: tuple[float, float]) -> Self:
        """Compute the atlas of images ``(n, *space, channels)``, one at a time."""
        total, squares = np.zeros((2, *images.shape[1:]))
        for image in images:
            scaled = rescale(image, bounds)
            total += scaled
            squares += np.square(scaled)
        mean = total / len(images)
        variance = np.maximum(squares / len(images) - np.square(mean), 0)
        return cls(mean.astype("float32"), np.sqrt(variance).astype("float32"))

    def describe(self, windows: np.ndarray, corners: np.ndarray) -> np.ndarray:
        """Return the detector's input: windows, z-scores, atlas and coordinates.

        Shapes: windows ``(n, *size, channels)``, corners ``(n, rank)``, result ``(n,
        *size, features)``.
        """
        size = windows.shape[1:-1]
        first = np.zeros(len(windows), int)
        mean, spread = (read_patches(part[None], first, corners, size) for part in self)
        z_scores = (windows - mean) / (spread + np.float32(_MIN_SPREAD))
        coordinates = np.empty((*windows.shape[:-1], len(size)), "float32")
        for axis, (length, whole) in enumerate(zip(size, self.mean.shape)):
            step = 2 / max(whole - 1, 1)
            along = (corners[:, axis, None] + np.arange(length)) * step - 1
            sides = [1] * len(size)
            sides[axis] = length
            coordinates[..., axis] = along.reshape(-1, *sides)
        # Scaled to similar ranges.
        features = windows, z_scores / 2, mean, 5 * spread, coordinates
        return np.concatenate(features, -1)


def n_features(rank: int, channels: int) -> int:
    """Return the number of input channels of a detector."""
    return 4 * channels + rank


def lesion_batches(
    images: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    size: tuple[int, ...],
    bounds: tuple[float, float],
    atlas: Atlas,
    deformed: bool = True,
) -> Batches:
    """Return endless batches of windows with synthetic lesions, and their masks."""
    slack = np.maximum(np.subtract(images.shape[1:-1], size), 0)
    larger = tuple(length + 2 * _MARGIN for length in size)
    shift = _MAX_SHIFT if deformed else 0.0

    def draw(step: int, positions: Sequence[int]) -> tuple:
        epoch, _, index = examples_of(len(images), batch_size, seed, step, positions)
        streams = [stream_of(seed, epoch, i) for i in index]
        drawn = np.array([stream.random(len(size)) for stream in streams])
        corners = np.floor(drawn.reshape(-1, len(size)) * (slack + 1)).astype(int)
        read = rescale(read_patches(images, index, corners - _MARGIN, larger), bounds)
        windows = np.empty((len(index), *size, images.shape[-1]), "float32")
        masks = np.zeros((*windows.shape[:-1], 1), "float32")
        for padded, window, mask, stream in zip(read, windows, masks, streams):
            window[...] = deform(padded, size, shift, stream)
            add_lesions(window, mask[..., 0], stream)
        return atlas.describe(windows, corners), masks

    return Batches(batch_size, draw)


def deform(
    window: np.ndarray, size: tuple[int, ...], shift: float, stream: np.random.Generator
) -> np.ndarray:
    """Deform a window ``(*padded, channels)`` smoothly, to ``(*size, channels)``."""
    from scipy.ndimage import map_coordinates

    rank = len(size)
    splines = [_bspline_basis(length) for length in size]
    shifts = stream.uniform(-1, 1, (rank, *(len(spline) for spline in splines)))
    shifts *= stream.uniform(0, shift)
    for axis, spline in enumerate(splines, 1):
        shifts = np.moveaxis(np.tensordot(shifts, spline, (axis, 0)), -1, axis)
    margins = [(padded - length) / 2 for padded, length in zip(window.shape, size)]
    points = np.indices(size) + shifts + np.reshape(margins, (-1, *[1] * rank))
    channels = np.moveaxis(window, -1, 0)
    deformed = [map_coordinates(x, points, order=1, mode="nearest") for x in channels]
    return np.stack(deformed, -1)


@cache
def _bspline_basis(length: int):
    """Return cubic B-splines along an axis: the weight of each point for each voxel."""
    points = np.arange(-1, -(-length // _CONTROL_SPACING) + 2)
    far = np.abs(np.arange(length) / _CONTROL_SPACING - points[:, None])
    near = 2 / 3 - far**2 + far**3 / 2
    return np.where(far < 1, near, np.maximum(2 - far, 0) ** 3 / 6)


def add_lesions(
    window: np.ndarray, mask: np.ndarray, stream: np.random.Generator
) -> None:
    """Add brighter or darker ellipsoids to a window ``(*size, channels)``."""
    tissue = window.max(-1) > _MIN_TISSUE
    candidates = np.flatnonzero(tissue)
    if not len(candidates):
        return
    max_lesions = max(1, round(mask.size / _LESION_SPACING**mask.ndim))
    for _ in range(stream.integers(1, max_lesions, endpoint=True)):
        centre = np.unravel_index(stream.choice(candidates), mask.shape)
        box, share = _ellipsoid(np.array(centre), mask.shape, stream)
        share = share * tissue[box]
        strength = np.exp(stream.uniform(*np.log(_STRENGTHS))) * stream.choice([-1, 1])
        changed = window[box] * (1 + strength * share[..., None]).astype("float32")
        # Clipped, as the brightest voxels of scans are.
        window[box] = np.clip(changed, 0, 1)
        mask[box] = np.maximum(mask[box], share)


def _ellipsoid(centre: np.ndarray, shape: tuple[int, ...], stream: np.random.Generator):
    """Draw an ellipsoid; return its bounding box and the share of each voxel in it."""
    rank = len(shape)
    centre = centre + stream.uniform(-0.5, 0.5, rank)
    small, large = (1 / diameter**rank for diameter in _DIAMETERS)
    radius = stream.uniform(large, small) ** (-1 / rank) / 2
    radii = radius * np.exp(stream.uniform(-_STRETCH, _STRETCH, rank))
    edge = stream.uniform(*_EDGES)
    low = np.maximum(np.ceil(centre - radii - edge), 0).astype(int)
    high = np.minimum(np.floor(centre + radii + edge) + 1, shape).astype(int)
    axes = np.ogrid[tuple(map(slice, low, high))]
    distance = np.sqrt(sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii)))
    share = np.clip((1 - distance) * radius / edge + 0.5, 0, 1)
    return tuple(map(slice, low, high)), share.astype("float32")
