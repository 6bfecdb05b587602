"""The network of the denoiser: a U-Net conditioned on time, conditions and source."""

from collections.abc import Sequence
import math
from typing import Any

import keras
from keras import layers, ops

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.types import Tensor
from dipy_ldm.data._sources import Source
from dipy_ldm.diffusion import schedules
from dipy_ldm.nn._building import (
    SeededInitializer,
    as_submodel,
    conv,
    group_scale,
    norm_groups,
    residual,
    to_output,
    upsample_to,
)
from dipy_ldm.nn._layers import (
    CONVOLUTIONS,
    ConditionFeatures,
    SourceFeatures,
    TimeEmbedding,
)
from dipy_ldm.nn._normalization import swish
from dipy_ldm.prior._gaussian import Gaussian


@keras.saving.register_keras_serializable("dipy_ldm")
class LinearEstimate(keras.layers.Layer):
    """Best linear estimate of clean latents from noisy ones.

    The Gaussian prior is not trained but set (:meth:`set_prior`). Estimates are joint
    along its directions (Wiener), and separate for each number otherwise.
    """

    def __init__(self, directions: int, schedule: str, target: str, **kwargs) -> None:
        super().__init__(**kwargs | {"dtype": "float32"})
        self.directions = directions
        self.schedule = schedule
        self.target = target

    def build(self, noisy_shape: tuple, times_shape: tuple):
        """Create the weights of the Gaussian."""
        shape = tuple(noisy_shape[1:])
        options = {"initializer": "zeros", "trainable": False}
        self.mean = self.add_weight(shape, name="mean", **options)
        sizes = self.directions, *shape
        self.loadings = self.add_weight(sizes, name="loadings", **options)
        self.rest = self.add_weight(shape, name="rest", **options)

    def set_prior(self, gaussian: Gaussian) -> None:
        """Set mean, loadings and residual variances."""
        for weight, value in zip(self.weights, gaussian, strict=True):
            weight.assign(value)

    def call(self, noisy: Tensor, times: Tensor):
        """Return inputs and Wiener estimate for noisy latents and times.

        Of the shape of the latents: noisy and estimated clean latents, both of mean 0
        and unit variance on average; and the prediction target of the estimate. For
        each example, ``(batch, 1, ...)``: the standard deviation of its error, except
        along the directions.
        """
        rates = schedules.SCHEDULES[self.schedule](times, ops)
        alpha, sigma = (ops.expand_dims(rate, 1) for rate in rates)
        size = math.prod(self.mean.shape)
        mean, rest = (ops.reshape(w, (1, size)) for w in (self.mean, self.rest))
        flat = ops.reshape(noisy, (-1, size))
        delta = flat - alpha * mean
        clean = delta * alpha * rest / (alpha**2 * rest + sigma**2)
        power = rest
        if self.directions:
            loadings = ops.reshape(self.loadings, (self.directions, size))
            squares = ops.square(loadings)
            lengths = ops.sum(squares, 1)
            # In lengths of the loadings; replaces the separate estimate there.
            along = ops.matmul(delta, ops.transpose(loadings))
            along = along * alpha / (alpha**2 * lengths + sigma**2)
            before = ops.matmul(clean, ops.transpose(loadings)) / lengths
            clean = clean + ops.matmul(along - before, loadings)
            power = rest + ops.sum(squares, 0)
        # One scale for all, so that equal structures are equal inputs everywhere.
        power = ops.mean(power)
        scaled = delta / ops.sqrt(alpha**2 * power + sigma**2), clean / ops.sqrt(power)
        clean = mean + clean
        noise = (flat - alpha * clean) / sigma
        prediction = schedules.to_target(self.target, clean, noise, alpha, sigma)
        # An error of the clean latents implies the opposite error of the noise.
        error = sigma * ops.sqrt(rest / (alpha**2 * rest + sigma**2))
        of_noise = -error * alpha / sigma
        error = schedules.to_target(self.target, error, of_noise, alpha, sigma)
        spread = ops.sqrt(ops.mean(ops.square(error), 1))
        ones = (1,) * len(self.mean.shape)
        results = [ops.reshape(x, ops.shape(noisy)) for x in (*scaled, prediction)]
        return [*results, ops.reshape(spread, (-1, *ones))]

    def compute_output_shape(self, noisy_shape: tuple, times_shape: tuple):
        """Return the shape of the latents, three times, and that of the error."""
        ones = (1,) * len(noisy_shape[1:])
        return [*[noisy_shape] * 3, (noisy_shape[0], *ones)]


