"""Whether samples are copies of training images, and membership inference.

The measure is the *nearness* of a sample: the distance to the nearest training image
over that to the tenth nearest among distinct images. It is small where one image, or
several scans of one subject, stand out, and not where a sample is just typical: such
samples are near to all images. The distance itself is tested, too. Held-out real
images, as the autoencoder reconstructs them, tell what chance makes of both. They and
the samples search the same training images: the more there are to search, the nearer
the nearest is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from keras import ops
import numpy as np
from scipy import stats

from dipy_ldm._utils.checks import at_least
from dipy_ldm._utils.values import level_of, sort_levels, take_rows
from dipy_ldm.diffusion import samplers, schedules
from dipy_ldm.evaluation.features import Features, shrunk
from dipy_ldm.latent_diffusion import LatentDiffusion
from dipy_ldm.metrics import Interval, binomial, nearest_distance
from dipy_ldm.metrics.distributions import nearest_neighbours
from dipy_ldm.metrics.intervals import bootstrap_share, fewest_subjects

# The neighbour whose distance tells how dense training images are around a sample.
N_NEIGHBOURS = 10
# Held-out images without which nothing can be said.
MIN_IMAGES = 20
# The quantile of held-out images, below which a sample is suspicious.
_QUANTILE = 0.01
# A sample below so much of the least of the held-out ones is a copy, and so many such
# are there by chance at most: distances of n dimensions fall with the power of n, and
# images have more than five.
COPY_RATIO, _CHANCE = 0.5, 0.5**5
# Chance of a false alarm of one audit, over all that is tested.
FALSE_ALARM_RATE = 0.01
# Of each kind of features: how many are nearer, and how many are copies by nearness
# and by distance.
_TESTS = 3
# Kinds of features that an audit searches.
_SPACES = 3
# Of fingerprints: blocks at most, and how far those of one image are apart.
_MAX_FINGERPRINT_VALUES, _MAX_DUPLICATE_DISTANCE = 1024, 1e-3


class Neighbours(NamedTuple):
    """Distances, nearest-neighbour ratio and row of the nearest, by image."""

    distance: np.ndarray
    nearness: np.ndarray
    nearest: np.ndarray


class Search(NamedTuple):
    """Neighbours of generated and of held-out images among the training images.

    ``says`` describes the features, and ``rows`` are those of the training and of the
    held-out images.
    """

    says: str
    generated: Neighbours
    held_out: Neighbours
    rows: tuple[np.ndarray, np.ndarray]


def search(
    features: Features, train: np.ndarray, held_out: np.ndarray, generated: np.ndarray
) -> Search:
    """Find the nearest training image of each other one, by ``(n, features)``."""
    apart = separation(train, held_out)
    return Search(
        features.says,
        neighbours(generated, train, apart),
        neighbours(held_out, train, apart),
        (train, held_out),
    )


def separation(train: np.ndarray, held_out: np.ndarray) -> float:
    """Return the distance below which training images ``(n, features)`` count as one.

    Nearer to each other than 1 % of held-out images are to any training image are
    scans of one subject, or one file twice. Otherwise an image that is there ten times
    would be near to its tenth neighbour, too, and copies of it would look typical.
    """
    return _quantile(nearest_distance(held_out, train))[0]


def neighbours(
    queries: np.ndarray, train: np.ndarray, apart: float, k: int = N_NEIGHBOURS
) -> Neighbours:
    """Find nearest training images by their features, ``(n, features)``."""
    k = min(k, len(train))
    distances, rows = nearest_neighbours(queries, train, k)
    distinct = [_distinct(train[indices], apart) for indices in rows]
    places = np.array([indices[:N_NEIGHBOURS][-1] for indices in distinct])
    far = np.take_along_axis(distances, places[:, None], 1)[:, 0]
    nearness = distances[:, 0] / np.maximum(far, 1e-12)
    lacking = np.array([len(indices) < N_NEIGHBOURS for indices in distinct])
    if k < len(train) and lacking.any():
        nearness[lacking] = neighbours(queries[lacking], train, apart, 4 * k).nearness
    return Neighbours(distances[:, 0], nearness, rows[:, 0])


def _distinct(rows, apart):
    """Return which neighbours are not the nearest one again, in their order."""
    far = np.linalg.norm(rows - rows[0], axis=1) >= apart
    far[0] = True
    return np.flatnonzero(far)


class Finding(NamedTuple):
    """Result of a search for copies."""

    share: Interval
    by_distance: Interval
    copies: Interval
    chance: float
    threshold: float
    expected: float


def judge(result: Search) -> Finding:
    """Count suspicious samples, and compute their probability by chance."""
    nearer, copied = _suspicious(result)
    n, n_held_out = len(nearer), len(result.held_out.nearness)
    threshold, rank = _quantile(result.held_out.nearness)
    limit, _ = _quantile(result.held_out.distance)
    chances = [
        _chance(int(nearer.sum()), n, rank, n_held_out),
        *(_chance_of_close(int(x.sum()), n, n_held_out) for x in _close(result)),
    ]
    return Finding(
        _share(nearer),
        _share(result.generated.distance < limit),
        _share(copied),
        min(1.0, _TESTS * min(chances)),
        threshold,
        rank / (n_held_out + 1),
    )


def _share(selected):
    return binomial(int(selected.sum()), len(selected))


def _suspicious(result):
    """Return which generated images are nearer than usual, and which are copies."""
    nearer = result.generated.nearness < _quantile(result.held_out.nearness)[0]
    return nearer, np.logical_or(*_close(result))


def _close(result):
    """Return which generated images are copies by ratio, and which by distance."""
    return (
        result.generated.nearness < COPY_RATIO * result.held_out.nearness.min(),
        result.generated.distance < COPY_RATIO * result.held_out.distance.min(),
    )


class Level(NamedTuple):
    """Suspicious samples of one level of a class.

    ``n`` is how many they are; ``copies`` and ``nearer`` are shares of them as of
    :class:`Finding`, by the name of the features.
    """

    n: int
    copies: dict[str, Interval]
    nearer: dict[str, Interval]


def judge_levels(
    searches: Mapping[str, Search], requested: Sequence[Any]
) -> dict[str, Level]:
    """Count suspicious samples for each level of a class."""
    levels = np.array(["" if value is None else level_of(value) for value in requested])
    suspicious = {name: _suspicious(search) for name, search in searches.items()}
    by_level = {}
    for level in sort_levels(set(levels.tolist()) - {""}):
        own = levels == level
        nearer = {name: _share(near[own]) for name, (near, _) in suspicious.items()}
        copies = {name: _share(close[own]) for name, (_, close) in suspicious.items()}
        by_level[level] = Level(int(own.sum()), copies, nearer)
    return by_level


def _quantile(values):
    """Return the 1 % quantile, one of the values, and the rank that it has."""
    rank = max(1, int(_QUANTILE * len(values)))
    return float(np.sort(values)[rank - 1]), rank


def _chance(count, n, rank, n_held_out):
    """Return how likely so many of n are below the value of a rank of others."""
    return float(stats.betabinom(n, rank, n_held_out + 1 - rank).sf(count - 1))


def _chance_of_close(count, n, n_held_out):
    """Return at most how likely so many of n are below half the least of others."""
    # Of the least of the others, the share that is below it is drawn from this.
    middles = (np.arange(2000) + 0.5) / 2000
    shares = stats.beta(1, n_held_out).ppf(middles) * _CHANCE
    return float(np.mean(stats.binom(n, shares).sf(count - 1)))


def fewest_detectable(n: int, n_held_out: int) -> int:
    """Return the fewest exact copies that would be significant."""
    chances = (_TESTS * _chance_of_close(i, n, n_held_out) for i in range(1, n + 1))
    limit = FALSE_ALARM_RATE / _SPACES
    return next((i for i, chance in enumerate(chances, 1) if chance < limit), n + 1)


def fingerprints(images: np.ndarray) -> np.ndarray:
    """Downsample images to ``(n, blocks)``, which survive types and rounding."""
    return shrunk(images, _MAX_FINGERPRINT_VALUES).reshape(len(images), -1)


def duplicates(train: np.ndarray, held_out: np.ndarray) -> list[tuple[int, int]]:
    """Find held-out images that are training images, by ``(n, blocks)``."""
    distances, rows = nearest_neighbours(held_out, train, 1)
    same = distances[:, 0] < _MAX_DUPLICATE_DISTANCE * np.sqrt(train.shape[1])
    return [(int(i), int(rows[i, 0])) for i in np.flatnonzero(same)]


# Times in the middle, where models give most away, by the noise that the cosine
# schedule has then; and draws of noise at each.
_TIMES = (0.3, 0.4, 0.5, 0.6)
_DRAWS = 2
# Numbers of a batch of latents, about.
_BATCH_VALUES = 2**18
# Rate of false positives at which members are counted, and held-out images without
# which it can't be that small. The limit is the second least of their losses, or a
# higher one: of the least, which is chance, the bootstrap gives no honest interval.
_FALSE_RATE, _MIN_HELD_OUT, _MIN_RANK = 0.01, 100, 2


class Membership(NamedTuple):
    """Result of membership inference."""

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
    """Measure how well a model denoises each image at middle times, ``(n,)``.

    The attack of :footcite:p:`Carlini2023` and :footcite:p:`Matsumoto2023`: what was
    memorised is denoised better.
    """
    latents = model._scaled(model.vqvae_.encode(images))
    size = max(1, _BATCH_VALUES // latents[0].size)
    schedule = model._schedule
    losses = np.zeros(len(latents))
    for start in range(0, len(latents), size):
        clean = latents[start : start + size]
        numbers = range(start, start + len(clean))
        batch_source = None if source is None else source[start : start + size]
        own = take_rows(conditions, numbers)
        denoise = model.denoiser(conditions=own, source=batch_source)
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
    """Measure how well the autoencoder reconstructs images, without noise, ``(n,)``."""
    return _means((model.vqvae_.predict(images) - images) ** 2)


def _means(values):
    return values.reshape(len(values), -1).mean(1, dtype=float)


def infer_membership(
    train: np.ndarray,
    held_out: np.ndarray,
    seed: int = 0,
    subjects: Sequence[np.ndarray | None] = (None, None),
) -> Membership:
    """Measure how well losses ``(n,)`` separate training images from others.

    ``subjects`` say whose each image of both kinds is; they all differ if None.
    """
    n_held_out = len(held_out)
    at_least("the number of images of each kind", min(len(train), n_held_out), 2)
    n = fewest_subjects((train, held_out), subjects)
    rank = max(_MIN_RANK, int(_FALSE_RATE * (n_held_out + 1)))

    def share_detected(members, held_out):
        return np.mean(members < np.partition(held_out, rank - 1)[rank - 1])

    def interval(statistic):
        if n < 2:  # one subject can't tell how others differ
            return Interval(float(statistic(train, held_out)), 0.0, 1.0)
        sets = train, held_out
        return bootstrap_share(statistic, *sets, seed=seed, subjects=subjects)

    return Membership(
        interval(area_under_curve),
        interval(share_detected) if n_held_out >= _MIN_HELD_OUT else None,
        # Of another loss it is as likely to have each of the ranks among these.
        rank / (n_held_out + 1),
        train,
        held_out,
    )


def area_under_curve(train: np.ndarray, held_out: np.ndarray) -> float:
    """Return the area under the curve of true by false positives of scores ``(n,)``."""
    pairs = len(train) * len(held_out)
    return float(stats.mannwhitneyu(held_out, train).statistic) / pairs
