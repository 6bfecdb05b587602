"""The conditional mean of latents: fitted, subtracted, and added again."""

from batches import with_inputs
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._conditions import ConditionBatch, learn
from dipy_ldm.denoiser._training import noisy_batches
from dipy_ldm.diffusion.schedules import rates
from dipy_ldm.prior import _ridge as conditional_mean
from dipy_ldm.prior._ridge import ConditionalMean, fit_kernel_ridge


def test_fit_kernel_ridge_predicts_from_other_subjects(rng):
    rows, targets = rng.standard_normal((9, 4)), rng.standard_normal(9)
    subjects = np.array([0, 1, 1, 2, 0, 3, 3, 3, 4])
    _, _, predicted = fit_kernel_ridge(rows @ rows.T, targets, [0.5], subjects)
    for one in range(5):
        training = rows[subjects != one]
        own = (
            training @ training.T,
            targets[subjects != one],
            [0.5],
            np.arange(len(training)),
        )
        shares, offset, _ = fit_kernel_ridge(*own)
        held_out = rows[subjects == one] @ training.T @ shares + offset
        npt.assert_allclose(predicted[subjects == one], held_out)


SHAPE = (4, 3, 2)


def cohort(n, effect=1.0, seed=0):
    """Make latents that an age and a sex change, and say what they are."""
    rng = np.random.default_rng(seed)
    conditions = {"age": rng.uniform(20, 80, n).tolist()}
    conditions["sex"] = rng.choice(["F", "M"], n, p=[0.7, 0.3]).tolist()
    conditions["age"][0] = conditions["sex"][1] = None
    conditions["sex"][2:4] = "F", "M"
    fitted = learn(conditions, n)
    numbers = ConditionBatch.of(fitted, conditions, n).numbers
    of_age, of_sex, latents = rng.standard_normal((3, n, *SHAPE)).astype("float32")
    truth = np.zeros_like(latents)
    for row, (age, sex) in enumerate(numbers):
        if age >= 0:
            truth[row] += of_age[0] * (2 * age - 1)
        if sex >= 0:
            truth[row] += of_sex[0] * (sex - 0.3)
    return latents + effect * truth, numbers, fitted, effect * truth


def test_learn_fits_effects_of_conditions():
    latents, numbers, fitted, truth = cohort(600, effect=3.0)
    learnt = ConditionalMean.learn(latents, numbers, fitted)
    predicted = learnt.predict(numbers)
    assert predicted.dtype == np.float32
    assert ((predicted - truth) ** 2).mean() < 0.02 * (truth**2).mean()
    # Loadings have the variance that is due to conditions.
    along = (learnt.loadings() ** 2).sum(0)
    npt.assert_allclose(along.mean(), truth.var(0).mean(), rtol=0.1)


def test_predict_is_zero_without_conditions():
    latents, numbers, fitted, _ = cohort(60)
    learnt = ConditionalMean.learn(latents, numbers, fitted)
    npt.assert_array_equal(learnt.predict(np.full((2, 2), -1.0)), 0)
    both, age, sex = learnt.predict(np.array([[0.4, 1], [0.4, -1], [-1, 1]]))
    npt.assert_allclose(age + sex, both, atol=1e-6)


def test_learn_ignores_levels_that_few_have():
    latents, _, _, _ = cohort(60)
    values = {"site": ["A"] * 30 + ["B"] * 26 + ["C"] * 4}
    latents[:30] += 2
    latents[56:] -= 5
    fitted = learn(values, 60)
    numbers = ConditionBatch.of(fitted, values, 60).numbers
    learnt = ConditionalMean.learn(latents, numbers, fitted)
    of_a, of_b, of_c = learnt.predict(numbers[[0, 30, 59]])
    assert (of_a - of_b).mean() > 1.5
    npt.assert_array_equal(of_c, 0)


@pytest.mark.parametrize("n", [6, 60])
def test_learn_of_conditions_that_mean_nothing(n):
    shares = []
    for seed in range(20):
        latents, numbers, fitted, _ = cohort(n, effect=0.0, seed=seed)
        predicted = ConditionalMean.learn(latents, numbers, fitted).predict(numbers)
        shares.append((predicted**2).mean() / (latents**2).mean())
    assert np.mean(shares) < 0.02


