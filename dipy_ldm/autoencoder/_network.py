"""Encoder and decoder networks of the autoencoder."""

from collections.abc import Sequence
from itertools import product
import math

import keras
import numpy as np

from dipy_ldm._utils.types import Space, Tensor
from dipy_ldm.nn._building import (
    conv,
    norm_position,
    residual,
    seeded,
    small_random_bias,
    to_output,
)
from dipy_ldm.nn._layers import DepthToSpace, Sum


def cosines(space: tuple[int, ...], count: int) -> np.ndarray:
    """Return the lowest frequencies of the orthonormal discrete cosine transform.

    They are close to the principal components of blocks of natural images
    :footcite:p:`Ahmed1974`, so that a few of them hold most of the variance.

    Shapes: result ``(*space, count)``.
    """
    waves = np.zeros((*space, count))
    # Twice the number of periods along each axis.
    frequencies = sorted(
        product(*map(range, space)), key=lambda ns: (sum(n * n for n in ns), ns)
    )
    for i, frequency in enumerate(frequencies[:count]):
        sides = map(_wave, space, frequency)
        waves[..., i] = math.prod(np.ix_(*sides))
    return waves


def _wave(size: int, number: int):
    wave = np.cos(np.pi * number * (np.arange(size) + 0.5) / size)
    return wave / np.linalg.norm(wave)


class Cosines(keras.initializers.Initializer):
    """Initialize block transforms with the lowest frequencies of the cosine transform.

    The channels of the images are treated as one more axis of a block.

    Shapes: block ``(*space, channels)``.
    """

    def __init__(self, block: tuple[int, ...], inverse: bool = False) -> None:
        self.block = tuple(block)
        self.inverse = inverse

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None):
        """Return the kernel."""
        waves = cosines(self.block, shape[-2] if self.inverse else shape[-1])
        if self.inverse:
            waves = waves.reshape(-1, shape[-2]).T
        return keras.ops.convert_to_tensor(waves.reshape(shape), dtype)


def encoder_and_decoder(
    space: Space,
    channels: int,
    *,
    widths: Sequence[int],
    blocks: int,
    code_dim: int,
    seed: int,
    remat: bool = False,
) -> tuple[keras.Model, keras.Model]:
    """Build both networks for images of a size, with initial weights from a seed."""
    with seeded(seed):
        encoder = _encoder(space, channels, widths, blocks, code_dim, remat)
        coarse = encoder.output.shape[1:-1]
        return encoder, _decoder(coarse, channels, widths, blocks, code_dim, remat)


def _encoder(
    space: Space,
    channels: int,
    widths: Sequence[int],
    blocks: int,
    code_dim: int,
    remat: bool,
):
    """Build the network that maps images to latents.

    A convolution of stride 2 and residual blocks at each width: the latents are
    ``2 ** len(widths)`` times smaller per side. Each position is normalised over its
    channels :footcite:p:`Zhang2019`, so that its output depends on its neighbourhood
    alone, whether the input is a patch, a tile or a whole image.

    A linear transform of the voxels of each latent is added. It starts as the lowest
    frequencies of the cosine transform and the rest at zero: latents represent the
    images from the first step on, and the rest learns the remainder.
    :footcite:p:`Chen2025` have such shortcuts without weights.

    Shapes: result ``(batch, *space / factor, code_dim)``.
    """
    images = keras.Input((*space, channels))
    x = images
    for width in widths:
        # Downsample first: most time would be spent at full resolution.
        x = conv(x, width, size=4, strides=2, bias_initializer=small_random_bias())
        for _ in range(blocks):
            x = residual(x, width, norm_position, remat)
    latents = to_output(x, code_dim, norm_position, kernel_initializer="zeros")
    factor = 2 ** len(widths)
    block = (*(factor for _ in space), channels)
    waves = _linear(images, code_dim, Cosines(block), size=factor, strides=factor)
    return _sum("encoder", images, latents, waves)


def _decoder(
    space: Space,
    channels: int,
    widths: Sequence[int],
    blocks: int,
    code_dim: int,
    remat: bool,
):
    """Build the network that maps (quantised) latents to images.

    It mirrors the encoder, but does not normalise before the last convolution, since
    the magnitude of features encodes the intensity of the image. That convolution works
    at half the resolution and returns all voxels of a position at once
    :footcite:p:`Shi2016`: most time would be spent at full resolution.

    Shapes: result ``(batch, *factor * space, channels)``.
    """
    latents = keras.Input((*space, code_dim))
    x = conv(latents, widths[-1], bias_initializer=small_random_bias())
    for width, finer in zip(reversed(widths), [*reversed(widths[:-1]), None]):
        for _ in range(blocks):
            x = residual(x, width, norm_position, remat)
        if finer:
            x = conv(x, finer, upsampled=True, bias_initializer=small_random_bias())
    x = to_output(x, channels * 2 ** len(space), None, kernel_initializer="zeros")
    factor = 2 ** len(widths)
    block = (*(factor for _ in space), channels)
    waves = _linear(latents, math.prod(block), Cosines(block, inverse=True), size=1)
    return _sum("decoder", latents, DepthToSpace(2)(x), DepthToSpace(factor)(waves))


def _linear(
    x: Tensor, channels: int, initializer: Cosines, size: int, strides: int = 1
) -> Tensor:
    """Apply a linear transform to each position or block."""
    return conv(
        x,
        channels,
        size,
        strides,
        dtype="float32",
        use_bias=False,
        kernel_initializer=initializer,
    )


def _sum(name: str, inputs: Tensor, *results):
    """Build a network that sums several outputs of the same input."""
    networks = [keras.Model(inputs, result) for result in results]
    return keras.Model(inputs, Sum(networks)(inputs), name=name)
