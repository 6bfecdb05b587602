"""The network of the denoiser: a U-Net conditioned on time, conditions and source."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import layers

from dipy_ldm._utils.checks import InputError
from dipy_ldm.denoiser._wiener import LinearEstimate
from dipy_ldm.nn.blocks import (
    conv,
    enclosed,
    group_scale,
    norm_groups,
    residual,
    to_output,
    upsample_to,
)
from dipy_ldm.nn.building import SeededInitializer, seeded
from dipy_ldm.nn.layers import (
    CONVOLUTIONS,
    ConditionFeatures,
    SourceFeatures,
    TimeEmbedding,
)
from dipy_ldm.nn.normalization import swish
from dipy_ldm.prior._gaussian import Gaussian


class Picture(NamedTuple):
    """Shape and kind of source images."""

    factor: int
    channels: int
    labels: int = 0

    def shape(self, latents: tuple[int, ...]) -> tuple[int, ...]:
        """Say what shape it has.

        Shapes: latents ``(*space, channels)``, result ``(*space, channels)``.
        """
        return (*(self.factor * side for side in latents[:-1]), self.channels)


def unet(
    shape: tuple[int, ...],
    *,
    widths: Sequence[int],
    blocks: int,
    attention: Sequence[bool],
    conditions: Sequence[int] = (),
    source: Picture | None = None,
    expects: bool = False,
    estimate: tuple | None = None,
    remat: bool = False,
) -> keras.Model:
    """Build the denoiser: a U-Net conditioned on time, conditions and source.

    Residual blocks conditioned on the time, self-attention at chosen levels, skip
    connections, and a middle of two residual blocks around attention, after
    :footcite:p:`Ho2020`. The last convolution starts at zero. Sizes need not be
    even: on the way up each level is cut to the size that it had on the way down.

    Shapes: shape ``(*space, channels)``, result ``(batch, *shape)``.
    """
    if len(attention) != len(widths):
        raise InputError(
            f"attention needs one entry a level: {len(widths)}, not {len(attention)}."
        )
    latents, times = keras.Input(shape), keras.Input(())
    mean = [keras.Input(shape)] if expects else []
    encoded = [keras.Input((len(conditions),))] if conditions else []
    time = _embed(times, *encoded, width=128, sizes=conditions)
    source_image = [] if source is None else [keras.Input(source.shape(shape))]
    stems = [_stem(image, source, widths[0], remat) for image in source_image]
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
    """Return the layer of a network that makes the linear estimate."""
    (layer,) = (x for x in network.layers if isinstance(x, LinearEstimate))
    return layer


def unnormalised(network: keras.Model) -> list[str]:
    """Name the kernels that work on what no block has normalised."""
    kinds: tuple[Any, ...] = tuple(CONVOLUTIONS.values())
    return [x.kernel.path for x in network.layers if isinstance(x, kinds)]


def seeded_unet(
    seed: int,
    shape: tuple[int, ...],
    *,
    widths: Sequence[int],
    attention: Sequence[bool] | None = None,
    **options,
) -> keras.Model:
    """Build a U-Net with weights that follow from a seed.

    Shapes: shape ``(*space, channels)``.
    """
    attention = attention or [False] * len(widths)
    with seeded(seed):
        return unet(shape, widths=widths, attention=attention, **options)


def _stem(image, source, width, remat):
    """Bring an image to the grid of the latents."""

    def build(x):
        x = SourceFeatures(source.labels)(x)
        # All voxels of a latent at once, whose positions within it are told apart.
        size = {"size": source.factor, "strides": source.factor}
        return conv(
            x, width, kernel_initializer=SeededInitializer("LecunNormal"), **size
        )

    return residual(enclosed(build, [image], remat), width, norm_groups, remat)


def _down_and_up(x, time, widths, blocks, attention, remat):
    """Apply the levels of a U-Net: what is seen on the way down is given on that up."""
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


def _block(x, width, time, attention, remat):
    x = residual(x, width, norm_groups, remat, time)
    return enclosed(_attend, [x], remat) if attention else x


def _attend(x):
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


def _embed(times, encoded=None, *, width, sizes):
    """Turn times and conditions into the features that every block is told."""
    x = TimeEmbedding(width)(times)
    for _ in range(2):
        x = layers.Dense(
            width, activation=swish, kernel_initializer=SeededInitializer()
        )(x)
        if encoded is not None:
            # Before the last layer, in which what they mean together is learnt.
            draw = SeededInitializer("RandomNormal", stddev=0.5)
            features = ConditionFeatures(sizes)(encoded)
            learnt = layers.Dense(width, use_bias=False, kernel_initializer=draw)
            x = layers.Add()([x, learnt(features)])
            encoded = None
    return x
