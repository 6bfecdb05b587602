"""How far apart distributions are, by the mean of a kernel over pairs of samples."""

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import at_least, whole
from dipy_ldm._utils.subjects import blocks, number_subjects
from dipy_ldm.metrics.distributions import as_rows
from dipy_ldm.metrics.intervals import Interval, bootstrap_interval


def kernel_distance(
    features_a: npt.ArrayLike,
    features_b: npt.ArrayLike,
    *,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    subjects: tuple[npt.ArrayLike | None, npt.ArrayLike | None] = (None, None),
) -> Interval:
    r"""Compare two sets by all moments of their features up to the third.

    The kernel distance (KID) :footcite:p:`Binkowski2018`: the squared maximum mean
    discrepancy with the kernel :math:`k(x, y) = (x \cdot y / d + 1)^3` of :math:`d`
    features, with means over pairs of different samples,

    .. math::

        E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y).

    Unlike a Fréchet distance, its expectation does not depend on the number of samples,
    and few of them are enough. Sets of one distribution are as often below 0 as above.

    Parameters
    ----------
    features_a, features_b : array_like
        Features, ``(n, *shape)``.
    resamples : int
        Draws of the bootstrap. A sample that is drawn twice makes no pair with itself,
        so that the estimate is unbiased in each draw, too.
    confidence : float
        Share of the draws that the interval holds.
    seed : int
        Of the draws.
    subjects : tuple of array_like or None
        Whose each sample is, ``(n,)`` of both sets; None is for others all. Subjects
        are drawn, with all of their samples, and these make no pairs with each other.

    Returns
    -------
    Interval
        Squared distance with its bounds. For sets of one distribution these are
        somewhat too far apart.

    Raises
    ------
    InputError
        If shapes differ, numbers are not finite, or there are fewer than two samples.

    References
    ----------
    .. footbibliography::
    """
    a, b = as_rows(features_a, features_b, minimum=2)
    whole("resamples", resamples, 2)
    rng = np.random.default_rng(seed)
    # The first draw has each sample once.
    of_a, of_b = map(number_subjects, subjects, map(len, (a, b)))
    drawn_a, drawn_b = (_draws(whose, resamples, rng) for whose in (of_a, of_b))
    distances = (
        _mean_kernel(a, a, drawn_a, drawn_a, of_a)
        + _mean_kernel(b, b, drawn_b, drawn_b, of_b)
        - 2 * _mean_kernel(a, b, drawn_a, drawn_b)
    )
    return bootstrap_interval(float(distances[0]), distances[1:], confidence)


def _draws(subjects, resamples, rng):
    """Return how often each sample is drawn, ``(1 + resamples, n)``."""
    n = int(at_least("the number of subjects", 1 + subjects.max(), 2))
    drawn = rng.multinomial(n, np.full(n, 1 / n), resamples)
    drawn = np.concatenate([np.ones((1, n)), drawn]).astype("float32")
    return drawn[:, subjects]


def _mean_kernel(a, b, drawn_a, drawn_b, subjects=None, block_size=512):
    """Return the mean of the kernel over the pairs of each draw, ``(draws,)``.

    Of one set by itself, over those of different subjects.
    """
    sums = np.zeros(len(drawn_a))
    for start in range(0, len(a), block_size):
        rows = slice(start, start + block_size)
        inner = a[rows] @ b.T / a.shape[1] + 1
        kernel = inner * inner * inner  # many times faster than a power
        if subjects is not None:
            kernel[subjects[rows, None] == subjects] = 0
        sums += np.einsum(
            "dr,dr->d", drawn_a[:, rows].astype(float), drawn_b @ kernel.T
        )
    pairs = drawn_a.sum(1, float) * drawn_b.sum(1, float)
    if subjects is not None:
        # A sample that was drawn several times would be compared with itself.
        for group in blocks(subjects):
            pairs -= np.square(drawn_a[:, group].sum(2, float)).sum(1)
    return sums / pairs
