from functools import partial

import numpy as np
import numpy.testing as npt
import pytest
from scipy.stats import binomtest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.metrics import (
    binomial,
    bootstrap,
    frechet_distance,
    intervals,
    kernel_distance,
)
from dipy_ldm.metrics.distributions import neighbour_shares
from dipy_ldm.metrics.intervals import subsample


def test_kernel_distance_is_the_mean_over_pairs_of_different_samples(rng):
    a, b = rng.standard_normal((20, 3)), rng.standard_normal((30, 3)) + 0.5
    of_a, of_b, of_both = ((x @ y.T / 3 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    expected = (of_a.sum() - np.trace(of_a)) / (20 * 19)
    expected += (of_b.sum() - np.trace(of_b)) / (30 * 29) - 2 * of_both.mean()
    assert kernel_distance(a, b).value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_kernel_distance_has_intervals_of_95_percent(rng, shift):
    def measure(n, resamples=200):
        a, b = rng.standard_normal((2, n, 5))
        return kernel_distance(a, b + shift, resamples=resamples)

    truth = measure(4000, 2).value if shift else 0.0
    intervals = [measure(60) for _ in range(40)]
    holding = sum(low <= truth <= high for _, low, high in intervals)
    # They are too wide where there is no difference.
    assert holding >= (36 if shift else 37)


def test_bootstrap_has_the_width_of_the_normal_interval(rng):
    x = rng.standard_normal(2000) + 3
    interval = bootstrap(np.mean, x, resamples=1000)
    assert interval.value == x.mean()
    assert interval.high - interval.low == pytest.approx(
        2 * 1.96 / np.sqrt(2000), rel=0.1
    )
    assert interval == bootstrap(np.mean, x, resamples=1000)
    assert interval != bootstrap(np.mean, x, resamples=1000, seed=1)


@pytest.mark.parametrize("scans", [1, 4])
def test_intervals_are_those_of_subjects_however_many_scans_they_have(rng, scans):
    people = rng.standard_normal((2, 120, 2))
    a, b = np.repeat(people, scans, axis=1)
    ids = np.repeat(np.arange(120), scans)
    of_a, of_b = people

    def difference(x, y):
        return x.mean() - y.mean()

    def width(interval):
        return interval.high - interval.low

    def subsampled(*sets, **ids):
        return subsample(lambda *s: [difference(*s)], *sets, **ids)[0]

    for measure in (partial(bootstrap, difference), kernel_distance, subsampled):
        alone, by_subject = measure(of_a, of_b), measure(a, b, subjects=(ids, ids))
        assert by_subject.value == pytest.approx(alone.value, abs=1e-5)
        assert width(by_subject) == pytest.approx(width(alone), rel=0.3)
        if scans == 4:
            assert width(measure(a, b)) < 0.7 * width(alone)
    with pytest.raises(InputError, match="at least 2, not 1"):
        bootstrap(np.mean, a, subjects=[0 * ids])
    with pytest.raises(InputError, match="at least 2, not 1"):
        kernel_distance(a, b, subjects=(0 * ids, None))


def test_kernel_distance_ignores_draws_of_one_subject(rng):
    # Of four subjects, nearly every interval has such a draw.
    distance = kernel_distance(*rng.standard_normal((2, 4, 5)))
    assert distance.low < distance.value < distance.high


def test_bootstrap_resamples_rows_and_does_not_add_the_bias_of_few(rng):
    a, b = rng.standard_normal((2, 300, 10))
    interval = bootstrap(frechet_distance, a, b, resamples=50)
    assert interval.low < interval.value == frechet_distance(a, b) < interval.high


@pytest.mark.parametrize("most", [500, 100])
def test_subsample_has_the_width_of_the_normal_interval(rng, monkeypatch, most):
    monkeypatch.setattr(intervals, "_MAX_SUBSAMPLE", most)
    monkeypatch.setattr(intervals, "_SUBSAMPLES", 1000)
    x, y = rng.standard_normal((2, 1000)) + 3
    measure = lambda a, b: [a.mean(), b.mean() - a.mean()]  # noqa: E731
    figures = subsample(measure, x, y)
    assert [f.value for f in figures] == [x.mean(), y.mean() - x.mean()]
    widths = [f.high - f.low for f in figures]
    expected = 2 * 1.96 / np.sqrt(1000)
    assert widths == pytest.approx([expected, np.sqrt(2) * expected], rel=0.15)


def test_subsample_of_a_skewed_statistic(rng):
    # Of fewer numbers, the highest varies towards lower ones.
    (highest,) = subsample(lambda x: [x.max()], rng.uniform(size=1000))
    assert highest.value - highest.low > 2 * (highest.high - highest.value) >= 0


def test_subsample_of_precision_is_as_wide_as_draws_differ(rng):
    shares = partial(neighbour_shares, k=5)
    figures = subsample(shares, *rng.standard_normal((2, 200, 4)))
    redrawn = [shares(*rng.standard_normal((2, 200, 4))) for _ in range(200)]
    widths = np.array([f.high - f.low for f in figures])
    expected = np.quantile(redrawn, 0.975, 0) - np.quantile(redrawn, 0.025, 0)
    npt.assert_allclose(widths, expected, rtol=0.6)


def test_binomial_is_exact():
    # The rule of three: none of n is less than 3 / n.
    assert binomial(0, 100)[:2] == (0, 0)
    assert binomial(0, 100, 0.9).high == pytest.approx(3 / 100, rel=0.02)
    share, low, high = binomial(5, 100)
    assert share == 0.05
    # The tails beyond the bounds have 2.5 % each.
    assert binomtest(5, 100, low, "greater").pvalue == pytest.approx(0.025)
    assert binomtest(5, 100, high, "less").pvalue == pytest.approx(0.025)


def test_neighbour_shares_are_those_published(rng):
    # Of 10,000 samples of 1,000 features: .48, .47, 1.06 and .97 (Naeem 2020). With
    # the number, precision and recall fall, and those of 2,000 are somewhat higher.
    real, fake = rng.standard_normal((2, 2000, 1000), "float32")
    *shares, density, coverage = neighbour_shares(real, fake, 5)
    assert shares == pytest.approx([0.52, 0.52], abs=0.06)
    assert density == pytest.approx(1.0, abs=0.1)
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.015)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: frechet_distance(x[:8], x), "needs 9 samples .* not 8; give"),
        (lambda x: kernel_distance(x, x[:1]), "at least 2, not 1"),
        (lambda x: kernel_distance(x, x, resamples=1), "resamples must be at least 2"),
        (lambda x: bootstrap(np.mean, x[:1]), "samples must be at least 2"),
        (lambda x: bootstrap(np.mean, x, subjects=[[0, 1]]), "of 20 samples, not 2"),
        (lambda x: bootstrap(np.mean, x, confidence=1), "between 0 and 1"),
        (lambda x: bootstrap(np.mean, x, confidence=0), "between 0 and 1, not 0"),
        (lambda x: binomial(0, 0), "n must be at least 1"),
        (lambda x: binomial(-1, 9), "count must be at least 0"),
        (lambda x: binomial(9, 5), "n must be at least 9, not 5"),
    ],
)
def test_intervals_refuse_invalid_inputs(rng, call, message):
    with pytest.raises(InputError, match=message):
        call(rng.standard_normal((20, 8)))
