"""The building blocks of all networks, for any number of spatial dimensions.

The number of spatial dimensions is that of the tensor they are given; nothing else
tells two from three.
"""

import keras
from keras import layers

from dipy_ldm.nn._building import SeededInitializer
from dipy_ldm.nn._layers import CONVOLUTIONS, Cut, Recomputed
from dipy_ldm.nn._normalization import Activated, GroupScale, PositionActivated, swish


def conv(x, width, size=3, strides=1, upsampled=False, **kwargs):
    """Convolve a tensor of any rank; the result is as large, divided by the strides.

    Or twice as large: what is convolved has each side doubled first.
    """
    space = x.shape[1:-1]
    kwargs = {"kernel_initializer": SeededInitializer(), "padding": "same"} | kwargs
    # In bfloat16, TensorFlow's gradients for so few voxels are wrong on processors, up
    # to NaN: tests/denoiser/test_unet.py tells when this is no longer needed.
    least = 2 if upsampled else 3
    if len(space) == 3 and any(n is not None and n < least for n in space):
        kwargs["dtype"] = "float32"
    convolution = CONVOLUTIONS[len(space)]
    return convolution(width, size, strides=strides, upsampled=upsampled, **kwargs)(x)


def small_random_bias():
    """Return the initializer of biases where positions are normalised alone.

    With biases of zero, all that is left of a position is in which proportion its
    channels are: how bright it is would be lost until the biases are learnt.
    """
    return SeededInitializer("RandomUniform", minval=-0.1, maxval=0.1)


def norm_groups(x, time=None):
    """Normalise over groups of channels and all positions, and activate.

    Between, channels are scaled and shifted by the time.
    """
    gain, offset = group_scale(x)
    if time is not None:
        gain, offset = _modulate(gain, offset, time)
    return Activated()([x, gain, offset])


def group_scale(x):
    """Return by how much normalisation over groups scales and shifts each channel."""
    # The largest number of groups up to 8 that divides the channels, and leaves at
    # least two of them in each: alone, a channel would lose its mean.
    channels = x.shape[-1]
    most = max(1, min(8, channels // 2))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return GroupScale(groups)(x)


def norm_position(x):
    """Normalise over the channels of each position alone, and activate."""
    return PositionActivated()(x)


def to_output(x, channels, norm, **kwargs):
    """Normalise if there is a way to, activate and project, in full precision."""
    x = layers.Activation(swish)(x) if norm is None else norm(x)
    return conv(x, channels, dtype="float32", **kwargs)


def residual(x, width, norm, remat, *time):
    """Add two convolutions, scaled and shifted by the time, if any, between them."""

    def build(x, *time):
        shortcut = x if x.shape[-1] == width else conv(x, width, size=1)
        x = norm(conv(norm(x), width), *time)
        x = conv(x, width, kernel_initializer="zeros")
        return layers.Add()([shortcut, x])

    return as_submodel(build, [x, *time], remat)


def as_submodel(build, inputs, remat):
    """Build a block as a network of its own, which can be computed again."""
    # Always of its own, so that the order of the weights is the same.
    stand_ins = [keras.Input(x.shape[1:], dtype=x.dtype) for x in inputs]
    block = keras.Model(stand_ins, build(*stand_ins))
    return (Recomputed(block) if remat else block)(inputs)


def _modulate(gain, offset, time):
    shape = gain.shape[1:]

    def project():
        features = layers.Dense(shape[-1], kernel_initializer="zeros")(time)
        return layers.Reshape(shape)(features)

    def add(*tensors):
        return layers.Add(dtype="float32")(tensors)

    scale = project()
    more = [layers.Multiply(dtype="float32")([x, scale]) for x in (gain, offset)]
    return add(gain, more[0]), add(offset, more[1], project())


def upsample_to(x, like, width):
    """Double each side, cut to the size of another tensor, and convolve."""
    space = like.shape[1:-1]
    if space == tuple(2 * n for n in x.shape[1:-1]):
        return conv(x, width, upsampled=True)
    x = getattr(layers, f"UpSampling{len(space)}D")(2)(x)
    return conv(Cut(space)(x), width)
