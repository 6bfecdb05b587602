"""Tables of text, and the JSON beside them."""

import json

import pytest

from dipy_ldm.data.tables import read_descriptions, read_table
from dipy_ldm.validation import InputError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "id\tage\tnote\na\t61.5\tone, two\nb\tn/a\t\n"),
        ("t.tsv", "\ufeffid\tage\tnote\r\na\t61.5\tone, two\r\nb\tn/a\t\r\n\r\n"),
        ("t.csv", '# of today\nid,age,note\na, 61.5,"one, two"\nb,n/a,\n'),
        ("t.csv", "id;age;note\na;61,5;one, two\nb;n/a;;\n"),
    ],
)
def test_tables_of_every_kind(tmp_path, name, text):
    rows = read_table(write(tmp_path / name, text))
    assert [row.cells for row in rows] == [
        {"id": "a", "age": "61.5", "note": "one, two"},
        {"id": "b", "age": "n/a", "note": ""},
    ]
    assert [row.line for row in rows] == ([3, 4] if "#" in text else [2, 3])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.tsv", "id\tage\n", "has no rows"),
        ("t.tsv", "", "has no rows"),
        ("t.tsv", "id,age\na,6\n", "has no tabs .* name it .csv"),
        ("t.tsv", "age\tid\tage\n6\ta\t7\n", "two columns of the name age"),
        ("t.tsv", b"\xff\xfe", "can't be read as text"),
        ("none.tsv", None, "there is no file"),
        (
            "t.csv",
            "id,age\na\nb,6\nc,6,7\n",
            "line 2: 1 cells for 2 columns\n.*line 4: 3 cells .*\nComplete these rows",
        ),
    ],
)
def test_bad_tables_are_answered_with_their_cure(tmp_path, name, content, sentence):
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=sentence) as refusal:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(refusal.value)


def test_units_and_levels_are_read(tmp_path):
    said = {
        "age": {"Description": "at the scan", "Units": "months"},
        "group": {"Levels": {"1": "control", "2": {"Description": "patient"}}},
        "site": "no dictionary",
    }
    write(tmp_path / "participants.json", json.dumps(said))
    found = read_descriptions(tmp_path / "participants.tsv")
    assert found["age"].unit == "months"
    assert found["group"].levels == {"1": "control", "2": "patient"}
    assert "site" not in found


def test_json_of_scans_and_sessions_is_inherited(tmp_path):
    write(tmp_path / "sessions.json", '{"age": {"Units": "days"}, "x": {"Units": "m"}}')
    table = tmp_path / "sub-01" / "sub-01_sessions.tsv"
    write(table.with_suffix(".json"), '{"age": {"Units": "weeks"}}')
    found = read_descriptions(table)
    assert (found["age"].unit, found["x"].unit) == ("weeks", "m")


def test_bad_json_is_refused(tmp_path):
    write(tmp_path / "t.json", "{")
    with pytest.raises(InputError, match=r"t.json can't be read as JSON"):
        read_descriptions(tmp_path / "t.tsv")
