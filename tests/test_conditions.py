"""Conditions: values from users become numbers, or an error that names the cure."""

from functools import partial
import json

import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest

from dipy_ldm import _conditions
from dipy_ldm._conditions import UNSPECIFIED, ConditionBatch, learn
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import Table, as_table
from dipy_ldm.denoiser._conditioning import Conditioning, Examples

AGES = np.linspace(20, 80, 61)
TABLE = {
    "age": AGES,
    "sex": ["F", "M", None] * 20 + ["n/a"],
    "patient": [True, False] * 30 + [True],
    "site": [1, 2, 3] * 20 + [1],
}


@pytest.fixture(scope="module")
def conditions():
    return learn(TABLE, 61, {"age": "years"})


def test_learn_distinguishes_classes_and_numbers(conditions):
    kinds = {name: condition.kind for name, condition in conditions.items()}
    assert kinds == dict.fromkeys(TABLE, "class") | {"age": "continuous"}
    assert conditions["sex"].levels == {"F": 20, "M": 20}
    assert conditions["sex"].missing == pytest.approx(21 / 61)
    assert conditions["patient"].levels == {"False": 30, "True": 31}
    assert conditions["site"].levels == {"1": 21, "2": 20, "3": 20}
    assert conditions["age"].quantiles[:: len(conditions["age"].quantiles) // 2] == [
        20,
        50,
        80,
    ]
    assert conditions["age"].units == "years"


@pytest.mark.parametrize("n", [3, 12, 21, 161, 500])
def test_quantiles_of_few_are_not_their_values(n):
    values = np.random.default_rng(n).normal(50, 20, n)
    condition = learn({"age": values}, n)["age"]
    first, *inner, last = condition.quantiles
    assert (first, last) == (values.min(), values.max())
    assert not set(inner) & set(values)
    # Five examples lie between two of them, where there are ten or more.
    counts = np.histogram(values, condition.quantiles)[0]
    assert n < 10 or counts.min() >= 4
    # Ranks are what they were, but for a few examples.
    ranks = np.argsort(np.argsort(values)) / (n - 1)
    encoded = [condition.encode("age", value)[0] for value in values]
    assert n < 10 or np.abs(encoded - ranks).max() < max(0.15, 2 / n)


# Of each subject seven times, and of all subjects seven values that hardly differ.
AGE = np.repeat(np.linspace(4, 9, 24) ** 2, 7)
DELAY = np.tile(np.linspace(20, 80, 7), 24) + np.linspace(0, 1, 168) ** 2


@pytest.mark.parametrize("values", [AGE, DELAY], ids=["of subjects", "of scans"])
def test_quantiles_are_of_one_value_of_each_subject(values):
    subjects = np.repeat(np.arange(24), 7)
    (learnt,) = learn({"it": values}, 168, subjects=subjects).values()
    first, *inner, last = learnt.quantiles
    assert (first, last, len(inner)) == (min(values), max(values), 3)
    assert not set(inner) & set(values)
    npt.assert_allclose(inner, np.quantile(values, [0.25, 0.5, 0.75]), atol=9)


@pytest.mark.parametrize("n", [1, 3, 5, 20])
def test_quantiles_of_few_subjects_are_of_all_their_scans(n):
    ages, subjects = np.tile(np.linspace(20, 80, 100), n), np.repeat(np.arange(n), 100)
    quantiles = learn({"age": ages}, 100 * n, subjects=subjects)["age"].quantiles
    assert quantiles[len(quantiles) // 2] == pytest.approx(50, abs=6)


def test_quantiles_of_equal_values_are_that_value():
    condition = learn({"dose": [0.1] * 30 + [0.7] * 30}, 60)["dose"]
    assert set(condition.quantiles) == {0.1, 0.7} | set(condition.quantiles[6:7])
    assert len(condition.quantiles) == 13


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1, 1, 2], "class"),
        ([1, 2, None, 3], "class"),
        ([0, 2, 3], "continuous"),  # with a gap
        ([2, 3, 4], "continuous"),
        ([0.0, 1.0, 2.0], "continuous"),
        (list(range(40)), "continuous"),
        (["70", "61", ""], "class"),
        (pd.Series([0, 1, None, 2]), "class with missing values"),  # as float64
        (np.array([70, 61, np.nan, 55]), "continuous"),
        (np.array([0, 1, np.nan, 1.5]), "continuous"),
        (np.array([0.0, 1.0, 2.0, 1.0]), "continuous"),
        ([0.0, 1.0, None, 2.0], "continuous"),
    ],
)
def test_learn_recognises_codes(values, kind, caplog):
    assert learn({"it": values}, len(values))["it"].kind == kind.split()[0]
    warned = "it is taken for a class with missing values" in caplog.text
    assert warned == kind.endswith("missing values")


