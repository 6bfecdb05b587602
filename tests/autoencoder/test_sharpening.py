"""Sharpening of decoded volumes to the detail of the training volumes."""

from types import SimpleNamespace

from keras import ops
import numpy as np
import numpy.testing as npt
import pytest
from scipy.ndimage import convolve1d, gaussian_filter

from dipy_ldm import VQVAE, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.autoencoder import _sharpening as sharpening
from dipy_ldm.autoencoder._sharpening import MAX_GAIN, detail, sharpened
from dipy_ldm.autoencoder._training import AutoencoderStage
from dipy_ldm.data.channels import Channel, Labels


def textured(n=3, side=16, seed=0, width=1.0):
    noise = np.random.default_rng(seed).standard_normal((n, side, side, side, 1))
    return gaussian_filter(noise, (0, width, width, width, 0)).astype("float32")


def gain_of(images, reconstructed):
    measured = sharpening.measure_detail(images, reconstructed)
    return sharpening.sharpening_gain(measured.sum(0))


def sharper(images, gain):
    return ops.convert_to_numpy(sharpened(images, gain))


def detail_energy(images):
    return np.mean(ops.convert_to_numpy(detail(images)) ** 2)


@pytest.mark.parametrize("shape", [(2, 7, 5, 1), (1, 5, 6, 7, 2)])
def test_detail_is_image_minus_two_binomial_blurs(shape):
    images = np.random.default_rng(0).standard_normal(shape).astype("float32")
    expected = images.astype("float64")
    for _ in range(2):
        blurred = expected
        for axis in range(1, len(shape) - 1):
            blurred = convolve1d(blurred, [0.25, 0.5, 0.25], axis, mode="nearest")
        expected = expected - blurred
    result = ops.convert_to_numpy(detail(images))
    npt.assert_allclose(result, expected, atol=1e-6)


def test_constant_images_stay_constant_up_to_the_edges():
    images = np.full((1, 4, 5, 6, 1), 0.7, "float32")
    npt.assert_allclose(sharper(images, 0.5), 0.7, atol=1e-6)


def test_gain_restores_missing_detail():
    images = textured()
    # By a tenth too weak: hardly any error, so that it may grow.
    rest = gaussian_filter(0.3 * textured(seed=1), (0, 2, 2, 2, 0))
    weakened = images - 0.08 * ops.convert_to_numpy(detail(images)) + rest
    gain = gain_of(images, weakened)
    assert 0.02 < gain < MAX_GAIN
    energies = map(detail_energy, (images, sharper(weakened, gain)))
    npt.assert_allclose(*energies, rtol=1e-3)


def test_gain_limits_the_growth_of_the_error(rng):
    reconstructed, rest = rng.standard_normal((2, 3, 16, 16, 16, 1)).astype("float32")
    # Part of the detail is in the reconstruction, and part is not.
    images = reconstructed + 0.6 * rest
    gain = gain_of(images, reconstructed)
    assert 0 < gain < MAX_GAIN
    errors = [
        np.mean((x - images) ** 2)
        for x in (reconstructed, sharper(reconstructed, gain))
    ]
    npt.assert_allclose(errors[1], 1.05 * errors[0], rtol=1e-3)


def test_gain_of_noisy_images_is_limited():
    images = gaussian_filter(textured(side=24), (0, 3, 3, 3, 0)) * 20
    noise = np.random.default_rng(1).standard_normal(images.shape)
    assert gain_of((images + noise).astype("float32"), images) == MAX_GAIN


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_gain_is_zero_without_missing_detail(scale):
    images = textured()
    assert gain_of(images, scale * images) == 0


def test_labels_are_neither_measured_nor_sharpened():
    images = textured()
    scan, labels = Channel("T1w"), Labels("dseg", labels=(1,))

    def gain(*channels):
        columns = [images if c is scan else np.float32(images > 0) for c in channels]

        def decode(images, space):
            return gaussian_filter(images, (0, 0.4, 0.4, 0.4, 0))

        shape = (*images.shape[1:-1], len(channels))
        codec = SimpleNamespace(rank=3, shape=shape, encode=np.copy, decode=decode)
        data = SimpleNamespace(images=np.concatenate(columns, -1), channels=channels)
        stage = SimpleNamespace(codec=codec, data=data, validation_subset=np.copy)
        return AutoencoderStage.sharpening(stage)

    assert 0 < gain(scan) == gain(labels, scan) < MAX_GAIN
    assert gain(labels) == 0
    both = np.concatenate([images, images], -1)
    sharpened = sharper(both, np.array([0.0, 0.5]))
    npt.assert_array_equal(sharpened[..., :1], images)
    npt.assert_allclose(sharpened[..., 1:], sharper(images, 0.5), atol=1e-6)


@pytest.fixture(scope="module")
def fitted():
    volumes = textured(24, 24, width=0.6) + textured(24, 24, seed=1, width=2.0)
    options = {"batch_size": 4, "verbose": False}
    vqvae = VQVAE(widths=(8, 8), n_codes=64, n_codebooks=2, code_dim=8)
    return vqvae.fit(volumes, steps=120, **options), volumes


def test_predict_sharpens_reconstructions_of_volumes(fitted):
    vqvae, volumes = fitted
    assert 0 < vqvae.sharpening_ <= MAX_GAIN
    sharpened = vqvae.predict(volumes)
    smooth = vqvae._snapshot()
    smooth.sharpening_ = 0.0
    before = smooth.predict(volumes)
    true, without, more = map(detail_energy, (volumes, before, sharpened))
    assert without < more < 1.01 * true
    errors = [np.mean((x - volumes) ** 2) for x in (before, sharpened)]
    assert errors[0] < errors[1] < 1.06 * errors[0]
    # Labels stay as they are.
    labelled = vqvae._snapshot()
    labelled.channels_ = (Labels("dseg", labels=(1,)),)
    npt.assert_array_equal(labelled._gains(), 0)


def test_decode_sharpens_tiles_as_the_whole(fitted):
    vqvae, volumes = fitted
    latents = vqvae.encode(volumes[:1])
    tiles = [vqvae.decode(latents, tile=tile) for tile in (4, 200)]
    npt.assert_allclose(*tiles, atol=2e-5)


def test_load_keeps_sharpening(fitted, vqvae, tmp_path):
    assert vqvae.sharpening_ == 0.0  # of images
    vqvae, volumes = fitted
    vqvae.save(tmp_path / "m")
    loaded = VQVAE.load(tmp_path / "m")
    assert loaded.sharpening_ == vqvae.sharpening_
    npt.assert_allclose(loaded.predict(volumes[:2]), vqvae.predict(volumes[:2]))


@pytest.mark.parametrize("gain", [-0.1, 1.1, "much", None])
def test_load_refuses_invalid_sharpening(fitted, tmp_path, gain):
    vqvae, _ = fitted
    document = vqvae.to_document() | {"sharpening": gain}
    _serialization.save(tmp_path / "m", "vqvae", vqvae.to_tensors(), document)
    with pytest.raises(InputError, match="sharpening"):
        VQVAE.load(tmp_path / "m")
