"""Normalisation and activation: scaled, shifted and activated in one go.

On processors, Keras' own layers pass over a tensor some thirty times for the gradient
of one normalisation and one activation, and keep it in float32.
"""

import math

import keras
from keras import ops

from dipy_ldm.fusion import fused, with_gradient

# Added to mean squares.
EPSILON = 1e-5


@keras.saving.register_keras_serializable("dipy_ldm")
class GroupScale(keras.layers.Layer):
    """Say by how much group normalisation scales and shifts each channel.

    Group normalisation :footcite:p:`Wu2018` brings groups of channels, over all
    positions, to a mean of 0 and a variance of 1, and then each channel to a scale and
    a shift that are learnt. Both together are one scale and one shift of each channel,
    by which :class:`Activated` computes; a few numbers, which may be changed before.

    Parameters
    ----------
    groups : int
        Number of groups, a divisor of the channels.
    **kwargs
        Arguments of :class:`keras.layers.Layer`.

    References
    ----------
    .. footbibliography::
    """

    def __init__(self, groups: int, **kwargs) -> None:
        super().__init__(**kwargs | {"dtype": "float32", "autocast": False})
        self.groups = groups

    def build(self, shape):
        """Make the scale and the shift."""
        self.gamma = self.add_weight((shape[-1],), name="gamma", initializer="ones")
        self.beta = self.add_weight((shape[-1],), name="beta", initializer="zeros")

    def call(self, x, training=False):
        """Map ``(batch, *space, channels)`` to two ``(batch, 1, ..., channels)``."""
        moments = (_fast_moments if training else _moments)(x)
        mean, square = (self._over_groups(moment) for moment in moments)
        variance = ops.maximum(square - ops.square(mean), 0)
        gain = self.gamma * ops.rsqrt(variance + EPSILON)
        return gain, self.beta - mean * gain

    def compute_output_spec(self, x, training=False):
        """Return two tensors of one number for each channel."""
        shape = (x.shape[0], *(1 for _ in x.shape[1:-1]), x.shape[-1])
        return keras.KerasTensor(shape), keras.KerasTensor(shape)

    def get_config(self):
        """Return the arguments of the constructor."""
        return super().get_config() | {"groups": self.groups}

    def _over_groups(self, moment):
        """Average over the channels of each group."""
        channels = moment.shape[-1]
        each = ops.reshape(moment, (-1, self.groups, channels // self.groups))
        each = ops.broadcast_to(ops.mean(each, -1, keepdims=True), ops.shape(each))
        return ops.reshape(each, ops.shape(moment))


@keras.saving.register_keras_serializable("dipy_ldm")
class Activated(keras.layers.Layer):
    """Scale and shift each channel by what is given, and activate the result by swish.

    It computes in float32, and returns the precision of what it is given.

    Parameters
    ----------
    **kwargs
        Arguments of :class:`keras.layers.Layer`.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs | {"autocast": False})

    def call(self, inputs, training=False):
        """Map ``(batch, *space, channels)`` and two of each channel to the first."""
        return (_fast_activated if training else _activated)(*inputs)

    def compute_output_shape(self, input_shape):
        """Return the shape of the first."""
        return input_shape[0]


@keras.saving.register_keras_serializable("dipy_ldm")
class PositionActivated(keras.layers.Layer):
    """Normalise each position over its channels, scale these, and activate by swish.

    Root mean square normalisation :footcite:p:`Zhang2019`. It computes in float32, and
    returns the precision of what it is given.

    Parameters
    ----------
    **kwargs
        Arguments of :class:`keras.layers.Layer`.

    References
    ----------
    .. footbibliography::
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs | {"autocast": False})

    def build(self, shape):
        """Make the scale."""
        self.scale = self.add_weight((shape[-1],), name="scale", initializer="ones")

    def call(self, x, training=False):
        """Map ``(batch, *space, channels)`` to the same shape."""
        scale = ops.reshape(self.scale, (*(1 for _ in x.shape[1:]), -1))
        return (_fast_position if training else _position)(x, scale)

    def compute_output_shape(self, input_shape):
        """Return the same."""
        return input_shape


def _full(*tensors):
    return [ops.cast(tensor, "float32") for tensor in tensors]


def _sum(x, axes):
    # A sum of bfloat16 is accumulated in float32.
    return ops.cast(ops.sum(x, axes, keepdims=True), "float32")


def _positions(x):
    return tuple(range(1, len(x.shape) - 1))


def _swish(y):
    return y * ops.sigmoid(y)


def _swish_slope(y):
    sigmoid = ops.sigmoid(y)
    return sigmoid * (1 + y * (1 - sigmoid))


def _moments(x):
    """Return the mean of each channel, and that of its squares."""
    (full,) = _full(x)
    both = (full, ops.square(full))
    return tuple(ops.mean(part, _positions(x), keepdims=True) for part in both)


@fused
def _moments_slope(x, mean, square):
    (full,) = _full(x)
    return ops.cast(mean + 2 * square * full, x.dtype)


def _moments_gradient(tensors, *upstream):
    (x,) = tensors
    count = math.prod(ops.shape(x)[axis] for axis in _positions(x))
    # A size that is known only when it runs is a whole number, which nothing divides.
    count = ops.cast(count, "float32")
    return _moments_slope(x, *(part / count for part in upstream))


def _activated(x, gain, offset):
    (full,) = _full(x)
    return ops.cast(_swish(full * gain + offset), x.dtype)


@fused
def _activated_slopes(upstream, x, gain, offset):
    full, upstream = _full(x, upstream)
    slope = upstream * _swish_slope(full * gain + offset)
    return [ops.cast(part, x.dtype) for part in (slope * gain, slope * full, slope)]


def _activated_gradient(tensors, upstream):
    of_x, of_gain, of_offset = _activated_slopes(upstream, *tensors)
    axes = _positions(of_x)
    return of_x, _sum(of_gain, axes), _sum(of_offset, axes)


def _position(x, scale):
    (full,) = _full(x)
    return ops.cast(_swish(full * _rate(full) * scale), x.dtype)


def _rate(full):
    return ops.rsqrt(ops.mean(ops.square(full), -1, keepdims=True) + EPSILON)


@fused
def _position_slopes(upstream, x, scale):
    full, upstream = _full(x, upstream)
    rate = _rate(full)
    normal = full * rate
    slope = upstream * _swish_slope(normal * scale)
    along = ops.mean(slope * scale * normal, -1, keepdims=True)
    of_x = rate * (slope * scale - normal * along)
    return [ops.cast(part, x.dtype) for part in (of_x, slope * normal)]


def _position_gradient(tensors, upstream):
    of_x, of_scale = _position_slopes(upstream, *tensors)
    return of_x, _sum(of_scale, (0, *_positions(of_x)))


# Compiled for each shape, which only pays where many steps are taken.
_fast_moments = with_gradient(_moments, _moments_gradient)
_fast_activated = with_gradient(fused(_activated), _activated_gradient)
_fast_position = with_gradient(fused(_position), _position_gradient)
