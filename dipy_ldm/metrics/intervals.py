"""How far a figure can be trusted: intervals of it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError, at_least, whole
from dipy_ldm._utils.subjects import blocks

# Draws of nearest neighbours, and how many samples of a set are drawn at most.
_SUBSAMPLES, _MAX_SUBSAMPLE = 100, 500


class Interval(NamedTuple):
    """A figure, and the bounds between which it is confidently."""

    value: float
    low: float
    high: float

    def within(self, low: float, high: float) -> Self:
        """Clip the bounds to what a figure can be."""
        return self._replace(low=max(self.low, low), high=min(self.high, high))


def bootstrap(
    statistic: Callable[..., float],
    *samples: npt.ArrayLike,
    resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    subjects: Sequence[npt.ArrayLike | None] | None = None,
) -> Interval:
    """Return the bootstrap interval of a figure.

    The bootstrap :footcite:p:`Efron1993`: the figure of samples that are drawn, with
    replacement, from the given ones. Distances of resampled sets are too large by what
    chance adds twice, so that the interval is as wide as the middle of the resampled
    figures, but lies around the figure as these lie around their own median.

    Parameters
    ----------
    statistic : callable
        From samples to a figure. Of what depends on nearest neighbours, resample the
        figure of each sample: one that is drawn twice is its own neighbour.
    *samples : array_like
        Samples, ``(n, *shape)``; each set is resampled by itself.
    resamples : int
        How often.
    confidence : float
        Share of the resampled figures that the interval holds, between 0 and 1.
    seed : int
        Of the draws.
    subjects : sequence of array_like or None, optional
        Whose each sample is, ``(n,)`` for each set; None is for others all. Subjects
        are drawn, with all of their samples.

    Returns
    -------
    Interval
        The figure of the samples themselves, and its bounds.

    Raises
    ------
    InputError
        If a set has samples of fewer than two subjects, or a number makes no sense.

    References
    ----------
    .. footbibliography::
    """
    whole("resamples", resamples, 2)
    sets = [np.asarray(sample) for sample in samples]
    groups = [_rows(*pair) for pair in zip(sets, subjects or [None] * len(sets))]
    for rows in groups:
        at_least("the number of samples", len(rows), 2)
    value, rng = float(statistic(*sets)), np.random.default_rng(seed)
    draws = [rng.integers(0, len(rows), (resamples, len(rows))) for rows in groups]
    resampled = []
    for numbers in zip(*draws):
        drawn = map(_taken, groups, numbers)
        chosen = (x[rows] for x, rows in zip(sets, drawn, strict=True))
        resampled.append(statistic(*chosen))
    return bootstrap_interval(value, resampled, confidence)


def subsample(
    statistic: Callable[..., Sequence[float]],
    *samples: npt.ArrayLike,
    seed: int = 0,
    subjects: Sequence[npt.ArrayLike | None] | None = None,
) -> list[Interval]:
    """Return the subsampling intervals of figures of nearest neighbours.

    They can't be bootstrapped: a sample that is drawn twice would be its own neighbour.
    Half of the samples are drawn instead, none of them twice, or fewer of large sets,
    and the spread of their figures is scaled to sets of all samples
    :footcite:p:`Politis1994`. Of subjects, the last that is drawn may be so in part.

    Shapes: samples ``(n, *shape)`` of one n, subjects ``(n,)``.
    """
    sets = [np.asarray(sample) for sample in samples]
    groups = [_rows(*pair) for pair in zip(sets, subjects or [None] * len(sets))]
    n, rng, resampled = len(sets[0]), np.random.default_rng(seed), []
    size = min(n // 2, _MAX_SUBSAMPLE)
    for _ in range(_SUBSAMPLES):
        drawn = (_taken(rows, rng.permutation(len(rows)))[:size] for rows in groups)
        resampled.append(statistic(*(x[rows] for x, rows in zip(sets, drawn))))
    figures = np.array(resampled, float)
    # Figures of so many vary more than those of n, and less for being of a part of n.
    centred = (figures - np.median(figures, axis=0)) * np.sqrt(size / (n - size))
    return [
        bootstrap_interval(float(value), value + spread)
        for value, spread in zip(statistic(*sets), centred.T, strict=True)
    ]


def subjects_of(subjects: npt.ArrayLike | None, n: int) -> np.ndarray:
    """Return the subject of each of n samples, who all differ if None is given."""
    whose = np.arange(n) if subjects is None else np.asarray(subjects)
    if len(whose) != n:
        raise InputError(f"give the subject of each of {n} samples, not {len(whose)}.")
    return whose


def fewest_subjects(
    samples: Sequence[np.ndarray], subjects: Sequence[npt.ArrayLike | None]
) -> int:
    """Count the subjects of each set of samples, and return the lowest count."""
    whose = map(subjects_of, subjects, map(len, samples))
    return min(len(np.unique(own)) for own in whose)


def _rows(samples, subjects):
    """Return the numbers of each subject's samples."""
    groups = blocks(subjects_of(subjects, len(samples)))
    # Where all have equally many, an array, which is faster.
    return groups[0] if len(groups) == 1 else [x for group in groups for x in group]


def _taken(rows, numbers):
    """Return the numbers of the samples of some subjects, one after the other."""
    if isinstance(rows, np.ndarray):
        return rows[numbers].ravel()
    return np.concatenate([rows[i] for i in numbers])


def bootstrap_interval(
    value: float, resampled: npt.ArrayLike, confidence: float = 0.95
) -> Interval:
    """Return the interval of a figure from its resampled values that are numbers."""
    tail, figures = (1 - _checked(confidence)) / 2, np.asarray(resampled, float)
    low, middle, high = np.nanquantile(figures, [tail, 0.5, 1 - tail])
    return Interval(value, float(value + low - middle), float(value + high - middle))


def binomial(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a share :footcite:p:`Clopper1934`.

    Parameters
    ----------
    count, n : int
        How many of how many.
    confidence : float
        Probability that the interval holds the true share is at least this.

    Returns
    -------
    Interval
        Share and its bounds, from 0 to 1.

    Raises
    ------
    InputError
        If a number makes no sense.

    References
    ----------
    .. footbibliography::
    """
    # Not where nothing is judged: it takes a quarter of a second.
    from scipy import stats

    whole("count", count, 0)
    whole("n", n, max(count, 1))
    test = stats.binomtest(count, n)
    low, high = test.proportion_ci(_checked(confidence), method="exact")
    return Interval(count / n, float(low), float(high))


def widened(share: Interval, n: int) -> Interval:
    """Widen the interval of a share to the exact one of n samples, if it is narrower.

    Resampling few says too little, and nothing where all are alike.
    """
    _, low, high = binomial(round(share.value * n), n)
    return share._replace(low=min(share.low, low), high=max(share.high, high))


def bootstrap_share(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    seed: int,
    subjects: Sequence[npt.ArrayLike | None],
) -> Interval:
    """Return the bootstrap interval of a share; where it is 0 or 1 the exact one."""
    share = bootstrap(statistic, *samples, seed=seed, subjects=subjects).within(0, 1)
    n = fewest_subjects(samples, subjects)
    # Without an error, all that is resampled is the same.
    return widened(share, n) if round(share.value * n) in (0, n) else share


def _checked(confidence):
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, not {confidence}.")
    return confidence
