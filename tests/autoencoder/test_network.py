"""Encoder and decoder: output shapes in two and three dimensions, initial weights."""

from keras import ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.autoencoder import _network as networks
from dipy_ldm.autoencoder._codec import Parameters
from dipy_ldm.autoencoder._network import cosines

to_numpy = ops.convert_to_numpy


@pytest.mark.parametrize(("space", "channels"), [((16, 8), 1), ((8, 4, 12), 2)])
def test_the_autoencoder_starts_at_the_slowest_waves(space, channels):
    options = {"widths": (4, 4), "blocks": 1, "code_dim": 3, "seed": 0}
    encoder, decoder = networks.encoder_and_decoder(space, channels, **options)
    images = np.random.default_rng(0).random((2, *space, channels)).astype("float32")
    latents = encoder(images)
    assert latents.shape == (2, *(size // 4 for size in space), 3)
    # The first is how bright a piece is, and these are all that a smooth image has.
    size = 4 ** len(space) * channels
    block = images[(slice(None), *(slice(4) for _ in space))]
    mean = block.mean(axis=tuple(range(1, block.ndim))) * np.sqrt(size)
    first = to_numpy(latents)[(slice(None), *(0 for _ in space), 0)]
    npt.assert_allclose(first, mean, rtol=1e-5)
    reconstructed = to_numpy(decoder(latents))
    assert reconstructed.shape == images.shape
    error = np.mean((reconstructed - images) ** 2)
    assert error < np.var(images)
    again = to_numpy(decoder(encoder(reconstructed)))
    npt.assert_allclose(again, reconstructed, atol=1e-5)


@pytest.mark.parametrize("block", [(4,), (4, 4), (4, 4, 4), (2, 3, 2)])
def test_waves_are_orthonormal_and_the_slowest_come_first(block):
    size = np.prod(block)
    waves = cosines(block, size + 1).reshape(size, size + 1)
    npt.assert_allclose(waves[:, :-1].T @ waves[:, :-1], np.eye(size), atol=1e-12)
    npt.assert_array_equal(waves[:, -1], 0)
    npt.assert_allclose(waves[:, 0], size**-0.5)
    # Changes from voxel to voxel grow.
    if len(block) == 1:
        changes = np.sum(np.diff(waves[:, :-1], axis=0) ** 2, axis=0)
        assert (np.diff(changes) > 0).all()


def test_parameters_factor_is_that_of_the_decoder():
    widths = (8, 8, 8)
    parameters = Parameters(widths, 1, 4, 1, 1, 0.25, "squared", "codebook", 0)
    _, decoder = parameters.networks((None, None), 1)
    factor = parameters.factor
    assert decoder.compute_output_shape((1, 1, 1, 1)) == (1, factor, factor, 1)
