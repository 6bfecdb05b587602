"""Fidelity, variety and sharpness of samples, relative to real images.

Every figure is computed for three sets of the same size, against the same reference of
real images: generated images, further real ones (the *floor*, the best to expect) and
reconstructions of these (the *ceiling* of what the decoder can generate).
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import t

from dipy_ldm import VQVAE
from dipy_ldm.evaluation.features import Features, unscaled
from dipy_ldm.metrics import (
    Interval,
    bootstrap,
    kernel_distance,
    multiscale_ssim,
    octave_correlations,
    octave_energies,
    psnr,
)
from dipy_ldm.metrics.distributions import gaussian_distance, neighbour_shares
from dipy_ldm.metrics.images import band_energies
from dipy_ldm.metrics.intervals import fewest_subjects, subsample, widened

# Neighbour that the balls reach to, as in the paper on density and coverage.
NEIGHBOURS = 5
# With fewer, a ball of five neighbours is most of the set.
MIN_IMAGES = 4 * NEIGHBOURS
# With fewer subjects, subsampling underestimates the spread of shares.
_MIN_SUBSAMPLED = 8 * NEIGHBOURS
# Features up to which bootstrapping a covariance takes seconds.
_MAX_FRECHET_FEATURES = 256
_FRECHET_RESAMPLES = 40
# Pairs of images whose similarity measures variety.
_MAX_PAIRS = 400


class Sets(NamedTuple):
    """Equally large sets of images to compare, ``(n, *space, channels)`` in [0, 1].

    ``reference`` and ``real`` are disjoint real images, and ``reconstructed`` are those
    of ``real``. ``subjects`` has the subject of each image or of its source, ``(n,)``.
    """

    reference: np.ndarray
    real: np.ndarray
    generated: np.ndarray
    reconstructed: np.ndarray
    subjects: Mapping[str, np.ndarray] = MappingProxyType({})

    def first(self, n: int) -> "Sets":
        """Return the first n images of each set."""
        subjects = {name: ids[:n] for name, ids in self.subjects.items()}
        return Sets._make([*(images[:n] for images in self[:4]), subjects])

    def subjects_of(self, *names: str) -> list[np.ndarray]:
        """Return the subjects ``(n,)`` of the images of each named set."""
        return [self.subjects.get(n, np.arange(len(getattr(self, n)))) for n in names]

    @property
    def compared(self):
        """Sets that are compared with the reference, by name."""
        names = "generated", "real", "reconstructed"
        return {name: getattr(self, name) for name in names}

    @property
    def by_name(self):
        """All sets, by name."""
        return {"reference": self.reference, **self.compared}


def compute_features(sets: Sets, features: Features) -> dict[str, np.ndarray]:
    """Compute the features ``(n, features)`` of all sets."""
    rows = {name: features.compute(images) for name, images in sets.by_name.items()}
    if not features.standardised:
        return rows
    reference = rows["reference"]
    middle, spread = reference.mean(0), np.maximum(reference.std(0), 1e-6)
    return {name: (row - middle) / spread for name, row in rows.items()}


def measure_fidelity(
    rows: Mapping[str, np.ndarray],
    seed: int = 0,
    subjects: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, dict[str, Interval | None]]:
    """Return distances to the reference, precision, recall, density and coverage."""
    sets = {name: row.astype(float) for name, row in rows.items()}
    real, of_real = sets.pop("reference"), subjects.get("reference")
    return {
        name: _distances(real, fake, seed, (of_real, subjects.get(name)))
        for name, fake in sets.items()
    }


def _distances(
    real: np.ndarray,
    fake: np.ndarray,
    seed: int = 0,
    subjects: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> dict[str, Interval | None]:
    """Return all figures of two sets of features ``(n, features)``."""
    figures = {
        "kernel": kernel_distance(real, fake, seed=seed, subjects=subjects),
        "frechet": _frechet(real, fake, seed, subjects),
    }
    statistic = partial(neighbour_shares, k=NEIGHBOURS)
    shares = subsample(statistic, real, fake, seed=seed, subjects=subjects)
    n = fewest_subjects((real, fake), subjects)
    highest = {"precision": 1, "recall": 1, "density": np.inf, "coverage": 1}
    for (name, high), share in zip(highest.items(), shares, strict=True):
        if high == 1 and n < _MIN_SUBSAMPLED:
            share = widened(share, n)
        figures[name] = share.within(0, high)
    return figures


def _frechet(
    real: np.ndarray,
    fake: np.ndarray,
    seed: int,
    subjects: tuple[np.ndarray | None, np.ndarray | None],
) -> Interval | None:
    """Return the Fréchet distance; None for too few images or too many features."""
    size = real.shape[1]
    if size > _MAX_FRECHET_FEATURES or size >= min(len(real), len(fake)):
        return None
    resample = partial(bootstrap, resamples=_FRECHET_RESAMPLES)
    distance = resample(gaussian_distance, real, fake, seed=seed, subjects=subjects)
    return distance.within(0, np.inf)


def measure_variety(sets: Sets, seed: int = 0) -> dict[str, Interval]:
    """Return the mean similarity (MS-SSIM) of pairs within each set."""
    similarities = {}
    for name, images in sets.compared.items():
        (subject_ids,) = sets.subjects_of(name)
        # Scans of one subject are similar, even in a varied set.
        _, first = np.unique(subject_ids, return_index=True)
        similarities[name] = pair_similarity(images[np.sort(first)], seed)
    return similarities


def pair_similarity(images: np.ndarray, seed: int = 0) -> Interval:
    """Return the mean similarity (MS-SSIM) of pairs of ``(n, *space, channels)``."""
    order = np.random.default_rng(seed).permutation(len(images))
    # A cycle, so that no image is paired with itself.
    pairs = list(zip(order, np.roll(order, 1), strict=True))[:_MAX_PAIRS]
    similarity = [multiscale_ssim(images[[i]], images[[j]])[0] for i, j in pairs]
    value, off = np.mean(similarity), similarity - np.mean(similarity)
    # Consecutive pairs share an image and are correlated.
    variance = np.mean(off**2) + max(0, 2 * np.mean(off * np.roll(off, 1)))
    # Around their own mean, the three terms add up to n - 3 of n parts of the variance.
    freedom = max(1, len(off) - 3)
    margin = t.ppf(0.975, max(1, len(off) - 1)) * np.sqrt(variance / freedom)
    return Interval(float(value), value - margin, value + margin).within(0, 1)


# Images that are measured; more do not change the figures visibly.
_MAX_IMAGES = 500


def measure_sharpness(sets: Sets, seed: int = 0) -> dict[str, list]:
    """Return the energy of each octave of frequencies, relative to the reference."""
    if min(sets.reference.shape[1:-1]) < 8:
        return {}
    few = sets.first(_MAX_IMAGES)
    mean = partial(bootstrap, np.mean, seed=seed, subjects=few.subjects_of("real"))
    correlations = octave_correlations(few.reconstructed, few.real)
    true = [mean(x).within(-1, 1) for x in correlations.T]
    return _ratios(few, octave_energies, seed) | {"true": true}


def measure_texture(
    sets: Sets, seed: int = 0, empty: np.ndarray | float = 0.0
) -> dict[str, list]:
    """Return the energy of texture at each scale, relative to the reference.

    Inside heads: the contrast of their rim dominates :func:`measure_sharpness`, and
    hides artefacts such as patches of the size of a latent. ``empty`` are the values of
    channels outside of heads.
    """
    return _ratios(sets.first(_MAX_IMAGES), partial(_textures, empty=empty), seed)


def _textures(volumes: np.ndarray, empty: np.ndarray | float) -> np.ndarray:
    # One by one: blurred copies of all may exceed the memory.
    energies = [band_energies(v[None], interior(v, empty)[None])[0] for v in volumes]
    return np.array(energies)


def interior(volume: np.ndarray, empty: np.ndarray | float = 0.0) -> np.ndarray:
    """Return the mask ``(x, y, z)`` of a head without its rim."""
    content = np.abs(volume - np.float32(empty)).mean(-1)
    blurred = ndimage.gaussian_filter(content, 1.5)
    head = ndimage.binary_fill_holes(blurred > 0.3 * blurred.max())
    inside = ndimage.binary_erosion(head, iterations=3)
    if inside.any():
        return inside
    return head if head.any() else np.ones(head.shape, bool)


def _ratios(sets: Sets, energies_of: Callable, seed: int) -> dict[str, list[Interval]]:
    """Return the mean energies of each set relative to those of the reference."""

    def ratio(x: np.ndarray, y: np.ndarray) -> float:
        return x.mean() / y.mean()

    reference, ratios = energies_of(sets.reference), {}
    for name, images in sets.compared.items():
        pairs = zip(energies_of(images).T, reference.T, strict=True)
        subjects = sets.subjects_of(name, "reference")
        resample = partial(bootstrap, ratio, seed=seed, subjects=subjects)
        ratios[name] = [resample(x, y).within(0, np.inf) for x, y in pairs]
    return ratios


def measure_reconstruction(
    vqvae: VQVAE, sets: Sets, seed: int = 0
) -> dict[str, Interval | int | float | None]:
    """Return the errors of reconstructions, and the use of the codebook."""
    few = sets.first(_MAX_IMAGES)
    images, real, subjects = few.reconstructed, few.real, few.subjects_of("real")
    mean = partial(bootstrap, np.mean, seed=seed, subjects=subjects)
    errors = [np.mean((a - b) ** 2, dtype=float) for a, b in zip(images, real)]
    return {
        "mse": mean(errors).within(0, np.inf),
        # Infinite, and left out, for exact reconstructions.
        "psnr": finite_mean(psnr(images, real), subjects[0], seed),
        "ms_ssim": mean(multiscale_ssim(images, real)).within(0, 1),
        **_usage(vqvae, real),
    }


def finite_mean(
    values: npt.ArrayLike, subjects: np.ndarray, seed: int
) -> Interval | None:
    """Return the mean of finite values; None if of fewer than two subjects."""
    array = np.asarray(values)
    finite = np.isfinite(array)
    subject_ids = subjects[finite]
    if len(np.unique(subject_ids)) < 2:
        return None
    return bootstrap(np.mean, array[finite], seed=seed, subjects=[subject_ids])


def _usage(vqvae: VQVAE, images: np.ndarray) -> dict[str, int | float]:
    """Return how many codes images use, and their perplexity."""
    latents = vqvae.encode(unscaled(images, vqvae.intensity_))
    total = len(vqvae.codebook_)
    counts = np.bincount(np.ravel(vqvae.codes(latents)), minlength=total)
    shares = counts[counts > 0] / counts.sum()
    # Per codebook, as in histories.
    n_codebooks = vqvae._parameters().n_codebooks
    return {
        "codes_used": int(np.count_nonzero(counts)),
        "n_codes": total,
        "perplexity": float(np.exp(-np.sum(shares * np.log(shares)))) / n_codebooks,
    }
