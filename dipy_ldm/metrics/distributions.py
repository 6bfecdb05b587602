"""Distances between sets of samples, or of their features.

Features (or pixels) are arrays with one sample per row; further axes are flattened.
Distances are computed in blocks, so that those between 10,000 and 60,000 samples are
never in memory at once.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError, at_least, whole
from dipy_ldm._utils.subjects import blocks, number_subjects
from dipy_ldm.metrics.intervals import Interval, bootstrap_interval

# Tolerance of squared distances, relative to squared lengths.
_ROUNDING = 1e-12


def frechet_distance(features_a: npt.ArrayLike, features_b: npt.ArrayLike) -> float:
    r"""Compute the Fréchet distance (FID) of the Gaussians of two sets.

    The squared Fréchet (2-Wasserstein) distance of the Gaussians that have the mean
    :math:`\mu` and the covariance :math:`C` of each set :footcite:p:`Heusel2017`,

    .. math::

        |\mu_a - \mu_b|^2 + \mathrm{tr}(C_a + C_b - 2 (C_a C_b)^{1/2}).

    It is biased upwards for few samples: compare only sets of equal size.

    Parameters
    ----------
    features_a, features_b : array_like
        Features, ``(n, *shape)``, with more samples than features.

    Returns
    -------
    float
        Squared distance: 0 for sets of equal mean and covariance.

    Raises
    ------
    InputError
        If shapes differ, values are not finite, or samples are too few.

    References
    ----------
    .. footbibliography::
    """
    a, b = as_rows(features_a, features_b, minimum=2)
    n, features = min(len(a), len(b)), a.shape[1]
    if n <= features:
        raise InputError(
            f"a Fréchet distance of {features} features needs {features + 1} samples "
            f"of each set, not {n}",
            "give more, or use kernel_distance",
        )
    return gaussian_distance(a, b)


def gaussian_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of sets of any size, ``(n, features)``."""
    a, b = a.astype(float), b.astype(float)
    cov_a, cov_b = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (a, b))
    # The distance of the roots of the covariances after optimal rotation, which
    # is a sum of squares, without cancellation or negative values.
    root_a, root_b = _root(cov_a), _root(cov_b)
    u, _, vt = np.linalg.svd(root_b @ root_a)
    of_covariances = np.sum((root_a - root_b @ u @ vt) ** 2)
    distance = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + of_covariances
    # Differences within the rounding errors of the covariances count as 0.
    rounding = a.shape[1] * np.finfo(float).eps * np.trace(cov_a + cov_b)
    return float(distance) if distance > rounding else 0.0


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def precision_recall(
    real: npt.ArrayLike, fake: npt.ArrayLike, k: int = 3
) -> tuple[float, float]:
    """Compute precision and recall of generated samples.

    A set covers the balls around its samples up to their ``k``-th nearest neighbours.
    Precision is the share of generated samples that the real set covers, recall the
    share of real samples that the generated set covers
    :footcite:p:`Kynkaanniemi2019`.

    Parameters
    ----------
    real, fake : array_like
        Features of real and generated samples, ``(n, *shape)``.
    k : int
        Which neighbour a ball reaches to, at least 1.

    Returns
    -------
    precision : float
        Share of the generated samples, from 0 to 1.
    recall : float
        Share of the real samples, from 0 to 1.

    Raises
    ------
    InputError
        If shapes differ, values are not finite, or samples are too few.

    References
    ----------
    .. footbibliography::
    """
    return neighbour_shares(real, fake, k)[:2]


def density_coverage(
    real: npt.ArrayLike, fake: npt.ArrayLike, k: int = 5
) -> tuple[float, float]:
    """Compute density and coverage of generated samples, robust to outliers.

    Around each real sample is a ball up to its ``k``-th nearest real neighbour. Density
    is the mean number of these balls that contain a generated sample, divided by ``k``;
    coverage is the share of balls that contain any :footcite:p:`Naeem2020`. A real
    outlier, whose ball is huge, raises precision and recall, but not these.

    Parameters
    ----------
    real, fake : array_like
        Features of real and generated samples, ``(n, *shape)``.
    k : int
        Which neighbour a ball reaches to, at least 1.

    Returns
    -------
    density : float
        About 1 for sets of the same distribution; above, samples are too central.
    coverage : float
        Share of the real samples, from 0 to 1. About ``1 - 0.5 ** k`` for sets of equal
        size and distribution.

    Raises
    ------
    InputError
        If shapes differ, values are not finite, or samples are too few.

    References
    ----------
    .. footbibliography::
    """
    return neighbour_shares(real, fake, k)[2:]