def test_learn_labels_alone():
    labels = np.array([7, 100, 7, 3])
    conditions = learn(labels, 4)
    assert conditions["label"].levels == {"3": 1, "7": 2, "100": 1}
    numbers = ConditionBatch.of(conditions, labels, 4).numbers[:, 0]
    npt.assert_array_equal(numbers, [1, 2, 1, 0])
    with_missing = learn(np.array([7, 100, np.nan, 3]), 4)["label"].levels
    assert with_missing == {"3": 1, "7": 1, "100": 1}
    for seven in (7, 7.0, "7", np.int64(7), [7], {"label": 7}):
        npt.assert_array_equal(ConditionBatch.of(conditions, seven).numbers, [[1]])
    assert learn(np.array([0.5, 0.7]), 2)["label"].kind == "continuous"


def test_tables_of_pandas():
    frame = pd.DataFrame({"age": [70.5, np.nan, 61, 55]})
    frame["sex"] = pd.Series(["F", pd.NA, "M", "F"], dtype="string")
    frame["group"] = pd.Categorical(["a", "b", None, "a"])
    frame["decade"] = pd.cut([20, 40, 60, 80], [0, 50, 100])
    learnt = learn(frame, 4)
    shares = [condition.missing for condition in learnt.values()]
    assert shares == [0.25, 0.25, 0.25, 0]
    assert learnt["decade"].levels == {"(0, 50]": 2, "(50, 100]": 2}
    age, *classes = ConditionBatch.of(learnt, frame, 4).numbers.T
    npt.assert_array_equal(classes, [[0, -1, 1, 0], [0, 1, -1, 0], [0, 0, 1, 1]])
    npt.assert_array_equal(age == UNSPECIFIED, [False, True, False, False])


def test_learnt_conditions_are_logged(caplog):
    ages = pd.Series([70, 61, 55, 80], name="age")
    how = Examples(()), 4, None, None
    with caplog.at_level("INFO", "dipy_ldm"):
        frame = pd.DataFrame({"age": ages, "sex": list("FMFF")})
        Conditioning.learn(Examples((4, 8, 8, 1), frame), *how)
    assert "conditions of 4 images of 4 subjects:\n  age: 55 to 80" in caplog.text
    assert "4 of 4 subjects have a unique combination" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "dipy_ldm"):
        table = Table({"age": [*ages]}, {"age": "years"})
        conditions = Conditioning.learn(Examples((4, 8, 8, 1), table), *how)
    assert conditions.conditions["age"].units == "years"
    assert not caplog.text, "it was said when it was read"


def test_a_series_keeps_its_name():
    ages = pd.Series([70, 61, 55, 80], name="age")
    assert learn(ages, 4)["age"].kind == "continuous"
    for name in (None, ""):  # polars has the latter
        alone = pd.Series([70, 61, 55, 80], name=name)
        assert learn(alone, 4)["label"].kind == "class"
    conditions = learn(ages, 4)
    assert ConditionBatch.of(conditions, ages, 4).numbers.shape == (4, 1)


@pytest.mark.parametrize(
    ("table", "subjects"),
    [
        ({"participant_id": ["a", "b"] * 10}, None),
        ({"Participant_ID": list(range(100, 120))}, None),
        ({"who": [f"sub-{i // 5}" for i in range(20)]}, None),
        ({"who": ["sub-00", "sub-01", "template"] * 4}, None),
        ({"code": [f"x{i % 11}" for i in range(20)]}, None),
        ({"code": [f"x{i % 11}" for i in range(40)]}, [*range(20)] * 2),
    ],
)
def test_identifying_columns_are_refused(table, subjects):
    n = len(next(iter(table.values())))
    (name,) = table
    with pytest.raises(InputError, match=f"{name} .* identify them .*; leave it out"):
        learn(table, n, subjects=subjects)
    assert learn({"site": [f"x{i % 10}" for i in range(20)]}, 20)
    assert learn({"phase": ["acute", "sub-acute", "chronic"]}, 3)


@pytest.mark.parametrize("missing", [None, np.nan, "", "N/A", " NaN"])
def test_missing_values(missing):
    text = isinstance(missing, str)
    values = ["a", missing, "b"] if text else [0.5, missing, 1.5]
    conditions = learn({"it": values}, 3)
    assert conditions["it"].missing == pytest.approx(1 / 3)
    numbers = ConditionBatch.of(conditions, {"it": missing}).numbers
    npt.assert_array_equal(numbers, [[UNSPECIFIED]])


