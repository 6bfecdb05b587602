"""Classifier two-sample tests of sets whose result is known."""

import numpy as np
import numpy.testing as npt
import pytest
from scipy.ndimage import gaussian_filter

from dipy_ldm._utils.checks import InputError
from dipy_ldm.evaluation import two_sample
from dipy_ldm.evaluation.two_sample import logistic_test, network_test
from dipy_ldm.metrics import binomial


def draw_textures(n, seed, shape=(16, 16)):
    """Draw smooth noise on a disc, in [0, 1], ``(n, *shape, 1)``."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.standard_normal((n, *shape)), (0, *[0.7] * len(shape)))
    places = np.stack(np.indices(shape), -1) - np.array(shape) / 2
    disc = np.linalg.norm(places, axis=-1) < shape[0] / 2 - 1
    return np.float32(disc * np.clip(0.5 + 0.3 * noise, 0, 1))[..., None]


def add_spot(images, place):
    """Brighten a spot of all images."""
    images = images.copy()
    images[(slice(None), *(slice(i - 1, i + 2) for i in place))] += 0.25
    return np.clip(images, 0, 1)


def scramble(images):
    """Keep the spectrum of images, and draw their phases."""
    noise = np.random.default_rng(9).standard_normal(images.shape)
    spectra = np.abs(np.fft.rfft2(images, axes=(1, 2)))
    phases = np.angle(np.fft.rfft2(noise, axes=(1, 2)))
    turned = spectra * np.exp(1j * phases)
    return np.clip(np.fft.irfft2(turned, images.shape[1:3], axes=(1, 2)), 0, 1)


def test_network_test_of_images_of_the_same_spectrum():
    real, other = draw_textures(40, 0), draw_textures(40, 1)
    test = network_test(real, scramble(other))
    assert test.auc.value > 0.9 and test.auc.low > 0.5
    assert test.learnt >= 0.99


def test_network_test_of_a_mirrored_asymmetry(monkeypatch):
    monkeypatch.setattr(two_sample, "_MAX_ROUNDS", 4)
    shape = (12, 11, 10)
    real, other = (draw_textures(40, seed, shape) for seed in (0, 1))
    test = network_test(add_spot(real, (3, 5, 5)), add_spot(other, (8, 5, 5)))
    assert test.auc.value > 0.9
    # And looks there.
    assert test.maps.shape == (8, *shape, 1)
    middle = test.maps[..., 0].mean((0, 2, 3))
    assert middle.argmax() in (2, 3, 4, 7, 8, 9)
    best = test.log_odds[1][test.recognised]
    assert best[0] == test.log_odds[1].max() and (np.diff(best) <= 0).all()


def test_network_test_of_halves_of_one_set(monkeypatch):
    monkeypatch.setattr(two_sample, "_MAX_ROUNDS", 2)
    monkeypatch.setattr(two_sample, "_STEPS", 4)
    sides = draw_textures(40, 0), draw_textures(44, 1)
    test = network_test(*sides)
    assert test.auc.low < 0.5 < test.auc.high
    assert test.rounds == 2 and test.learnt < 0.99
    assert list(map(len, test.log_odds)) == [40, 44]
    again = network_test(*sides)
    npt.assert_allclose(again.log_odds[0], test.log_odds[0], atol=1e-3)


def test_to_uint8_hides_the_storage_of_images():
    images = draw_textures(5, 0)
    noise = np.random.default_rng(1).uniform(0, 0.015, images.shape)
    stored = np.where(images == 0, noise, images).astype("float16")
    difference = two_sample.to_uint8(stored).astype(int) - two_sample.to_uint8(images)
    assert np.abs(difference).max() <= 1
    assert not difference[images == 0].any()


def test_split_keeps_subjects_in_one_fold():
    subjects = np.arange(60) // 3, np.arange(40, 0, -1) // 2
    folds = two_sample._split(subjects, (60, 40), 2, 0)
    of_subjects = {}
    for names, numbers in zip(subjects, folds, strict=True):
        for name, number in zip(names, numbers, strict=True):
            assert of_subjects.setdefault(name, number) == number
    pairs = two_sample._split((None, None), (60, 60), 2, 0)
    npt.assert_array_equal(*pairs)
    assert pairs[0].sum() == 30


def test_logistic_test(rng, monkeypatch):
    # To choose among more takes most of the time.
    monkeypatch.setattr(two_sample, "_PENALTIES", two_sample._PENALTIES[::4])
    a, b, c = rng.standard_normal((3, 60, 40))
    direction = rng.standard_normal(40) / np.sqrt(40)
    assert logistic_test(a, b + 3 * direction).value > 0.9
    alone = logistic_test(a, a + 99)
    assert alone == pytest.approx(binomial(60, 60))
    of_few = logistic_test(a, a + 99, subjects=(np.arange(60) // 3, None))
    assert of_few == pytest.approx(binomial(20, 20))
    # Of four subjects, draws of one and of the other set may share no fold.
    four = np.arange(60) // 15
    area = logistic_test(a, b + direction, subjects=(four, four + 4))
    assert 0 <= area.low < area.value < area.high <= 1
    same = logistic_test(a, c)
    assert same.low < 0.5 < same.high
    # Copies, which would be known again by what was learnt from the others.
    assert logistic_test(a, a.copy()).value == pytest.approx(0.5, abs=0.05)


def draw_odds(rng, n, count):
    """Draw log odds and folds of equal sets, by differences of means of other folds."""
    sides = rng.normal(size=(2, n, 20))
    folds = two_sample._split((None, None), (n, n), count, int(rng.integers(1000)))
    means = [
        [side[fold != k].mean(0) for k in range(count)]
        for side, fold in zip(sides, folds, strict=True)
    ]
    slopes = np.subtract(*means)
    odds = [
        (side * slopes[fold]).sum(1) for side, fold in zip(sides, folds, strict=True)
    ]
    return odds, folds


@pytest.mark.parametrize("count", [2, 5])
def test_intervals_of_areas_are_as_wide_as_areas_of_equal_sets_differ(
    rng, monkeypatch, count
):
    drawn = [draw_odds(rng, 40, count) for _ in range(200)]
    intervals = [two_sample._auc(*pair, (None, None), 0) for pair in drawn[:4]]
    claimed = np.mean([area.high - area.low for area in intervals]) / 3.92
    value = lambda statistic, *sides, **_: statistic(*sides)  # noqa: E731
    monkeypatch.setattr(two_sample, "bootstrap_share", value)
    areas = [two_sample._auc(*pair, (None, None), 0) for pair in drawn]
    assert claimed == pytest.approx(np.std(areas), rel=0.2)


def test_fit_logistic_ends_where_the_loss_is_flat(rng):
    rows, labels = rng.standard_normal((30, 3)), rng.choice([-1.0, 1.0], 30)
    *slopes, level = two_sample._fit_logistic(rows, labels, 2.0)
    wrong = 1 / (1 + np.exp(labels * (rows @ slopes + level)))
    npt.assert_allclose(rows.T @ (labels * wrong), 2 * np.array(slopes), atol=1e-3)
    assert labels @ wrong == pytest.approx(0, abs=1e-3)


def test_two_sample_tests_refuse_sets_that_prove_nothing():
    few, many = draw_textures(39, 0), draw_textures(40, 0)
    rows, unscaled, broken = few[:, 0, :, 0], np.uint8(255 * many), many * np.nan
    for call, message in (
        (lambda: network_test(many, few), "samples must be at least 40, not 39"),
        (lambda: logistic_test(rows, rows), "not 39"),
        (lambda: logistic_test(rows, rows[:, 1:]), "that differ at most in n"),
        (lambda: network_test(many, many[:, :, 1:]), "that differ at most in n"),
        (
            lambda: network_test(many, many, subjects=(None, range(39))),
            "subject of each of 40 samples, not 39",
        ),
        (lambda: network_test(unscaled, many), r"needs images in \[0, 1\], not from"),
        (lambda: network_test(broken, many), r"needs images in \[0, 1\], not from"),
    ):
        with pytest.raises(InputError, match=message):
            call()
