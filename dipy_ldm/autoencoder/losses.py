"""Reconstruction losses of the autoencoder.

A loss takes images and reconstructions ``(batch, *space, channels)`` of two or three
spatial dimensions and voxel weights ``(batch, *space, 1)`` with mean 1 over the cohort,
and returns one number per image, ``(batch,)``. Images have intensities in [0, 1].
Adding Fourier amplitudes to the squared error was no better
(doc/decisions/autoencoder.md).
"""

from collections.abc import Sequence

from keras import ops

from dipy_ldm._utils.checks import choose
from dipy_ldm._utils.types import Tensor


def squared(images: Tensor, reconstructed: Tensor, weights: Tensor):
    """Return the mean squared difference."""
    return _mean(weights * (images - reconstructed) ** 2)


# By name, relative to the variance of the images.
LOSSES = {"squared": squared}


def dice(shares: Tensor, reconstructed: Tensor, weights: Tensor):
    """Return one minus the Dice overlap, averaged over labels.

    The loss of :footcite:p:`Milletari2016`: squared differences over the sum of
    squares, so that small labels count as much as large ones. If an image lacks a
    label, one voxel of it costs 0.5.

    References
    ----------
    .. footbibliography::
    """
    axes = tuple(range(1, len(shares.shape) - 1))
    off = ops.sum(weights * (shares - reconstructed) ** 2, axes)
    both = ops.sum(weights * (shares**2 + reconstructed**2), axes)
    return ops.mean(off / (both + 1), -1)


# Losses of channels that are not intensities.
CHANNEL_LOSSES = {"dice": dice}


def reconstruction_loss(
    name: str, channels: int, variance: float, parts: Sequence[tuple[slice, str]] = ()
):
    """Return a Keras loss for images of `channels` channels, divided by `variance`.

    Voxel weights follow the channels in ``y_true``. Dividing by the variance of the
    images makes the weight of the codebook loss independent of their contrast.
    ``parts`` are channels with a loss of their own, which is added: pairs of a slice
    and a key of ``CHANNEL_LOSSES``.
    """
    term, scale = choose("loss", name, LOSSES), 1 / max(variance, 1e-12)
    with_loss = {i for columns, _ in parts for i in range(channels)[columns]}
    rest = [i for i in range(channels) if i not in with_loss]

    def loss(y_true: Tensor, y_pred: Tensor):
        images, weights = _split(y_true, channels)
        added = [
            CHANNEL_LOSSES[part](images[..., columns], y_pred[..., columns], weights)
            for columns, part in parts
        ]
        if not rest:
            return sum(added)
        if with_loss:
            images, y_pred = (ops.take(x, rest, axis=-1) for x in (images, y_pred))
        return sum(added, scale * term(images, y_pred, weights))

    return loss


def mean_squared_error(channels: int):
    """Return the unweighted mean squared error as a Keras metric."""

    def mse(y_true: Tensor, y_pred: Tensor):
        images, _ = _split(y_true, channels)
        return _mean((images - y_pred) ** 2)

    return mse


def _split(y_true: Tensor, channels: int):
    """Split images from the weights that follow them; weights default to 1."""
    images, weights = y_true[..., :channels], y_true[..., channels:]
    if y_true.shape[-1] == channels:
        return images, ops.ones_like(images[..., :1])
    return images, weights


def _mean(x: Tensor):
    return ops.mean(x, axis=tuple(range(1, len(x.shape))))
