r"""Sharpen decoded volumes to the sharpness of the training volumes.

An autoencoder that minimises the squared error returns smooth reconstructions: for
detail that latents do not encode, the best estimate is the mean, which has none. Detail
that they do encode is in the right place, but too weak. So detail, the result of a
high-pass filter that is applied twice,

.. math::

    H x = x - B x , \qquad y = x + g\, H H x

with a binomial blur :math:`B` over three voxels per axis, is amplified by the
:math:`g` with which reconstructions have as much of it as their images. For Gaussian
data, a linear transform suffices to give estimates of least error the distribution of
the truth :footcite:p:`Freirich2021`. Nothing is invented: the correlation of detail
with the truth hardly changes. The gain is limited so that the squared error grows by
5 % at most.

References
----------
.. footbibliography::
"""

import math

from keras import ops
import numpy as np

from dipy_ldm._utils.types import Tensor

# Maximum increase of the squared error.
_MAX_ERROR_RISE = 0.05
# Amplify the finest detail by half at most: scans that are mostly noise don't gain from
# more.
MAX_GAIN = 0.5
# Receptive radius in voxels.
RADIUS = 2


def detail(images: Tensor) -> Tensor:
    """Return the detail of images: a high-pass filter, applied twice.

    Shapes: images ``(n, *space, channels)``.
    """
    images = ops.convert_to_tensor(images)
    for _ in range(2):
        blurred = images
        for axis in range(1, len(images.shape) - 1):
            blurred = _blurred(blurred, axis)
        images = ops.subtract(images, blurred)
    return images


def _blurred(images: Tensor, axis: int):
    """Blur along an axis, over three voxels."""
    size = images.shape[axis]

    def part(start: int, stop: int):
        index = [slice(None)] * len(images.shape)
        index[axis] = slice(start, stop)
        return images[tuple(index)]

    before = ops.concatenate([part(0, 1), part(0, size - 1)], axis)
    after = ops.concatenate([part(1, size), part(size - 1, size)], axis)
    return 0.25 * before + 0.5 * images + 0.25 * after


def sharpened(images: Tensor, gain: float | np.ndarray) -> Tensor:
    """Amplify the detail of images.

    Shapes: images ``(n, *space, channels)``, gain ``()`` or ``(channels,)``.
    """
    if not np.any(gain):
        return images
    return ops.add(images, ops.multiply(np.float32(gain), detail(images)))


def measure_detail(images: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """Measure the detail of reconstructions, and how sharpening changes their error.

    Shapes: images, reconstructed ``(n, *space, channels)``, result ``(n, 6)``.
    """
    decoded = detail(reconstructed)
    details = detail(images), decoded, detail(decoded)
    true, decoded, twice = map(ops.convert_to_numpy, details)
    err = reconstructed - images
    pairs = [(true, true), (decoded, decoded), (decoded, twice), (twice, twice)]
    pairs += [(decoded, err), (err, err)]
    axes = tuple(range(1, images.ndim))
    return np.stack([np.sum(a * b, axes, "float64") for a, b in pairs], -1)


def sharpening_gain(figures: np.ndarray) -> float:
    """Return the gain for the detail of reconstructions."""
    true, decoded, cross, twice, product, error = figures
    if not (true > decoded > 0 and twice > 0):
        return 0.0
    # Solve decoded + 2 g cross + g^2 twice = true for the detail, and
    # 2 g product + g^2 decoded = _MAX_ERROR_RISE error for the squared error.
    detail_gain = (math.sqrt(cross**2 + twice * (true - decoded)) - cross) / twice
    rise = _MAX_ERROR_RISE * error
    max_gain = (math.sqrt(product**2 + decoded * rise) - product) / decoded
    return float(min(detail_gain, max_gain, MAX_GAIN))
