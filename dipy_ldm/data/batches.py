"""Batches for training, as functions of (seed, epoch, example).

Nothing here has a state: which examples are in a batch and which noise they get
follows from the number of the step alone. A run that is stopped and resumed, or
spread over devices, or accumulated from smaller batches, sees the same numbers.
"""

import numpy as np
import tensorflow as tf

from dipy_ldm import schedules
from dipy_ldm.validation import choose

# The golden ratio: its multiples, modulo one, cover [0, 1] evenly at any count.
_GOLDEN = (5**0.5 - 1) / 2


def batches(images, batch_size, *, seed, first_epoch=0):
    """Draw batches without end, in a new order every epoch.

    Parameters
    ----------
    images : ndarray
        Images, ``(n, *space, channels)``.
    batch_size : int
        Images in a batch. An epoch has ``n // batch_size`` batches; which
        images are left out changes from epoch to epoch.
    seed : int
        Seed of the order.
    first_epoch : int
        Epoch to begin with.

    Returns
    -------
    tf.data.Dataset
        Pairs ``(images, images)`` of shape ``(batch_size, *space, channels)``.
    """
    images = tf.constant(images)

    def look_up(epoch, position, index):
        batch = tf.gather(images, index)
        return batch, batch

    numbered = _numbered(len(images), batch_size, seed, first_epoch)
    return numbered.batch(batch_size).map(look_up).prefetch(tf.data.AUTOTUNE)


def noised(latents, batch_size, *, schedule, target, seed, first_epoch=0):
    """Draw noised latents without end: what the denoiser learns from.

    Within an epoch the times are those of a low-discrepancy sequence, so that
    each batch has its share of every noise level.

    Parameters
    ----------
    latents : ndarray
        Clean latents of unit variance, ``(n, *space, channels)``.
    batch_size : int
        Latents in a batch.
    schedule : str
        Name of a schedule.
    target : {"v", "noise", "clean"}
        What the network shall predict.
    seed : int
        Seed of the order, the times and the noise.
    first_epoch : int
        Epoch to begin with.

    Returns
    -------
    tf.data.Dataset
        Pairs ``((noisy latents, times), target)``.
    """
    latents = tf.constant(latents)
    mix = choose("schedule", schedule, schedules.SCHEDULES)
    ones = (1,) * (latents.shape.rank - 1)

    def draw(epoch, position, index):
        key = tf.stack([_fold(seed, epoch), index])
        noise = tf.random.stateless_normal(latents.shape[1:], key)
        start = tf.random.stateless_uniform(
            (), [_fold(seed, epoch), -1], dtype="float64"
        )
        time = (start + _GOLDEN * tf.cast(position, "float64")) % 1.0
        return index, noise, tf.cast(time, "float32")

    def mixture(index, noise, time):
        clean = tf.gather(latents, index)
        alpha, sigma = (tf.reshape(rate, (-1, *ones)) for rate in mix(time))
        wanted = schedules.to_target(target, clean, noise, alpha, sigma)
        return (alpha * clean + sigma * noise, time), wanted

    examples = _numbered(len(latents), batch_size, seed, first_epoch)
    examples = examples.map(draw, num_parallel_calls=tf.data.AUTOTUNE)
    return examples.batch(batch_size).map(mixture).prefetch(tf.data.AUTOTUNE)


def _numbered(n, batch_size, seed, first_epoch):
    """Count through the epochs: ``(epoch, position, index)`` of every example."""
    length = n // batch_size * batch_size

    def shuffle(count):
        epoch, position = count // length, count % length
        key = tf.stack([tf.constant(seed, "int64"), epoch])
        index = tf.random.experimental.index_shuffle(position, key, n - 1)
        return epoch, position, index

    counts = tf.data.Dataset.range(first_epoch * length, np.iinfo("int64").max)
    return counts.map(shuffle)


def _fold(seed, epoch):
    """Make one number of two; a prime keeps small seeds and epochs apart."""
    return seed * 1_000_003 + epoch
