"""Findings: how they are said, and which is the worst."""

import json

import pytest

from dipy_ldm.checking import _findings as findings
from dipy_ldm.checking._findings import Finding, amber, green, grey, red


def test_the_worst_state_counts():
    good, unknown = green("a", "Good."), grey("b", "Unknown.")
    odd, bad = amber("c", "Odd.", "Look."), red("d", "Bad.", "Mend it.")
    assert findings.worst([good, odd, bad, unknown]) == "red"
    assert findings.worst([good, odd, unknown]) == "amber"
    assert findings.worst([unknown, good]) == "green"
    assert findings.worst([unknown]) == "grey"


def test_a_finding_is_saved_without_its_pictures():
    table = [("file", "mm"), ("a.nii", 2.0)]
    finding = red("units", "Bad.", "Mend it.", table=table, pictures=[None])
    told = finding.to_saved()
    assert told["table"] == [{"file": "a.nii", "mm": 2.0}]
    assert json.loads(json.dumps(told)) == told
    assert set(green("a", "Good.").to_saved()) == {"title", "state", "what"}


def test_a_finding_is_reworded_in_all_its_parts():
    finding = Finding("a", "red", "x y", "x", table=[("x",), ("z x",), (1.0,)])
    changed = finding.reworded(lambda words: words.replace("x", "--x"))
    assert changed.message == "--x y"
    assert changed.cure == "--x"
    assert changed.table == [("--x",), ("z --x",), (1.0,)]


@pytest.mark.parametrize(
    ("n", "words"), [(1, "0"), (2, "0, 1"), (3, "0, 1 and 1 more")]
)
def test_names_are_listed_up_to_a_few(n, words):
    assert findings.listed(range(n), 2) == words


def test_things_are_counted():
    assert findings.counted(1, "file") == "1 file"
    assert findings.counted(1200, "file") == "1,200 files"
