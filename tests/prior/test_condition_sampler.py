"""Unspecified conditions are drawn jointly from the training distribution."""

from functools import partial

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._conditions import UNSPECIFIED, ConditionBatch, learn
from dipy_ldm._utils.checks import InputError
from dipy_ldm.prior._condition_sampler import Population, draw_conditions


def fit(table, subjects=None):
    """Return conditions and the joint distribution of their values."""
    conditions = learn(table, len(next(iter(table.values()))))
    numbers = ConditionBatch.of(conditions, table).numbers
    subjects = np.arange(len(numbers)) if subjects is None else subjects
    return conditions, Population.learn(numbers, conditions, subjects)


@pytest.fixture(scope="module")
def table():
    """Return ages of which patients have the higher ones, and are seldom women."""
    rng = np.random.default_rng(0)
    ill = rng.random(2000) < 0.3
    ages = np.where(ill, rng.normal(75, 5, 2000), rng.normal(40, 8, 2000))
    women = rng.random(2000) < np.where(ill, 0.1, 0.6)
    return {
        "age": ages,
        "group": np.where(ill, "patient", "control").tolist(),
        "sex": np.where(women, "F", "M").tolist(),
    }


@pytest.fixture(scope="module")
def fitted(table):
    return fit(table)


def share_of(value, values):
    return np.mean(np.array(values) == value)


def test_draw_conditions_follows_marginals_and_correlations(fitted, table):
    conditions, population = fitted
    drawn = draw_conditions(conditions, population, None, 4000)
    ill, sex, ages = (np.array(drawn[name]) for name in ("group", "sex", "age"))
    ill = ill == "patient"
    patients = pytest.approx(share_of("patient", table["group"]), abs=0.03)
    assert ill.mean() == patients
    assert share_of("F", sex[ill]) == pytest.approx(0.1, abs=0.05)
    assert share_of("F", sex[~ill]) == pytest.approx(0.6, abs=0.05)
    quantiles = (np.quantile(x, [0.1, 0.5, 0.9]) for x in (ages, table["age"]))
    npt.assert_allclose(*quantiles, atol=2)
    assert ages[ill].mean() - ages[~ill].mean() == pytest.approx(35, abs=4)
    # Without a joint distribution each is drawn by itself.
    drawn = draw_conditions(conditions, None, None, 4000)
    ill, ages = np.array(drawn["group"]) == "patient", np.array(drawn["age"])
    assert ill.mean() == patients
    assert abs(ages[ill].mean() - ages[~ill].mean()) < 3


def test_draw_conditions_with_requested_values(fitted):
    drawn = draw_conditions(*fitted, {"group": "patient"}, 300)
    assert set(drawn["group"]) == {"patient"}
    assert np.mean(drawn["age"]) == pytest.approx(75, abs=3)
    drawn = draw_conditions(*fitted, {"age": [30, None, "n/a"], "sex": "M"}, 3)
    assert drawn["age"][0] == 30
    assert None not in drawn["age"] + drawn["group"]
    # Nobody had both: the rest is drawn all the same.
    assert set(draw_conditions(*fitted, {"age": 95, "sex": "F"}, 9)["group"])


def test_draw_conditions_depends_on_seed_and_sample(fitted):
    draw = partial(draw_conditions, *fitted)
    every = draw(None, 20, seed=3)
    part = draw(None, 5, seed=3, first=10)
    assert {name: values[10:15] for name, values in every.items()} == part
    assert draw(None, 20, seed=4) != every
    same = draw({"age": [30, 80]}, 2, seed=3, same=True)
    assert same["age"] == [30, 80]
    assert len(set(same["sex"])) == len(set(same["group"])) == 1


@pytest.mark.parametrize(("seed", "first"), [(0, 0), (3, 12345)])
def test_draw_conditions_of_few_samples_spreads_them(fitted, seed, first):
    conditions, population = fitted
    drawn = draw_conditions(conditions, None, None, 50, seed=seed, first=first)
    ages = [conditions["age"].encode("age", age)[0] for age in drawn["age"]]
    npt.assert_allclose(np.sort(ages), (np.arange(50) + 0.5) / 50, atol=0.08)
    counts = conditions["sex"].levels
    women = counts["F"] / sum(counts.values())
    assert share_of("F", drawn["sex"]) == pytest.approx(women, abs=0.05)
    drawn = draw_conditions(conditions, population, None, 50, seed=seed, first=first)
    assert share_of("patient", drawn["group"]) == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("word", ["none", " None "])