def test_numbers_become_ranks(conditions):
    ages = np.array([20, 35, 50, 80, None], object)
    batch = ConditionBatch.of(conditions, {"age": ages, "sex": "M"})
    npt.assert_allclose(batch.numbers[:, 0], [0, 0.25, 0.5, 1, UNSPECIFIED])
    npt.assert_array_equal(batch.numbers[:, 1], 1)
    npt.assert_array_equal(batch.numbers[:, 2:], UNSPECIFIED)
    assert batch.range_warnings == []
    # Of many that are the same the mean rank.
    tied = learn({"it": [0.0] * 500 + list(np.linspace(1, 2, 501))}, 1001)
    ranks = ConditionBatch.of(tied, {"it": [0.0, 1.0, 2.0]}).numbers[:, 0]
    npt.assert_allclose(ranks, [0.25, 0.5, 1], atol=0.03)


def test_numbers_outside_of_the_training_range_are_reported(conditions):
    batch = ConditionBatch.of(conditions, {"age": [95, 50, 95, 1]})
    npt.assert_allclose(batch.numbers[:, 0], [1, 0.5, 1, 0])
    first, second = batch.range_warnings
    assert first == (
        "age 95 is outside the model's range of 20 to 80, and replaced by 80."
    )
    assert "age 1 is outside" in second


def test_unknown_levels_are_dropped_where_allowed(conditions):
    batch = ConditionBatch.of(conditions, {"sex": ["F", "X"]}, lenient=True)
    npt.assert_array_equal(batch.numbers[:, 1], [0, UNSPECIFIED])
    assert batch.range_warnings == ["sex X is an unknown level, and ignored."]


@pytest.mark.parametrize(
    ("requested", "sentence"),
    [
        ({"size": 180}, "unknown condition 'size'; choose one of age, sex, patient"),
        ({"sex": "X"}, "sex has no level 'X'; choose one of 'F', 'M'"),
        ({"age": "old"}, "age must be a number, not 'old'"),
        ({"age": True}, "age must be a number, not True"),
        ({"age": np.inf}, "age must have text or finite numbers, not inf"),
        ({"age": [50, 60, 70]}, "age must have one value or 2, one for each image"),
        ({1: 2}, "names of conditions must be text"),
        ({"age": {0: 50, 1: 60}}, "age must have a list of values, not a dict"),
        (70, "pass conditions by name: age, sex, patient, site"),
    ],
)
def test_invalid_requests_are_refused(conditions, requested, sentence):
    with pytest.raises(InputError, match=sentence):
        ConditionBatch.of(conditions, requested, 2)
    with pytest.raises(InputError, match="trained without conditions: remove"):
        ConditionBatch.of({}, requested, 2)
    assert ConditionBatch.of({}, None, 3).numbers.shape == (3, 0)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"age": [70, 60]}, "age must have 3 values, one for each image, not 2"),
        ({"age": [70, "old", 60]}, "age mixes numbers with 'old'; use only numbers or"),
        ({"age": [None] * 3}, "age is missing for all images"),
        ({"sex": ["F", "", "F"]}, "sex is 'F' for all images; leave it out"),
        ({"age": [70, 60, 1j]}, "age must have text or finite numbers"),
        ({}, "conditions must be a dictionary of values by name"),
        (70, "conditions must be a dictionary of values by name"),
        ({"": [1, 2, 3]}, "names of conditions must be text"),
        ({"age": {0: 51, 1: 62, 2: 70}}, r"not a dict; use .*to_dict\('list'\)"),
        ({51, 62, 70}, "label must have a list of values, not a set"),
        (np.eye(3), "the columns of conditions need names; use a dictionary"),
        ({"scan": np.arange(3).astype("datetime64[D]")}, "scan has dates or times"),
        ({"direction": [(0, 0, 1), 3.0, None]}, "vector of three numbers"),
    ],
)
def test_learn_refuses_invalid_conditions(values, sentence):
    with pytest.raises(InputError, match=sentence):
        learn(values, 3)


def test_learn_refuses_numbers_written_as_text():
    with pytest.raises(InputError, match="age has 120 levels that are numbers as text"):
        learn({"age": [f"{n / 7:.2f}" for n in range(120)]}, 120)


def through_json(conditions):
    return _conditions.from_saved(
        json.loads(json.dumps(_conditions.to_saved(conditions)))
    )


