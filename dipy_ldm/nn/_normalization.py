"""Fused normalisation and activation.

For the gradient of one normalisation and activation on CPUs, Keras' own layers read
the tensor some thirty times and keep it in float32.
"""

import math

import keras
from keras import ops

from dipy_ldm._backend.fusion import cached_trace, fused, with_gradient
from dipy_ldm._utils.types import Tensor

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

    def build(self, shape: tuple):
        """Create the learnt scale and shift."""
        self.gamma = self.add_weight((shape[-1],), name="gamma", initializer="ones")
        self.beta = self.add_weight((shape[-1],), name="beta", initializer="zeros")

    def call(self, x: Tensor):
        """Map ``(batch, *space, channels)`` to two ``(batch, 1, ..., channels)``."""
        gamma = ops.reshape(self.gamma, (self.groups, -1))
        return _scales_of_groups(x, gamma, ops.reshape(self.beta, (self.groups, -1)))

    def compute_output_spec(self, x: Tensor):
        """Return the specs of two tensors of one number per channel."""
        shape = (x.shape[0], *(1 for _ in x.shape[1:-1]), x.shape[-1])
        return keras.KerasTensor(shape), keras.KerasTensor(shape)


@keras.saving.register_keras_serializable("dipy_ldm")
class Activated(keras.layers.Layer):
    """Scale and shift each channel and apply swish in float32; keep the input dtype."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs | {"autocast": False})

    def call(self, inputs: list, training: bool = False):
        """Map ``(batch, *space, channels)``, scale and shift to the first's shape."""
        return (_fast_activated if training else _activated)(*inputs)

    def compute_output_shape(self, input_shape: tuple):
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

    def build(self, shape: tuple):
        """Create the learnt scale."""
        self.scale = self.add_weight((shape[-1],), name="scale", initializer="ones")

    def call(self, x: Tensor, training: bool = False):
        """Map ``(batch, *space, channels)`` to the same shape."""
        scale = ops.reshape(self.scale, (*(1 for _ in x.shape[1:]), -1))
        return (_fast_position if training else _position)(x, scale)

    def compute_output_shape(self, input_shape: tuple):
        """Return the shape unchanged."""
        return input_shape


def _as_float32(*tensors):
    return [ops.cast(tensor, "float32") for tensor in tensors]


def _sum_float32(x: Tensor, axes: tuple[int, ...]):
    # A sum of bfloat16 is accumulated in float32.
    return ops.cast(ops.sum(x, axes, keepdims=True), "float32")


def _spatial_axes(x: Tensor):
    return tuple(range(1, len(x.shape) - 1))


def _swish(y: Tensor):
    return y * ops.sigmoid(y)


def _swish_derivative(y: Tensor):
    sigmoid = ops.sigmoid(y)
    return sigmoid * (1 + y * (1 - sigmoid))


@cached_trace
def _scales(x: Tensor, gamma: Tensor, beta: Tensor):
    """Return scale and shift per channel, mean and inverse deviation per group."""
    (x32,) = _as_float32(x)
    shape = ops.shape(x)[0], *(1 for _ in _spatial_axes(x)), x.shape[-1]

    def group_means(values: Tensor):
        channel_means = ops.reshape(
            ops.mean(values, _spatial_axes(x)), (-1, *gamma.shape)
        )
        return ops.mean(channel_means, -1, keepdims=True)

    mean = group_means(x32)
    # E[x²] - E[x]² would cancel where the mean is large.
    centred = x32 - _repeat_for_channels(mean, gamma.shape, shape)
    variance = group_means(ops.square(centred))
    rate = ops.rsqrt(variance + EPSILON)
    gain = gamma * rate
    return *(ops.reshape(x, shape) for x in (gain, beta - mean * gain)), mean, rate


@cached_trace
def _group_gradients(
    grad_gain: Tensor, grad_offset: Tensor, gamma: Tensor, mean: Tensor, rate: Tensor
):
    """Return gradients of mean and variance, the mean, and gradients of weights."""
    shape, groups = ops.shape(grad_gain), (-1, *gamma.shape)
    grad_gain, grad_offset = (
        ops.reshape(grad_gain, groups),
        ops.reshape(grad_offset, groups),
    )
    grad_gain = grad_gain - mean * grad_offset
    grad_rate, grad_mean = (
        ops.sum(gamma * grad, -1, keepdims=True) for grad in (grad_gain, grad_offset)
    )
    grad_variance = -0.5 * rate * rate * rate * grad_rate
    # The gradients of a group are shared equally by its channels.
    parts = (part / gamma.shape[1] for part in (-rate * grad_mean, grad_variance))
    moments = (
        _repeat_for_channels(part, gamma.shape, shape) for part in (*parts, mean)
    )
    return *moments, ops.sum(grad_gain * rate, 0), ops.sum(grad_offset, 0)


