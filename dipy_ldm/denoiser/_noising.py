"""Noised latents for training, as functions of (seed, epoch, example)."""

from collections.abc import Callable

import numpy as np

from dipy_ldm._conditions import UNSPECIFIED
from dipy_ldm._utils.checks import choose
from dipy_ldm._utils.types import Batches
from dipy_ldm.data._batches import examples_of, normal_numbers, stream_of
from dipy_ldm.denoiser._conditioning import Latents
from dipy_ldm.diffusion import schedules

# The golden ratio: its multiples, modulo one, cover [0, 1] evenly at any count.
_GOLDEN = (5**0.5 - 1) / 2


def noisy_batches(
    latents: Latents,
    batch_size: int,
    *,
    schedule: str,
    target: str,
    seed: int,
    times: Callable | None = None,
    dropped: float = 0.1,
) -> Batches:
    """Draw endless batches of noisy latents, their conditioning, and targets.

    Within an epoch the times are those of a low-discrepancy sequence, so that
    each batch has its share of every noise level.

    Shapes: result ``((noisy latents, times, ...), target)``.
    """
    mix = choose("schedule", schedule, schedules.SCHEDULES)
    n, *shape = latents.clean.shape

    def draw(step, places):
        epoch, order, index = examples_of(n, batch_size, seed, step, places)
        streams = [stream_of(seed, epoch, i) for i in index]
        clean, noise = latents.clean[index], normal_numbers(streams, shape)
        start = stream_of(seed, epoch).random()
        shares = (start + _GOLDEN * order) % 1.0
        when = (shares if times is None else times(shares)).astype("float32")
        table = _drop_conditions(latents.inputs.table[index], streams, dropped)
        inputs = latents.inputs._replace(table=table).arrays()
        alpha, sigma = (rate.reshape(-1, *(1 for _ in shape)) for rate in mix(when))
        if latents.conditional_mean is not None:
            mean = latents.conditional_mean.predict(table)
            clean, inputs = clean - mean, (alpha * mean, *inputs)
        prediction = schedules.to_target(target, clean, noise, alpha, sigma)
        return (alpha * clean + sigma * noise, when, *inputs), prediction

    return Batches(batch_size, draw)


def _drop_conditions(conditions, streams, share):
    """Drop all conditions of an example, each of several, or none."""
    n = conditions.shape[1]
    numbers = np.array([s.random(n + 1) for s in streams]).reshape(-1, n + 1)
    dropped = numbers[:, :1] < share
    if n > 1:
        dropped = dropped | (numbers[:, 1:] < share)
    return np.where(dropped, np.float32(UNSPECIFIED), conditions)
