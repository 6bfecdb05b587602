"""Image patches and training batches, as functions of (seed, epoch, example).

The examples of a batch and their noise depend on the number of the step alone: a run
that is resumed, distributed, accumulated from smaller batches or computed by another
back-end of Keras uses the same numbers.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.types import Batches


def patch_size(
    space: tuple[int, ...], factor: int, patch: int | Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the size of training patches, rounded up to multiples of ``factor``."""
    sizes = np.minimum(space, space if patch is None else patch)
    return tuple(int(size) + -int(size) % factor for size in sizes)


def read_patches(
    images: np.ndarray,
    index: Sequence[int] | np.ndarray,
    corners: np.ndarray,
    size: tuple[int, ...],
) -> np.ndarray:
    """Read one patch of each indexed image; beyond an image, its edge is repeated.

    Only the patches are read: a memory map may be far larger than memory.

    Shapes: images ``(n, *space, channels)``, index ``(b,)``, corners ``(b, rank)``,
    result ``(b, *size, channels)``.
    """
    windows = np.empty((len(index), *size, images.shape[-1]), "float32")
    for window, i, corner in zip(windows, index, corners):
        nearest = [
            np.arange(first, first + length).clip(0, end - 1)
            for first, length, end in zip(corner, size, images.shape[1:-1])
        ]
        inside = images[i][tuple(slice(n[0], n[-1] + 1) for n in nearest)]
        for axis, voxels in enumerate(nearest):
            if inside.shape[axis] < len(voxels):
                inside = inside.take(voxels - voxels[0], axis)
        window[...] = inside
    return windows


