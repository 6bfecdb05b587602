"""Samplers, against the exact denoiser of a Gaussian."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.diffusion import samplers, schedules

MEAN, SPREAD = 0.7, 0.3
ORDERS = {"ddim": 1, "dpm++": 2}


def denoise(x, t, schedule="cosine"):
    """Return the exact expectation of N(MEAN, SPREAD²) behind ``x``."""
    alpha, sigma = schedules.rates(schedule, t)
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


def exact(x, first, last):
    """Solve the probability-flow equation of the Gaussian between two levels."""

    def spread(alpha, sigma):
        return np.sqrt(alpha**2 * SPREAD**2 + sigma**2)

    return last[0] * MEAN + spread(*last) / spread(*first) * (x - first[0] * MEAN)


def draw(name, numbers, steps, eta=0.0, seed=0, values=1):
    sampler = samplers.make_sampler(name, eta)
    noise = samplers.noise_source(seed, numbers, (values,))
    path, x = schedules.path("cosine", sampler.grid("cosine", steps)), noise()
    return samplers.sample(denoise, x.astype("float64"), path, sampler.step, noise)


TAKES_ETA = [name for name, sampler in samplers.SAMPLERS.items() if sampler.takes_eta]
STOCHASTIC = [(name, eta) for name in TAKES_ETA for eta in (0.5, 1.0)]


@pytest.mark.parametrize(
    ("name", "eta"), [*((name, 0.0) for name in samplers.SAMPLERS), *STOCHASTIC]
)
def test_samples_have_mean_and_spread_of_the_gaussian(name, eta):
    # DDPM's posterior is too narrow by one part in the number of steps.
    x = draw(name, range(50), 200, eta, values=100)
    # From the last time of the grid one goes to what is expected there at once: of
    # the spread, the part is lost that can't be told from the noise left.
    last = samplers.SAMPLERS[name].grid("cosine", 200)[-1]
    alpha, sigma = schedules.rates("cosine", last)
    kept = alpha * SPREAD / np.hypot(alpha * SPREAD, sigma)
    npt.assert_allclose([x.mean(), x.std()], [MEAN, kept * SPREAD], atol=0.012)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_grids_keep_the_spread_of_unit_variance_latents(name):
    last = samplers.SAMPLERS[name].grid("cosine", 20)[-1]
    alpha, sigma = schedules.rates("cosine", last)
    assert alpha / np.hypot(alpha, sigma) > 0.975


def test_the_fine_grid_keeps_details_that_the_other_takes_for_noise():
    def kept(grid, spread):
        alpha, sigma = schedules.rates("cosine", grid("cosine", 10)[-1])
        return alpha * spread / np.hypot(alpha * spread, sigma)

    sampler = samplers.make_sampler("dpm++")
    assert kept(sampler.grid, 0.1) < 0.5
    assert kept(sampler.fine, 0.1) > 0.97


def test_eta_changes_samples_and_noise_follows_from_the_seed():
    ones = [draw("dpm++", range(4), 20, eta) for eta in (0.0, 0.5, 1.0, 1.0)]
    npt.assert_array_equal(ones[2], ones[3])
    assert np.abs(ones[0] - ones[1]).min() > 1e-3
    assert np.abs(ones[1] - ones[2]).min() > 1e-3


def test_every_sampler_has_its_order_tested():
    # DDPM is stochastic: it has no path to converge to.
    assert set(samplers.SAMPLERS) == {*ORDERS, "ddpm"}


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_samplers_have_their_order_of_convergence(name, order, schedule):
    x = np.random.default_rng(0).standard_normal((100, 1))
    errors = []
    for steps in (32, 64, 128, 256):
        # On one grid for all, whatever their own. Without the last jump to where there
        # is no noise, as it has no width.
        times = schedules.uniform_log_snr(schedule, steps + 1)
        path = schedules.path(schedule, times)[:-1]
        step = samplers.SAMPLERS[name].step
        end = samplers.sample(lambda x, t: denoise(x, t, schedule), x, path, step)
        errors.append(np.abs(end - exact(x, path[0][1], path[-1][1])).max())
    slopes = -np.diff(np.log2(errors))
    npt.assert_allclose(slopes[-1], order, atol=0.1)


def test_ddpm_is_the_posterior_of_ho_et_al():
    now, after = (0.6, 0.8), (0.8, 0.6)
    x, clean, eps = np.random.default_rng(0).standard_normal((3, 4, 1))
    result, _ = samplers.SAMPLERS["ddpm"].step(x, clean, now, after, lambda: eps, None)
    # Equations 6 and 7, with products of alphas written as squares of rates.
    ratio = now[0] ** 2 / after[0] ** 2
    beta = 1 - ratio
    mean = after[0] * beta / now[1] ** 2 * clean
    mean = mean + np.sqrt(ratio) * after[1] ** 2 / now[1] ** 2 * x
    spread = np.sqrt(after[1] ** 2 / now[1] ** 2 * beta)
    npt.assert_allclose(result, mean + spread * eps)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_sample_depends_on_seed_and_number_alone(name):
    alone = draw(name, [6], 10, seed=3)
    # JAX has float32 alone, and rounds vectors of other lengths differently.
    npt.assert_allclose(draw(name, range(7), 10, seed=3)[6:], alone, rtol=1e-6)
    assert not np.array_equal(draw(name, [5], 10, seed=3), alone)
    assert not np.array_equal(draw(name, [6], 10, seed=4), alone)


def test_make_sampler_and_noise_source_refuse():
    for arguments, sentence in (
        (("euler",), "ddpm, ddim, dpm"),
        (("ddim", 1.5), "between 0 and 1"),
        (("ddpm", 0.5), "ddpm takes no `eta`; leave it out"),
    ):
        with pytest.raises(InputError, match=sentence):
            samplers.make_sampler(*arguments)
    with pytest.raises(InputError, match="seed must be at least 0, not -1"):
        samplers.noise_source(-1, range(2), (3,))
