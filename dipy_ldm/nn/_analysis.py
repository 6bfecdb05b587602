"""Static analysis of networks: the memory they need and their receptive field."""

from collections.abc import Iterable
import math
from typing import NamedTuple

import keras
from keras import layers

from dipy_ldm._utils import tiling as tiles
from dipy_ldm.nn._layers import CONVOLUTIONS, DepthToSpace, Recomputed, Sum
from dipy_ldm.nn._normalization import PositionActivated

_CONVOLUTIONS = layers.Conv1D, layers.Conv2D, layers.Conv3D
# What comes out at a position depends on what goes in there, and on nothing else.
_POINTWISE = (
    layers.InputLayer,
    layers.Activation,
    layers.Add,
    layers.Concatenate,
    layers.Multiply,
    PositionActivated,
)


def receptive_radius(
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
    first, last = _network_range(network, -beyond, output_factor - 1 + beyond)
    return math.ceil(max(-first, last - (input_factor - 1)) / input_factor)


def tiling(
    network: keras.Model,
    tile: int | None,
    factor: int,
    *,
    input_factor: int = 1,
    output_factor: int = 1,
    beyond: int = 0,
) -> dict[str, int]:
    """Return how large tiles are and how far they overlap, as ``in_tiles`` takes it."""
    factors = {"input_factor": input_factor, "output_factor": output_factor}
    margin = receptive_radius(network, beyond=beyond, **factors)
    rank = len(network.inputs[0].shape) - 2
    voxels = tile or tiles.safe_side(rank) - 2 * margin * factor
    return {"tile": max(1, voxels // factor), "margin": margin} | factors


def _network_range(network, first, last):
    """Return the range of a network's input that a range of its output depends on."""
    for layer in reversed(list(_in_order(network))):
        first, last = _layer_range(layer, first, last)
    return first, last


def _in_order(network):
    """List the layers of a network, and of the networks in it."""
    for layer in network.layers:
        inside = layer.block if isinstance(layer, Recomputed) else layer
        if isinstance(inside, keras.Model):
            yield from _in_order(inside)
        else:
            yield layer


def _layer_range(layer, first, last):
    """Return the range of a layer's input that a range of its output depends on."""
    if isinstance(layer, Sum):
        ranges = [_network_range(network, first, last) for network in layer.networks]
        return min(low for low, _ in ranges), max(high for _, high in ranges)
    if isinstance(layer, _CONVOLUTIONS):
        stride = max(layer.strides)
        size = max((k - 1) * d for k, d in zip(layer.kernel_size, layer.dilation_rate))
        # As padding "same" has it where the stride divides the size.
        before = max(size + 1 - stride, 0) // 2
        first, last = first * stride - before, last * stride - before + size
        times = 2 if getattr(layer, "upsampled", False) else 1
        return first // times, last // times
    if isinstance(layer, DepthToSpace):
        return first // layer.times, last // layer.times
    if isinstance(layer, _POINTWISE):
        return first, last
    raise TypeError(f"how far does the layer {layer.name} look, a {type(layer)}?")


# Copies of its result beside what a layer is given, where it is not one: an upsampled
# image is made by one axis after the other, and some layers work in place.
_COPIES = {layers.UpSampling2D: 1.5, layers.UpSampling3D: 1.8}
_COPIES |= dict.fromkeys((layers.Add, layers.Multiply, layers.Activation), 0)
# In 16 bits, the gradients of convolutions of volumes are made of copies with all
# channels that a processor multiplies at once, however few there are.
_HALVED = 4


class MemoryNeeds(NamedTuple):
    """Bytes that a network needs for one example."""

    kept: int = 0
    again: int = 0
    live: float = 0.0


def memory_needs(network: keras.Model) -> MemoryNeeds:
    """Estimate what a network needs for one example."""
    return one_after_another(map(_of_layer, network.layers))


def one_after_another(needs: Iterable[MemoryNeeds]) -> MemoryNeeds:
    """Return what layers or networks need, one after the other."""
    kept, again, live = zip(*needs)
    return MemoryNeeds(sum(kept), max(again), max(live))


def _of_layer(layer):
    input_bytes = sum(map(_bytes, keras.tree.flatten(layer.input)))
    if isinstance(layer, keras.Model):
        inside = memory_needs(layer)
        # What a block is given is added to its result in the end.
        return inside._replace(live=inside.live + input_bytes)
    outputs = keras.tree.flatten(layer.output)
    output_bytes = sum(map(_bytes, outputs))
    if isinstance(layer, Sum):
        parts = map(memory_needs, layer.networks)
        return one_after_another([MemoryNeeds(kept=output_bytes), *parts])
    if isinstance(layer, Recomputed):
        inside = memory_needs(layer.block)
        live = input_bytes + inside.live
        return MemoryNeeds(output_bytes, inside.kept + inside.again, live)
    live = input_bytes + _COPIES.get(type(layer), 1) * output_bytes
    halved = all(_width(tensor) == 2 for tensor in outputs)
    if halved and isinstance(layer, CONVOLUTIONS[3]):
        live *= _HALVED
    return MemoryNeeds(output_bytes, 0, live)


def _width(tensor):
    name = keras.backend.standardize_dtype(tensor.dtype)
    return 2 if name.endswith("16") else 4


def _bytes(tensor):
    return math.prod(tensor.shape[1:]) * _width(tensor)
