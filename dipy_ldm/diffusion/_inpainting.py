"""Inpainting: sample latents in a hole, so that they fit their surroundings.

:func:`dipy_ldm.diffusion._denoisers.pinned` replaces a denoiser's estimate by the known
latents, so that a sampler keeps them, with the noise of each level, and conditions the
others on them. This alone is not enough, since sampled latents only react to known ones
after each step. So each step is taken several times, with the removed noise added again
in between (:func:`dipy_ldm.diffusion.samplers.sample`, after
:footcite:p:`Lugmayr2022`).

References
----------
.. footbibliography::
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError
from dipy_ldm.diffusion import schedules

# Steps, and how often each is taken: with these, the conditional distribution of a
# Gaussian is met, and more of either did not improve it.
STEPS, RESAMPLINGS = 10, 5
# Time from which latents are sampled, by the share of their voxels in a hole: from pure
# noise if it is half. The minimum lets samples differ in small holes, too. Times are
# those of the cosine schedule, for any schedule of equal noise.
_RELEASE_SLOPE, _MIN_RELEASE = 2.0, 0.25
# Just enough for voxels without known neighbours to have a value.
_REGULARISATION = 1e-6
# Of the differences between neighbours, relative to those at the rim of the hole.
_TOLERANCE = 1e-4


def release_times(shares: np.ndarray, schedule: str, last: float) -> np.ndarray:
    """Return the time from which each latent is sampled; 0 for those outside holes.

    Shapes: shares ``(n, *space)``, as in :func:`hole_shares`.
    """
    times = np.clip(_RELEASE_SLOPE * shares, _MIN_RELEASE, 1)
    # Before the last step, or nothing would be sampled.
    times = np.maximum(schedules.times_of_equal_noise(schedule, times), last)
    return np.where(shares > 0, times, 0)


def validated_holes(masks: npt.ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Convert masks to boolean holes ``(n, *space)``, or refuse them."""
    masks = np.asarray(masks)
    if masks.shape in (shape[1:] + (1,), shape + (1,)):
        masks = masks[..., 0]
    if masks.shape not in (shape[1:], shape) or masks.dtype.kind not in "biuf":
        raise InputError(
            f"masks must be numbers of the shape {shape} of the images, or "
            f"{shape[1:]} for all, not {masks.dtype} {masks.shape}"
        )
    if np.isnan(masks).any():
        raise InputError("masks have NaN", "replace it by 0")
    holes = np.broadcast_to(masks > 0, shape)
    empty = ~holes.any(tuple(range(1, holes.ndim)))
    if empty.any():
        raise InputError(
            f"mask {empty.argmax()} is empty", "give one that marks what to inpaint"
        )
    return holes


def dilated(hole: np.ndarray, reach: float, sizes: npt.ArrayLike) -> np.ndarray:
    """Dilate a hole by a distance, in the units of voxel sizes."""
    from scipy.ndimage import distance_transform_edt

    # For the whole image it would take seconds, and many times its memory.
    margins = np.floor(reach / np.asarray(sizes)).astype(int) + 1
    box = _box_around(hole, margins)
    result = hole.copy()
    result[box] = distance_transform_edt(~hole[box], sampling=sizes) <= reach
    return result


def fill_nearest(
    image: np.ndarray, hole: np.ndarray, sizes: npt.ArrayLike
) -> np.ndarray:
    """Fill the hole of an image ``(*space, channels)`` by the nearest values."""
    from scipy.ndimage import distance_transform_edt

    if not hole.any():
        return image
    box, filled = _box_around(hole, [1] * hole.ndim), image.copy()
    nearest = distance_transform_edt(hole[box], sizes, False, return_indices=True)
    filled[box] = image[box][tuple(nearest)]
    return filled


