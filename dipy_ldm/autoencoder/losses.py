"""Losses of the autoencoder: how far a reconstruction is from its image.

Each takes images and reconstructions ``(batch, *space, channels)`` of any number
of spatial dimensions and weights ``(batch, *space, 1)`` of the voxels, of mean 1 over
the cohort, and gives one number for each image, ``(batch,)``. The images have
intensities in [0, 1].
"""

import math

from keras import ops

from dipy_ldm._utils.checks import choose


def squared(images, reconstructed, weights):
    """Return the mean squared difference."""
    return _mean(weights * (images - reconstructed) ** 2)


def absolute(images, reconstructed, weights):
    """Return the mean absolute difference, which blurs edges less."""
    return _mean(weights * ops.abs(images - reconstructed))


def spectral(images, reconstructed, weights, scales=3):
    """Return the mean difference of the amplitudes of all spatial frequencies.

    Of the images at full, half and quarter size. Amplitudes say how much detail
    there is and not where, so that blur costs more than a displacement. After the
    spectral loss of :footcite:p:`Dhariwal2020`.

    References
    ----------
    .. footbibliography::
    """
    scales_losses = [
        _mean(ops.abs(_amplitudes(a) - _amplitudes(b)))
        for a, b in _halved(scales, weights * images, weights * reconstructed)
    ]
    return sum(scales_losses) / len(scales_losses)


def structural(images, reconstructed, weights, window=7, scales=3):
    """Return one minus the structural similarity, at three scales.

    The index of :footcite:p:`Wang2004`, in windows of 7 voxels a side of the
    images at full, half and quarter size, averaged.

    References
    ----------
    .. footbibliography::
    """
    scales_losses = []
    for a, b, w in _halved(scales, images, reconstructed, weights):
        size = min(window, *a.shape[1:-1])
        scales_losses.append(_mean(_pool(w, size) * (1 - _similarity(a, b, size))))
    return sum(scales_losses) / len(scales_losses)


# Of each loss, the terms and what they weigh. Where most voxels are background, that
# all be background is nearly as good to the others as it gets; the square, which counts
# where an image is far off and hardly where it is near, leads out of there.
LOSSES = {
    "squared": {squared: 1.0},
    "absolute": {squared: 1.0, absolute: 1.0},
    "spectral": {squared: 1.0, absolute: 1.0, spectral: 1.0},
    "structural": {squared: 1.0, absolute: 1.0, structural: 0.5},
}


def dice(shares, reconstructed, weights):
    """Return one minus the overlap of labels, the mean of all of them.

    The loss of :footcite:p:`Milletari2016`: squared differences over the sum of
    squares, so that labels of few voxels count as much as others. Where a label is
    not, one voxel of it costs half of what there is.

    References
    ----------
    .. footbibliography::
    """
    axes = tuple(range(1, len(shares.shape) - 1))
    off = ops.sum(weights * (shares - reconstructed) ** 2, axes)
    both = ops.sum(weights * (shares**2 + reconstructed**2), axes)
    return ops.mean(off / (both + 1), -1)


# Losses of channels that are no intensities.
CHANNEL_LOSSES = {"dice": dice}


def reconstruction(name, channels, variance, parts=()):
    """Return a loss of so many channels as Keras takes it, relative to a variance.

    What follows the channels in ``y_true`` are weights of the voxels. Relative to the
    variance of the images the losses weigh the same, against those of the codebook, for
    any images. Parts are channels of another loss, which is added: their slice, and a
    key of ``CHANNEL_LOSSES``.
    """
    terms = choose("loss", name, LOSSES)
    variance = max(variance, 1e-12)
    # The structural one is relative by itself.
    scale = {squared: variance, structural: 1.0}

    own = {i for columns, _ in parts for i in range(channels)[columns]}
    rest = [i for i in range(channels) if i not in own]

    def loss(y_true, y_pred):
        images, weights = _split(y_true, channels)
        added = [
            CHANNEL_LOSSES[part](images[..., columns], y_pred[..., columns], weights)
            for columns, part in parts
        ]
        if own and rest:
            images, y_pred = (ops.take(x, rest, axis=-1) for x in (images, y_pred))
        common = [
            factor
            / scale.get(term, math.sqrt(variance))
            * term(images, y_pred, weights)
            for term, factor in (terms.items() if rest else ())
        ]
        return sum(common + added)

    return loss


def error(channels):
    """Return the mean squared error without weights, as Keras takes it."""

    def mse(y_true, y_pred):
        images, _ = _split(y_true, channels)
        return _mean((images - y_pred) ** 2)

    return mse


def _split(y_true, channels):
    """Part images from the weights behind them, if there are any."""
    images, weights = y_true[..., :channels], y_true[..., channels:]
    if y_true.shape[-1] == channels:
        return images, ops.ones_like(images[..., :1])
    return images, weights


def _mean(x):
    return ops.mean(x, axis=tuple(range(1, len(x.shape))))


def _pool(x, size, strides=1):
    return ops.average_pool(x, size, strides=strides, padding="valid")


def _halved(scales, *arrays):
    """Yield arrays at full size, half size and so on, while there are voxels."""
    for _ in range(scales):
        yield arrays
        if min(arrays[0].shape[1:-1]) < 2:
            return
        arrays = [_pool(x, 2, strides=2) for x in arrays]


def _amplitudes(x):
    """Return the amplitudes of the Fourier transform over all spatial axes."""
    rank = len(x.shape) - 2
    real, imaginary = x, ops.zeros_like(x)
    for axis in range(1, rank + 1):
        real, imaginary = (ops.moveaxis(part, axis, -1) for part in (real, imaginary))
        real, imaginary = ops.fft((real, imaginary))
        real, imaginary = (ops.moveaxis(part, -1, axis) for part in (real, imaginary))
    # As large as the values of the image; and no root of zero, of no gradient.
    power = (real**2 + imaginary**2) / math.prod(x.shape[1:-1])
    return ops.sqrt(power + 1e-8)


def _similarity(a, b, size):
    """Return the structural similarity of each window."""
    mean_a, mean_b = _pool(a, size), _pool(b, size)
    variances = _pool(a * a, size) + _pool(b * b, size) - mean_a**2 - mean_b**2
    covariance = _pool(a * b, size) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)
