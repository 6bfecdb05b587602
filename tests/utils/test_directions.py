"""Directions as numbers, and as spherical harmonics."""

from dipy.reconst.shm import real_sh_descoteaux_from_index
from keras import ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.directions import N_HARMONICS, direction_index, harmonics


@pytest.fixture(scope="module")
def vectors():
    """Return directions, the axes and some on the equator among them."""
    vectors = np.random.default_rng(0).normal(size=(500, 3))
    vectors[:50, 2] = 0
    vectors = np.concatenate([vectors, np.eye(3), -np.eye(3)])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_opposite_directions_have_one_number(vectors):
    for vector in vectors:
        assert direction_index(vector) == direction_index(-2 * vector)
        assert direction_index(vector) == np.float32(direction_index(vector))


def test_features_are_the_even_harmonics_of_dipy(vectors):
    degrees = np.repeat([2, 4], [5, 9])
    orders = np.array([*range(-2, 3), *range(-4, 5)])
    polar = np.arccos(np.clip(vectors[:, 2:], -1, 1))
    azimuth = np.arctan2(vectors[:, 1:2], vectors[:, :1])
    arguments = (orders, degrees, polar, azimuth)
    basis = real_sh_descoteaux_from_index(*arguments, legacy=False)
    dipys = np.sqrt(4 * np.pi) * basis
    numbers = np.array([direction_index(v) for v in vectors], "float32")
    features = harmonics(numbers)
    assert features.shape == (len(vectors), N_HARMONICS)
    # The same functions, whatever their signs and order in the basis.
    overlap = np.linalg.lstsq(dipys, features, rcond=None)[0]
    npt.assert_allclose(overlap @ overlap.T, np.eye(N_HARMONICS), atol=0.02)
    npt.assert_allclose(dipys @ overlap, features, atol=0.02)
    of_keras = ops.convert_to_numpy(harmonics(ops.convert_to_tensor(numbers), ops))
    npt.assert_allclose(of_keras, features, atol=1e-4)
