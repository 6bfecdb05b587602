"""Options that are one word."""

import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows._options import names_of, steps_of


def test_names_are_between_commas_and_count_once():
    assert names_of("age, sex,,age") == ["age", "sex"]
    assert names_of("") == names_of(None) == []


def test_steps_are_numbers_by_their_names():
    assert steps_of("age=5, weight=2.5") == {"age": 5, "weight": 2.5}
    assert steps_of("") == {}


@pytest.mark.parametrize("text", ["age", "age=", "age=0", "age=-5", "age=five", "=5"])
def test_what_is_no_step(text):
    with pytest.raises(InputError, match="coarsen must be a name and a step above 0"):
        steps_of(text)
