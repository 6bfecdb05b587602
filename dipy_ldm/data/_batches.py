"""Patches of images, and batches for training as functions of (seed, epoch, example).

Nothing here has a state: which examples are in a batch and which noise they get
follows from the number of the step alone. A run that is stopped and resumed, or
spread over devices, or accumulated from smaller batches, or computed by another
back-end of Keras, sees the same numbers.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.types import Batches


def window_size(
    space: tuple[int, ...], factor: int, patch: int | Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the size of the windows that networks are trained on."""
    sizes = np.minimum(space, space if patch is None else patch)
    return tuple(int(size) + -int(size) % factor for size in sizes)


def read_windows(
    images: np.ndarray,
    index: Sequence[int] | np.ndarray,
    corners: np.ndarray,
    size: tuple[int, ...],
) -> np.ndarray:
    """Read one window of each of some images.

    Only what lies inside the windows is read, so that a mapped file may be far
    larger than the memory. Beyond an image its edge is repeated.

    Shapes: images ``(n, *space, channels)``, index ``(b,)``, corners ``(b, rank)``,
    result ``(b, *size, channels)``.
    """
    windows = np.empty((len(index), *size, images.shape[-1]), "float32")
    for window, i, corner in zip(windows, index, corners):
        nearest = [
            np.arange(first, first + length).clip(0, end - 1)
            for first, length, end in zip(corner, size, images.shape[1:-1])
        ]
        inside = images[i][tuple(slice(n[0], n[-1] + 1) for n in nearest)]
        for axis, places in enumerate(nearest):
            if inside.shape[axis] < len(places):
                inside = inside.take(places - places[0], axis)
        window[...] = inside
    return windows


