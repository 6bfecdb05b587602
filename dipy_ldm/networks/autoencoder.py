"""The networks of the autoencoder: images to latents, and back."""

import math

import keras

from dipy_ldm.networks.blocks import (
    conv,
    norm_position,
    residual,
    some_bias,
    to_output,
    upsample,
)


def encoder(space, channels, *, widths, blocks, code_dim, remat=False):
    """Build the network that maps images to latents.

    A convolution of stride 2 and residual blocks at each width: the latents are
    ``2 ** len(widths)`` times smaller per side. Normalisation is over the channels
    of one position :footcite:p:`Zhang2019`, so that what comes out at a place
    depends on its neighbourhood alone, whether a patch, a tile or all is given.

    Parameters
    ----------
    space : tuple of int or None
        Spatial size of the images; None for any.
    channels : int
        Channels of the images.
    widths : sequence of int
        Channels of each level.
    blocks : int
        Residual blocks of each level.
    code_dim : int
        Channels of the latents.
    remat : bool
        Compute the insides of each block again for the gradient, instead of
        keeping them: less memory, more time.

    Returns
    -------
    keras.Model
        ``(batch, *space, channels)`` to ``(batch, *space / factor, code_dim)``.

    References
    ----------
    .. footbibliography::
    """
    images = keras.Input((*space, channels))
    x = images
    for width in widths:
        # Down first: the full resolution is where the time goes.
        x = conv(x, width, size=4, strides=2, bias_initializer=some_bias())
        for _ in range(blocks):
            x = residual(x, width, norm_position, remat)
    latents = to_output(x, code_dim, norm_position)
    return keras.Model(images, latents, name="encoder")


def decoder(space, channels, *, widths, blocks, code_dim, remat=False):
    """Build the network that maps (quantised) latents to images.

    The mirror image of :func:`encoder`.

    Parameters
    ----------
    space : tuple of int or None
        Spatial size of the latents; None for any.
    channels : int
        Channels of the images.
    widths : sequence of int
        Channels of each level, as given to the encoder.
    blocks : int
        Residual blocks of each level.
    code_dim : int
        Channels of the latents.
    remat : bool
        As of the encoder.

    Returns
    -------
    keras.Model
        ``(batch, *space / factor, code_dim)`` to ``(batch, *space, channels)``.
    """
    latents = keras.Input((*space, code_dim))
    x = conv(latents, widths[-1], bias_initializer=some_bias())
    for width, finer in zip(
        reversed(widths), [*reversed(widths[:-1]), max(1, widths[0] // 2)]
    ):
        for _ in range(blocks):
            x = residual(x, width, norm_position, remat)
        x = conv(upsample(x), finer, bias_initializer=some_bias())
    images = to_output(x, channels, norm_position)
    return keras.Model(latents, images, name="decoder")


def reach(widths, blocks):
    """Tell how far the decoder looks.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level.
    blocks : int
        Residual blocks of each level.

    Returns
    -------
    int
        Latents to each side of its place on which a voxel depends.
    """
    # One voxel for each convolution of size 3, at the resolution that it has: the
    # first, two of each block and, one level finer, the one after upsampling; the
    # last is at full resolution.
    levels = range(len(widths))
    voxels = [1, *(2 * blocks / 2**k + 1 / 2 ** (k + 1) for k in levels)]
    return math.ceil(sum(voxels) + 1 / 2 ** len(widths))
