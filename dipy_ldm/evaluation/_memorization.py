"""Detection of copies of training images, and membership inference.

The *nearest-neighbour ratio* of a sample is its distance to the nearest training image
over that to the tenth nearest distinct one. It is small for a copy of one image or
subject, but not for a typical sample, which is close to many images. The distance is
tested, too. Reconstructions of held-out images provide the null distribution of both,
against the same training images, since distances fall with their number.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from keras import ops
import numpy as np
from scipy import stats

from dipy_ldm import LatentDiffusion
from dipy_ldm._utils.values import level_of, sort_levels, take_rows
from dipy_ldm.diffusion import samplers, schedules
from dipy_ldm.evaluation.features import Features, downsample
from dipy_ldm.metrics import Interval, binomial, nearest_distance
from dipy_ldm.metrics.distributions import nearest_neighbours
from dipy_ldm.metrics.intervals import bootstrap_share, fewest_subjects

# Neighbour whose distance measures the local density of training images.
N_NEIGHBOURS = 10
# Held-out images that tests need.
MIN_IMAGES = 20
# Quantile of held-out images below which a sample is suspicious.
_QUANTILE = 0.01
# A sample below half the held-out minimum is a copy. Of the samples below the minimum,
# at most 0.5**5 are copies by chance: the share falls with the n-th power of distance
# in n dimensions, and images have more than five.
COPY_RATIO, _COPY_PROBABILITY = 0.5, 0.5**5
# Of one audit, over all its tests.
FALSE_ALARM_RATE = 0.01
# For each kind of features: of nearer samples, and of copies by ratio and by distance.
_N_TESTS = 3
# Kinds of features that an audit searches.
_N_SPACES = 3
# Values of a fingerprint, and the distance of those of one image per value.
_MAX_FINGERPRINT_VALUES, _MAX_DUPLICATE_DISTANCE = 1024, 1e-3


class Neighbours(NamedTuple):
    """Distance to the nearest training image, its ratio and its row, ``(n,)`` each."""

    distance: np.ndarray
    ratio: np.ndarray
    nearest: np.ndarray


class Search(NamedTuple):
    """Nearest training images of generated and of held-out images.

    ``says`` describes the features.
    """

    says: str
    generated: Neighbours
    held_out: Neighbours


def search(
    features: Features, train: np.ndarray, held_out: np.ndarray, generated: np.ndarray
) -> Search:
    """Find the nearest training image of each image by features ``(n, features)``."""
    min_distance = separation(train, held_out)
    return Search(
        features.says,
        neighbours(generated, train, min_distance),
        neighbours(held_out, train, min_distance),
    )


def separation(train: np.ndarray, held_out: np.ndarray) -> float:
    """Return the distance below which training images ``(n, features)`` count as one.

    That below which 1 % of held-out images are from a training image: closer images are
    duplicates or scans of one subject. Copies of an image with ten duplicates would
    have a large ratio otherwise.
    """
    return _quantile(nearest_distance(held_out, train))[0]


def neighbours(
    queries: np.ndarray, train: np.ndarray, min_distance: float, k: int = N_NEIGHBOURS
) -> Neighbours:
    """Find the nearest training images by features ``(n, features)``."""
    k = min(k, len(train))
    distances, rows = nearest_neighbours(queries, train, k)
    distinct = [_distinct(train[indices], min_distance) for indices in rows]
    tenth = np.array([indices[:N_NEIGHBOURS][-1] for indices in distinct])
    far = np.take_along_axis(distances, tenth[:, None], 1)[:, 0]
    ratio = distances[:, 0] / np.maximum(far, 1e-12)
    lacking = np.array([len(indices) < N_NEIGHBOURS for indices in distinct])
    if k < len(train) and lacking.any():
        ratio[lacking] = neighbours(queries[lacking], train, min_distance, 4 * k).ratio
    return Neighbours(distances[:, 0], ratio, rows[:, 0])


def _distinct(rows: np.ndarray, min_distance: float) -> np.ndarray:
    """Return the indices of neighbours that are no duplicates of the nearest one."""
    far = np.linalg.norm(rows - rows[0], axis=1) >= min_distance
    far[0] = True
    return np.flatnonzero(far)


class Finding(NamedTuple):
    """Shares of suspicious samples and of copies, and their significance."""

    share: Interval
    by_distance: Interval
    copies: Interval
    chance: float
    threshold: float
    expected: float


def count_copies(result: Search) -> Finding:
    """Count suspicious samples, and compute the p-value (Bonferroni-corrected)."""
    nearer, copied = _suspicious(result)
    n, n_held_out = len(nearer), len(result.held_out.ratio)
    threshold, rank = _quantile(result.held_out.ratio)
    limit, _ = _quantile(result.held_out.distance)
    p_values = [
        _p_nearer(int(nearer.sum()), n, rank, n_held_out),
        *(_p_copies(int(x.sum()), n, n_held_out) for x in _copies(result)),
    ]
    return Finding(
        _share(nearer),
        _share(result.generated.distance < limit),
        _share(copied),
        min(1.0, _N_TESTS * min(p_values)),
        threshold,
        rank / (n_held_out + 1),
    )


def _share(selected: np.ndarray) -> Interval:
    return binomial(int(selected.sum()), len(selected))


def _suspicious(result: Search) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of generated images that are nearer, and that are copies."""
    nearer = result.generated.ratio < _quantile(result.held_out.ratio)[0]
    return nearer, np.logical_or(*_copies(result))