def read_whole(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Read images as one window ``(*size, channels)`` each, from the first voxel on."""
    corners = np.zeros((len(images), len(size)), int)
    return read_windows(images, range(len(images)), corners, size)


def scaled_to(images: np.ndarray, bounds: tuple[float, ...]) -> np.ndarray:
    """Scale images to [0, 1]."""
    low, high = bounds
    return (images - np.float32(low)) / np.float32(high - low or 1)


# Images whose voxels inside of masks are counted, at most: by then their share is known
# to a few hundredths.
_MAX_IMAGES_COUNTED = 64


class Augmentation(NamedTuple):
    """How images are changed before an autoencoder sees them.

    What is not given is not done. To mirror half of the volumes beside what is usual:
    ``Augmentation(flip=True, shift=2, intensity=0.05, noise=0.1)``.

    Parameters
    ----------
    flip : bool
        Mirror half of the images left to right.
    shift : int
        Pixels or voxels by which they are moved along each axis, at most.
    intensity : float
        Share by which brightness and contrast change, at most.
    noise : float
        Largest standard deviation of the noise that is added to the input, and not to
        the target, as a share of the range of intensities.
    """

    flip: bool = False
    shift: int = 0
    intensity: float = 0.0
    noise: float = 0.0


def batches(
    images: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    size: tuple[int, ...] | None = None,
    bounds: tuple[float, ...] = (0.0, 1.0),
    masks: np.ndarray | None = None,
    background: float = 1.0,
    augment: Augmentation | None = None,
    fixed: Sequence[int] = (),
) -> Batches:
    """Draw batches without end, in a new order every epoch.

    Images are read when their batch is drawn, and only what is needed of them: a
    mapped file may be far larger than the memory. Brightness and contrast of the
    ``fixed`` channels stay.

    Shapes: images ``(n, *space, channels)``, masks ``(n, *space, 1)``, result
    ``(images, images)``.
    """
    *space, channels = images.shape[1:]
    size = tuple(size or space)
    augment = augment or Augmentation()
    slack = np.maximum(np.subtract(space, size), 0) + 2 * augment.shift
    # Not of each piece by itself: one of background alone would weigh as any other.
    covers = [_cover(*of, augment.shift) for of in zip(space, size, slack)]
    total = np.float32(_mean_weight(images, masks, bounds, background, covers))

    def draw(step, places):
        epoch, _, index = examples_of(len(images), batch_size, seed, step, places)
        streams = [stream_of(seed, epoch, i) for i in index]
        drawn = [stream.random(3 + len(space)) for stream in streams]
        numbers = np.array(drawn).reshape(-1, 3 + len(space))
        corners = np.floor(numbers[:, 3:] * (slack + 1)).astype(int) - augment.shift
        windows = read_windows(images, index, corners, size)
        batch = scaled_to(windows, bounds)
        brightened = _brighten(batch, numbers, augment.intensity)
        brightened[..., fixed] = batch[..., fixed]
        batch = _mirror(brightened, numbers, augment)
        inputs = batch
        if augment.noise > 0:
            noise = _noise(streams, (*size, channels), augment.noise)
            inputs = np.clip(batch + noise, 0, 1)
        if background == 1:
            return inputs, batch
        if masks is None:
            inside = (batch > 0).any(-1, keepdims=True)
        else:
            windows = read_windows(masks, index, corners, size)
            inside = _mirror(windows, numbers, augment) > 0
        weights = np.where(inside, np.float32(1), np.float32(background))
        return inputs, np.concatenate([batch, weights / total], -1)

    return Batches(batch_size, draw)


def _cover(length, size, slack, shift):
    """Return how often patches cover each voxel along an axis, as shares."""
    starts = np.arange(slack + 1) - shift
    held = np.clip(starts[:, None] + np.arange(size), 0, length - 1)
    return np.bincount(held.ravel(), minlength=length) / held.size


def _mean_weight(images, masks, bounds, background, covers):
    """Return the mean weight of the voxels of all patches, before normalisation."""
    if background == 1:
        return 1.0
    shares = []
    for i in np.unique(
        np.linspace(0, len(images) - 1, _MAX_IMAGES_COUNTED).astype(int)
    ):
        inside = scaled_to(images[i], bounds) > 0 if masks is None else masks[i] > 0
        share = inside.any(-1)
        for cover in reversed(covers):
            share = share @ cover
        shares.append(share)
    weight = background + (1 - background) * np.mean(shares)
    if weight == 0:
        raise InputError(
            "nothing of the images lies inside of their masks: with a `background` of "
            "0 there is nothing to learn; raise it, or fix the masks."
        )
    return weight


def _noise(streams, shape, most):
    """Draw noise of a standard deviation up to the most, for each image another."""
    spreads = [most * stream.random(dtype="float32") for stream in streams]
    noise = normal_numbers(streams, shape)
    return np.reshape(spreads, (-1, *(1,) * len(shape))).astype("float32") * noise


def normal_numbers(streams, shape):
    """Draw standard normal numbers ``(streams, *shape)`` from each stream."""
    numbers = np.empty((len(streams), *shape), "float32")
    for stream, row in zip(streams, numbers):
        stream.standard_normal(dtype="float32", out=row)
    return numbers


def _brighten(batch, numbers, most):
    """Change brightness and contrast of each image, within [0, 1]."""
    if most == 0:
        return batch
    changes = 1 + most * (2 * numbers[:, :2] - 1).astype("float32")
    gain, exponent = changes.T.reshape(2, -1, *(1,) * (batch.ndim - 1))
    return np.clip(gain * np.clip(batch, 0, 1) ** exponent, 0, 1)


def _mirror(batch, numbers, augment):
    """Mirror half of the images left to right."""
    if not augment.flip:
        return batch
    rank = batch.ndim - 2
    # Volumes are (x, y, z), from left to right along x; images are (h, w).
    axis = 1 if rank == 3 else rank
    half = np.reshape(numbers[:, 2] < 0.5, (-1, *(1,) * (rank + 1)))
    return np.where(half, np.flip(batch, axis), batch)


def examples_of(
    n: int, batch_size: int, seed: int, step: int, places: Sequence[int]
) -> tuple[int, np.ndarray, np.ndarray]:
    """Find epoch, positions in it, and numbers, of examples of a step."""
    epoch, step = divmod(step, n // batch_size)
    position = step * batch_size + np.asarray(places, int)
    return epoch, position, _order(n, seed, epoch)[position]


@lru_cache(maxsize=4)
def _order(n, seed, epoch):
    """Shuffle the numbers of all examples, for an epoch."""
    # Not from the stream that has the epoch's first time.
    return np.random.default_rng([seed, epoch, 0, 1]).permutation(n)


def stream_of(seed, epoch, example=-1):
    """Return the random generator of an example in an epoch, or of the epoch."""
    # Numbers of zero at the end would make no other stream.
    return np.random.default_rng([seed, epoch, example + 1])
