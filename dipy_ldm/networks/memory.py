"""What networks keep for the gradient."""

import math

import keras

from dipy_ldm.layers import Recomputed, Sum


def kept_bytes(network: keras.Model) -> int:
    """Estimate what a network keeps of one example for the gradient.

    Parameters
    ----------
    network : keras.Model
        Network of known spatial size.

    Returns
    -------
    int
        Bytes of what its layers put out. Of blocks that are computed again only
        the output counts, and once the insides of the largest of them.
    """
    kept, again = _kept(network)
    return kept + again


def _kept(network):
    kept, again = 0, 0
    for layer in network.layers:
        inside = layer.networks if isinstance(layer, Sum) else [layer]
        for part in inside:
            if isinstance(part, keras.Model):
                more, largest = _kept(part)
                kept, again = kept + more, max(again, largest)
        if not isinstance(layer, keras.Model):
            kept += _bytes(layer.output)
        if isinstance(layer, Recomputed):
            again = max(again, kept_bytes(layer.block))
    return kept, again


def _bytes(tensor):
    width = keras.backend.standardize_dtype(tensor.dtype)
    return math.prod(tensor.shape[1:]) * (2 if width.endswith("16") else 4)
