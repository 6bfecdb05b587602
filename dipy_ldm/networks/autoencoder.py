"""The networks of the autoencoder: images to latents, and back."""

from collections.abc import Sequence
from functools import lru_cache, partial

import keras

from dipy_ldm.bottlenecks import BOTTLENECKS
from dipy_ldm.networks.blocks import (
    conv,
    norm_position,
    residual,
    some_bias,
    to_output,
    upsample,
)
from dipy_ldm.networks.building import seeded, sketched
from dipy_ldm.networks.receptive_field import factor


def encoder(
    space: tuple[int | None, ...],
    channels: int,
    *,
    widths: Sequence[int],
    blocks: int,
    code_dim: int,
    remat: bool = False,
) -> keras.Model:
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


def decoder(
    space: tuple[int | None, ...],
    channels: int,
    *,
    widths: Sequence[int],
    blocks: int,
    code_dim: int,
    remat: bool = False,
    normed_output: bool = False,
) -> keras.Model:
    """Build the network that maps (quantised) latents to images.

    The mirror image of :func:`encoder`, but that nothing is normalised before the last
    convolution: how bright an image is, is in the size of what comes before.

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
    normed_output : bool
        Normalise there, too, as in files of an older format.

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
    images = to_output(x, channels, norm_position if normed_output else None)
    return keras.Model(latents, images, name="decoder")


def encoder_and_decoder(
    space: tuple[int | None, ...],
    channels: int,
    *,
    seed: int,
    normed_output: bool = False,
    **options,
) -> tuple[keras.Model, keras.Model]:
    """Build both networks for images of a size, with weights that follow from a seed.

    Parameters
    ----------
    space : tuple of int or None
        Spatial size of the images; None for any.
    channels : int
        Channels of the images.
    seed : int
        Seed, as of :func:`seeded`.
    normed_output : bool
        As of :func:`decoder`.
    **options
        As of :func:`encoder`.

    Returns
    -------
    encoder, decoder : keras.Model
        The networks.
    """
    with seeded(seed):
        first = encoder(space, channels, **options)
        options["normed_output"] = normed_output
        second = decoder(first.output.shape[1:-1], channels, **options)
    return first, second


def autoencoder_parts(
    space: tuple[int | None, ...],
    channels: int,
    *,
    bottleneck: str,
    n_codes: int,
    commitment: float,
    **options,
) -> tuple[keras.Model, keras.layers.Layer, keras.Model]:
    """Build all parts of an autoencoder.

    Parameters
    ----------
    space : tuple of int or None
        Spatial size of the images; None for any.
    channels : int
        Channels of the images.
    bottleneck : str
        Name of what quantises the latents, of :mod:`dipy_ldm.bottlenecks`.
    n_codes : int
        Number of its codes.
    commitment : float
        Weight of the loss that keeps the latents near their codes.
    **options
        As of :func:`encoder_and_decoder`.

    Returns
    -------
    encoder : keras.Model
        From images to latents.
    quantizer : keras.layers.Layer
        From latents to codes.
    decoder : keras.Model
        From codes to images.
    """
    first, second = encoder_and_decoder(space, channels, **options)
    quantizer = BOTTLENECKS[bottleneck](n_codes, commitment, name="quantizer")
    quantizer.build(first.output.shape)
    return first, quantizer, second


@lru_cache
def factor_of(widths: tuple[int, ...], blocks: int) -> int:
    """Tell how many times smaller than images latents are, without any weights.

    Parameters
    ----------
    widths : tuple of int
        As of :func:`decoder`.
    blocks : int
        As of :func:`decoder`.

    Returns
    -------
    int
        Voxels of an image for each position of its latents, per side.
    """
    # All sides are alike, so that one does.
    build = partial(decoder, (None,), 1, widths=widths, blocks=blocks, code_dim=1)
    return factor(sketched("float32", build))
