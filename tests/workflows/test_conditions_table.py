"""Tables of what is wanted."""

import logging

import pytest

from dipy_ldm._conditions import Condition, to_saved
from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows._conditions import (
    RequestedConditions,
    as_levels,
    read_requested_table,
)

KNOWN = {
    "age": Condition("continuous", {}, [20.0, 80.0], units="years"),
    "sex": Condition("class", {"F": 5, "M": 7}, []),
}


@pytest.fixture
def read(tmp_path):
    def read(text, known=KNOWN):
        (tmp_path / "wanted.tsv").write_text(text)
        return read_requested_table(tmp_path / "wanted.tsv", known)

    return read


def test_each_row_is_a_sample(read, caplog):
    found = read("participant_id\tage\tsex\nsub-1\t70\tfemale\nsub-2\tn/a\tM\nx\t6\t\n")
    assert found == {"age": [70, None, 6], "sex": ["F", "M", None]}
    assert not caplog.messages


def test_classes_are_spelled_as_the_model_does(read):
    known = {"sex": Condition("class", {"female": 5, "male": 7}, [])}
    assert read("sex\nF\nmale\nM\n\n", known) == {"sex": ["female", "male", "male"]}
    values = {"sex": ["F", None, "O"]}
    assert as_levels(known, values) == {"sex": ["female", None, "O"]}
    assert as_levels(KNOWN, {"age": [61.0], **values}) == {"age": [61.0], **values}


def test_words_are_spelled_as_tables_are():
    document = {"conditions": to_saved(KNOWN)}
    words = {"sex": ["male", "F", "n/a"], "age": "70"}
    table = RequestedConditions.of(document, words, range(3)).table
    assert table == {"age": [70] * 3, "sex": ["M", "F", None]}


def test_captions_show_requested_conditions():
    numbers = ["2014.6", "2014", "12345", "0.5"]
    document = {"conditions": to_saved({"year": KNOWN["age"]})}
    requested = RequestedConditions.of(document, {"year": numbers}, range(4))
    assert requested.captions(range(4)) == [f"year={number}" for number in numbers]


def test_codes_may_be_written_as_floats(read):
    conditions = {"group": Condition("class", {"0": 5, "1": 7}, [])}
    assert read("group\n1.0\n0\nn/a\n", conditions) == {"group": ["1", "0", None]}


def test_other_columns_make_no_difference_and_are_named(read, caplog):
    with caplog.at_level(logging.WARNING, "dipy_ldm"):
        assert read("age\tiq\n70\t99\n") == {"age": [70]}
    assert "columns iq of" in caplog.text
    assert "are ignored: the model has the conditions age, sex" in caplog.text


@pytest.mark.parametrize(
    ("text", "known", "sentence"),
    [
        ("iq\n99\n", KNOWN, "no column that is a condition of the model .it has age"),
        ("age\n99\n", {}, "no column that is a condition of the model .train one"),
        (
            "age\tsex\nold\tF\n60\tX\n",
            KNOWN,
            "line 2: age is 'old', no number\n.*line 3: sex is 'X', not one of F, M\n",
        ),
    ],
)
def test_invalid_requests_are_refused(read, text, known, sentence):
    with pytest.raises(InputError, match=sentence):
        read(text, known)