def unet(
    shape: tuple[int, ...],
    *,
    widths: Sequence[int],
    blocks: int,
    attention: Sequence[bool] | None = None,
    conditions: Sequence[int] = (),
    source: Source | None = None,
    factor: int = 1,
    with_mean: bool = False,
    estimate: tuple | None = None,
    remat: bool = False,
) -> keras.Model:
    """Build the denoiser: a U-Net conditioned on time, conditions and source.

    Residual blocks conditioned on the time, self-attention at chosen levels, skip
    connections, and a middle of two residual blocks around attention, after
    :footcite:p:`Ho2020`. The last convolution starts at zero. Sizes need not be
    even: each level of the decoder is cropped to the size of that in the encoder.
    Source images are ``factor`` times as large as the latents, per side.

    Shapes: shape ``(*space, channels)``, result ``(batch, *shape)``.
    """
    attention = attention or [False] * len(widths)
    if len(attention) != len(widths):
        raise InputError(
            f"attention needs one entry per level: {len(widths)}, not {len(attention)}"
        )
    latents, times = keras.Input(shape), keras.Input(())
    mean = [keras.Input(shape)] if with_mean else []
    encoded = [keras.Input((len(conditions),))] if conditions else []
    time = _embed(times, encoded, conditions)
    source_image, stems = [], []
    if source is not None:
        space = (factor * side for side in shape[:-1])
        image = keras.Input((*space, source.channels))
        stems = [_stem(image, len(source.labels), factor, widths[0], remat)]
        source_image = [image]
    linear = [] if estimate is None else LinearEstimate(*estimate)(latents, times)
    stacked = [latents, *linear[:2], *mean, *stems]
    x = conv(layers.Concatenate()(stacked) if len(stacked) > 1 else latents, widths[0])
    x = _down_and_up(x, time, widths, blocks, attention, remat)
    target = to_output(x, shape[-1], norm_groups, kernel_initializer="zeros")
    if linear:
        predicted, spread = linear[2:]
        target = layers.Multiply(dtype="float32")([target, spread])
        target = layers.Add(dtype="float32")([target, predicted])
    inputs = [latents, times, *mean, *encoded, *source_image]
    return keras.Model(inputs, target, name="unet")


def set_prior(network: keras.Model, gaussian: Gaussian | None) -> None:
    """Set the Gaussian prior of a network that has one."""
    if gaussian is not None:
        linear_estimate(network).set_prior(gaussian)


def linear_estimate(network: keras.Model) -> LinearEstimate:
    """Return the linear-estimate layer of a network."""
    (layer,) = (x for x in network.layers if isinstance(x, LinearEstimate))
    return layer


def unnormalised(network: keras.Model) -> list[str]:
    """Return the paths of the kernels with inputs that no block has normalised."""
    kinds: tuple[Any, ...] = tuple(CONVOLUTIONS.values())
    return [x.kernel.path for x in network.layers if isinstance(x, kinds)]


def _stem(image: Tensor, n_labels: int, factor: int, width: int, remat: bool):
    """Downsample a source image to the grid of the latents."""

    def build(x: Tensor):
        x = SourceFeatures(n_labels)(x)
        # One convolution over all voxels of a latent keeps their positions.
        draw = SeededInitializer("LecunNormal")
        return conv(x, width, size=factor, strides=factor, kernel_initializer=draw)

    return residual(as_submodel(build, [image], remat), width, norm_groups, remat)


def _down_and_up(
    x: Tensor,
    time: Tensor,
    widths: Sequence[int],
    blocks: int,
    attention: Sequence[bool],
    remat: bool,
):
    """Apply the levels of a U-Net with skip connections."""
    skips = [x]
    for level, width in enumerate(widths):
        if level > 0:
            x = conv(x, width, strides=2)
            skips.append(x)
        for _ in range(blocks):
            x = _block(x, width, time, attention[level], remat)
            skips.append(x)
    x = _block(x, widths[-1], time, True, remat)
    x = _block(x, widths[-1], time, False, remat)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            x = layers.Concatenate()([x, skips.pop()])
            x = _block(x, width, time, attention[level], remat)
        if level > 0:
            x = upsample_to(x, skips[-1], widths[level - 1])
    return x


def _block(x: Tensor, width: int, time: Tensor, attention: bool, remat: bool):
    x = residual(x, width, norm_groups, remat, time)
    return as_submodel(_attend, [x], remat) if attention else x


def _attend(x: Tensor):
    """Add self-attention over all positions."""
    space, width = x.shape[1:-1], x.shape[-1]
    gain, offset = group_scale(x)
    scaled = layers.Multiply(dtype="float32")([x, gain])
    scaled = layers.Add(dtype="float32")([scaled, offset])
    tokens = layers.Reshape((-1, width))(scaled)
    heads = max(1, width // 32)
    attend = layers.MultiHeadAttention(
        heads, width // heads, kernel_initializer=SeededInitializer()
    )
    tokens = attend(tokens, tokens)
    return layers.Add()([x, layers.Reshape((*space, width))(tokens)])


def _embed(times: Tensor, encoded: list, sizes: Sequence[int]):
    """Embed times and conditions as features that modulate every block."""
    width = 128

    def dense(x: Tensor):
        draw = SeededInitializer()
        return layers.Dense(width, activation=swish, kernel_initializer=draw)(x)

    x = dense(TimeEmbedding(width)(times))
    for values in encoded:
        # Before the last layer, which learns interactions.
        features = ConditionFeatures(sizes)(values)
        draw = SeededInitializer("RandomNormal", stddev=0.5)
        learnt = layers.Dense(width, use_bias=False, kernel_initializer=draw)
        x = layers.Add()([x, learnt(features)])
    return dense(x)
