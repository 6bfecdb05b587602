"""Features learnt so that a patient stays near, however the copy was changed."""

from typing import NamedTuple

import numpy as np
from scipy import linalg, ndimage
from scipy.spatial.transform import Rotation

from dipy_ldm.evaluation.features import Features
from dipy_ldm.metrics.images import halve

# Numbers of a sample before, and after what was learnt.
_MAX_CHANGED_VALUES, _MAX_VALUES, _N_DIRECTIONS = 32768, 4096, 32
# Training images that it is learnt from, and copies of each.
MAX_IMAGES, _COPIES_PER_IMAGE = 400, 4
# What copies are changed by: degrees, voxels, exponents, noise, and blur in voxels.
_TURN, _MOVE, _GAMMA, _NOISE, _BLUR = 5.0, 1.5, (0.6, 1.6), 0.03, 0.8
# Of the directions that hardly vary, which would be divided by nothing.
_RIDGE = 0.05


class Projection(NamedTuple):
    """Mean of the descriptors, and discriminant directions."""

    mean: np.ndarray
    directions: np.ndarray

    def of(self, images: np.ndarray) -> np.ndarray:
        """Return features ``(n, 32)`` of images ``(n, *space, channels)``."""
        return (describe(images) - self.mean) @ self.directions


def small(images: np.ndarray, most: int = _MAX_CHANGED_VALUES) -> np.ndarray:
    """Halve ``(n, *space, channels)`` until they are small; mirror images stay such."""

    def halved(image):
        while image.size > most and min(image.shape[:-1]) > 2:
            for axis, size in enumerate(image.shape[:-1]):
                if size % 2:  # of which halving would leave out the last
                    image = (np.delete(image, -1, axis) + np.delete(image, 0, axis)) / 2
            image = halve(image)
        return image.astype("float32")

    return np.stack([halved(image) for image in images])


def fit_invariant_projection(images: np.ndarray, seed: int = 0) -> Projection:
    """Fit directions that separate ``(n, *space, channels)`` but not their copies.

    A linear discriminant :footcite:p:`Fisher1936` with a class for each image: of the
    principal components of the images those directions are kept in which images differ
    most for how far copies of one differ, which were turned by up to 5 degrees, moved,
    blurred, noised and given another contrast. That a mirror image has the same
    features is by construction.
    """
    rng = np.random.default_rng(seed)
    descriptors = describe(images)
    mean = descriptors.mean(0)
    _, spread, components = np.linalg.svd(descriptors - mean, full_matrices=False)
    # With all of them, each image would be told by its noise alone.
    rank = int(np.count_nonzero(spread > 1e-6 * spread[0]))
    count = max(1, min(rank, len(images) // 2))
    components = components[:count].T
    changed = (
        np.stack([change(image, rng) for image in images])
        for _ in range(_COPIES_PER_IMAGE)
    )
    off = [describe(x) - descriptors for x in changed]
    within = np.concatenate(off) @ components
    within = within.T @ within / len(within)
    between = np.diag(spread[:count] ** 2 / len(images))
    within += _RIDGE * np.trace(within) / count * np.eye(count) + 1e-12 * between
    # Vectors for which the copies differ by 1, from those that tell most.
    _, vectors = linalg.eigh(between, within)
    directions = components @ vectors[:, ::-1][:, :_N_DIRECTIONS]
    return Projection(mean, directions)


def invariant(projection: Projection) -> Features:
    """Return the invariant features of a projection."""
    says = (
        "Linear discriminant of the training images against copies that were mirrored, "
        "turned, moved, blurred, noised and given another contrast."
    )
    return Features("invariant", 1, says, projection.of)


def describe(images: np.ndarray) -> np.ndarray:
    """Describe images by ``(n, features)``, so that mirror images are described alike.

    By the mean of an image and its mirror image, and by the size of their difference.
    """
    reduced = small(images, _MAX_VALUES)
    axes = tuple(range(1, reduced.ndim))
    centred = reduced - reduced.mean(axes, keepdims=True)
    normalized = centred / np.maximum(centred.std(axes, keepdims=True), 1e-6)
    mirrored = np.flip(normalized, 2 if normalized.ndim == 4 else 1)
    parts = (normalized + mirrored) / 2, np.abs(normalized - mirrored) / 2
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)


def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change an image ``(*space, channels)`` as a model's copy of it might be."""
    rank = image.ndim - 1
    turn = _rotation(rng.uniform(-_TURN, _TURN, 3 if rank == 3 else 1))
    middle = (np.array(image.shape[:-1]) - 1) / 2
    offset = middle - turn @ middle + rng.uniform(-_MOVE, _MOVE, rank)
    blur = rng.uniform(0, _BLUR)
    channels = [
        ndimage.affine_transform(channel, turn, offset, order=1, mode="nearest")
        for channel in np.moveaxis(image, -1, 0)
    ]
    moved = np.stack([ndimage.gaussian_filter(x, blur) for x in channels], -1)
    contrast = np.clip(moved, 0, 1) ** np.exp(rng.uniform(*np.log(_GAMMA)))
    return contrast + rng.uniform(0, _NOISE) * rng.standard_normal(image.shape)


def _rotation(degrees):
    """Return a rotation about one axis of a plane or three of space."""
    if len(degrees) == 1:
        return Rotation.from_euler("z", degrees[0], degrees=True).as_matrix()[:2, :2]
    signs = 1, -1, 1  # from each axis to the next in the order of the axes
    return Rotation.from_euler("XYZ", degrees * signs, degrees=True).as_matrix()
