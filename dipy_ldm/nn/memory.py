"""What networks need of the memory: all that is kept for the gradient, and at once."""

import math
from typing import Any, NamedTuple, Self

import keras
from keras import layers

from dipy_ldm.nn.layers import CONVOLUTIONS, Recomputed, Sum

# Their result takes the place of what they are given.
_IN_PLACE = layers.Add, layers.Multiply, layers.Activation
# An upsampled image is made by one axis after the other: how much of it there is at
# once, by its number of axes.
_UPSAMPLINGS = {layers.UpSampling2D: 1.5, layers.UpSampling3D: 1.8}
# In 16 bits, the gradients of convolutions of volumes are made of copies with all
# channels that a processor multiplies at once, however few there are.
_HALVED = 4


class MemoryNeeds(NamedTuple):
    """Bytes that a network needs for one example."""

    kept: int = 0
    again: int = 0
    live: float = 0.0

    def beside(self, other: Self) -> Self:
        """Say what two networks need, one after the other."""
        return self._replace(
            kept=self.kept + other.kept,
            again=max(self.again, other.again),
            live=max(self.live, other.live),
        )


def memory_needs(network: keras.Model) -> MemoryNeeds:
    """Estimate what a network needs for one example."""
    total = MemoryNeeds()
    for layer in network.layers:
        total = total.beside(_of_layer(layer))
    return total


def _of_layer(layer):
    input_bytes = sum(map(_bytes, _listed(layer.input)))
    if isinstance(layer, keras.Model):
        inside = memory_needs(layer)
        # What a block is given is added to its result in the end.
        return inside._replace(live=inside.live + input_bytes)
    output_bytes = sum(map(_bytes, _listed(layer.output)))
    if isinstance(layer, Sum):
        inside = MemoryNeeds(kept=output_bytes)
        for network in layer.networks:
            inside = inside.beside(memory_needs(network))
        return inside
    if isinstance(layer, Recomputed):
        inside = memory_needs(layer.block)
        live = input_bytes + inside.live
        return MemoryNeeds(output_bytes, inside.kept + inside.again, live)
    times = next((n for kind, n in _UPSAMPLINGS.items() if isinstance(layer, kind)), 1)
    live = input_bytes + (0 if isinstance(layer, _IN_PLACE) else times * output_bytes)
    halved = all(_width(tensor) == 2 for tensor in _listed(layer.output))
    if halved and isinstance(layer, CONVOLUTIONS[3]):
        live *= _HALVED
    return MemoryNeeds(output_bytes, 0, live)


def _listed(tensors: Any) -> list:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def _width(tensor):
    name = keras.backend.standardize_dtype(tensor.dtype)
    return 2 if name.endswith("16") else 4


def _bytes(tensor):
    return math.prod(tensor.shape[1:]) * _width(tensor)
