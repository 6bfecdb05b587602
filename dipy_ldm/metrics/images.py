"""Similarity of pairs of images, and energy of their spatial frequencies."""

from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from dipy_ldm._utils.checks import InputError
from dipy_ldm.metrics.distributions import as_rows

# Weights of the scales from the finest; window in pixels (Wang 2003).
_SCALE_WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
_WINDOW, _WINDOW_DEVIATION = 11, 1.5
# Voxels. Detail is the difference from an image blurred by this deviation.
_BLUR = 1.0


def multiscale_ssim(a: npt.ArrayLike, b: npt.ArrayLike) -> np.ndarray:
    r"""Compute the multi-scale structural similarity (MS-SSIM) of pairs of images.

    The product :footcite:p:`Wang2003` of contrast and structure, :math:`c_j`, at full
    size, half size and so on, and the luminance, :math:`l`, at the last of :math:`m`
    scales,

    .. math::

        l^{w_m} \prod_{j=1}^{m} c_j^{w_j}.

    There are up to five scales, as many as the size allows (176 pixels per side for
    five); their weights are normalised to a sum of 1.

    Parameters
    ----------
    a, b : array_like
        Images, ``(n, *space, channels)`` in [0, 1].

    Returns
    -------
    ndarray
        Similarity of each pair, ``(n,)``: 1 for equal images, and at least 0.

    Raises
    ------
    InputError
        If shapes differ, values are not finite, or there are no images.

    References
    ----------
    .. footbibliography::
    """
    pairs = zip(*as_pairs(a, b), strict=True)
    # One pair after the other, to save memory.
    return np.array([_similarity(*pair) for pair in pairs])