def test_conditions_go_through_json_and_describe_themselves(conditions):
    assert through_json(conditions) == conditions
    assert str(conditions["age"]) == "20 to 80 years, median 50"
    assert str(conditions["age"]._replace(missing=0.25)).endswith(" 50; missing 25.0%")
    bval = learn({"bval": [1000.0, 1000, 2000, 2000]}, 4)["bval"]
    assert str(bval) == "950 to 2100"
    assert str(conditions["sex"]) == "F (20), M (20); missing 34.4%"


def test_as_table_has_types_of_python():
    table = as_table({"n": np.arange(2, dtype="int8"), "b": np.array([True, False])})
    assert table == {"n": [0, 1], "b": [True, False]}
    assert [type(value) for value in table["n"]] == [int, int]


@pytest.mark.parametrize(
    ("conditions", "options", "sentence"),
    [
        ({"=HYPERLINK(1)": ["a", "b"]}, {}, "rename it, without control"),
        ({"group": ["a", "b\nc"]}, {}, "rename it, without control"),
        ({"group": ["a", "\udce9"]}, {}, "rename it, without control"),
        ({}, {"units": {"age": "\x9b31m"}}, "rename it, without control"),
        ({}, {"units": {"size": "ml"}}, "have 'size', which is no condition; choose"),
        ({}, {"meanings": {"size": {}}}, "have 'size', which is no condition"),
        ({}, {"units": {"age": 5}}, "the unit of age must be text, not 5"),
        ({}, {"meanings": {"sex": {1: "man"}}}, "of sex must map its lev"),
        ({}, {"meanings": {"sex": "men"}}, "of sex must map its levels to texts"),
    ],
)
def test_learn_refuses_names_units_and_meanings(conditions, options, sentence):
    table = {"age": [1.5, 2.5], "sex": [0, 1]} | conditions
    with pytest.raises(InputError, match=sentence) as refusal:
        learn(table, 2, **options)
    assert str(refusal.value).isprintable()


def test_names_in_any_script_are_text():
    names = {"年齢": ["sí", "a\xa0b"], "o'n + -1": ["-1", "+"]}
    assert list(learn(names, 2)) == list(names)


def test_held_out_images_without_conditions_are_warned_of(caplog):
    examples = Examples((4, 8, 8, 1), {"age": [61.5, 70, 55, 80]})
    for conditions in ({"age": [60, 70]}, None):
        assert "pass `validation_conditions`" not in caplog.text
        held_out = Examples((2, 8, 8, 1), conditions)
        Conditioning.learn(examples, held_out, 4, None, None)
    assert "pass `validation_conditions`" in caplog.text


def test_units_are_added_to_those_of_a_table():
    values = {"age": [61.5, 70, 55, 80], "size": [1.5, 2.5, 3.5, 4.5]}
    table = Table(values, {"age": "years", "sex": "no more a column"})
    examples = Examples((4, 8, 8, 1), table)
    learnt = Conditioning.learn(examples, Examples(()), 4, {"size": "ml"}, None)
    units = [condition.units for condition in learnt.conditions.values()]
    assert units == ["years", "ml"]


def test_directions_are_vectors_of_which_opposite_ones_are_one():
    vectors = np.random.default_rng(0).normal(size=(40, 3))
    bvals = [1000.0, 2000.0] * 20
    conditions = learn({"bval": bvals, "direction": vectors}, 40)
    assert through_json(conditions) == conditions
    assert conditions["direction"].kind == "direction"
    encode = partial(ConditionBatch.of, conditions)
    one, other = (encode({"direction": v}).numbers for v in (vectors, -3 * vectors))
    npt.assert_array_equal(one, other)
    # b-values are told as they are, not by ranks.
    numbers = encode({"bval": [1000, 1500, 2000]}).numbers[:, 0]
    npt.assert_allclose(np.diff(numbers, 2), 0, atol=1e-6)
    (warning,) = encode({"bval": 3000}).range_warnings
    assert "range of 950 to 2100" in warning
    assert learn({"bval": [700, 700]}, 2)["bval"].kind == "continuous"
    for one in ((0, 0, 1), np.array([0, 0, 1.0])):
        numbers = encode({"bval": [1000, 2000], "direction": one}).numbers
        npt.assert_array_equal(numbers[0, 1], numbers[1, 1])
        assert encode({"bval": 1000, "direction": one}).numbers.shape == (1, 2)
    for wrong in (5, "x", (0, 0), [(0, 0, 0)]):
        with pytest.raises(InputError, match="direction must"):
            encode({"direction": wrong})
