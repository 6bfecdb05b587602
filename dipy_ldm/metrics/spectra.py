"""How much there is of each scale, from the finest to the coarsest."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from dipy_ldm._utils.checks import InputError
from dipy_ldm.metrics.images import as_pairs, masked

# Voxels: blurs between which bands of texture lie.
_BANDS = 0.7, 1.4, 2.8, 5.6


def octave_energies(images: npt.ArrayLike) -> np.ndarray:
    """Measure how much there is of each octave of spatial frequencies.

    Parameters
    ----------
    images : array_like
        Images, ``(n, *space, channels)``.

    Returns
    -------
    ndarray
        Mean square, ``(n, octaves)``, from the finest: of half to a quarter of the
        sampling frequency (cycles a voxel, in any direction), of a quarter to an
        eighth, and so on, while the shortest side has two cycles of the lower bound.

    Raises
    ------
    InputError
        If there are no images, they are smaller than 8 voxels a side, or numbers are
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
    """Compute the correlation of each octave of images with the truth.

    Parameters
    ----------
    images, truth : array_like
        Images and what they should be, ``(n, *space, channels)``.

    Returns
    -------
    ndarray
        Correlation, ``(n, octaves)``, from the finest, as of :func:`octave_energies`; 0
        where there is nothing of an octave.

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
    """Measure how much texture images have at each scale, within masks.

    A band is what one Gaussian blur leaves and another, twice as wide, takes away; the
    finest is all that the first takes away. Masks that keep away from strong edges show
    what these would hide in :func:`octave_energies`: noise, or patches of the size of a
    latent.

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


def _correlation(a, b):
    norm = np.sqrt(np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2))
    return float(np.sum(a.conj() * b).real / norm) if norm else 0.0


def _spectrum(image):
    return np.fft.fftn(image, axes=tuple(range(image.ndim - 1)))


def _octaves(space):
    """Return the octave that each frequency is in, and how many there are."""
    shortest = min(space)
    if shortest < 8:
        raise InputError(f"octaves need images of 8 voxels a side, not {space}.")
    grids = np.meshgrid(*map(np.fft.fftfreq, space), indexing="ij")
    frequencies = np.sqrt(sum(grid**2 for grid in grids))
    # 0 is the finest. The mean is in none.
    with np.errstate(divide="ignore"):
        octaves = np.ceil(-np.log2(2 * frequencies)) - 1
    octaves[frequencies == 0.5] = 0
    return octaves, int(np.log2(shortest)) - 2
