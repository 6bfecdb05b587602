"""How far networks look, and their tiles."""

import keras
from keras import ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils import tiling as tiles
from dipy_ldm.autoencoder._network import encoder_and_decoder
from dipy_ldm.nn import _analysis as analysis
from dipy_ldm.nn._layers import DepthToSpace

to_numpy = ops.convert_to_numpy


@pytest.mark.parametrize(("widths", "blocks"), [((8, 8), 1), ((8, 8, 8), 2)])
def test_reach_is_how_far_the_decoder_looks(widths, blocks, rng):
    options = {"widths": widths, "blocks": blocks, "code_dim": 1, "seed": 1}
    _, decoder = encoder_and_decoder((None,), 1, **options)
    for weight in decoder.weights:
        weight.assign_add(0.1 * rng.standard_normal(weight.shape))
    latents = rng.standard_normal((1, 64, 1)).astype("float32")
    changed = latents.copy()
    changed[0, 32] += 100
    factor = 2 ** len(widths)
    difference = to_numpy(decoder(changed) - decoder(latents))[0, :, 0]
    touched = np.flatnonzero(difference) / factor
    reach = analysis.receptive_radius(decoder, output_factor=factor)
    assert touched.min() >= 32 - reach
    assert touched.max() < 33 + reach
    # And no farther than need be.
    assert touched.min() < 32 - reach + 1


def upsampled(latents):
    """Build a decoder of another kind: of other kernels, one dilated, and factors."""
    x = keras.layers.Conv2D(36, 5, padding="same")(latents)
    x = DepthToSpace(3)(x)
    x = keras.layers.Conv2D(4, 3, padding="same", dilation_rate=2)(x)
    return keras.layers.Conv2D(1, 4, strides=1, padding="same")(x)


def with_more_blocks(latents):
    options = {"widths": (4, 4), "blocks": 3, "code_dim": latents.shape[-1], "seed": 1}
    return encoder_and_decoder(latents.shape[1:-1], 1, **options)[1](latents)


@pytest.mark.parametrize("other", [(upsampled, 3, 4), (with_more_blocks, 4, 11)])
def test_tiles_of_other_decoders_give_the_whole(other, rng):
    build, factor, reach = other
    latents = keras.Input((None, None, 2))
    decoder = keras.Model(latents, build(latents))
    for weight in decoder.weights:
        weight.assign_add(0.1 * rng.standard_normal(weight.shape))
    assert analysis.receptive_radius(decoder, output_factor=factor) == reach
    x = rng.standard_normal((1, 31, 5, 2)).astype("float32")
    whole = to_numpy(decoder(x))
    tiled = tiles.in_tiles(decoder, x, tile=4, margin=reach, output_factor=factor)
    npt.assert_allclose(tiled, whole, atol=5e-6)
    # One less would not do.
    less = tiles.in_tiles(decoder, x, tile=4, margin=reach - 1, output_factor=factor)
    assert np.abs(less - whole).max() > 1e-5


@pytest.mark.parametrize(("widths", "blocks"), [((8, 8), 1), ((8, 4, 8), 2)])
def test_tiles_of_an_encoder_give_the_whole(widths, blocks, rng):
    options = {"widths": widths, "blocks": blocks, "code_dim": 2, "seed": 1}
    encoder, _ = encoder_and_decoder((None, None), 1, **options)
    for weight in encoder.weights:
        weight.assign_add(0.1 * rng.standard_normal(weight.shape))
    factor = 2 ** len(widths)
    reach = analysis.receptive_radius(encoder, input_factor=factor)
    images = rng.standard_normal((1, 31 * factor, 3 * factor, 1)).astype("float32")
    whole = to_numpy(encoder(images))
    how = {"tile": 4, "margin": reach, "input_factor": factor}
    tiled = tiles.in_tiles(encoder, images, **how)
    npt.assert_allclose(tiled, whole, atol=5e-6)
    # One less would not do.
    how["margin"] -= 1
    less = tiles.in_tiles(encoder, images, **how)
    assert np.abs(less - whole).max() > 1e-5


def test_receptive_radius_of_global_layers_is_refused():
    latents = keras.Input((None, None, 2))
    decoder = keras.Model(latents, keras.layers.GroupNormalization(1)(latents))
    with pytest.raises(TypeError, match="unknown receptive field of layer"):
        analysis.receptive_radius(decoder)