def test_draw_conditions_unconditionally(fitted, word):
    conditions, _ = fitted
    assert draw_conditions(*fitted, word, 3) == word
    assert (ConditionBatch.of(conditions, word, 3).numbers == UNSPECIFIED).all()
    drawn = draw_conditions(*fitted, {"age": word, "sex": ["F", word]}, 2)
    numbers = ConditionBatch.of(conditions, drawn).numbers
    npt.assert_array_equal(numbers[:, 0], [UNSPECIFIED] * 2)
    npt.assert_array_equal(numbers[:, 2] == UNSPECIFIED, [False, True])
    assert (numbers[:, 1] != UNSPECIFIED).all()


def test_a_level_may_be_called_none():
    conditions = learn({"drug": ["none", "some"] * 10}, 20)
    assert ConditionBatch.of(conditions, {"drug": "none"}).numbers.tolist() == [[0]]
    assert ConditionBatch.of(conditions, "none").numbers.tolist() == [[UNSPECIFIED]]


def test_population_has_no_cell_of_fewer_than_five_images(fitted, table):
    _, population = fitted
    assert 5 <= min(population.counts) < 10 < len(population.counts) <= 400
    assert population.bins == 32
    conditions, coarse = fit({name: values[:40] for name, values in table.items()})
    assert coarse.bins == len(conditions["age"].quantiles) - 1 < 32
    assert min(coarse.counts) >= 5
    conditions, none = fit({name: values[:8] for name, values in table.items()})
    assert none is None
    assert len(draw_conditions(conditions, None, None, 9)["sex"]) == 9
    assert fit({"age": table["age"]})[1] is None


def test_draw_conditions_of_many_classes():
    rng = np.random.default_rng(0)
    site = np.arange(640) % 32
    size = site + rng.uniform(0, 1, 640)
    table = {"size": size, "weight": 2 * size + rng.uniform(0, 1, 640)}
    table["site"] = [f"s{n}" for n in site]
    draw = partial(draw_conditions, *fit(table))
    drawn = draw(None, 200)
    off = np.array(drawn["size"]) - [int(name[1:]) for name in drawn["site"]]
    assert np.abs(off - 0.5).max() < 1.5
    sizes, weights = (np.array(drawn[name]) for name in ("size", "weight"))
    assert np.abs(weights - 2 * sizes - 0.5).max() < 8
    # Of what nobody had, the nearest; another level is further than any number.
    far = draw({"site": "s3", "size": 30.0}, 20)
    assert np.abs(np.array(far["weight"]) - 7.5).max() < 3
    assert min(draw({"weight": 62.0}, 20)["size"]) > 28


def test_draw_conditions_is_as_fine_as_their_range():
    table = {"year": np.linspace(2014.1234, 2016.8912, 60)}
    years = draw_conditions(*fit(table), None, 200)["year"]
    assert 2014.1234 <= min(years) <= max(years) <= 2016.8912
    assert len(set(years)) > 100
    assert all(year == round(year, 2) for year in sorted(years)[5:-5])


def test_draw_conditions_of_shells():
    rng = np.random.default_rng(0)
    table = {"bval": np.tile([1000.0, 3000.0], 60), "age": rng.uniform(20, 80, 120)}
    drawn = np.array(draw_conditions(*fit(table), None, 200)["bval"])
    assert np.abs(np.subtract.outer(drawn, [1000, 3000])).min(1).max() < 100
    assert 0.3 < np.mean(drawn > 2000) < 0.7


def test_population_counts_subjects():
    table = {"sex": ["F", "M"] * 20 + ["F"] * 9, "site": ["a"] * 40 + ["b"] * 9}
    subjects = np.minimum(np.arange(49), 40)
    assert len(fit(table)[1].cells) == 3
    assert fit(table, subjects)[1] is None
    fewer = {name: values[:44] for name, values in table.items()}
    _, population = fit(fewer, subjects[:44])
    assert population.cells == [[[0, 0], [0, 0]], [[1, 1], [0, 0]]]
    assert population.counts == [20, 20]


def test_draw_conditions_of_which_training_values_are_missing(table):
    holes = table | {"sex": [None if i % 3 else s for i, s in enumerate(table["sex"])]}
    conditions, population = fit(holes)
    assert -1 in np.array(population.cells)
    assert set(draw_conditions(conditions, population, None, 200)["sex"]) == {"F", "M"}


def test_draw_conditions_without_conditions():
    assert draw_conditions({}, None, None, 2) is None
    with pytest.raises(InputError, match="trained without conditions"):
        ConditionBatch.of({}, draw_conditions({}, None, {"age": 7}, 2))
