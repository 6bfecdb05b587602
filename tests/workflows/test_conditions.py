"""Conditions of the commands: learnt, requested, and recorded in sidecars."""

import csv
import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._conditions import Condition, to_saved
from dipy_ldm._serialization import read_document
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import load_mnist
from dipy_ldm.workflows import _inputs
from dipy_ldm.workflows._conditions import (
    RequestedConditions,
    as_levels,
    count_requested,
    parse_conditions,
    read_requested_table,
)

WITHOUT = Path(__file__).parents[1] / "files" / "format-11.safetensors"


def test_train_digits_by_label(
    command, tmp_path, monkeypatch, unguided, untrained_autoencoders
):
    # More than those from which is learnt what latents are like.
    few = [part[:2000] for part in load_mnist("train")]
    monkeypatch.setattr(_inputs, "load_mnist", lambda split: few)
    short = "--steps_vqvae 3 --steps_ldm 3 --n_codes 8 --widths_vqvae 4 --widths_ldm 4"
    options = (*short.split(), "--validation", 0.03, "--conditions", "label")
    output = command("train", "mnist", *options)
    # The condition is said before training. So short a one taught nothing, but what a
    # linear fit knows is heard all the same.
    assert "label: 7 220, 1 212, 4 206" in output
    assert "condition label has no measurable effect" not in output
    with open(tmp_path / "history.csv") as table:
        assert "val_gain_label" in next(csv.reader(table))
    options = ("--steps", 1, "--conditions", "label=3,n/a")
    command("generate", "ldm.safetensors", *options)
    with np.load(tmp_path / "samples.npz") as arrays:
        three, drawn = arrays["condition_label"].tolist()
        facts = json.loads(arrays["description"].item())
    assert three == "3" and drawn in "0123456789"
    assert facts["Conditions"] == {"label": ["3", drawn]}
    assert facts["DrawnConditions"] == ["label"]


LEARNT = {
    "age": Condition("continuous", {}, [20.0, 80.0], units="years"),
    "sex": Condition("class", {"F": 5, "M": 7}, []),
    "site": Condition("class", {"Boston, MA": 9, "Leeds": 9}, []),
}
AGE_AND_SEX = to_saved({name: LEARNT[name] for name in ("age", "sex")})
DOCUMENT = {"conditions": AGE_AND_SEX, "population": None}


def test_parse_and_count_conditions():
    words = ["age=70", "sex=F,M", "site=Boston, MA"]
    parsed = {"age": "70", "sex": ["F", "M"], "site": "Boston, MA"}
    assert parse_conditions(words, {"conditions": to_saved(LEARNT)}) == parsed
    assert count_requested(parsed) == 2
    assert count_requested({"age": "60"}) is count_requested("none") is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("age", "must be name=value, each name once"),
        ("=70", "must be name=value, each name once"),
        ("age=70 age=60", "must be name=value, each name once"),
        ("age=70, sex=F", "'age=70,' has no value after a comma"),
        ("age=70,site=Leeds", "'age=70,site=Leeds' has no value after a comma"),
    ],
)
def test_parse_conditions_refuses(words, sentence):
    with pytest.raises(InputError, match=sentence):
        parse_conditions(words.split(), {"conditions": to_saved(LEARNT)})


@pytest.mark.parametrize("request_", [{}, "none"])
@pytest.mark.parametrize("seed", [None, 0])
def test_requested_conditions_of_a_model_without(request_, seed):
    document = read_document(WITHOUT)
    requested = RequestedConditions.of(document, request_, range(2), seed=seed)
    assert requested.subset(range(1)) is None
    assert requested.facts(range(1)) == requested.arrays(range(1)) == {}
    with pytest.raises(InputError, match="without conditions"):
        RequestedConditions.of(document, {"label": "7"}, range(2), seed=seed)


def test_requested_conditions_without_a_seed_draw_nothing():
    ages = {"age": ["60", "n/a", "70.5"]}
    requested = RequestedConditions.of(DOCUMENT, ages, range(5, 8))
    assert requested.table == {"age": [60, None, 70.5], "sex": [None] * 3}
    assert requested.subset(range(6, 8)) == {"age": [None, 70.5], "sex": [None] * 2}
    assert requested.facts(range(6, 7)) == {"Conditions": {"age": "n/a", "sex": "n/a"}}
    ages = requested.arrays(range(5, 7))["condition_age"]
    npt.assert_array_equal(ages, [60, float("nan")])


