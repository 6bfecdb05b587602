"""Tables as text files, and the JSON files beside them."""

import json

import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._tables import as_text, read_descriptions, read_table


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.tsv", "id\tage\tnote\na\t61.5\tone, two\nb\tn/a\t\n"),
        ("t.tsv", "\ufeffid\tage\tnote\r\na\t61.5\tone, two\r\nb\tn/a\t\r\n\r\n"),
        ("t.csv", 'id,age,note\na, 61.5,"one, two"\nb,n/a,\n'),
        ("t.csv", "id;age;note\na;61,5;one, two\nb;n/a;;\n;;\n ; ;\n"),
    ],
)
def test_read_table_of_every_kind(tmp_path, name, text):
    rows = read_table(write(tmp_path / name, text))
    assert [row.cells for row in rows] == [
        {"id": "a", "age": "61.5", "note": "one, two"},
        {"id": "b", "age": "n/a", "note": ""},
    ]
    assert [row.line for row in rows] == [2, 3]


ALONE = ['"see form', '"12" screen', '"' + 140_000 * "x"]
STRAY = [('"see form', '"repeat'), ('"', '"'), *((text, "") for text in ALONE)]


@pytest.mark.parametrize("sign", "\u2028\x0b\x0c\x85", ids=ascii)
def test_read_table_ends_rows_at_line_feeds_alone(tmp_path, sign):
    (row,) = read_table(write(tmp_path / "t.tsv", f"id\tnote\na\tone{sign}two\n"))
    assert row.cells["note"] == f"one{sign}two"


@pytest.mark.parametrize(("first", "second"), STRAY, ids=range(5))
def test_read_table_refuses_stray_quotes(tmp_path, first, second):
    rows = f"04\t32\t{first}\n05\t7\t\n06\t8\t\n07\t41\t{second}\n08\t9\t\n"
    path = write(tmp_path / "t.tsv", f"id\tage\tnotes\n03\t3\tfine\n{rows}")
    with pytest.raises(InputError, match=f"{path}, line 3: .*quote.*; remove"):
        read_table(path)


def test_read_table_keeps_quotes_of_a_cell(tmp_path):
    text = 'id\tnote\na\t5" screen\nb\t"tab\there"\nc\t"""so"" he said"\n'
    notes = [row.cells["note"] for row in read_table(write(tmp_path / "t.tsv", text))]
    assert notes == ['5" screen', "tab\there", '"so" he said']
    text = 'id,note\na,"two\nlines, of it"\nb,\n'
    rows = read_table(write(tmp_path / "t.csv", text))
    assert [(row.line, row.cells["id"]) for row in rows] == [(3, "a"), (4, "b")]


@pytest.mark.parametrize(
    "text",
    [
        "id,age,note (a;b)\nx,61,one; two\ny,62,three; four\n",
        "id;age;note\nx;61;one, a\ny;62;two, b\n",
        "#;id;age\n1;x;61\n2;y;62\n",
    ],
)
def test_read_table_with_any_separator(tmp_path, text):
    rows = read_table(write(tmp_path / "t.csv", text))
    cells = [(row.cells["id"], row.cells["age"]) for row in rows]
    assert cells == [("x", "61"), ("y", "62")]


def test_read_table_with_cells_that_begin_with_a_number_sign(tmp_path):
    text = "#,path,color\n1,a.nii,61\n#2,b.nii,#ff0000\n"
    first, second = read_table(write(tmp_path / "t.csv", text))
    assert first.cells == {"#": "1", "path": "a.nii", "color": "61"}
    assert second.cells == {"#": "#2", "path": "b.nii", "color": "#ff0000"}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.tsv", "id\tage\n", "has no rows"),
        ("t.tsv", "", "has no rows"),
        ("t.tsv", "id,age\na,6\n", "has no tabs .* name it .csv"),
        ("t.tsv", "age\tid\tage\n6\ta\t7\n", "two columns called age"),
        ("t.tsv", b"\xff\xfe", "can't be read as text"),
        ("none.tsv", None, "there is no file"),
        (
            "t.csv",
            "id,age\na\nb,6\nc,6,7\n",
            "line 2: 1 cells for 2 columns.\n.*line 4: 3 cells .*\nComplete these rows",
        ),
    ],
)
def test_read_table_refuses_bad_tables(tmp_path, name, content, sentence):
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=sentence) as refusal:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(refusal.value)


def test_read_descriptions_of_units_and_levels(tmp_path):
    entries = {
        "age": {"Description": "at the scan", "Units": "months"},
        "iq": {"Levels": {"n/a": "not measured"}},
        "group": {"Levels": {"1": "control", "2": {"Description": "patient"}}},
        "site": "no dictionary",
    }
    write(tmp_path / "participants.json", json.dumps(entries))
    columns = read_descriptions(tmp_path / "participants.tsv")
    assert columns["age"].unit == "months"
    assert columns["group"].levels == {"1": "control", "2": "patient"}
    assert not columns["iq"].levels
    assert "site" not in columns


def test_read_descriptions_inherits_those_of_sessions(tmp_path):
    write(tmp_path / "sessions.json", '{"age": {"Units": "days"}, "x": {"Units": "m"}}')
    table = tmp_path / "sub-01" / "sub-01_sessions.tsv"
    write(table.with_suffix(".json"), '{"age": {"Units": "weeks"}}')
    columns = read_descriptions(table)
    assert (columns["age"].unit, columns["x"].unit) == ("weeks", "m")


def test_read_descriptions_refuses_bad_json(tmp_path):
    write(tmp_path / "t.json", "{")
    with pytest.raises(InputError, match="t.json can't be read as JSON"):
        read_descriptions(tmp_path / "t.tsv")


def test_as_text_writes_values_as_bids_has_them():
    assert [as_text(v) for v in (70.0, 61.5, "F", None)] == ["70", "61.5", "F", "n/a"]
