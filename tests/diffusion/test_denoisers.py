"""Denoisers convert predictions to clean latents, with and without guidance."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.diffusion._denoisers import from_network, guided, interpolated
from dipy_ldm.diffusion.schedules import SCHEDULES, TARGETS, rates, to_target

SHAPE = (3, 4, 5, 2)


def test_interpolated_is_the_weighted_mean():
    denoise = interpolated(lambda x, t: x + t, lambda x, t: 3 * x, 0.25)
    npt.assert_allclose(denoise(np.full(2, 4.0), 0.5), 0.75 * 4.5 + 0.25 * 12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("with_mean", [False, True])
def test_from_network_returns_clean_latents(schedule, target, with_mean, rng):
    residual, noise = rng.standard_normal((2, *SHAPE))
    mean = rng.standard_normal((1, *SHAPE[1:])) if with_mean else None
    alpha, sigma = rates(schedule, 0.7)

    def predict(x, times, *alpha_mean):
        npt.assert_array_equal(times, np.full(3, 0.7, "float32"))
        npt.assert_allclose(x, alpha * residual + sigma * noise, atol=1e-6)
        for scaled in alpha_mean:
            npt.assert_allclose(scaled, alpha * np.repeat(mean, 3, 0), atol=1e-6)
        assert len(alpha_mean) == with_mean
        return to_target(target, residual, noise, alpha, sigma)

    denoise = from_network(predict, schedule, target, mean)
    clean = residual + mean if with_mean else residual
    npt.assert_allclose(denoise(alpha * clean + sigma * noise, 0.7), clean, atol=1e-5)


def test_guided_extrapolates_within_its_interval():
    weak_times = []

    def weak(x, t):
        weak_times.append(t)
        return np.zeros(SHAPE)

    denoise = guided(lambda x, t: np.ones(SHAPE), weak, 3.0, interval=(0.2, 0.8))
    outputs = [denoise(None, t).mean() for t in (0.1, 0.2, 0.8, 0.9)]
    assert outputs == [1, 3, 3, 1]
    assert weak_times == [0.2, 0.8]


def test_guided_calls_no_weak_network_without_guidance():
    denoise = guided(lambda x, t: np.ones(SHAPE), None, 1.0)
    npt.assert_array_equal(denoise(None, 0.5), 1)
