r"""Sharpening of decoded volumes, to be as sharp as those of the training.

An autoencoder that errs as little as it can is smoother than what it reconstructs: of
detail that latents do not tell, the mean is the best guess, and in that there is none.
What they do tell is in the right place; it is only less in all. So detail, what is left
when a blur is taken away twice,

.. math::

    H x = x - B x , \qquad y = x + g\, H H x

with a binomial blur :math:`B` over three voxels per axis, is made stronger, by the
:math:`g` with which reconstructions have as much of it as the images that they are of.
Where all is Gaussian, estimates of least error need no more than a linear transform to
be distributed as the truth is :footcite:p:`Freirich2021`. Nothing is invented: how well
detail correlates with the truth hardly changes. The squared error grows by a twentieth
at most, or less is done.

References
----------
.. footbibliography::
"""

import math

from keras import ops
import numpy as np

from dipy_ldm._utils.types import Tensor

# Of the squared error, what may be added.
_COST = 0.05
# The finest detail is at most half as strong again: of scans that are noise above all,
# nothing is to be had by more of what is no noise.
MOST = 0.5
# Voxels to each side on which a sharpened one depends.
REACH = 2


def detail(images: Tensor) -> Tensor:
    """Return the detail of images: what two blurs take away.

    Shapes: images ``(n, *space, channels)``.
    """
    images = ops.convert_to_tensor(images)
    for _ in range(2):
        blurred = images
        for axis in range(1, len(images.shape) - 1):
            blurred = _blurred(blurred, axis)
        images = ops.subtract(images, blurred)
    return images


def _blurred(images, axis):
    """Blur along an axis, over three voxels."""
    size = images.shape[axis]

    def part(start, stop):
        where = [slice(None)] * len(images.shape)
        where[axis] = slice(start, stop)
        return images[tuple(where)]

    before = ops.concatenate([part(0, 1), part(0, size - 1)], axis)
    after = ops.concatenate([part(1, size), part(size - 1, size)], axis)
    return 0.25 * before + 0.5 * images + 0.25 * after


def sharpened(images: Tensor, gain: float | np.ndarray) -> Tensor:
    """Make the detail of images stronger.

    Shapes: images ``(n, *space, channels)``, gain ``()`` or ``(channels,)``.
    """
    if not np.any(gain):
        return images
    return ops.add(images, ops.multiply(np.float32(gain), detail(images)))


def measure_detail(images: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """Measure how much detail reconstructions have, and what more of it would cost.

    Shapes: images, reconstructed ``(n, *space, channels)``, result ``(n, 6)``.
    """
    own = detail(reconstructed)
    details = detail(images), own, detail(own)
    true, own, more = map(ops.convert_to_numpy, details)
    off = reconstructed - images
    pairs = (true, true), (own, own), (own, more), (more, more)
    axes = tuple(range(1, images.ndim))
    sums = [np.sum(a * b, axes, "float64") for a, b in (*pairs, (own, off), (off, off))]
    return np.stack(sums, -1)


def sharpening_gain(figures: np.ndarray) -> float:
    """Return how much of their detail is to be added to reconstructions."""
    true, own, mixed, more, along, off = figures
    if not (true > own > 0 and more > 0):
        return 0.0
    # Where made + 2 g mixed + g^2 more is what is there, and where the error has grown
    # by 2 g along + g^2 made to what it may cost.
    enough = (math.sqrt(mixed**2 + more * (true - own)) - mixed) / more
    cost = (math.sqrt(along**2 + own * _COST * off) - along) / own
    return float(min(enough, cost, MOST))