def neighbour_shares(
    real: npt.ArrayLike, fake: npt.ArrayLike, k: int
) -> tuple[float, float, float, float]:
    """Return precision, recall, density and coverage of samples ``(n, *shape)``.

    Around each sample is the ball to its ``k``-th nearest neighbour of its own set.
    """
    rows = as_rows(real, fake, minimum=whole("k", k, 1) + 1)
    reals, fakes = (samples.astype(float) for samples in rows)
    centre = reals.mean(axis=0)
    real_radii, fake_radii = (
        _radii(samples, k) + _ROUNDING * np.sum((samples - centre) ** 2, axis=1)
        for samples in (reals, fakes)
    )
    # Numbers of real balls around each generated sample, of generated samples in each
    # real ball, and of generated balls around each real sample.
    of_fake = np.zeros(len(fakes), int)
    of_real, covered = np.zeros((2, len(reals)), int)
    for block, squared in _squared_distances(fakes, reals):
        inside = squared <= real_radii
        of_fake[block] = inside.sum(1)
        of_real += inside.sum(0)
        covered += (squared <= fake_radii[block, None]).sum(0)
    shares = of_fake > 0, covered > 0, of_fake / k, of_real > 0
    precision, recall, density, coverage = (float(np.mean(x)) for x in shares)
    return precision, recall, density, coverage


def nearest_distance(
    queries: npt.ArrayLike, references: npt.ArrayLike, block_size: int = 256
) -> np.ndarray:
    """Compute the distance of each sample to the nearest reference.

    Generated samples much closer to the training data than new real samples are copies
    of it.

    Parameters
    ----------
    queries, references : array_like
        Samples, ``(n, *shape)``.
    block_size : int
        Queries compared at once; affects memory and speed only.

    Returns
    -------
    ndarray
        Euclidean distance of each query to its nearest reference, ``(n,)``.

    Raises
    ------
    InputError
        If shapes differ, values are not finite, or there are no samples.
    """
    return nearest_neighbours(queries, references, 1, block_size)[0][:, 0]