def fill(images: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Fill holes smoothly from their surroundings (Laplace equation).

    Shapes: images ``(n, *space, channels)``, holes ``(n, *space)``, result ``(n,
    *space, channels)``.
    """
    filled = np.array(images, "float32")
    for image, hole in zip(filled, holes):
        if hole.any() and not hole.all():
            box = _box_around(hole, [1] * hole.ndim)
            image[box][hole[box]] = _solve_laplace(image[box], hole[box])
    return filled


def _box_around(hole: np.ndarray, margins: Sequence[int] | np.ndarray):
    """Return slices of the bounding box of a hole, with margins in voxels."""
    indices = np.nonzero(hole)
    return tuple(
        slice(max(0, i.min() - margin), i.max() + margin + 1)
        for i, margin in zip(indices, margins)
    )


def _solve_laplace(image: np.ndarray, hole: np.ndarray):
    """Solve the Laplace equation in a hole; return ``(voxels, channels)``."""
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import cg

    voxels, neighbours = _neighbours(hole)
    inside = hole.flat[neighbours]
    number = np.cumsum(hole.ravel()) - 1
    values = image.reshape(-1, image.shape[-1]).astype(float)
    n = np.count_nonzero(hole)
    links = number[voxels[inside]], number[neighbours[inside]]
    between = coo_array((np.ones(len(links[0])), links), (n, n)).tocsr()
    counts = np.bincount(number[voxels], minlength=n) + _REGULARISATION
    matrix = diags_array(counts) - between
    result = np.empty((n, values.shape[1]))
    for channel, column in zip(values.T, result.T):
        rim = channel[neighbours[~inside]]
        mean = rim.mean()
        # Of deviations from the mean, since the regularisation pulls towards zero.
        sums = np.bincount(number[voxels[~inside]], rim - mean, minlength=n)
        column[:] = mean + cg(matrix, sums, rtol=_TOLERANCE)[0]
    return result


def _neighbours(hole: np.ndarray):
    """Return voxels of a hole and all their neighbours, as flat indices."""
    index = np.arange(hole.size).reshape(hole.shape)
    pairs = [
        (index.take(range(n - 1), axis).ravel(), index.take(range(1, n), axis).ravel())
        for axis, n in enumerate(hole.shape)
    ]
    lower, upper = map(np.concatenate, zip(*pairs))
    voxels, neighbours = np.append(lower, upper), np.append(upper, lower)
    inside = hole.flat[voxels]
    return voxels[inside], neighbours[inside]


def hole_shares(holes: np.ndarray, factor: int) -> np.ndarray:
    """Return the share of the voxels of each latent that is in a hole.

    Shapes: holes ``(n, *space)``, result ``(n, *ceil(space / factor))``.
    """
    space = holes.shape[1:]
    # As images are padded for the encoder.
    padded = np.pad(holes, [(0, 0), *((0, -n % factor) for n in space)], mode="edge")
    sides = [n for size in padded.shape[1:] for n in (size // factor, factor)]
    blocks = padded.reshape(len(holes), *sides)
    return blocks.mean(tuple(range(2, blocks.ndim, 2)), dtype="float32")


def blend(images: np.ndarray, inpainted: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Blend inpainted images into holes, without a seam.

    The difference to the image around a hole is continued smoothly into the hole, and
    subtracted :footcite:p:`Perez2003`.

    Shapes: images ``(n, *space, channels)``, holes ``(n, *space)``.
    """
    inside = holes[..., None]
    # Values in holes are arbitrary, even NaN.
    around = np.where(inside, 0, images).astype("float32")
    result = np.where(inside, inpainted + fill(around - inpainted, holes), around)
    rank = tuple(range(1, images.ndim - 1))
    low = np.min(around, rank, keepdims=True, where=~inside, initial=np.inf)
    high = np.max(around, rank, keepdims=True, where=~inside, initial=-np.inf)
    # Within the range of the image around the hole.
    return np.where(inside, np.clip(result, low, high), around)


def refuse_covering_masks(shares: np.ndarray) -> None:
    """Refuse masks whose shares ``(n, *space, 1)`` touch all latents."""
    covered = (shares > 0).all(tuple(range(1, shares.ndim)))
    if covered.any():
        raise InputError(
            f"mask {covered.argmax()} covers the whole image at latent resolution",
            "use a smaller mask",
        )
