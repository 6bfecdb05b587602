"""Static analysis of networks: memory and receptive field."""

from collections.abc import Iterable
import math
from typing import NamedTuple

import keras
from keras import layers

from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.types import Tensor
from dipy_ldm.nn._layers import CONVOLUTIONS, DepthToSpace, Recomputed, Sum
from dipy_ldm.nn._normalization import PositionActivated

_CONVOLUTIONS = layers.Conv2D, layers.Conv3D
# Layers whose output at a position depends on their input at that position alone.
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
    output_margin: int = 0,
) -> int:
    """Return the receptive radius of a network, in positions of its input.

    Layers are treated as sequential: an upper bound for parallel layers that keep the
    resolution, or whose only parallel path is a skip connection.
    """
    # The output range that corresponds to one latent.
    first, last = _network_range(
        network, -output_margin, output_factor - 1 + output_margin
    )
    return math.ceil(max(-first, last - (input_factor - 1)) / input_factor)


def tiling(
    network: keras.Model,
    tile: int | None,
    factor: int,
    *,
    input_factor: int = 1,
    output_factor: int = 1,
    output_margin: int = 0,
) -> dict[str, int]:
    """Return the tile size and overlap as keyword arguments of ``in_tiles``."""
    factors = {"input_factor": input_factor, "output_factor": output_factor}
    margin = receptive_radius(network, output_margin=output_margin, **factors)
    rank = len(network.inputs[0].shape) - 2
    voxels = tile or tiles.safe_side(rank) - 2 * margin * factor
    return {"tile": max(1, voxels // factor), "margin": margin} | factors


def _network_range(network: keras.Model, first: int, last: int):
    """Return the input range on which an output range of a network depends."""
    for layer in reversed(list(_flattened_layers(network))):
        first, last = _layer_range(layer, first, last)
    return first, last


def _flattened_layers(network: keras.Model):
    """Yield the layers of a network and of its nested networks."""
    for layer in network.layers:
        inside = layer.block if isinstance(layer, Recomputed) else layer
        if isinstance(inside, keras.Model):
            yield from _flattened_layers(inside)
        else:
            yield layer


def _layer_range(layer: keras.Layer, first: int, last: int):
    """Return the input range on which an output range of a layer depends."""
    if isinstance(layer, Sum):
        ranges = [_network_range(network, first, last) for network in layer.networks]
        return min(low for low, _ in ranges), max(high for _, high in ranges)
    if isinstance(layer, _CONVOLUTIONS):
        stride = max(layer.strides)
        size = max((k - 1) * d for k, d in zip(layer.kernel_size, layer.dilation_rate))
        # Padding "same", where the stride divides the size.
        before = max(size + 1 - stride, 0) // 2
        first, last = first * stride - before, last * stride - before + size
        factor = 2 if getattr(layer, "upsampled", False) else 1
        return first // factor, last // factor
    if isinstance(layer, DepthToSpace):
        return first // layer.times, last // layer.times
    if isinstance(layer, _POINTWISE):
        return first, last
    raise TypeError(f"unknown receptive field of layer {layer.name}: {type(layer)}.")


# Copies of the output beside the input, where not 1: upsampling works along one axis
# after the other, and some layers work in place.
_OUTPUT_COPIES = {layers.UpSampling2D: 1.5, layers.UpSampling3D: 1.8}
_OUTPUT_COPIES |= dict.fromkeys((layers.Add, layers.Multiply, layers.Activation), 0)
# In 16 bits, CPU gradients of 3D convolutions pad the channels to the vector width.
_CONV3D_16BIT_COPIES = 4


class MemoryNeeds(NamedTuple):
    """Bytes per example: kept for the gradient, recomputed, and largest layer."""

    kept: int = 0
    recomputed: int = 0
    live: float = 0.0


def memory_needs(network: keras.Model) -> MemoryNeeds:
    """Estimate the memory that a network needs per example."""
    return sequential_needs(map(_layer_needs, network.layers))


def sequential_needs(needs: Iterable[MemoryNeeds]) -> MemoryNeeds:
    """Return the memory needs of layers or networks that run in sequence."""
    kept, recomputed, live = zip(*needs)
    return MemoryNeeds(sum(kept), max(recomputed), max(live))


def _layer_needs(layer: keras.Layer):
    input_bytes = sum(map(_bytes, keras.tree.flatten(layer.input)))
    if isinstance(layer, keras.Model):
        inside = memory_needs(layer)
        # Residual blocks keep their input until the end.
        return inside._replace(live=inside.live + input_bytes)
    outputs = keras.tree.flatten(layer.output)
    output_bytes = sum(map(_bytes, outputs))
    if isinstance(layer, Sum):
        parts = map(memory_needs, layer.networks)
        return sequential_needs([MemoryNeeds(kept=output_bytes), *parts])
    if isinstance(layer, Recomputed):
        inside = memory_needs(layer.block)
        live = input_bytes + inside.live
        return MemoryNeeds(output_bytes, inside.kept + inside.recomputed, live)
    live = input_bytes + _OUTPUT_COPIES.get(type(layer), 1) * output_bytes
    is_16bit = all(_bytes_per_value(tensor) == 2 for tensor in outputs)
    if is_16bit and isinstance(layer, CONVOLUTIONS[3]):
        live *= _CONV3D_16BIT_COPIES
    return MemoryNeeds(output_bytes, 0, live)


def _bytes_per_value(tensor: Tensor):
    name = keras.backend.standardize_dtype(tensor.dtype)
    return 2 if name.endswith("16") else 4


def _bytes(tensor: Tensor):
    return math.prod(tensor.shape[1:]) * _bytes_per_value(tensor)
