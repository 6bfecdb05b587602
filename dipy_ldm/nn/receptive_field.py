"""How large the result of a network is, and how far it looks, read from its layers."""

import math

import keras
from keras import layers
import numpy as np

from dipy_ldm.nn.layers import DepthToSpace, Recomputed, Sum
from dipy_ldm.nn.normalization import PositionActivated

_CONVOLUTIONS = layers.Conv1D, layers.Conv2D, layers.Conv3D
_UPSAMPLINGS = layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D
# What comes out at a position depends on what goes in there, and on nothing else.
_POINTWISE = (
    layers.InputLayer,
    layers.Activation,
    layers.Add,
    layers.Concatenate,
    layers.Multiply,
    PositionActivated,
)


def upsampling_factor(decoder: keras.Model) -> int:
    """Return how many times larger the output of a network is than its input.

    Shapes: decoder ``(batch, *space, channels)``.
    """
    _, *space, channels = decoder.inputs[0].shape
    one = (1, *(1 for _ in space), channels)
    return decoder.compute_output_shape(one)[1]


def reach(
    network: keras.Model,
    *,
    input_factor: int = 1,
    output_factor: int = 1,
    beyond: int = 0,
) -> int:
    """Return how far a network looks beyond a position of its input.

    Its layers are taken as if one followed the other, which is not too little for
    those that are side by side, as long as none of these changes the resolution, or
    all that is beside them is a connection that skips them.
    """
    # The result's first and last position in the place of one latent.
    first, last = _input_range_of_network(network, -beyond, output_factor - 1 + beyond)
    return math.ceil(max(-first, last - (input_factor - 1)) / input_factor)


def _input_range_of_network(network, first, last):
    """Return the range of a network's input that a range of its output depends on."""
    for layer in reversed(list(_in_order(network))):
        first, last = _input_range(layer, first, last)
    return first, last


def _in_order(network):
    """List the layers of a network, and of the networks in it."""
    for layer in network.layers:
        inside = layer.block if isinstance(layer, Recomputed) else layer
        if isinstance(inside, keras.Model):
            yield from _in_order(inside)
        else:
            yield layer


def _input_range(layer, first, last):
    """Return the range of a layer's input that a range of its output depends on."""
    if isinstance(layer, Sum):
        ranges = [
            _input_range_of_network(network, first, last) for network in layer.networks
        ]
        return min(low for low, _ in ranges), max(high for _, high in ranges)
    if isinstance(layer, _CONVOLUTIONS):
        stride = max(layer.strides)
        size = max((k - 1) * d for k, d in zip(layer.kernel_size, layer.dilation_rate))
        # As padding "same" has it where the stride divides the size.
        before = max(size + 1 - stride, 0) // 2
        first, last = first * stride - before, last * stride - before + size
        times = 2 if getattr(layer, "upsampled", False) else 1
        return first // times, last // times
    if isinstance(layer, _UPSAMPLINGS):
        times = int(np.max(layer.size))
        return first // times, last // times
    if isinstance(layer, DepthToSpace):
        return first // layer.times, last // layer.times
    if isinstance(layer, _POINTWISE):
        return first, last
    raise TypeError(f"how far does the layer {layer.name} look, a {type(layer)}?")