@pytest.mark.parametrize("n", [6, 12])
@pytest.mark.parametrize("scans", [1, 2])
def test_learn_measures_errors_of_leave_one_out_fits(n, scans, monkeypatch, rng):
    # Of six, six features know all; and as brains, they have most in common.
    latents = rng.standard_normal((n, 20, 20, 20, 1), "float32") + 5
    values = {"a": rng.uniform(0, 9.5, n).tolist(), "b": rng.uniform(0, 1, n).tolist()}
    fitted = learn(values, n)
    numbers = ConditionBatch.of(fitted, values, n).numbers
    rows, errors = latents.reshape(n, -1).astype("float64"), []
    # One is alone, and scans of a subject are no neighbours.
    subjects = np.r_[n, np.arange(1, n) % (n // scans)]
    features = conditional_mean._features(numbers, fitted)
    for ridge in conditional_mean._RIDGES[:-1]:
        error = 0.0
        for person in set(subjects):
            one, training = subjects == person, subjects != person
            terms = np.c_[np.ones(training.sum()), features[training]]
            # The mean is not made smaller.
            penalty = n * ridge * np.diag([0.0, *np.ones(features.shape[1])])
            products = terms.T @ rows[training]
            weights = np.linalg.solve(terms.T @ terms + penalty, products)
            terms = np.c_[np.ones(one.sum()), features[one]]
            error += ((terms @ weights - rows[one]) ** 2).sum()
        errors.append(error)
    measured, measure = [], conditional_mean._held_out_error

    def keep(*rows_and_fits):
        error = measure(*rows_and_fits)
        return lambda shares: measured.append(error(shares)) or 0

    monkeypatch.setattr(conditional_mean, "_held_out_error", keep)
    ConditionalMean.learn(latents, numbers, fitted, subjects)
    npt.assert_allclose(measured[:-1], errors, rtol=0.05)


def test_learn_fits_no_chance_differences_of_subjects():
    shares = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        owners = np.repeat(np.arange(20), 2)
        people = rng.standard_normal((20, *SHAPE)).astype("float32")
        latents = people[owners] - people.mean(0)
        values = {"age": rng.uniform(20, 80, 20)[owners].tolist()}
        fitted = learn(values, 40)
        numbers = ConditionBatch.of(fitted, values, 40).numbers
        for subjects in (owners, None):
            learnt = ConditionalMean.learn(latents, numbers, fitted, subjects)
            shares.append((learnt.predict(numbers) ** 2).mean() / (latents**2).mean())
    by_subject, by_image = np.reshape(shares, (12, 2)).mean(0)
    assert by_subject < 0.02
    assert by_image > 0.05


def test_learn_of_one_subject():
    latents, numbers, fitted, _ = cohort(30)
    learnt = ConditionalMean.learn(latents, numbers, fitted, np.zeros(30, int))
    npt.assert_array_equal(learnt.weights, 0)


def test_batches_have_residuals_of_the_conditional_mean():
    latents, numbers, fitted, _ = cohort(8)
    learnt = ConditionalMean.learn(latents, numbers, fitted)
    options = {"schedule": "cosine", "target": "clean", "seed": 0}
    latents = with_inputs(latents, numbers)
    plain = noisy_batches(latents, 4, **options).of(0)
    residuals = latents._replace(conditional_mean=learnt)
    (x, times, means, conditions), clean = noisy_batches(residuals, 4, **options).of(0)
    npt.assert_array_equal(conditions, plain[0][2])
    npt.assert_allclose(clean, plain[1] - learnt.predict(conditions), atol=1e-6)
    alpha, _ = rates("cosine", times)
    taken = alpha.reshape(-1, 1, 1, 1) * learnt.predict(conditions)
    npt.assert_allclose(means, taken, atol=1e-6)
    assert means.dtype == np.float32
    npt.assert_allclose(x, plain[0][0] - taken, atol=1e-5)


def test_moments_are_those_of_residuals():
    latents, numbers, fitted, _ = cohort(200)
    learnt = ConditionalMean.learn(latents, numbers, fitted)
    residuals = latents - learnt.predict(numbers)
    # A last column, as sources have it, makes no difference.
    table = np.c_[numbers, np.arange(200)]
    _, spread = with_inputs(latents, table, mean=learnt).moments()
    npt.assert_allclose(spread, residuals.std((0, 1, 2)), rtol=1e-5)
    axes = (0, 1, 2)
    mean, spread = with_inputs(latents).moments()
    npt.assert_allclose(mean, latents.mean(axes), atol=1e-6)
    npt.assert_allclose(spread, latents.std(axes), rtol=1e-5)
