"""Rows of tables are put in the order of the images, or refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import Table
from dipy_ldm.data._paths import find_volumes, rows_of_lists
from dipy_ldm.data._table_rows import (
    align_tables,
    find_subjects,
    join_rows,
    join_to_files,
    warn_of_datasets,
)
from dipy_ldm.data.volumes import Volumes

SUBJECTS = ["sub-02", "sub-01", "sub-02"]
SESSION_FILES = [Path(f"sub-{name}_T1w.nii") for name in ("02_ses-b", "01", "02_ses-a")]
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
def test_join_rows_by_subject(table):
    assert join_rows(table, SUBJECTS) == {"age": [52, 61, 52]}


def test_join_rows_keeps_codes_and_categories():
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
    labels = pd.Series([7, 8], index=["sub-01", "sub-02"])
    assert join_rows(labels, SUBJECTS) == [8, 7, 8]


SEVERAL = {
    "participant_id": ["sub-02", "sub-02", "sub-01"],
    "session_id": ["a", "ses-b", None],
    "age": [2, 1, 3],
}
NUMBERED = pd.DataFrame(SEVERAL).assign(session_id=[1, 2, np.nan])
PATHS = {"age": [2, 1, 3], "file": ["sub-02/a.nii.gz", "b.nii.gz", FILES[1]]}
BASELINE = {
    "participant_id": ["sub-01", "sub-02"],
    "session_id": ["baseline"] * 2,
    "age": [3, 1],
}


@pytest.mark.parametrize(
    ("table", "files", "ages"),
    [
        (SEVERAL, SESSION_FILES, [1, 3, 2]),
        (
            NUMBERED,
            ["sub-02_ses-2_T1w.nii", "sub-01_T1w.nii", "sub-02_ses-1_T1w.nii"],
            [1, 3, 2],
        ),
        (PATHS, FILES, [1, 3, 2]),
        (SEVERAL | PATHS, FILES, [1, 3, 2]),
        (BASELINE, FILES, [1, 3, 1]),
    ],
)
def test_join_rows_by_session_or_path(table, files, ages):
    assert join_rows(table, SUBJECTS, files) == {"age": ages}


@pytest.mark.parametrize("runs", [[2, 1], [2.0, 1.0], ["2", "1"], ["run-02", "run-1"]])
def test_join_rows_by_run(runs):
    table = {"participant_id": ["sub-02"] * 2, "run": runs, "age": [2, 1]}
    files = [f"sub-02_run-{name}_T1w.nii" for name in ("1", "02", "01")]
    assert join_rows(table, ["sub-02"] * 3, files)["age"] == [1, 2, 1]
    with pytest.raises(InputError, match="run-3 first"):
        join_rows(table, ["sub-02"], ["sub-02_run-3_T1w.nii"])
    assert join_rows({"run": runs}, ["sub-02"], files) == {"run": runs}


@pytest.mark.parametrize("column", ["session_id", "run"])
def test_join_rows_refuses_rows_of_sessions_or_runs_without_files(column):
    table = {"participant_id": ["sub-01"], column: ["1"], "age": [60]}
    with pytest.raises(InputError) as caught:
        join_rows(table, ["sub-01", "sub-01"])
    assert column in caught.value.problem
    assert f"leave out {column}" in caught.value.cure
    assert join_rows(table | {column: [None]}, ["sub-01"])["age"] == [60]


def test_each_way_in_refuses_rows_of_another_session():
    table = {"participant_id": ["sub-01"], "session_id": ["ses-1"], "age": [60]}
    files = [Path(f"sub-01_ses-{i}_T1w.nii") for i in (1, 2)]
    for join in (
        lambda: align_tables((table, ["sub-01", "sub-01"])),
        lambda: join_to_files(table, files),
        lambda: Volumes(None, None, None, files).conditions(table=table),
    ):
        with pytest.raises(InputError):
            join()


@pytest.mark.parametrize(
    ("paths", "files"),
    [
        (["sub-01/a.nii"], ["siteA/sub-01/a.nii", "siteB/sub-01/a.nii"]),
        (["a.nii"], ["sub-01/a.nii", "sub-02/a.nii"]),
        (
            ["siteA/sub-01/a.nii", "sub-01/a.nii"],
            ["siteA/sub-01/a.nii", "siteB/sub-01/a.nii"],
        ),
    ],
)
def test_join_rows_refuses_a_row_about_two_images(paths, files):
    with pytest.raises(InputError) as caught:
        join_rows({"path": paths, "age": [60] * len(paths)}, None, files)
    assert caught.value.files == tuple(map(Path.absolute, map(Path, files)))
    assert all(str(file) in caught.value.problem for file in caught.value.files)


def test_join_rows_of_volumes_of_one_file():
    table = {"path": ["a.nii"], "age": [60]}
    assert join_rows(table, None, ["sub-01/a.nii"] * 2) == {"age": [60, 60]}


def test_join_rows_takes_names_alone_for_no_conditions():
    for table in ({"participant_id": SUBJECTS[:2]}, FRAME[["participant_id"]]):
        assert join_rows(table, SUBJECTS) == {}


@pytest.mark.parametrize(
    "table", [{"age": [1, 2, 3]}, np.arange(3), FRAME[["age"]], FRAME.age, [1, 2, 3]]
)
def test_join_rows_keeps_a_table_without_names(table):
    assert join_rows(table, SUBJECTS) is table
    assert join_rows(table, None) is table
    empty = {"participant_id": []}
    assert join_rows(empty, None) is empty


@pytest.mark.parametrize(
    ("table", "subjects", "sentence"),
    [
        (TABLE, None, "participant_id: sub-01.*; give the subjects of"),
        (INDEXED, None, "the index: sub-01.*; give the subjects of"),
        (TABLE, ["sub-01", "sub-7"], "1 of 2 images have no row .*7 first; rows are"),
        (pd.concat([FRAME, FRAME]), SUBJECTS, "02 has 2 rows .*; leave one"),
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
def test_join_rows_refuses_tables_that_do_not_match(table, subjects, sentence):
    with pytest.raises(InputError, match=sentence):
        join_rows(table, subjects)


def test_align_tables_joins_each_to_its_subjects():
    table = Table(TABLE, {"age": "years"})
    first, second = align_tables((table, SUBJECTS), ([1, 2], ["sub-01", "sub-02"]))
    assert (first, first.units) == ({"age": [52, 61, 52]}, {"age": "years"})
    assert second == [1, 2]
    assert align_tables((None, SUBJECTS), (None, None)) == [None, None]


@pytest.mark.parametrize(("column", "none"), [("subject", ""), ("Subject", "n/a")])
def test_find_subjects_in_a_column_of_lists(tmp_path, column, none):
    text = f"{column},file\nX,a.nii\nX,b.nii\n{none},c.nii\n"
    (tmp_path / "list.csv").write_text(text)
    files = find_volumes([tmp_path / "list.csv"])
    subjects = find_subjects(files, rows_of_lists([tmp_path / "list.csv"]))
    assert subjects == ["sub-X", "sub-X", str(tmp_path / "c.nii")]


@pytest.mark.parametrize(
    ("files", "subjects"),
    [
        (["sub-1/ses-2/t1.nii", "sub-2_T1w.nii"], ["sub-1", "sub-2"]),
        (["/data/sub-1/T1.nii.gz", "/data/sub-2/T1.nii.gz"], ["sub-1", "sub-2"]),
        (["/data/sub-1/T1.nii.gz"], ["sub-1"]),
        (["sub-1/sub-1_run-1_T1w.nii", "sub-1/sub-1_run-2_T1w.nii"], ["sub-1"] * 2),
        # The folder of a study is no subject.
        (
            ["/sub-cortical/1.nii", "/sub-cortical/2.nii"],
            ["/sub-cortical/1.nii", "/sub-cortical/2.nii"],
        ),
    ],
)
def test_find_subjects_in_names(files, subjects):
    assert find_subjects([*map(Path, files)]) == subjects


@pytest.mark.parametrize(
    ("folder", "warns"),
    [
        ("b", True),
        ("b/derivatives/c", True),
        ("a", False),
        ("a/derivatives/c", False),
        ("derivatives/c", False),
    ],
)
def test_subjects_of_several_datasets_are_named(tmp_path, folder, warns, caplog):
    for root in ("a", folder):
        (tmp_path / root).mkdir(parents=True, exist_ok=True)
        (tmp_path / root / "dataset_description.json").touch()
    files = [tmp_path / root / "sub-1/sub-1_T1w.nii" for root in ("a", folder)]
    warn_of_datasets(files, ["sub-1"] * 2)
    where = f"datasets ({tmp_path}/a, {tmp_path}/b) have the same names (sub-1), and"
    assert (where in caplog.text) == bool(caplog.text) == warns
