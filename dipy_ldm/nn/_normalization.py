"""Fused normalisation and activation.

For the gradient of one normalisation and activation on CPUs, Keras' own layers read
the tensor some thirty times and keep it in float32.
"""

import math

import keras
from keras import ops

from dipy_ldm._backend.fusion import cached_trace, fused, with_gradient

# Added to mean squares.
EPSILON = 1e-5


@keras.saving.register_keras_serializable("dipy_ldm")
class GroupScale(keras.layers.Layer):
    """Return the scale and shift of each channel by group normalisation.

    Group normalisation :footcite:p:`Wu2018` standardises groups of channels over all
    positions, then applies a learnt scale and shift per channel. Both combine to one
    scale and shift, which may be modulated before :class:`Activated` applies them.
    """

    def __init__(self, groups: int, **kwargs) -> None:
        super().__init__(**kwargs | {"dtype": "float32", "autocast": False})
        self.groups = groups

    def build(self, shape):
        """Create the learnt scale and shift."""
        self.gamma = self.add_weight((shape[-1],), name="gamma", initializer="ones")
        self.beta = self.add_weight((shape[-1],), name="beta", initializer="zeros")

    def call(self, x):
        """Map ``(batch, *space, channels)`` to two ``(batch, 1, ..., channels)``."""
        learnt = (ops.reshape(w, (self.groups, -1)) for w in (self.gamma, self.beta))
        return _scales_of_groups(x, *learnt)

    def compute_output_spec(self, x):
        """Return the specs of two tensors of one number per channel."""
        shape = (x.shape[0], *(1 for _ in x.shape[1:-1]), x.shape[-1])
        return keras.KerasTensor(shape), keras.KerasTensor(shape)


@keras.saving.register_keras_serializable("dipy_ldm")
class Activated(keras.layers.Layer):
    """Scale and shift each channel and apply swish in float32; keep the input dtype."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs | {"autocast": False})

    def call(self, inputs, training=False):
        """Map ``(batch, *space, channels)``, scale and shift to the first's shape."""
        return (_fast_activated if training else _activated)(*inputs)

    def compute_output_shape(self, input_shape):
        """Return the shape of the first input."""
        return input_shape[0]


