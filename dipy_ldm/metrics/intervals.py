"""Confidence intervals: bootstrap, subsampling and binomial."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError, at_least, whole
from dipy_ldm._utils.subjects import blocks

# Draws, and samples of a set in each.
_SUBSAMPLES, _MAX_SUBSAMPLE = 100, 500


class Interval(NamedTuple):
    """A value and the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def within(self, low: float, high: float) -> Self:
        """Clip the bounds to the possible range."""
        return self._replace(low=max(self.low, low), high=min(self.high, high))

    def stretched(self, factor: float) -> Self:
        """Scale the distances of the bounds from the value."""
        low, high = (self.value + factor * (x - self.value) for x in self[1:])
        return self._replace(low=low, high=high)


def bootstrap(
    statistic: Callable[..., float],
    *samples: npt.ArrayLike,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    subjects: Sequence[npt.ArrayLike | None] | None = None,
) -> Interval:
    """Compute the bootstrap confidence interval of a statistic.

    The bootstrap :footcite:p:`Efron1993` evaluates the statistic of samples drawn with
    replacement. Distances of resampled sets are biased upwards, so that the resampled
    statistics are shifted to have the value of the samples as their median.

    Parameters
    ----------
    statistic : callable
        From samples to a number. It must not depend on nearest neighbours: a sample
        that is drawn twice is its own. Resample the value of each sample instead.
    *samples : array_like
        Samples, ``(n, *shape)``; sets are resampled independently.
    resamples : int
        Number of resamples.
    confidence : float
        Confidence level, between 0 and 1.
    seed : int
        Of the resampling.
    subjects : sequence of array_like or None, optional
        Subject of each sample, ``(n,)`` for each set. Default: all differ. Subjects are
        drawn with all of their samples.

    Returns
    -------
    Interval
        The statistic of the samples, and its bounds.

    Raises
    ------
    InputError
        If a set has fewer than two subjects, or a parameter is out of range.

    References
    ----------
    .. footbibliography::
    """
    whole("resamples", resamples, 2)
    sets = [np.asarray(sample) for sample in samples]
    groups = [_by_subject(*pair) for pair in zip(sets, subjects or [None] * len(sets))]
    for rows in groups:
        at_least("the number of samples", len(rows), 2)
    value, rng = float(statistic(*sets)), np.random.default_rng(seed)
    draws = [rng.integers(0, len(rows), (resamples, len(rows))) for rows in groups]
    resampled = []
    for numbers in zip(*draws):
        drawn = map(_rows_of, groups, numbers)
        chosen = (x[rows] for x, rows in zip(sets, drawn, strict=True))
        resampled.append(statistic(*chosen))
    return bootstrap_interval(value, resampled, confidence)


def subsample(
    statistic: Callable[..., Sequence[float]],
    *samples: npt.ArrayLike,
    seed: int = 0,
    subjects: Sequence[npt.ArrayLike | None] | None = None,
) -> list[Interval]:
    """Return the subsampling intervals of statistics of nearest neighbours.

    These cannot be bootstrapped: a sample that is drawn twice is its own neighbour.
    Half of the samples, at most 500, are drawn without replacement instead, and the
    spread of the statistics is scaled to the full size :footcite:p:`Politis1994`. The
    last subject may be drawn in part.

    Shapes: samples ``(n, *shape)`` of one n, subjects ``(n,)``.
    """
    sets = [np.asarray(sample) for sample in samples]
    groups = [_by_subject(*pair) for pair in zip(sets, subjects or [None] * len(sets))]
    n, rng, resampled = len(sets[0]), np.random.default_rng(seed), []
    size = min(n // 2, _MAX_SUBSAMPLE)
    for _ in range(_SUBSAMPLES):
        drawn = (_rows_of(rows, rng.permutation(len(rows)))[:size] for rows in groups)
        resampled.append(statistic(*(x[rows] for x, rows in zip(sets, drawn))))
    figures = np.array(resampled, float)
    # Scales the spread from subsamples of n without replacement to samples of size n.
    centred = (figures - np.median(figures, axis=0)) * np.sqrt(size / (n - size))
    return [
        bootstrap_interval(float(value), value + spread)
        for value, spread in zip(statistic(*sets), centred.T, strict=True)
    ]


def subjects_of(subjects: npt.ArrayLike | None, n: int) -> np.ndarray:
    """Return the subject of each of n samples. Default: all differ."""
    ids = np.arange(n) if subjects is None else np.asarray(subjects)
    if len(ids) != n:
        raise InputError(f"give the subject of each of {n} samples, not {len(ids)}")
    return ids


def fewest_subjects(
    samples: Sequence[np.ndarray], subjects: Sequence[npt.ArrayLike | None]
) -> int:
    """Return the lowest number of subjects of a set."""
    ids = map(subjects_of, subjects, map(len, samples))
    return min(len(np.unique(set_ids)) for set_ids in ids)


def _by_subject(samples, subjects):
    """Return the indices of the samples of each subject."""
    groups = blocks(subjects_of(subjects, len(samples)))
    # An array if all have equally many, which is faster.
    return groups[0] if len(groups) == 1 else [x for group in groups for x in group]


def _rows_of(rows, numbers):
    """Return the indices of the samples of drawn subjects."""
    if isinstance(rows, np.ndarray):
        return rows[numbers].ravel()
    return np.concatenate([rows[i] for i in numbers])


def bootstrap_interval(
    value: float, resampled: npt.ArrayLike, confidence: float = 0.95
) -> Interval:
    """Return the shifted quantile interval of resampled values, ignoring NaN."""
    tail, figures = (1 - _checked(confidence)) / 2, np.asarray(resampled, float)
    low, middle, high = np.nanquantile(figures, [tail, 0.5, 1 - tail])
    return Interval(value, float(value + low - middle), float(value + high - middle))


def binomial(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Compute the exact binomial interval of a share :footcite:p:`Clopper1934`.

    Parameters
    ----------
    count, n : int
        Number of successes and of trials.
    confidence : float
        Lower bound of the probability that the interval contains the true share.

    Returns
    -------
    Interval
        Share and its bounds, from 0 to 1.

    Raises
    ------
    InputError
        If a parameter is out of range.

    References
    ----------
    .. footbibliography::
    """
    # Imported here, since it takes a quarter of a second.
    from scipy import stats

    whole("count", count, 0)
    whole("n", n, max(count, 1))
    test = stats.binomtest(count, n)
    low, high = test.proportion_ci(_checked(confidence), method="exact")
    return Interval(count / n, float(low), float(high))


def widened(share: Interval, n: int) -> Interval:
    """Widen the interval of a share to at least the exact one of n samples.

    Resampling underestimates the spread of few samples, and that of equal ones is 0.
    """
    _, low, high = binomial(round(share.value * n), n)
    return share._replace(low=min(share.low, low), high=max(share.high, high))


def bootstrap_share(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    seed: int,
    subjects: Sequence[npt.ArrayLike | None],
    stretch: float = 1.0,
) -> Interval:
    """Return the bootstrap interval of a share, or the exact one at 0 or 1."""
    share = bootstrap(statistic, *samples, seed=seed, subjects=subjects)
    share = share.stretched(stretch).within(0, 1)
    n = fewest_subjects(samples, subjects)
    # All resamples are equal then.
    return widened(share, n) if round(share.value * n) in (0, n) else share


def _checked(confidence):
    if not 0 < confidence < 1:
        raise InputError(
            f"must lie between 0 and 1, not {confidence}", option="confidence"
        )
    return confidence