def _copies(result: Search) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of generated images that are copies by ratio, and by distance."""
    return (
        result.generated.ratio < COPY_RATIO * result.held_out.ratio.min(),
        result.generated.distance < COPY_RATIO * result.held_out.distance.min(),
    )


class Level(NamedTuple):
    """Suspicious samples among the n of one level of a class, by name of features."""

    n: int
    copies: dict[str, Interval]
    nearer: dict[str, Interval]


def count_copies_by_level(
    searches: Mapping[str, Search], requested: Sequence[Any]
) -> dict[str, Level]:
    """Count suspicious samples by requested level of a class."""
    levels = np.array(["" if value is None else level_of(value) for value in requested])
    suspicious = {name: _suspicious(search) for name, search in searches.items()}
    by_level = {}
    for level in sort_levels(set(levels.tolist()) - {""}):
        rows = levels == level
        nearer = {name: _share(near[rows]) for name, (near, _) in suspicious.items()}
        copies = {name: _share(copy[rows]) for name, (_, copy) in suspicious.items()}
        by_level[level] = Level(int(rows.sum()), copies, nearer)
    return by_level


def _quantile(values: np.ndarray) -> tuple[float, int]:
    """Return the 1 % quantile, which is one of the values, and its rank."""
    rank = max(1, int(_QUANTILE * len(values)))
    return float(np.sort(values)[rank - 1]), rank


def _p_nearer(count: int, n: int, rank: int, n_held_out: int) -> float:
    """Return the probability of as many of n below a rank of held-out values."""
    return float(stats.betabinom(n, rank, n_held_out + 1 - rank).sf(count - 1))


def _p_copies(count: int, n: int, n_held_out: int) -> float:
    """Bound the probability of as many of n below half the held-out minimum."""
    # The probability below the minimum has a beta distribution.
    middles = (np.arange(2000) + 0.5) / 2000
    shares = stats.beta(1, n_held_out).ppf(middles) * _COPY_PROBABILITY
    return float(np.mean(stats.binom(n, shares).sf(count - 1)))


def fewest_detectable(n: int, n_held_out: int) -> int:
    """Return the smallest number of exact copies that is significant."""
    p_values = (_N_TESTS * _p_copies(i, n, n_held_out) for i in range(1, n + 1))
    limit = FALSE_ALARM_RATE / _N_SPACES
    return next((i for i, p in enumerate(p_values, 1) if p < limit), n + 1)


def fingerprints(images: np.ndarray) -> np.ndarray:
    """Downsample images to ``(n, blocks)``, robust to data types and rounding."""
    return downsample(images, _MAX_FINGERPRINT_VALUES).reshape(len(images), -1)


def duplicates(train: np.ndarray, held_out: np.ndarray) -> list[tuple[int, int]]:
    """Find pairs of equal held-out and training images by fingerprints."""
    distances, rows = nearest_neighbours(held_out, train, 1)
    same = distances[:, 0] < _MAX_DUPLICATE_DISTANCE * np.sqrt(train.shape[1])
    return [(int(i), int(rows[i, 0])) for i in np.flatnonzero(same)]


# Intermediate times, where the loss separates best, in those of the cosine schedule;
# draws of noise at each.
_TIMES = (0.3, 0.4, 0.5, 0.6)
_DRAWS = 2
# Values of a batch of latents, about.
_BATCH_VALUES = 2**18
# False positive rate at which members are counted, and the held-out images it needs.
# The threshold is at least the second smallest of their losses: for the smallest, the
# bootstrap interval is invalid.
_FALSE_POSITIVE_RATE, _MIN_HELD_OUT, _MIN_RANK = 0.01, 100, 2


class Membership(NamedTuple):
    """Result of membership inference: AUC, true positive rate, and losses ``(n,)``."""

    auc: Interval
    true_positive_rate: Interval | None
    false_rate: float
    train: np.ndarray
    held_out: np.ndarray


def denoising_losses(
    model: LatentDiffusion,
    images: np.ndarray,
    seed: int = 0,
    source: np.ndarray | None = None,
    conditions: Mapping[str, Sequence] | None = None,
) -> np.ndarray:
    """Return the denoising loss of each image at intermediate times, ``(n,)``.

    The attack of :footcite:p:`Carlini2023` and :footcite:p:`Matsumoto2023`: memorised
    images have a lower loss.
    """
    latents = model._scaled(model.vqvae_.encode(images))
    size = max(1, _BATCH_VALUES // latents[0].size)
    schedule = model._schedule
    losses = np.zeros(len(latents))
    for start in range(0, len(latents), size):
        clean = latents[start : start + size]
        numbers = range(start, start + len(clean))
        batch_source = None if source is None else source[start : start + size]
        batch_conditions = take_rows(conditions, numbers)
        denoise = model.denoiser(conditions=batch_conditions, source=batch_source)
        draw = samplers.noise_source(seed, numbers, clean.shape[1:])
        for time in np.repeat(schedules.times_of_equal_noise(schedule, _TIMES), _DRAWS):
            alpha, sigma = (float(x) for x in schedules.rates(schedule, time))
            noisy = np.float32(alpha) * clean + np.float32(sigma) * draw()
            predicted = denoise(noisy, np.float32(time))
            error = ops.convert_to_numpy(predicted) - clean
            losses[start : start + len(clean)] += _means(error**2)
    return losses / (len(_TIMES) * _DRAWS)


def reconstruction_losses(
    model: LatentDiffusion, images: np.ndarray, *_: object
) -> np.ndarray:
    """Return the mean squared error of the reconstruction of each image, ``(n,)``."""
    return _means((model.vqvae_.predict(images) - images) ** 2)


def _means(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1).mean(1, dtype=float)


def infer_membership(
    train: np.ndarray,
    held_out: np.ndarray,
    seed: int = 0,
    subjects: Sequence[np.ndarray | None] = (None, None),
) -> Membership:
    """Measure how well losses ``(n,)`` separate training images from held-out ones.

    ``subjects`` are those of the images of both sets; by default, all differ.
    """
    n_held_out = len(held_out)
    n = fewest_subjects((train, held_out), subjects)
    rank = max(_MIN_RANK, int(_FALSE_POSITIVE_RATE * (n_held_out + 1)))

    def share_detected(members: np.ndarray, held_out: np.ndarray) -> float:
        return np.mean(members < np.partition(held_out, rank - 1)[rank - 1])

    def interval(statistic: Callable) -> Interval:
        if n < 2:  # the variance between subjects is unknown
            return Interval(float(statistic(train, held_out)), 0.0, 1.0)
        return bootstrap_share(statistic, train, held_out, seed=seed, subjects=subjects)

    return Membership(
        interval(area_under_curve),
        interval(share_detected) if n_held_out >= _MIN_HELD_OUT else None,
        # A further held-out loss has each rank with the same probability.
        rank / (n_held_out + 1),
        train,
        held_out,
    )


def area_under_curve(train: np.ndarray, held_out: np.ndarray) -> float:
    """Return the area under the ROC curve of losses ``(n,)``."""
    pairs = len(train) * len(held_out)
    return float(stats.mannwhitneyu(held_out, train).statistic) / pairs