@keras.saving.register_keras_serializable("dipy_ldm")
class PositionActivated(keras.layers.Layer):
    """Normalise each position over its channels, scale these and apply swish.

    Root mean square normalisation :footcite:p:`Zhang2019`. It computes in float32 and
    keeps the dtype of its input.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs | {"autocast": False})

    def build(self, shape):
        """Create the learnt scale."""
        self.scale = self.add_weight((shape[-1],), name="scale", initializer="ones")

    def call(self, x, training=False):
        """Map ``(batch, *space, channels)`` to the same shape."""
        scale = ops.reshape(self.scale, (*(1 for _ in x.shape[1:]), -1))
        return (_fast_position if training else _position)(x, scale)

    def compute_output_shape(self, input_shape):
        """Return the shape unchanged."""
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


def _swish_derivative(y):
    sigmoid = ops.sigmoid(y)
    return sigmoid * (1 + y * (1 - sigmoid))


@cached_trace
def _scales(x, gamma, beta):
    """Return scale and shift per channel, mean and inverse deviation per group."""
    (full,) = _full(x)
    like = ops.shape(x)[0], *(1 for _ in _positions(x)), x.shape[-1]

    def mean_of_groups(values):
        of_channels = ops.reshape(ops.mean(values, _positions(x)), (-1, *gamma.shape))
        return ops.mean(of_channels, -1, keepdims=True)

    mean = mean_of_groups(full)
    # E[x²] - E[x]² would cancel where the mean is large.
    centred = full - _of_channels(mean, gamma.shape, like)
    variance = mean_of_groups(ops.square(centred))
    rate = ops.rsqrt(variance + EPSILON)
    gain = gamma * rate
    return *(ops.reshape(of, like) for of in (gain, beta - mean * gain)), mean, rate


@cached_trace
def _scales_slopes(of_gain, of_offset, gamma, mean, rate):
    """Return gradients of mean and variance, the mean, and gradients of weights."""
    like, shape = ops.shape(of_gain), (-1, *gamma.shape)
    of_gain, of_offset = ops.reshape(of_gain, shape), ops.reshape(of_offset, shape)
    of_gain = of_gain - mean * of_offset
    of_rate, of_mean = (
        ops.sum(gamma * of, -1, keepdims=True) for of in (of_gain, of_offset)
    )
    of_variance = -0.5 * rate * rate * rate * of_rate
    # The gradients of a group are shared equally by its channels.
    parts = (part / gamma.shape[1] for part in (-rate * of_mean, of_variance))
    moments = (_of_channels(part, gamma.shape, like) for part in (*parts, mean))
    return *moments, ops.sum(of_gain * rate, 0), ops.sum(of_offset, 0)


def _of_channels(of_groups, shape, like):
    """Repeat the values of each group for its channels."""
    return ops.reshape(of_groups * ops.ones(shape, "float32"), like)


@fused
def _moments_slope(x, of_mean, of_variance, mean):
    (full,) = _full(x)
    count = math.prod(ops.shape(x)[axis] for axis in _positions(x))
    # A dynamic size is an integer tensor, which can't divide floats.
    count = ops.cast(count, "float32")
    slope = of_mean / count + 2 * (of_variance / count) * (full - mean)
    return ops.cast(slope, x.dtype)


def _scales_gradient(tensors, *upstream):
    x, gamma, _, *kept = tensors
    *moments, of_gamma, of_beta = _scales_slopes(*upstream, gamma, *kept)
    return _moments_slope(x, *moments), of_gamma, of_beta


def _activated(x, gain, offset):
    (full,) = _full(x)
    return ops.cast(_swish(full * gain + offset), x.dtype)


@fused
def _activated_slopes(upstream, x, gain, offset):
    full, upstream = _full(x, upstream)
    slope = upstream * _swish_derivative(full * gain + offset)
    return [ops.cast(part, x.dtype) for part in (slope * gain, slope * full, slope)]


def _activated_gradient(tensors, upstream):
    of_x, of_gain, of_offset = _activated_slopes(upstream, *tensors)
    axes = _positions(of_x)
    return of_x, _sum(of_gain, axes), _sum(of_offset, axes)


def _position(x, scale):
    (full,) = _full(x)
    return ops.cast(_swish(full * _inverse_rms(full) * scale), x.dtype)


def _inverse_rms(full):
    return ops.rsqrt(ops.mean(ops.square(full), -1, keepdims=True) + EPSILON)


@fused
def _rms_norm_swish_gradients(upstream, x, scale):
    full, upstream = _full(x, upstream)
    rate = _inverse_rms(full)
    normal = full * rate
    slope = upstream * _swish_derivative(normal * scale)
    along = ops.mean(slope * scale * normal, -1, keepdims=True)
    of_x = rate * (slope * scale - normal * along)
    return [ops.cast(part, x.dtype) for part in (of_x, slope * normal)]


def _position_gradient(tensors, upstream):
    of_x, of_scale = _rms_norm_swish_gradients(upstream, *tensors)
    return of_x, _sum(of_scale, (0, *_positions(of_x)))


@keras.saving.register_keras_serializable("dipy_ldm")
def swish(x):
    """Apply swish :footcite:p:`Ramachandran2017`.

    Unlike Keras' own, its gradient in TensorFlow does not keep every graph in memory.
    """
    return _fast_swish(x)


@fused
def _swish_gradient(x, upstream):
    full, upstream = _full(x, upstream)
    return ops.cast(upstream * _swish_derivative(full), x.dtype)


_fast_swish = with_gradient(_swish, lambda of, upstream: _swish_gradient(*of, upstream))
_scales_of_groups = with_gradient(_scales, _scales_gradient, kept=2)
# Compiled for each shape, which only pays off over many training steps.
_fast_activated = with_gradient(fused(_activated), _activated_gradient)
_fast_position = with_gradient(fused(_position), _position_gradient)
