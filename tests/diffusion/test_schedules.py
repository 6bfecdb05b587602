"""Schedules: the properties on which sampling and training rely."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.diffusion import schedules

TIMES = np.linspace(0, 1, 1001)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_rates_preserve_variance_and_go_from_clean_to_noise(name):
    alpha, sigma = schedules.rates(name, TIMES)
    npt.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-12)
    assert (np.diff(schedules.half_log_snr(alpha, sigma)) < 0).all()
    assert 0 < sigma[0] < 0.02
    # The schedule of 300 steps that gave fragments of digits ended at 0.05.
    assert (alpha[-1] / sigma[-1]) ** 2 < 1e-4


def test_linear_schedule_is_that_of_a_thousand_steps():
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha, _ = schedules.rates("linear", np.arange(1, 1001) / 1000)
    discrete = np.sqrt(np.cumprod(1 - betas))
    npt.assert_allclose(alpha, discrete, atol=2e-3)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_times_of_other_schedules_have_the_same_noise(name):
    times = np.linspace(0.02, 0.98, 97).reshape(-1, 1)
    other = schedules.times_of_equal_noise(name, times)
    levels = [schedules.rates(*of)[1] for of in ((name, other), ("cosine", times))]
    npt.assert_allclose(*levels, atol=1e-5)
    npt.assert_array_equal(schedules.times_of_equal_noise(name, [0, 1]), [0, 1])
    npt.assert_array_equal(schedules.times_of_equal_noise("cosine", times), times)


@pytest.mark.parametrize("target", schedules.TARGETS)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_conversions_are_inverses(target, t):
    rng = np.random.default_rng(1)
    clean, noise = rng.standard_normal((2, 5, 4, 4, 2))
    alpha, sigma = schedules.rates("cosine", t)
    output = schedules.to_target(target, clean, noise, alpha, sigma)
    x = alpha * clean + sigma * noise
    back = schedules.to_clean(target, output, x, alpha, sigma)
    npt.assert_allclose(back, clean, atol=1e-9)


@pytest.mark.parametrize("grid", [schedules.uniform_time, schedules.uniform_log_snr])
@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("start", [1e-3, 0.05, 0.1, 0.3, 1])
def test_grids_fall_from_a_strength(grid, name, start):
    for steps in (1, 2, 7, 20, 300):
        times = grid(name, steps, start)
        assert times.shape == (steps,)
        npt.assert_allclose(times[0], start, rtol=1e-3 if start < 1 else 1e-7)
        assert (np.diff(times) < 0).all()
        assert times[-1] >= 0
        if start == 1:
            assert times[-1] > 0
            npt.assert_array_equal(grid(name, steps), times)


def test_uniform_log_snr_is_uniform_in_log_snr():
    times = schedules.uniform_log_snr("cosine", 20)
    steps = np.diff(schedules.half_log_snr(*schedules.rates("cosine", times)))
    npt.assert_allclose(steps, steps[0], rtol=1e-3)


def test_uniform_log_snr_ends_at_the_requested_noise():
    def strengths(*arguments):
        times = schedules.uniform_log_snr("cosine", 5, *arguments)
        return schedules.rates("cosine", times)[1]

    npt.assert_allclose(strengths()[-1], 0.2, rtol=1e-3)
    npt.assert_allclose(strengths(1.0, 0.05)[-1], 0.05, rtol=1e-3)
    # From less noise than that it goes to four fifths, but not beyond the end.
    few = strengths(0.05)
    npt.assert_allclose(few[-1], 0.8 * few[0], rtol=1e-3)
    npt.assert_allclose(strengths(1e-9)[-1], schedules.rates("cosine", 0.0)[1])


def test_path_ends_clean():
    path = schedules.path("cosine", schedules.uniform_time("cosine", 4))
    assert len(path) == 5
    assert path[-1] == (0.0, (1.0, 0.0))


@pytest.mark.parametrize(
    ("call", "choices"),
    [
        (lambda: schedules.rates("quadratic", 0.5), "cosine, linear"),
        (lambda: schedules.to_target("score", 0, 0, 1, 0), "v, noise, clean"),
    ],
)
def test_unknown_names_list_the_choices(call, choices):
    with pytest.raises(InputError, match=choices):
        call()


@pytest.mark.parametrize("target", schedules.TARGETS)
def test_baseline_loss_is_that_of_the_best_line_through_white_noise(target):
    draw = np.random.default_rng(0).standard_normal
    errors = []
    for spread in (2, 0.4):
        clean, noise = spread * draw(4000), draw(4000)
        for t in np.linspace(0, 1, 41):
            alpha, sigma = map(float, schedules.rates("cosine", t))
            output = schedules.to_target(target, clean, noise, alpha, sigma)
            noisy = alpha * clean + sigma * noise
            slope = np.sum(noisy * output) / np.sum(noisy**2)
            errors.append(np.mean((output - slope * noisy) ** 2))
    loss = schedules.baseline_loss("cosine", target, [2, 0.4])
    assert loss == pytest.approx(np.mean(errors), rel=0.05)


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
@pytest.mark.parametrize("deviation", [0.26, 1.0])
def test_times_concentrate_where_noise_equals_signal(schedule, deviation):
    shares = (np.arange(4000) + 0.5) / 4000
    times = schedules.lognormal_times(schedule, shares, deviation)
    assert times.min() >= 0 and times.max() <= 1
    assert (np.diff(times[800:]) > 0).all()
    # A fifth of them is anywhere, so that nothing is forgotten.
    npt.assert_allclose(times[:800], np.linspace(0, 1, 800), atol=0.002)
    alpha, sigma = schedules.rates(schedule, times[800:])
    strength = np.log(sigma / alpha / deviation)
    assert np.mean(strength) == pytest.approx(0.6, abs=0.02)
    assert np.std(strength) == pytest.approx(0.7, rel=0.02)


def test_times_are_within_bounds_whatever_latents_differ_by():
    for deviation in (1e-9, 1e9):
        shares = [0, 0.1, 0.2, 0.5, 1 - 1e-9]
        times = schedules.lognormal_times("cosine", shares, deviation)
        assert np.all((times >= 0) & (times <= 1))


def test_baseline_loss_is_at_the_times_of_the_training():
    late = schedules.baseline_loss("cosine", "v", [2], lambda t: 0.8 + 0 * t)
    alpha, sigma = schedules.rates("cosine", 0.8)
    assert late == pytest.approx(4 / (4 * alpha**2 + sigma**2))
