"""Intensities are scaled robustly to [0, 1], and back."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.data._preprocessing import (
    is_flattened,
    measure_range,
    scale_intensities,
    unscale_intensities,
)

RNG = np.random.default_rng(0)


def scale(data):
    """Scale intensities by their own range."""
    return scale_intensities(data, measure_range(data))


def brain(low=20, high=1000, shape=(20, 20, 20, 1)):
    """Numbers in the middle, zeros around."""
    data = np.zeros(shape, "float32")
    data[5:15, 5:15, 5:15] = RNG.uniform(low, high, (10, 10, 10, shape[-1]))
    return data


def test_scale_intensities_keeps_zero_the_darkest():
    data = brain()
    scaled = scale(data)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (0, 1)
    npt.assert_array_equal(scaled == 0, data == 0)
    # Seven eighths of the voxels are empty: they don't count.
    npt.assert_allclose(measure_range(data).high, 995, atol=10)
    data[5, 5, :3] = -5
    assert measure_range(data).low == 0


def test_scale_intensities_changes_little_by_a_few_extreme_voxels():
    data = brain()
    extreme = data.copy()
    extreme[7, 7, 7], extreme[8, 8, 8] = 1e6, -1e6
    same = extreme == data
    npt.assert_allclose(scale(extreme)[same], scale(data)[same], atol=0.02)
    npt.assert_allclose(measure_range(extreme), measure_range(data), atol=10)


@pytest.mark.parametrize("unit", [1e-3, 7, 1e4])
def test_scale_intensities_does_not_depend_on_the_unit(unit):
    data = brain()
    npt.assert_allclose(scale(data * np.float32(unit)), scale(data), atol=1e-5)


@pytest.mark.parametrize("limits", [(20, 1000), (-900, 1500), (-1024, -500)])
def test_unscale_intensities_restores_those_within_the_range(limits):
    data = brain(*limits)
    intensities = measure_range(data)
    inside = (data > intensities.low) & (data < intensities.high)
    assert inside[5:15, 5:15, 5:15].mean() > 0.98
    restored = unscale_intensities(scale(data), intensities)
    npt.assert_allclose(restored[inside], data[inside], rtol=1e-4, atol=1e-2)


def test_scale_intensities_of_tomography_keeps_air_the_darkest():
    scaled = scale(brain(-100, 1500) - 1000 * (brain() == 0))
    assert (scaled[:5] == 0).all()
    assert scaled[5:15, 5:15, 5:15].min() > 0.2


def test_scale_intensities_of_each_channel():
    data = np.concatenate([brain(high=30), brain(high=5000)], -1)
    scaled = [scale(data[..., [i]]) for i in range(2)]
    npt.assert_array_equal(scale(data), np.concatenate(scaled, -1))


def test_scale_intensities_of_labels_and_constants():
    label = (brain() > 0).astype("float32")
    npt.assert_array_equal(scale(3 * label), label)
    npt.assert_array_equal(scale(-3 * label), 1 - label)
    for value in (0, 4, -4):
        data = np.full((3, 3, 3, 1), value, "float32")
        scaled = scale(data)
        assert np.isfinite(scaled).all()
        npt.assert_array_equal(unscale_intensities(scaled, measure_range(data)), data)


def flattened(data):
    data = np.asarray(data, "float32")
    return is_flattened(data, scale(data))


@pytest.mark.parametrize("offset", [1e5, 1e6, 1e9])
def test_is_flattened_by_a_large_offset(offset):
    noise = RNG.uniform(0, 1000, (20, 20, 20, 1))
    assert flattened(offset + noise)
    # Also of what is inside of zeros, of which a mask would become.
    assert flattened(np.where(brain() > 0, offset + noise, 0))
    assert flattened(np.concatenate([brain(), offset + noise], -1))
    assert not flattened(500 + noise)


@pytest.mark.parametrize("mark", [-3e36, 1e20, -1e6])
def test_is_flattened_by_a_value_of_missing_voxels(mark):
    assert flattened(np.where(brain() == 0, mark, brain()))


def test_is_flattened_not_with_contrast():
    x = np.linspace(0, 1, 4000).reshape(20, 20, 10, 1)
    for data in (brain(), brain(-900, 1500), x, x**6, -x, 1000 + 100 * x):
        assert not flattened(data)
    # Labels.
    for data in (brain() > 0, -3.0 * (brain() > 0), np.full((3, 3, 3, 1), 7.0)):
        assert not flattened(data)
    assert not flattened(np.where(brain() > 500, 255, brain() > 0))