def halve(image: np.ndarray) -> np.ndarray:
    """Halve the size of an image, by averaging blocks of two pixels per side.

    The last of an odd number of pixels is dropped.

    Shapes: image ``(*space, channels)``, result ``(*(space // 2), channels)``.
    """
    rank = image.ndim - 1
    corners = product((0, 1), repeat=rank)
    even = [size // 2 * 2 for size in image.shape[:-1]]
    ends = ([slice(i, n, 2) for i, n in zip(corner, even)] for corner in corners)
    blocks = [image[tuple(slices)] for slices in ends]
    return np.asarray(sum(blocks) / len(blocks))


def psnr(
    a: npt.ArrayLike, b: npt.ArrayLike, masks: npt.ArrayLike | None = None
) -> np.ndarray:
    """Compute the peak signal-to-noise ratio (PSNR) of pairs of images.

    The ratio of the peak 1 to the root mean square difference.

    Parameters
    ----------
    a, b : array_like
        Images, ``(n, *space, channels)`` in [0, 1].
    masks : array_like, optional
        Region to compare, ``(n, *space)``. Default: everywhere.

    Returns
    -------
    ndarray
        Decibels, ``(n,)``; infinite for equal images.

    Raises
    ------
    InputError
        If shapes differ, values are not finite, a mask is empty, or there are no
        images.
    """
    pairs = masked(a, b, masks)
    with np.errstate(divide="ignore"):
        return np.array([-10 * np.log10(np.mean((x - y) ** 2)) for x, y in pairs])


def dice(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Compute the Dice coefficient of two masks.

    Parameters
    ----------
    a, b : array_like of bool
        Masks of the same shape.

    Returns
    -------
    float
        From 0 to 1; 1 if both are empty.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape:
        raise InputError(f"masks must have one shape, not {a.shape} and {b.shape}")
    either = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / either if either else 1.0


def detail_energy(
    images: npt.ArrayLike, truth: npt.ArrayLike, masks: npt.ArrayLike | None = None
) -> np.ndarray:
    """Compute the energy of detail relative to that of the truth.

    Detail is the difference from a Gaussian blur of one voxel; energy is its mean
    square. Noise is detail, too: see :func:`detail_correlation`.

    Parameters
    ----------
    images, truth : array_like
        Images and their ground truth, ``(n, *space, channels)``.
    masks : array_like, optional
        Region to compare, ``(n, *space)``. Default: everywhere.

    Returns
    -------
    ndarray
        Energy relative to the truth, ``(n,)``: 1 if equal.

    Raises
    ------
    InputError
        As of :func:`psnr`, or if the truth has no detail.
    """
    pairs = _details(images, truth, masks)
    return np.array([np.mean(x**2) / _energy(y) for x, y in pairs])


def detail_correlation(
    images: npt.ArrayLike, truth: npt.ArrayLike, masks: npt.ArrayLike | None = None
) -> np.ndarray:
    """Compute the correlation of detail with that of the truth.

    Detail as of :func:`detail_energy`. Invented detail raises the energy, but lowers
    the correlation.

    Parameters
    ----------
    images, truth, masks : array_like
        As of :func:`detail_energy`.

    Returns
    -------
    ndarray
        Correlation, ``(n,)``: 1 for the same detail up to a factor, 0 if there is none
        or none of it is true.

    Raises
    ------
    InputError
        As of :func:`detail_energy`.
    """
    correlations = []
    for x, y in _details(images, truth, masks):
        norm = np.sqrt(np.mean(x**2) * _energy(y))
        correlations.append(np.mean(x * y) / norm if norm else 0.0)
    return np.array(correlations)


def as_pairs(a, b):
    """Return two arrays of images, checked to have the same shape and finite values."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim < 3:
        raise InputError(
            f"give two arrays (n, *space, channels) of the same shape, not {a.shape} "
            f"and {b.shape}"
        )
    as_rows(a, b, minimum=1)
    return a, b


def masked(a, b, masks):
    """Yield the voxels of each pair within its mask."""
    a, b = as_pairs(a, b)
    masks = np.ones(a.shape[:-1], bool) if masks is None else np.asarray(masks) > 0
    if masks.shape != a.shape[:-1] or not masks.any(tuple(range(1, masks.ndim))).all():
        raise InputError(
            f"masks must have the shape {a.shape[:-1]}, not {masks.shape}, and none "
            "may be empty"
        )
    return ((x[m].astype(float), y[m].astype(float)) for x, y, m in zip(a, b, masks))


def _details(a, b, masks):
    """Yield the detail of each pair within its mask."""
    a, b = as_pairs(a, b)
    deviations = [0.0, *(_BLUR for _ in a.shape[1:-1]), 0.0]
    # The filter would round integers.
    a, b = (x.astype(np.result_type(x, np.float32), copy=False) for x in (a, b))
    a, b = (x - gaussian_filter(x, deviations) for x in (a, b))
    return masked(a, b, masks)


def _energy(truth: np.ndarray) -> float:
    energy = np.mean(truth**2)
    if energy == 0:
        raise InputError("the truth has no detail (it is constant)", "use other images")
    return energy


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Return the multi-scale structural similarity of two images."""
    window = min(_WINDOW, *a.shape[:-1])
    a, b, factors = a.astype(float), b.astype(float), []
    for _ in _SCALE_WEIGHTS:
        structure, with_luminance = _compare(a, b, (window - 1) // 2)
        factors.append(structure)
        if min(a.shape[:-1]) // 2 < max(window, 2):  # too small for a window
            break
        a, b = halve(a), halve(b)
    factors[-1] = with_luminance
    weights = _SCALE_WEIGHTS[: len(factors)]
    # Factors of inverted contrast are negative and have no root.
    return np.prod(np.maximum(factors, 0) ** (weights / weights.sum()))


def _compare(a: np.ndarray, b: np.ndarray, radius: int) -> tuple[float, float]:
    """Return the similarity of structure, and of structure with luminance."""
    rank = a.ndim - 1
    # Only windows that lie inside the image count.
    inside = (slice(radius, -radius or None),) * rank

    def average(x: np.ndarray) -> np.ndarray:
        deviations, radii = [_WINDOW_DEVIATION] * rank + [0], [radius] * rank + [0]
        return gaussian_filter(x, deviations, radius=radii)[inside]

    mean_a, mean_b = average(a), average(b)
    variances = average(a * a) + average(b * b) - mean_a**2 - mean_b**2
    covariance = average(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * covariance + c2) / (variances + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return structure.mean(), (luminance * structure).mean()


# Voxels. Deviations of the blurs between which the bands lie.
_BANDS = 0.7, 1.4, 2.8, 5.6


def octave_energies(images: npt.ArrayLike) -> np.ndarray:
    """Compute the energy of each octave of spatial frequencies.

    Parameters
    ----------
    images : array_like
        Images, ``(n, *space, channels)``.

    Returns
    -------
    ndarray
        Mean square, ``(n, octaves)``, from the finest: half to a quarter of the
        sampling frequency (cycles per voxel, in any direction), a quarter to an eighth,
        and so on, while the shortest side has two cycles of the lower bound.

    Raises
    ------
    InputError
        If there are no images, they have fewer than 8 voxels per side, or values are
        not finite.
    """
    stack, _ = as_pairs(images, images)
    octaves, count = _octaves(stack.shape[1:-1])
    energies = []
    for image in stack:
        power = np.sum(np.abs(_spectrum(image)) ** 2, -1) / image[..., 0].size
        energies.append([power[octaves == o].sum() / image.size for o in range(count)])
    return np.array(energies)


def octave_correlations(images: npt.ArrayLike, truth: npt.ArrayLike) -> np.ndarray:
    """Compute the correlation of each octave with that of the truth.

    Parameters
    ----------
    images, truth : array_like
        Images and their ground truth, ``(n, *space, channels)``.

    Returns
    -------
    ndarray
        Correlation, ``(n, octaves)``, from the finest, as of :func:`octave_energies`; 0
        for an octave without energy.

    Raises
    ------
    InputError
        As of :func:`octave_energies`, or if the shapes differ.
    """
    pairs = as_pairs(images, truth)
    octaves, count = _octaves(pairs[0].shape[1:-1])
    correlations = []
    for image, other in zip(*pairs, strict=True):
        a, b = _spectrum(image), _spectrum(other)
        inside = [octaves == octave for octave in range(count)]
        correlations.append([_correlation(a[mask], b[mask]) for mask in inside])
    return np.array(correlations)


def band_energies(
    images: npt.ArrayLike, masks: npt.ArrayLike | None = None
) -> np.ndarray:
    """Return the energy of texture at each scale, within masks.

    A band is the difference of two Gaussian blurs, one twice as wide as the other; the
    finest is that of the image and the first blur. Masks that exclude strong edges
    reveal what they hide in :func:`octave_energies`: noise, or patch artefacts of the
    size of a latent.

    Shapes: images ``(n, *space, channels)``, masks ``(n, *space)``, result ``(n, 4)``.
    """
    stack, _ = as_pairs(images, images)
    space = len(stack.shape) - 2
    blurred = [stack.astype(float)]
    for blur in _BANDS:
        deviations = [0.0, *[blur] * space, 0.0]
        blurred.append(gaussian_filter(blurred[0], deviations))
    bands = (masked(a, b, masks) for a, b in pairwise(blurred))
    return np.array([[np.mean((x - y) ** 2) for x, y in pairs] for pairs in bands]).T


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    norm = np.sqrt(np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2))
    return float(np.sum(a.conj() * b).real / norm) if norm else 0.0


def _spectrum(image: np.ndarray) -> np.ndarray:
    return np.fft.fftn(image, axes=tuple(range(image.ndim - 1)))


def _octaves(space: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Return the octave of each frequency, and the number of octaves."""
    shortest = min(space)
    if shortest < 8:
        raise InputError(f"octaves need images of 8 voxels per side, not {space}")
    grids = np.meshgrid(*map(np.fft.fftfreq, space), indexing="ij")
    frequencies = np.sqrt(sum(grid**2 for grid in grids))
    # 0 is the finest. The mean, of frequency 0, is in none.
    with np.errstate(divide="ignore"):
        octaves = np.ceil(-np.log2(2 * frequencies)) - 1
    octaves[frequencies == 0.5] = 0
    return octaves, int(np.log2(shortest)) - 2
