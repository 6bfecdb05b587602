"""Receptive fields of networks, and tiles."""

from functools import partial

import keras
from keras import ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils import tiling as tiles
from dipy_ldm.autoencoder._network import encoder_and_decoder
from dipy_ldm.nn import _analysis as analysis
from dipy_ldm.nn._layers import DepthToSpace


def network_of(number, widths, blocks):
    """Build an encoder (0) or a decoder (1)."""
    options = {"widths": widths, "blocks": blocks, "code_dim": 2, "seed": 1}
    return encoder_and_decoder((None, None), 1, **options)[number]


def upsampling():
    """Build a decoder of another kind: of other kernels, one dilated, and factors."""
    latents = keras.Input((None, None, 2))
    x = keras.layers.Conv2D(36, 5, padding="same")(latents)
    x = DepthToSpace(3)(x)
    x = keras.layers.Conv2D(4, 3, padding="same", dilation_rate=2)(x)
    x = keras.layers.Conv2D(1, 4, strides=1, padding="same")(x)
    return keras.Model(latents, x)


@pytest.mark.parametrize(
    ("build", "factors"),
    [
        (partial(network_of, 1, (4, 4), 3), {"output_factor": 4}),
        (upsampling, {"output_factor": 3}),
        (partial(network_of, 0, (8, 4, 8), 2), {"input_factor": 8}),
    ],
)
def test_tiles_that_overlap_by_the_receptive_radius_give_the_whole(build, factors, rng):
    network = build()
    for weight in network.weights:
        weight.assign_add(0.1 * rng.standard_normal(weight.shape))
    reach = analysis.receptive_radius(network, **factors)
    factor = factors.get("input_factor", 1)
    sides = (factor * n for n in (31, 5))
    channels = network.inputs[0].shape[-1]
    x = rng.standard_normal((1, *sides, channels)).astype("float32")
    whole = ops.convert_to_numpy(network(x))
    tiled = tiles.in_tiles(network, x, tile=4, margin=reach, **factors)
    npt.assert_allclose(tiled, whole, atol=5e-6)
    # One less would not do.
    tiled = tiles.in_tiles(network, x, tile=4, margin=reach - 1, **factors)
    assert np.abs(tiled - whole).max() > 1e-5


def test_receptive_radius_of_global_layers_is_refused():
    latents = keras.Input((None, None, 2))
    decoder = keras.Model(latents, keras.layers.GroupNormalization(1)(latents))
    with pytest.raises(TypeError, match="unknown receptive field of layer"):
        analysis.receptive_radius(decoder)
