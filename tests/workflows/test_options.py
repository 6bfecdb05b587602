"""Options of several words."""

import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows._options import parse_filter, parse_names, parse_steps


def test_names_are_between_commas_or_spaces_and_count_once():
    assert parse_names("age, sex,,age") == ["age", "sex"]
    assert parse_names(["age,sex", "weight"]) == ["age", "sex", "weight"]
    assert parse_names("") == parse_names([]) == parse_names(None) == []


def test_values_of_an_entity_add_up():
    words = ["ses=1,2", "task=rest", "ses=3"]
    assert parse_filter(words) == {"ses": ["1", "2", "3"], "task": ["rest"]}


def test_steps_are_numbers_by_their_names():
    assert parse_steps("age=5, weight=2.5") == {"age": 5, "weight": 2.5}
    assert parse_steps(["age=5", "weight=2.5"]) == {"age": 5, "weight": 2.5}
    assert parse_steps("") == {}


@pytest.mark.parametrize("text", ["age", "age=", "age=0", "age=-5", "age=five", "=5"])
def test_invalid_steps_are_refused(text):
    with pytest.raises(InputError, match="coarsen must be a name and a step above 0"):
        parse_steps(text)
