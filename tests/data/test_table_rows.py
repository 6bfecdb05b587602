"""Rows of tables are brought into the order of images, or refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import Table
from dipy_ldm.data._paths import find_volumes, rows_of_lists
from dipy_ldm.data._table_rows import align_tables, find_subjects, join_rows

SUBJECTS = ["sub-02", "sub-01", "sub-02"]
SESSIONS = ["ses-b", None, "ses-a"]
FILES = ["bids/sub-02/b.nii.gz", "/bids/sub-01/a.nii", "bids/sub-02/a.nii.gz"]
TABLE = {"participant_id": ["sub-01", "sub-02", "sub-03"], "age": [61, 52, 43]}
FRAME = pd.DataFrame(TABLE)
INDEXED = FRAME.set_index("participant_id")


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        FRAME,
        FRAME.sample(frac=1, random_state=1),
        INDEXED,
        INDEXED.rename_axis(None),
        INDEXED["age"],
        {"age": INDEXED["age"]},
        FRAME.assign(participant_id=["01", "02", "03"]),
        FRAME.rename(columns={"participant_id": "Subject"}),
    ],
    ids=range(9),
)
def test_rows_follow_the_subjects(table):
    assert join_rows(table, SUBJECTS) == {"age": [52, 61, 52]}


def test_codes_and_categories_stay_classes():
    codes = pd.Categorical([101, None, 205])
    frame = FRAME.assign(group=[0, 1, np.nan], site=codes)
    # A column that nobody asks for may be of any type.
    frame["date"] = pd.to_datetime(["2020-01-01"] * 3)
    joined = join_rows(frame, SUBJECTS)
    assert joined["group"] == [1, 0, 1]
    assert all(isinstance(value, int) for value in joined["group"])
    assert joined["site"] == [None, "101", None]
    alone = pd.Series([7, np.nan], index=["sub-01", "sub-02"])
    joined = join_rows(alone, SUBJECTS)
    assert joined == [None, 7, None]
    assert isinstance(joined[1], int)


def test_rows_follow_sessions_and_files_where_they_tell():
    several = {
        "participant_id": ["sub-02", "sub-02", "sub-01"],
        "session_id": ["a", "ses-b", None],
        "age": [1, 2, 3],
    }
    assert join_rows(several, SUBJECTS, SESSIONS) == {"age": [2, 3, 1]}
    frame = pd.DataFrame(several).assign(session_id=[1, 2, np.nan])
    assert join_rows(frame, SUBJECTS, ["ses-2", None, "ses-1"]) == {"age": [2, 3, 1]}
    paths = {"age": [1, 2, 3], "file": ["sub-02/a.nii.gz", "b.nii.gz", FILES[1]]}
    assert join_rows(paths, SUBJECTS, SESSIONS, FILES) == {"age": [2, 3, 1]}
    assert join_rows(several | paths, SUBJECTS, None, FILES) == {"age": [2, 3, 1]}
    alone = TABLE | {"session_id": ["baseline"] * 3}
    assert join_rows(alone, SUBJECTS, [None] * 3) == {"age": [52, 61, 52]}
    labels = pd.Series([7, 8], index=["sub-01", "sub-02"])
    assert join_rows(labels, SUBJECTS) == [8, 7, 8]


def test_names_alone_are_no_conditions():
    for table in ({"participant_id": SUBJECTS[:2]}, FRAME[["participant_id"]]):
        assert join_rows(table, SUBJECTS) == {}


@pytest.mark.parametrize(
    "table", [{"age": [1, 2, 3]}, np.arange(3), FRAME[["age"]], FRAME.age, [1, 2, 3]]
)
def test_rows_without_names_stay_in_their_order(table):
    assert join_rows(table, SUBJECTS) is None
    assert join_rows(table, None) is None
    assert join_rows({"participant_id": []}, None) is None


@pytest.mark.parametrize(
    ("table", "subjects", "sentence"),
    [
        (TABLE, None, "participant_id: sub-01.*; give the subjects of"),
        (INDEXED, None, "the index: sub-01.*; give the subjects of"),
        (TABLE, ["sub-01", "sub-7"], "1 of 2 images have no row .*7 first; rows are"),
        (pd.concat([FRAME, FRAME]), SUBJECTS, "02 has 2 rows .*; leave one"),
        (
            {"participant_id": ["01", "01"], "session_id": ["a", "b"]},
            ["sub-01"],
            r"01 has 2 rows .*by session with load_volumes\(",
        ),
        (FRAME.set_index(["participant_id", "age"]), SUBJECTS, "reset_index"),
        (
            TABLE | {"sex": "F"},
            SUBJECTS,
            "sex must have one value for each of the 3",
        ),
        (TABLE | {"sex": ["F"]}, SUBJECTS, "sex must .*; give a list of that length"),
        (FRAME.to_dict(), SUBJECTS, "participant_id must have a list of values"),
        (
            {"age": INDEXED["age"], "sex": ["F", "M", "F"]},
            SUBJECTS,
            "differ in their row names, or some have none; give a DataFrame",
        ),
    ],
)
def test_tables_that_do_not_match_are_refused(table, subjects, sentence):
    with pytest.raises(InputError, match=sentence):
        join_rows(table, subjects)


def test_training_and_validation_tables_are_joined_separately():
    known = Table(TABLE, {"age": "years"})
    first, second = align_tables((known, SUBJECTS), ([1, 2], ["sub-01", "sub-02"]))
    assert (first, first.units) == ({"age": [52, 61, 52]}, {"age": "years"})
    assert second == [1, 2]
    assert align_tables((None, SUBJECTS), (None, None)) == [None, None]


def test_subjects_come_from_names_or_a_column(tmp_path):
    for name, none in (("subject", ""), ("Subject", "n/a")):
        text = f"{name},file\nX,a.nii\nX,b.nii\n{none},c.nii\n"
        (tmp_path / "list.csv").write_text(text)
        files = find_volumes([tmp_path / "list.csv"])
        listed = rows_of_lists([tmp_path / "list.csv"])
        subjects = ["sub-X", "sub-X", str(tmp_path / "c.nii")]
        assert find_subjects(files, listed) == subjects
    files = [Path("sub-1/ses-2/t1.nii"), Path("sub-2_T1w.nii")]
    assert find_subjects(files) == ["sub-1", "sub-2"]


def test_the_folder_of_a_study_is_no_subject():
    study = [Path(f"/data/sub-cortical/IXI{i}/T1.nii.gz") for i in range(3)]
    assert len(set(find_subjects(study))) == 3
    folders = [Path(f"/data/sub-{i}/T1.nii.gz") for i in (1, 2)]
    assert find_subjects(folders) == ["sub-1", "sub-2"]
    assert find_subjects([folders[0]]) == ["sub-1"]
    runs = [Path(f"/data/sub-1/sub-1_run-{i}_T1w.nii.gz") for i in (1, 2)]
    assert find_subjects(runs) == ["sub-1", "sub-1"]
