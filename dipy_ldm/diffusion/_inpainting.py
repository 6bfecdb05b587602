"""Inpainting: sample what lies in a hole, so that it fits what is around it.

Where latents are known, :func:`dipy_ldm.diffusion._denoisers.pinned` puts them into a
denoiser's estimate; a sampler that walks with it keeps them, noised to each level, and
learns from them what fits between. That is not enough by itself: what is sampled near a
known latent was begun before it was influenced by it. So each step is taken several
times, with the noise that it has removed put back between
(:func:`dipy_ldm.diffusion.samplers.sample`, after :footcite:p:`Lugmayr2022`).

References
----------
.. footbibliography::
"""

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError
from dipy_ldm.diffusion import schedules

# Steps, and how often each is taken. With these the distribution of what is missing of
# a Gaussian is met, and more of either brought nothing.
STEPS, RESAMPLINGS = 10, 5
# Time up to which latents are sampled, by the share of their place that is in a hole:
# those of which half is are sampled from pure noise. At the least, so that samples
# differ in small holes too. These are times of the cosine schedule, and stand for its
# noise.
_RELEASE_SLOPE, _MIN_RELEASE = 2.0, 0.25
# Of neighbours: enough that what touches nothing known has a value, and no more.
_REGULARISATION = 1e-6
# Of the differences between neighbours, relative to those around the hole.
_TOLERANCE = 1e-4


def release_times(shares: np.ndarray, schedule: str, last: float) -> np.ndarray:
    """Return the time up to which each latent is sampled; 0 for those not touched.

    Shapes: shares ``(n, *space)``, as of :func:`hole_shares`.
    """
    times = np.clip(_RELEASE_SLOPE * shares, _MIN_RELEASE, 1)
    # Before the last step, or nothing would be sampled.
    times = np.maximum(schedules.times_of_equal_noise(schedule, times), last)
    return np.where(shares > 0, times, 0)


def check_masks(masks: npt.ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Return masks as holes of bool, of the shape ``(n, *space)``, or refuse them."""
    masks = np.asarray(masks)
    if masks.shape in (shape[1:] + (1,), shape + (1,)):
        masks = masks[..., 0]
    if masks.shape not in (shape[1:], shape) or masks.dtype.kind not in "biuf":
        raise InputError(
            f"masks must be numbers of the shape {shape} of the images, or {shape[1:]} "
            f"for all of them, not {masks.dtype} {masks.shape}."
        )
    if np.isnan(masks).any():
        raise InputError("masks have NaN; replace it by 0.")
    holes = np.broadcast_to(masks > 0, shape)
    empty = ~holes.any(tuple(range(1, holes.ndim)))
    if empty.any():
        raise InputError(
            f"mask {empty.argmax()} is empty; give one that marks what to inpaint."
        )
    return holes


def dilated(hole: np.ndarray, reach: float, sizes: npt.ArrayLike) -> np.ndarray:
    """Make a hole larger."""
    from scipy.ndimage import distance_transform_edt

    # Not of the whole image: it would take seconds, and many times its memory.
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
            image[box][hole[box]] = _harmonic(image[box], hole[box])
    return filled


def _box_around(hole, margins):
    """Return slices of all that is in a hole, and of some voxels around it."""
    indices = np.nonzero(hole)
    return tuple(
        slice(max(0, i.min() - margin), i.max() + margin + 1)
        for i, margin in zip(indices, margins)
    )


def _harmonic(image, hole):
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
    own = np.bincount(number[voxels], minlength=n) + _REGULARISATION
    matrix = diags_array(own) - between
    result = np.empty((n, values.shape[1]))
    for channel, column in zip(values.T, result.T):
        rim = channel[neighbours[~inside]]
        mean = rim.mean()
        # Of what deviates from the mean, to which the pull leads.
        sums = np.bincount(number[voxels[~inside]], rim - mean, minlength=n)
        column[:] = mean + cg(matrix, sums, rtol=_TOLERANCE)[0]
    return result


def _neighbours(hole):
    """List voxels of a hole and all their neighbours, as indices of the flat array."""
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
    """Return how much of the place of each latent is in a hole.

    Shapes: holes ``(n, *space)``, result ``(n, *ceil(space / factor))``.
    """
    space = holes.shape[1:]
    # As the images are padded, by their edge.
    padded = np.pad(holes, [(0, 0), *((0, -n % factor) for n in space)], mode="edge")
    sides = [n for size in padded.shape[1:] for n in (size // factor, factor)]
    blocks = padded.reshape(len(holes), *sides)
    return blocks.mean(tuple(range(2, blocks.ndim, 2)), dtype="float32")


def blend(images: np.ndarray, inpainted: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Blend inpainted images into holes, without a seam.

    What it differs by from the image around a hole is continued into the hole as
    smoothly as can be, and taken away :footcite:p:`Perez2003`.

    Shapes: images ``(n, *space, channels)``, holes ``(n, *space)``.
    """
    inside = holes[..., None]
    # What stands in the holes may be anything, NaN too.
    around = np.where(inside, 0, images).astype("float32")
    result = np.where(inside, inpainted + fill(around - inpainted, holes), around)
    rank = tuple(range(1, images.ndim - 1))
    low = np.min(around, rank, keepdims=True, where=~inside, initial=np.inf)
    high = np.max(around, rank, keepdims=True, where=~inside, initial=-np.inf)
    # Neither darker nor brighter than anything around.
    return np.where(inside, np.clip(result, low, high), around)


def check_covered(shares: np.ndarray) -> None:
    """Refuse masks of which shares ``(n, *space, 1)`` leave no latent untouched."""
    covered = (shares > 0).all(tuple(range(1, shares.ndim)))
    if covered.any():
        raise InputError(
            f"mask {covered.argmax()} covers the whole image at the resolution of the "
            "latents; give a smaller mask."
        )