def nearest_neighbours(
    queries: npt.ArrayLike, references: npt.ArrayLike, k: int, block_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances and indices of the k nearest references.

    Shapes: queries, references ``(n, *shape)``, result ``(n, k)``, ``(n, k)``.
    """
    query_rows, reference_rows = as_rows(queries, references, minimum=1)
    at_least("the number of references", len(reference_rows), at_least("k", k, 1))
    if k > 10:  # differences would take gigabytes
        block_size = max(1, 10 * block_size // k)
    distances, indices = [], []
    for rows, squared in _squared_distances(query_rows, reference_rows, block_size):
        nearest = np.argpartition(squared, k - 1, axis=1)[:, :k]
        # Differences avoid the cancellation of the expanded square: 0 for copies.
        block = query_rows[rows, None]
        exact = np.linalg.norm(block - reference_rows[nearest], axis=-1)
        order = np.argsort(exact, axis=1, kind="stable")
        distances.append(np.take_along_axis(exact, order, 1))
        indices.append(np.take_along_axis(nearest, order, 1))
    return np.concatenate(distances), np.concatenate(indices)


def energy_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    r"""Compute the energy distance between two sets.

    The energy distance :footcite:p:`Szekely2013`, with means over all pairs,

    .. math::

        2 E|X - Y| - E|X - X'| - E|Y - Y'|.

    Unlike a Fréchet distance, it does not need more samples than features, so that
    images themselves can be compared. It is the V-statistic, which includes pairs of a
    sample with itself: 0 for equal sets and never negative, but larger for smaller
    sets. Compare only sets of equal size.

    Parameters
    ----------
    a, b : array_like
        Samples, ``(n, *shape)``.

    Returns
    -------
    float
        Distance, in the unit of Euclidean distances of samples.

    Raises
    ------
    InputError
        If shapes differ, values are not finite, or there are no samples.

    References
    ----------
    .. footbibliography::
    """
    a, b = (rows.astype(float) for rows in as_rows(a, b, minimum=1))
    distance = 2 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)
    return max(distance, 0.0)


def as_rows(a: npt.ArrayLike, b: npt.ArrayLike, minimum: int) -> Iterator[np.ndarray]:
    """Flatten two sets to one sample per row, of a common floating type."""
    a, b = np.asarray(a), np.asarray(b)
    if min(a.ndim, b.ndim) < 2 or a.shape[1:] != b.shape[1:]:
        raise InputError(
            f"give two arrays (n, *shape) that differ at most in n, not {a.shape} and "
            f"{b.shape}"
        )
    for array in (a, b):
        at_least("the number of samples", len(array), minimum)
        if not np.isfinite(array).all():
            raise InputError("samples have NaN or infinite values", "remove them first")
    dtype = np.result_type(a, b, np.float32)
    return (x.reshape(len(x), -1).astype(dtype, copy=False) for x in (a, b))


def _squared_distances(
    queries: np.ndarray, references: np.ndarray, block_size: int = 256
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of rows of queries, and squared distances to all references."""
    whole("block_size", block_size, 1)
    # Centred, to reduce cancellation.
    centre = references.mean(axis=0)
    references = references - centre
    lengths = np.sum(references**2, axis=1)
    for start in range(0, len(queries), block_size):
        rows = slice(start, start + block_size)
        block = queries[rows] - centre
        squared = np.sum(block**2, axis=1)[:, None] + lengths - 2 * block @ references.T
        yield rows, np.maximum(squared, 0)


def _radii(samples: np.ndarray, k: int) -> np.ndarray:
    """Return the squared distance of each sample to its k-th nearest neighbour."""
    # Index 0 is the sample itself.
    squared = _squared_distances(samples, samples)
    return np.concatenate([np.partition(d, k, axis=1)[:, k] for _, d in squared])


def _mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean distance over all pairs of rows of two sets."""
    sums = [np.sqrt(squared).sum() for _, squared in _squared_distances(a, b)]
    return float(sum(sums) / (len(a) * len(b)))


def kernel_distance(
    features_a: npt.ArrayLike,
    features_b: npt.ArrayLike,
    *,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    subjects: tuple[npt.ArrayLike | None, npt.ArrayLike | None] = (None, None),
) -> Interval:
    r"""Compute the kernel distance (KID) of two sets, by moments up to the third.

    The squared maximum mean discrepancy :footcite:p:`Binkowski2018` with the kernel
    :math:`k(x, y) = (x \cdot y / d + 1)^3` of :math:`d` features, with means over pairs
    of different samples,

    .. math::

        E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y).

    Unlike a Fréchet distance, it is unbiased, and few samples are enough. It may be
    negative for sets of the same distribution.

    Parameters
    ----------
    features_a, features_b : array_like
        Features, ``(n, *shape)``.
    resamples : int
        Bootstrap resamples. A sample that is drawn twice is not paired with itself, so
        that each resample is unbiased, too.
    confidence : float
        Confidence level of the interval.
    seed : int
        Of the resampling.
    subjects : tuple of array_like or None
        Subject of each sample, ``(n,)`` for both sets. Default: all differ. Subjects
        are drawn with all of their samples, which are not paired with each other.

    Returns
    -------
    Interval
        Squared distance with its bounds. For sets of the same distribution, the
        interval is somewhat too wide.

    Raises
    ------
    InputError
        If shapes differ, values are not finite, or there are fewer than two samples.

    References
    ----------
    .. footbibliography::
    """
    a, b = as_rows(features_a, features_b, minimum=2)
    whole("resamples", resamples, 2)
    rng = np.random.default_rng(seed)
    # The first draw is the sample itself.
    of_a, of_b = map(number_subjects, subjects, map(len, (a, b)))
    drawn_a, drawn_b = (_draws(ids, resamples, rng) for ids in (of_a, of_b))
    # Draws of a single subject have no pairs.
    with np.errstate(invalid="ignore"):
        distances = (
            _mean_kernel(a, a, drawn_a, drawn_a, of_a)
            + _mean_kernel(b, b, drawn_b, drawn_b, of_b)
            - 2 * _mean_kernel(a, b, drawn_a, drawn_b)
        )
    return bootstrap_interval(float(distances[0]), distances[1:], confidence)


def _draws(
    subjects: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return how often each sample is drawn, ``(1 + resamples, n)``."""
    n = int(at_least("the number of subjects", 1 + subjects.max(), 2))
    drawn = rng.multinomial(n, np.full(n, 1 / n), resamples)
    drawn = np.concatenate([np.ones((1, n)), drawn]).astype("float32")
    return drawn[:, subjects]


def _mean_kernel(a, b, drawn_a, drawn_b, subjects=None, block_size=512):
    """Return the mean kernel over the pairs of each draw, ``(draws,)``.

    With subjects, within one set, only pairs of different subjects count.
    """
    sums = np.zeros(len(drawn_a))
    for start in range(0, len(a), block_size):
        rows = slice(start, start + block_size)
        inner = a[rows] @ b.T / a.shape[1] + 1
        kernel = inner * inner * inner  # much faster than a power
        if subjects is not None:
            kernel[subjects[rows, None] == subjects] = 0
        drawn = drawn_a[:, rows].astype(float)
        sums += np.einsum("dr,dr->d", drawn, drawn_b @ kernel.T)
    pairs = drawn_a.sum(1, float) * drawn_b.sum(1, float)
    if subjects is not None:
        # Excludes pairs within a subject, also of a repeatedly drawn sample.
        for group in blocks(subjects):
            pairs -= np.square(drawn_a[:, group].sum(2, float)).sum(1)
    return sums / pairs
