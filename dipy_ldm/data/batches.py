"""Batches for training, as functions of (seed, epoch, example).

Nothing here has a state: which examples are in a batch and which noise they get
follows from the number of the step alone. A run that is stopped and resumed, or
spread over devices, or accumulated from smaller batches, sees the same numbers.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dipy_ldm import schedules
from dipy_ldm.conditions import UNSPECIFIED
from dipy_ldm.data.given import Sources, inputs
from dipy_ldm.data.windows import read_windows
from dipy_ldm.validation import choose

# The golden ratio: its multiples, modulo one, cover [0, 1] evenly at any count.
_GOLDEN = (5**0.5 - 1) / 2


class Augmentation(NamedTuple):
    """How images are changed before an autoencoder sees them.

    Parameters
    ----------
    flip : bool
        Whether half of the images are mirrored left to right.
    shift : int
        Voxels by which an image is moved at most, along each axis.
    intensity : float
        Largest relative change of brightness, and of the exponent of contrast.
    noise : float
        Largest standard deviation of noise, of intensities from 0 to 1. It is in what
        the autoencoder is given and not in what it shall answer, and is between 0 and
        this for each image.
    """

    flip: bool = False
    shift: int = 0
    intensity: float = 0.0
    noise: float = 0.0


class Share(NamedTuple):
    """What of each batch a machine needs for its replicas.

    Parameters
    ----------
    machine, machines : int
        Number of this machine, and count of them.
    replicas : int
        Count of the replicas of all machines. Each gets a piece of the batch, and
        those of this machine come one after the other.
    """

    machine: int = 0
    machines: int = 1
    replicas: int = 1


def batches(
    images: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    first_step: int = 0,
    share: Share | None = None,
    size: tuple[int, ...] | None = None,
    bounds: tuple[float, ...] = (0.0, 1.0),
    masks: np.ndarray | None = None,
    background: float = 1.0,
    augment: Augmentation | None = None,
) -> Any:
    """Draw batches without end, in a new order every epoch.

    Images are read when their batch is drawn, and only what is needed of them: a
    mapped file may be far larger than the memory.

    Parameters
    ----------
    images : ndarray
        Images, ``(n, *space, channels)``.
    batch_size : int
        Images in a batch. An epoch has ``n // batch_size`` batches; which
        images are left out changes from epoch to epoch.
    seed : int
        Seed of the order, the places and the changes.
    first_step : int
        Batch to begin with, counted through all epochs.
    share : Share, optional
        What is drawn of each batch; all of it if None.
    size : tuple of int, optional
        Voxels of the piece that is drawn of each image, along each axis; from a
        random place where it is smaller than the image, and with the edge
        repeated where it is larger. All of the image if None.
    bounds : tuple of float
        Intensities that become 0 and 1.
    masks : ndarray, optional
        What matters on the images, ``(n, *space, 1)``; what is brighter than
        ``bounds[0]`` if None.
    background : float
        Weight of a voxel outside of the mask.
    augment : Augmentation, optional
        Changes; none if left out.

    Returns
    -------
    tf.data.Dataset
        Pairs ``(images, images)`` of shape ``(batch_size, *size, channels)``, or of a
        replica's piece of it, the first with noise; the weights, if they are not all
        1, are one more channel of the second.
    """
    share = share or Share()
    each = batch_size // share.replicas
    *space, channels = images.shape[1:]
    size = tuple(size or space)
    augment = augment or Augmentation()

    def draw(epoch, position, index):
        key = tf.stack([_fold(seed, epoch), index])
        numbers = tf.random.stateless_uniform((len(space) + 3,), key)
        slack = np.maximum(np.subtract(space, size), 0) + 2 * augment.shift
        corner = tf.floor(numbers[3:] * np.float32(slack + 1)) - augment.shift
        noise = _draw_noise(key, (*size, channels), augment.noise)
        return index, tf.cast(corner, "int64"), numbers[:3], noise

    def look_up(index, corners, numbers, noise):
        def read(array):
            windows = tf.numpy_function(
                lambda i, c: read_windows(array, i, c, size),
                [index, corners],
                "float32",
                stateful=False,
            )
            return tf.ensure_shape(windows, (each, *size, array.shape[-1]))

        low, high = bounds
        batch = (read(images) - low) / (high - low or 1)
        batch = _mirror(_brighten(batch, numbers, augment.intensity), numbers, augment)
        given = batch if augment.noise == 0 else tf.clip_by_value(batch + noise, 0, 1)
        if background == 1:
            return given, batch
        if masks is None:
            inside = tf.reduce_any(batch > 0, -1, keepdims=True)
        else:
            inside = _mirror(read(masks), numbers, augment) > 0
        return given, tf.concat([batch, tf.where(inside, 1.0, background)], -1)

    numbered = _numbered(len(images), batch_size, seed, first_step, share)
    drawn = numbered.map(draw).batch(each, drop_remainder=True)
    return _endless(drawn.map(look_up, num_parallel_calls=2))


def _draw_noise(key, shape, most):
    """Draw the noise of an image, of a standard deviation up to the most."""
    if most == 0:
        return tf.zeros(())
    keys = tf.random.split(key, 2)
    spread = tf.random.stateless_uniform((), keys[0], 0, most)
    return spread * tf.random.stateless_normal(shape, keys[1])


def _brighten(batch, numbers, most):
    """Change brightness and contrast of each image, within [0, 1]."""
    if most == 0:
        return batch
    ones = (1,) * (batch.shape.rank - 1)
    gain, exponent = (
        tf.reshape(1 + most * (2 * numbers[:, i] - 1), (-1, *ones)) for i in (0, 1)
    )
    return tf.clip_by_value(gain * tf.clip_by_value(batch, 0, 1) ** exponent, 0, 1)


def _mirror(batch, numbers, augment):
    """Mirror half of the images left to right."""
    if not augment.flip:
        return batch
    rank = batch.shape.rank - 2
    # Volumes are (x, y, z), from left to right along x; images are (h, w).
    axis = 1 if rank == 3 else rank
    half = tf.reshape(numbers[:, 2] < 0.5, (-1, *(1,) * (rank + 1)))
    return tf.where(half, tf.reverse(batch, [axis]), batch)


def noised(
    latents: np.ndarray,
    batch_size: int,
    *,
    schedule: str,
    target: str,
    seed: int,
    first_step: int = 0,
    share: Share | None = None,
    conditions: np.ndarray | None = None,
    sources: Sources | None = None,
    dropped: float = 0.1,
) -> Any:
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
    first_step : int
        Batch to begin with, counted through all epochs.
    share : Share, optional
        What is drawn of each batch; all of it if None.
    conditions : ndarray, optional
        What is told of each latent, ``(n, conditions)``.
    sources : Sources, optional
        Images that are told, whose numbers are a last column of ``conditions``.
    dropped : float
        Share of the latents of which all conditions are left out; and share of those of
        which one is, if there are several: so that it can do without any of them.

    Returns
    -------
    tf.data.Dataset
        Pairs ``((noisy latents, times, ...), target)``, with conditions and sources,
        each if there are any.
    """
    share = share or Share()
    mix = choose("schedule", schedule, schedules.SCHEDULES)
    ones = (1,) * (latents.ndim - 1)
    look = None if sources is None else _reader(sources)

    def read(index):
        # Where they are: a tensor would be a copy, and on a GPU if there is one.
        rows = tf.numpy_function(lambda i: latents[i], [index], "float32", False)
        return tf.ensure_shape(rows, (None, *latents.shape[1:]))

    def draw(epoch, position, index):
        key = tf.stack([_fold(seed, epoch), index])
        noise = tf.random.stateless_normal(latents.shape[1:], key)
        start = tf.random.stateless_uniform(
            (), [_fold(seed, epoch), -1], dtype="float64"
        )
        time = (start + _GOLDEN * tf.cast(position, "float64")) % 1.0
        told: tuple = ()
        if conditions is not None:
            # Keys of noise are not negative.
            key = [_fold(seed, epoch), -2 - index]
            told = (_leave_out(tf.gather(conditions, index), key, dropped),)
        return index, noise, tf.cast(time, "float32"), *told

    def mixture(index, noise, time, *told):
        clean = read(index)
        told = inputs(told[0], look) if told else ()
        alpha, sigma = (tf.reshape(rate, (-1, *ones)) for rate in mix(time))
        wanted = schedules.to_target(target, clean, noise, alpha, sigma)
        return (alpha * clean + sigma * noise, time, *told), wanted

    examples = _numbered(len(latents), batch_size, seed, first_step, share)
    examples = examples.map(draw, num_parallel_calls=tf.data.AUTOTUNE)
    pieces = examples.batch(batch_size // share.replicas)
    return _endless(pieces.map(mixture))


def _reader(sources):
    """Make what reads sources by their numbers."""

    def look(numbers):
        images = tf.numpy_function(sources.read, [numbers], "float32", False)
        return tf.ensure_shape(images, (None, *sources.shape))

    return look


def _leave_out(told, key, share):
    """Leave out all conditions of an example, each of several, or none."""
    n = told.shape[0]
    numbers = tf.random.stateless_uniform((n + 1,), key)
    left_out = numbers[:1] < share
    if n > 1:
        left_out |= numbers[1:] < share
    return tf.where(left_out, UNSPECIFIED, told)


def _numbered(n, batch_size, seed, first_step, share):
    """Count through the epochs: ``(epoch, position, index)`` of every example."""
    length = n // batch_size * batch_size
    here = batch_size // share.machines

    def shuffle(number):
        step, place = number // here, number % here
        count = step * batch_size + share.machine * here + place
        epoch, position = count // length, count % length
        key = tf.stack([tf.constant(seed, "int64"), epoch])
        index = tf.random.experimental.index_shuffle(position, key, n - 1)
        return epoch, position, index

    return tf.data.Dataset.range(first_step * here, np.iinfo("int64").max).map(shuffle)


def _endless(data):
    """Prefetch batches, and promise that there is no end of them.

    Or else several machines ask one another at each step whether all have a batch.
    """
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return data.prefetch(tf.data.AUTOTUNE).apply(endless)


def _fold(seed, epoch):
    """Make one number of two; a prime keeps small seeds and epochs apart."""
    return seed * 1_000_003 + epoch
