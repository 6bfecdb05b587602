"""Conditions that nobody gave are drawn as the training images had them, together."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._conditions import UNSPECIFIED, ConditionBatch, learn
from dipy_ldm._utils.checks import InputError
from dipy_ldm.prior._condition_sampler import Population, draw_conditions


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
def known(table):
    return learn(table, 2000)


@pytest.fixture(scope="module")
def population(table, known):
    return Population.learn(ConditionBatch.of(known, table).numbers, known)


def share(drawn, name, value, where=None):
    values = np.array(drawn[name])
    return np.mean((values == value)[slice(None) if where is None else where])


def test_draws_follow_marginals_and_correlations(known, population, table):
    drawn = draw_conditions(known, population, None, 4000)
    ill = np.array(drawn["group"]) == "patient"
    assert ill.mean() == pytest.approx(share(table, "group", "patient"), abs=0.03)
    assert share(drawn, "sex", "F", ill) == pytest.approx(0.1, abs=0.05)
    assert share(drawn, "sex", "F", ~ill) == pytest.approx(0.6, abs=0.05)
    ages = np.array(drawn["age"])
    quantiles = (np.quantile(x, [0.1, 0.5, 0.9]) for x in (ages, table["age"]))
    npt.assert_allclose(*quantiles, atol=2)
    assert ages[ill].mean() - ages[~ill].mean() == pytest.approx(35, abs=4)
    # Without a table each is drawn by itself.
    drawn = draw_conditions(known, None, None, 4000)
    ill = np.array(drawn["group"]) == "patient"
    assert ill.mean() == pytest.approx(share(table, "group", "patient"), abs=0.03)
    ages = np.array(drawn["age"])
    assert abs(ages[ill].mean() - ages[~ill].mean()) < 3


def test_given_values_stay_and_others_are_drawn_to_match(known, population):
    drawn = draw_conditions(known, population, {"group": "patient"}, 300)
    assert set(drawn["group"]) == {"patient"}
    assert np.mean(drawn["age"]) == pytest.approx(75, abs=3)
    given = {"age": [30, None, "n/a"], "sex": "M"}
    drawn = draw_conditions(known, population, given, 3)
    assert drawn["age"][0] == 30
    assert None not in drawn["age"] + drawn["group"]
    # Nobody had both: the rest is drawn all the same.
    assert set(draw_conditions(known, population, {"age": 95, "sex": "F"}, 9)["group"])


def test_it_is_a_function_of_seed_and_sample(known, population):
    whole = draw_conditions(known, population, None, 20, seed=3)
    part = draw_conditions(known, population, None, 5, seed=3, first=10)
    assert {name: values[10:15] for name, values in whole.items()} == part
    assert draw_conditions(known, population, None, 20, seed=4) != whole
    same = draw_conditions(known, population, {"age": [30, 80]}, 2, seed=3, same=True)
    assert same["age"] == [30, 80]
    assert len(set(same["sex"])) == len(set(same["group"])) == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("first", [0, 12345])
def test_few_samples_are_spread_as_all_are(known, population, seed, first):
    where = {"seed": seed, "first": first}
    drawn = draw_conditions(known, None, None, 50, **where)
    ages = [known["age"].encode("age", age)[0] for age in drawn["age"]]
    npt.assert_allclose(np.sort(ages), (np.arange(50) + 0.5) / 50, atol=0.08)
    women = share(drawn, "sex", "F")
    counts = known["sex"].levels
    assert abs(women - counts["F"] / sum(counts.values())) < 0.05
    drawn = draw_conditions(known, population, None, 50, **where)
    assert abs(share(drawn, "group", "patient") - 0.3) < 0.08


@pytest.mark.parametrize("word", ["none", " None "])
def test_none_is_not_drawn(known, population, word):
    assert draw_conditions(known, population, word, 3) == word
    assert (ConditionBatch.of(known, word, 3).numbers == UNSPECIFIED).all()
    drawn = draw_conditions(known, population, {"age": word, "sex": ["F", word]}, 2)
    numbers = ConditionBatch.of(known, drawn).numbers
    npt.assert_array_equal(numbers[:, 0], [UNSPECIFIED] * 2)
    npt.assert_array_equal(numbers[:, 2] == UNSPECIFIED, [False, True])
    assert (numbers[:, 1] != UNSPECIFIED).all()


def test_a_level_may_have_that_name():
    known = learn({"drug": ["none", "some"] * 10}, 20)
    assert ConditionBatch.of(known, {"drug": "none"}).numbers.tolist() == [[0]]
    assert ConditionBatch.of(known, "none").numbers.tolist() == [[UNSPECIFIED]]


def test_no_cell_has_fewer_than_five_images(known, population, table):
    def learn_of(table):
        known = learn(table, len(table["age"]))
        return known, Population.learn(ConditionBatch.of(known, table).numbers, known)

    assert 5 <= min(population.counts) < 10 < len(population.counts) <= 400
    assert population.bins == 32
    known, coarse = learn_of({name: values[:40] for name, values in table.items()})
    assert coarse.bins == len(known["age"].quantiles) - 1 < 32
    assert min(coarse.counts) >= 5
    of_few, none = learn_of({name: values[:8] for name, values in table.items()})
    assert none is None
    assert len(draw_conditions(of_few, None, None, 9)["sex"]) == 9
    assert learn_of({"age": table["age"]})[1] is None


def test_numbers_go_with_the_levels_of_many_classes():
    rng = np.random.default_rng(0)
    site = np.arange(640) % 32
    size = site + rng.uniform(0, 1, 640)
    table = {"size": size, "weight": 2 * size + rng.uniform(0, 1, 640)}
    table["site"] = [f"s{n}" for n in site]
    conditions = learn(table, 640)
    population = Population.learn(
        ConditionBatch.of(conditions, table).numbers, conditions
    )
    drawn = draw_conditions(conditions, population, None, 200)
    off = np.array(drawn["size"]) - [int(name[1:]) for name in drawn["site"]]
    assert np.abs(off - 0.5).max() < 1.5
    sizes, weights = (np.array(drawn[name]) for name in ("size", "weight"))
    assert np.abs(weights - 2 * sizes - 0.5).max() < 8
    # Of what nobody had, the nearest; another level is further than any number.
    far = draw_conditions(conditions, population, {"site": "s3", "size": 30.0}, 20)
    assert np.abs(np.array(far["weight"]) - 7.5).max() < 3
    heavy = draw_conditions(conditions, population, {"weight": 62.0}, 20)
    assert min(heavy["size"]) > 28


def test_drawn_numbers_are_as_fine_as_their_range():
    table = {"year": np.linspace(2014.1234, 2016.8912, 60)}
    years = draw_conditions(learn(table, 60), None, None, 200)["year"]
    assert 2014.1234 <= min(years) <= max(years) <= 2016.8912
    assert len(set(years)) > 100
    assert all(year == round(year, 2) for year in sorted(years)[5:-5])


def test_shells_are_drawn_as_they_were():
    rng = np.random.default_rng(0)
    table = {"bval": np.tile([1000.0, 3000.0], 60), "age": rng.uniform(20, 80, 120)}
    conditions = learn(table, 120)
    numbers = ConditionBatch.of(conditions, table).numbers
    population = Population.learn(numbers, conditions)
    drawn = np.array(draw_conditions(conditions, population, None, 200)["bval"])
    assert np.abs(np.subtract.outer(drawn, [1000, 3000])).min(1).max() < 100
    assert 0.3 < np.mean(drawn > 2000) < 0.7


def test_scans_of_one_subject_are_no_crowd():
    table = {"sex": ["F", "M"] * 20 + ["F"] * 9, "site": ["a"] * 40 + ["b"] * 9}
    known = learn(table, 49)
    numbers = ConditionBatch.of(known, table).numbers
    assert len(Population.learn(numbers, known).cells) == 3
    scans = np.minimum(np.arange(49), 40)
    assert Population.learn(numbers, known, scans) is None
    few = np.minimum(np.arange(44), 40)
    of_few = Population.learn(numbers[:44], known, few)
    assert of_few.cells == [[[0, 0], [0, 0]], [[1, 1], [0, 0]]]
    assert of_few.counts == [20, 20]


def test_missing_training_values_are_drawn_too(table):
    holes = table | {"sex": [None if i % 3 else s for i, s in enumerate(table["sex"])]}
    known = learn(holes, 2000)
    population = Population.learn(ConditionBatch.of(known, holes).numbers, known)
    assert -1 in np.array(population.cells)
    assert set(draw_conditions(known, population, None, 200)["sex"]) == {"F", "M"}


def test_nothing_is_drawn_without_conditions():
    assert draw_conditions({}, None, None, 2) is None
    with pytest.raises(InputError, match="trained without conditions"):
        ConditionBatch.of({}, draw_conditions({}, None, {"age": 7}, 2))