def read_padded(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Read whole images, extended at their far edges to ``(n, *size, channels)``."""
    corners = np.zeros((len(images), len(size)), int)
    return read_patches(images, range(len(images)), corners, size)


def rescale(images: np.ndarray, bounds: tuple[float, ...]) -> np.ndarray:
    """Scale images from ``bounds`` to [0, 1]."""
    low, high = bounds
    return (images - np.float32(low)) / np.float32(high - low or 1)


# Enough to estimate the share of voxels inside masks to a few hundredths.
_MAX_MASKS_COUNTED = 64
# Larger differences from an empty channel are not due to rounding.
_EMPTY_MARGIN = 1e-6


class Augmentation(NamedTuple):
    """Random changes of the images that an autoencoder is trained on. Default: none.

    The usual ones of volumes, and mirroring:
    ``Augmentation(flip=True, shift=2, intensity=0.05, noise=0.1)``.

    Parameters
    ----------
    flip : bool
        Mirror half of the images left to right.
    shift : int
        Largest shift along each axis, in pixels or voxels.
    intensity : float
        Largest relative change of brightness and contrast.
    noise : float
        Largest standard deviation of the noise that is added to the input (not to the
        target), as a share of the range of intensities.
    """

    flip: bool = False
    shift: int = 0
    intensity: float = 0.0
    noise: float = 0.0


def batches(
    images: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    size: tuple[int, ...] | None = None,
    bounds: tuple[float, ...] = (0.0, 1.0),
    masks: np.ndarray | None = None,
    background: float = 1.0,
    augment: Augmentation | None = None,
    fixed: Sequence[int] = (),
    empty: np.ndarray | None = None,
) -> Batches:
    """Draw endless batches, in a new order every epoch.

    Only the patches of a batch are read, when it is drawn: a memory map may be far
    larger than memory. ``fixed`` channels keep their brightness and contrast;
    ``empty`` are the values of channels outside of the head, without masks; by default
    the lowest of all.

    Shapes: images ``(n, *space, channels)``, masks ``(n, *space, 1)``, empty
    ``(channels,)``, result ``(images, images)``.
    """
    *space, channels = images.shape[1:]
    size = tuple(size or space)
    augment = augment or Augmentation()
    slack = np.maximum(np.subtract(space, size), 0) + 2 * augment.shift
    empty = rescale(
        np.asarray(bounds[0] if empty is None else empty, "float32"), bounds
    )
    # Not the mean of each patch: one of background alone would count as any other.
    lengths = zip(space, size, slack)
    covers = [_coverage(n, m, rest, augment.shift) for n, m, rest in lengths]
    total = np.float32(_mean_weight(images, masks, bounds, background, covers, empty))

    def draw(step: int, positions: Sequence[int]) -> tuple:
        epoch, _, index = examples_of(len(images), batch_size, seed, step, positions)
        streams = [stream_of(seed, epoch, i) for i in index]
        drawn = [stream.random(3 + len(space)) for stream in streams]
        numbers = np.array(drawn).reshape(-1, 3 + len(space))
        corners = np.floor(numbers[:, 3:] * (slack + 1)).astype(int) - augment.shift
        batch = rescale(read_patches(images, index, corners, size), bounds)
        brightened = _brighten(batch, numbers, augment.intensity)
        brightened[..., fixed] = batch[..., fixed]
        batch = _mirror(brightened, numbers, augment)
        inputs = batch
        if augment.noise > 0:
            noise = _noise(streams, (*size, channels), augment.noise)
            inputs = np.clip(batch + noise, 0, 1)
        if background == 1:
            return inputs, batch
        if masks is None:
            inside = _is_inside(batch, empty)
        else:
            windows = read_patches(masks, index, corners, size)
            inside = _mirror(windows, numbers, augment) > 0
        weights = np.where(inside, np.float32(1), np.float32(background))
        return inputs, np.concatenate([batch, weights / total], -1)

    return Batches(batch_size, draw)


def _coverage(length: int, size: int, slack: int, shift: int):
    """Return the share of patch voxels that fall on each voxel along an axis."""
    starts = np.arange(slack + 1) - shift
    covered = np.clip(starts[:, None] + np.arange(size), 0, length - 1)
    return np.bincount(covered.ravel(), minlength=length) / covered.size


def _is_inside(images: np.ndarray, empty: np.ndarray | float):
    """Return where any channel is not empty, ``(..., 1)``."""
    return (np.abs(images - empty) > _EMPTY_MARGIN).any(-1, keepdims=True)


def _mean_weight(
    images: np.ndarray,
    masks: np.ndarray | None,
    bounds: tuple[float, ...],
    background: float,
    covers: list[np.ndarray],
    empty: np.ndarray | float,
):
    """Return the mean weight of the voxels of all patches, before normalisation."""
    if background == 1:
        return 1.0
    shares = []
    for i in np.unique(np.linspace(0, len(images) - 1, _MAX_MASKS_COUNTED).astype(int)):
        if masks is None:
            inside = _is_inside(rescale(images[i], bounds), empty)
        else:
            inside = masks[i] > 0
        share = inside[..., 0]
        for cover in reversed(covers):
            share = share @ cover
        shares.append(share)
    weight = background + (1 - background) * np.mean(shares)
    if weight == 0:
        raise InputError(
            "no voxel lies inside the masks: a `background` of 0 leaves nothing to "
            "train on",
            "raise it, or fix the masks",
        )
    return weight


def _noise(streams: list, shape: tuple[int, ...], max_std: float):
    """Draw noise, with a random standard deviation for each image."""
    stds = [max_std * stream.random(dtype="float32") for stream in streams]
    noise = normal_numbers(streams, shape)
    return np.reshape(stds, (-1, *(1,) * len(shape))).astype("float32") * noise


def normal_numbers(streams: list, shape: Sequence[int]):
    """Draw standard normal numbers ``(streams, *shape)`` from each stream."""
    numbers = np.empty((len(streams), *shape), "float32")
    for stream, row in zip(streams, numbers):
        stream.standard_normal(dtype="float32", out=row)
    return numbers


def _brighten(batch: np.ndarray, numbers: np.ndarray, max_change: float):
    """Change brightness and contrast of each image, within [0, 1]."""
    if max_change == 0:
        return batch
    changes = 1 + max_change * (2 * numbers[:, :2] - 1).astype("float32")
    gain, exponent = changes.T.reshape(2, -1, *(1,) * (batch.ndim - 1))
    return np.clip(gain * np.clip(batch, 0, 1) ** exponent, 0, 1)


def _mirror(batch: np.ndarray, numbers: np.ndarray, augment: Augmentation):
    """Mirror half of the images left to right."""
    if not augment.flip:
        return batch
    rank = batch.ndim - 2
    # Volumes are (x, y, z), from left to right along x; images are (h, w).
    axis = 1 if rank == 3 else rank
    half = np.reshape(numbers[:, 2] < 0.5, (-1, *(1,) * (rank + 1)))
    return np.where(half, np.flip(batch, axis), batch)


def examples_of(
    n: int, batch_size: int, seed: int, step: int, positions: Sequence[int]
) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the epoch of a step, and positions and indices of its examples."""
    epoch, step = divmod(step, n // batch_size)
    position = step * batch_size + np.asarray(positions, int)
    return epoch, position, _order(n, seed, epoch)[position]


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int):
    """Return the shuffled indices of all examples for an epoch."""
    # Not ``stream_of(seed, epoch)``, from which the epoch's first time is drawn.
    return np.random.default_rng([seed, epoch, 0, 1]).permutation(n)


def stream_of(seed: int, epoch: int, example: int = -1):
    """Return the random generator of an example in an epoch, or of the epoch."""
    # NumPy ignores zeros at the end of a seed, so that examples count from 1.
    return np.random.default_rng([seed, epoch, example + 1])
