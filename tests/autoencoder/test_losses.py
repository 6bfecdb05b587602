"""Losses of the autoencoder."""

from keras import ops
import numpy as np
import numpy.testing as npt
import pytest
from scipy.ndimage import gaussian_filter

from dipy_ldm._utils.checks import InputError
from dipy_ldm.autoencoder import losses

SPACES = [(28, 28), (12, 16, 14)]


def smooth(space, seed=0):
    noise = np.random.default_rng(seed).random((3, *space, 1))
    blurred = gaussian_filter(noise, (0, *(1.0,) * len(space), 0))
    low, high = blurred.min(), blurred.max()
    return ((blurred - low) / (high - low)).astype("float32")


def value(images, reconstructed, weights=None):
    loss = losses.reconstruction_loss("squared", 1, float(images.var()))
    y_true = images if weights is None else np.concatenate([images, weights], -1)
    return applied(loss, y_true, reconstructed)


def applied(loss, *arrays):
    return ops.convert_to_numpy(loss(*map(ops.convert_to_tensor, arrays)))


@pytest.mark.parametrize("space", SPACES)
def test_reconstruction_loss_is_zero_for_the_image_and_not_for_the_mean(space):
    images = smooth(space)
    npt.assert_allclose(value(images, images), 0, atol=1e-5)
    mean = np.full_like(images, images.mean())
    assert value(images, mean).shape == (3,)
    assert (value(images, mean) > 0.3).all()


def test_reconstruction_loss_is_relative_to_the_variance():
    images, other = smooth((28, 28)), smooth((28, 28), seed=1)
    darker = value(images / 4, other / 4)
    npt.assert_allclose(darker, value(images, other), rtol=1e-3)


def test_weights_scale_the_loss_of_voxels():
    images = smooth((28, 28))
    spoilt = images.copy()
    spoilt[:, :, :10] += 0.5
    weights = np.ones_like(images)
    whole, little = (value(images, spoilt, share * weights) for share in (1, 0.1))
    assert (whole > 0.1).all()
    npt.assert_allclose(value(images, spoilt), whole, rtol=1e-6)
    npt.assert_allclose(little, 0.1 * whole, rtol=1e-5)
    weights[:, :, :14] = 0
    npt.assert_allclose(value(images, spoilt, weights), 0, atol=1e-6)


def test_mean_squared_error_ignores_weights():
    images = smooth((28, 28))
    y_true = np.concatenate([images, np.zeros_like(images)], -1)
    expected = np.mean((images - 0.5) ** 2, (1, 2, 3))
    errors = applied(losses.mean_squared_error(1), y_true, np.full_like(images, 0.5))
    npt.assert_allclose(errors, expected, rtol=1e-5)


def test_unknown_loss():
    with pytest.raises(InputError, match="choose one of squared"):
        losses.reconstruction_loss("perceptual", 1, 1.0)


@pytest.mark.parametrize("space", SPACES)
def test_dice_measures_overlap(space):
    shares = np.zeros((2, *space, 2), "float32")
    shares[:, :6, :6, ..., 0] = 1
    shares[:, 8:9, 8:9, ..., 1] = 1  # a small one weighs as much
    ones = np.ones((2, *space, 1), "float32")
    npt.assert_array_equal(applied(losses.dice, shares, shares, ones), 0)
    for missed in (0, 1):
        without = np.where(np.arange(2) == missed, 0, shares)
        lost = applied(losses.dice, shares, without, ones)
        assert lost.shape == (2,)
        assert ((lost > 0.2) & (lost < 0.51)).all()
        outside = np.where(shares[..., missed : missed + 1] > 0, 0, ones)
        npt.assert_array_equal(applied(losses.dice, shares, without, outside), 0)


def test_reconstruction_loss_of_channels_with_their_own_losses():
    images = smooth((12, 16, 14))
    shares = (images > 0.5).astype("float32")
    both, off = np.concatenate([images, shares], -1), np.zeros_like(images)
    variance = float(images.var())
    parts = [(slice(1, 2), "dice")]
    loss = losses.reconstruction_loss("squared", 2, variance, parts)
    of_scan = applied(loss, both, np.concatenate([off, shares], -1))
    npt.assert_allclose(of_scan, value(images, off), rtol=1e-5)
    of_labels = applied(loss, both, np.concatenate([images, off], -1))
    ones = np.ones_like(images)
    npt.assert_allclose(of_labels, applied(losses.dice, shares, off, ones), rtol=1e-5)
    alone = losses.reconstruction_loss("squared", 1, variance, [(slice(0, 1), "dice")])
    npt.assert_allclose(applied(alone, shares, off), of_labels, rtol=1e-5)