def test_requested_conditions_are_those_of_each_sample():
    request = {"age": ["60", "n/a", "99"]}
    requested = RequestedConditions.of(DOCUMENT, request, range(5, 8), seed=0)
    facts = [requested.facts(range(i, i + 1)) for i in range(5, 8)]
    drawn = [own["DrawnConditions"] for own in facts]
    assert drawn == [["sex"], ["age", "sex"], ["sex"]]
    assert ["Warnings" in own for own in facts] == [False, False, True]
    assert requested.captions(range(5, 8)) == ["age=60", "", "age=99"]
    assert (
        requested.arrays(range(5, 8))["condition_sex"].tolist()
        == (requested.table["sex"])
    )
    request = {"age": ["none", "60"]}
    requested = RequestedConditions.of(DOCUMENT, request, range(2), seed=0)
    assert requested.subset(range(2))["age"] == ["none", 60]
    assert RequestedConditions.of(DOCUMENT, None, range(2), 0).captions(range(2)) == []
    none = RequestedConditions.of(DOCUMENT, "none", range(2), seed=0)
    assert none.subset(range(1)) == "none"


def test_classes_are_spelled_as_the_model_does():
    request = {"sex": ["male", "F", "n/a"], "age": "70"}
    table = RequestedConditions.of(DOCUMENT, request, range(3)).table
    assert table == {"age": [70] * 3, "sex": ["M", "F", None]}
    # One that the model does not know stays what it is.
    table = {"age": [61.0], "sex": ["female", None, "O"]}
    assert as_levels(LEARNT, table) == {"age": [61.0], "sex": ["F", None, "O"]}


@pytest.fixture
def read(tmp_path):
    """Return what reads a text as a table of requested conditions."""

    def read(text, conditions):
        (tmp_path / "wanted.tsv").write_text(text)
        return read_requested_table(tmp_path / "wanted.tsv", conditions)

    return read


@pytest.mark.parametrize(
    ("text", "levels", "expected"),
    [
        (
            "participant_id\tage\tsex\nsub-1\t70\tfemale\nsub-2\tn/a\tM\nx\t6\t\n",
            "FM",
            {"age": [70, None, 6], "sex": ["F", "M", None]},
        ),
        (
            "sex\nF\nmale\nM\n\n",
            ["female", "male"],
            {"sex": ["female", "male", "male"]},
        ),
        # Codes may be written as floats.
        ("sex\n1.0\n0\nn/a\n", "01", {"sex": ["1", "0", None]}),
    ],
)
def test_read_requested_table(read, caplog, text, levels, expected):
    sex = Condition("class", dict.fromkeys(levels, 5), [])
    assert read(text, {"age": LEARNT["age"], "sex": sex}) == expected
    assert not caplog.messages


@pytest.mark.parametrize(
    ("text", "conditions", "sentence"),
    [
        ("iq\n99\n", LEARNT, "no column that is a condition of the model .it has age"),
        ("age\n99\n", {}, "no column that is a condition of the model .train one"),
        (
            "age\tsex\nold\tF\n60\tX\n",
            LEARNT,
            "age is 'old', no number.\n.*line 3: sex is 'X', not one of F, M.\n",
        ),
    ],
)
def test_read_requested_table_refuses(read, text, conditions, sentence):
    with pytest.raises(InputError, match=sentence):
        read(text, conditions)


WRITE = """
import locale
from pathlib import Path
from dipy_ldm.workflows._outputs import (write_page, write_text)
from dipy_ldm.workflows._training import write_history
assert locale.getpreferredencoding(False) != "utf-8"
history = {"loss": [1], "val_gain_\\u5e74\\u9f62": [2]}
write_history(Path("history.csv"), {"diffusion": history})
file = b"scan\\xe9.nii.gz".decode("utf-8", "surrogateescape")
write_page([Path("page.json"), Path("page.html")], {"file": file}, file)
write_text(Path("participants.tsv"), file)
"""


def test_names_are_written_whatever_the_locale_and_if_they_are_no_text(tmp_path):
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", WRITE]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert "val_gain_年齢" in (tmp_path / "history.csv").read_text("utf-8")
    for name in ("page.json", "page.html", "participants.tsv"):
        assert r"scan\udce9.nii.gz" in (tmp_path / name).read_text("utf-8")