def _repeat_for_channels(values: Tensor, groups: tuple, shape: tuple):
    """Repeat the values of each group for its channels."""
    return ops.reshape(values * ops.ones(groups, "float32"), shape)


@fused
def _input_gradient(x: Tensor, grad_mean: Tensor, grad_variance: Tensor, mean: Tensor):
    (x32,) = _as_float32(x)
    count = math.prod(ops.shape(x)[axis] for axis in _spatial_axes(x))
    # A dynamic size is an integer tensor, which can't divide floats.
    count = ops.cast(count, "float32")
    grad = grad_mean / count + 2 * (grad_variance / count) * (x32 - mean)
    return ops.cast(grad, x.dtype)


def _scales_gradient(tensors: tuple, *upstream):
    x, gamma, _, mean, rate = tensors
    grad_mean, grad_variance, mean, grad_gamma, grad_beta = _group_gradients(
        *upstream, gamma, mean, rate
    )
    grad_x = _input_gradient(x, grad_mean, grad_variance, mean)
    return grad_x, grad_gamma, grad_beta


def _activated(x: Tensor, gain: Tensor, offset: Tensor):
    (x32,) = _as_float32(x)
    return ops.cast(_swish(x32 * gain + offset), x.dtype)


@fused
def _elementwise_gradients(upstream: Tensor, x: Tensor, gain: Tensor, offset: Tensor):
    x32, upstream = _as_float32(x, upstream)
    grad = upstream * _swish_derivative(x32 * gain + offset)
    return [ops.cast(part, x.dtype) for part in (grad * gain, grad * x32, grad)]


def _activated_gradient(tensors: tuple, upstream: Tensor):
    grad_x, grad_gain, grad_offset = _elementwise_gradients(upstream, *tensors)
    axes = _spatial_axes(grad_x)
    return grad_x, _sum_float32(grad_gain, axes), _sum_float32(grad_offset, axes)


def _position(x: Tensor, scale: Tensor):
    (x32,) = _as_float32(x)
    return ops.cast(_swish(x32 * _inverse_rms(x32) * scale), x.dtype)


def _inverse_rms(x32: Tensor):
    return ops.rsqrt(ops.mean(ops.square(x32), -1, keepdims=True) + EPSILON)


@fused
def _rms_norm_swish_gradients(upstream: Tensor, x: Tensor, scale: Tensor):
    x32, upstream = _as_float32(x, upstream)
    rate = _inverse_rms(x32)
    normal = x32 * rate
    grad = upstream * _swish_derivative(normal * scale)
    along = ops.mean(grad * scale * normal, -1, keepdims=True)
    grad_x = rate * (grad * scale - normal * along)
    return [ops.cast(part, x.dtype) for part in (grad_x, grad * normal)]


def _position_gradient(tensors: tuple, upstream: Tensor):
    grad_x, grad_scale = _rms_norm_swish_gradients(upstream, *tensors)
    return grad_x, _sum_float32(grad_scale, (0, *_spatial_axes(grad_x)))


@keras.saving.register_keras_serializable("dipy_ldm")
def swish(x: Tensor):
    """Apply swish :footcite:p:`Ramachandran2017`.

    Unlike Keras' own, its gradient in TensorFlow does not keep every graph in memory.
    """
    return _fast_swish(x)


@fused
def _swish_gradient(x: Tensor, upstream: Tensor):
    x32, upstream = _as_float32(x, upstream)
    return ops.cast(upstream * _swish_derivative(x32), x.dtype)


_fast_swish = with_gradient(_swish, lambda of, upstream: _swish_gradient(*of, upstream))
_scales_of_groups = with_gradient(_scales, _scales_gradient, kept=2)
# Compiled for each shape, which only pays off over many training steps.
_fast_activated = with_gradient(fused(_activated), _activated_gradient)
_fast_position = with_gradient(fused(_position), _position_gradient)
