"""Whether a model tells who was in its training set: membership inference."""

from typing import Any, NamedTuple

from keras import ops
import numpy as np

from dipy_ldm._utils.checks import at_least
from dipy_ldm.diffusion import samplers, schedules
from dipy_ldm.metrics import Interval, bootstrap

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
    """How well members are told from others."""

    auc: Interval
    true_positive_rate: Interval | None
    false_rate: float
    train: np.ndarray
    held_out: np.ndarray


def denoising_losses(
    model: Any, images: np.ndarray, seed: int = 0, source: np.ndarray | None = None
) -> np.ndarray:
    """Measure how well a model denoises each image at middle times.

    The attack of :footcite:p:`Carlini2023` and :footcite:p:`Matsumoto2023`: what was
    learnt by heart is denoised better.

    Shapes: images ``(n, *space, channels)``, result ``(n,)``.
    """
    latents = model._scaled(model.vqvae_.encode(images))
    size = max(1, _BATCH_VALUES // latents[0].size)
    schedule = model._described()["schedule"]
    losses = np.zeros(len(latents))
    for start in range(0, len(latents), size):
        clean = latents[start : start + size]
        numbers = range(start, start + len(clean))
        batch_source = None if source is None else source[start : start + size]
        denoise = model.denoiser(source=batch_source)
        draw = samplers.noise_source(seed, numbers, clean.shape[1:])
        for time in np.repeat(schedules.times_of_equal_noise(schedule, _TIMES), _DRAWS):
            alpha, sigma = (float(x) for x in schedules.rates(schedule, time))
            noisy = np.float32(alpha) * clean + np.float32(sigma) * draw()
            predicted = denoise(noisy, np.float32(time))
            error = ops.convert_to_numpy(predicted) - clean
            losses[start : start + len(clean)] += _means(error**2)
    return losses / (len(_TIMES) * _DRAWS)


def reconstruction_losses(model: Any, images: np.ndarray) -> np.ndarray:
    """Measure how well the autoencoder reconstructs each image.

    Shapes: images ``(n, *space, channels)``, result ``(n,)``.
    """
    return _means((model.vqvae_.predict(images) - images) ** 2)


def _means(values):
    return values.reshape(len(values), -1).mean(1, dtype=float)


def infer_membership(
    train: np.ndarray, held_out: np.ndarray, seed: int = 0
) -> Membership:
    """Say how well losses tell training images from others.

    Shapes: train, held_out ``(n,)``.
    """
    at_least("the number of images of each kind", min(len(train), len(held_out)), 2)
    n_held_out = len(held_out)
    rank = max(_MIN_RANK, int(_FALSE_RATE * (n_held_out + 1)))
    enough = n_held_out >= _MIN_HELD_OUT

    def share_detected(members, held_out):
        return np.mean(members < np.partition(held_out, rank - 1)[rank - 1])

    def interval(statistic):
        return bootstrap(statistic, train, held_out, seed=seed).within(0, 1)

    return Membership(
        interval(area_under_curve),
        interval(share_detected) if enough else None,
        # Of another loss it is as likely to have each of the ranks among these.
        rank / (n_held_out + 1),
        train,
        held_out,
    )


def area_under_curve(train: np.ndarray, held_out: np.ndarray) -> float:
    """Return the area under the curve of true by false positives.

    Shapes: train, held_out ``(n,)``.
    """
    ordered = np.sort(held_out)
    above = len(held_out) - np.searchsorted(ordered, train, "right")
    equal = len(held_out) - above - np.searchsorted(ordered, train, "left")
    return float(np.mean(above + equal / 2) / len(held_out))
