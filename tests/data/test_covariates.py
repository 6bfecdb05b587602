"""Conditions of scans from tables."""

import json
from pathlib import Path

import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._covariates import Covariates, read_covariates, summarise
from dipy_ldm.data._paths import find_volumes, rows_of_lists

PEOPLE = (
    "participant_id\tage\tsex\tgroup\n"
    "sub-01\t61.5\tmale\tcontrol\n"
    "02\t70\tF\tpatient\n"
    "sub-03\tn/a\t\tcontrol\n"
    "sub-99\t20\tm\tcontrol\n"
)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), "utf-8")


@pytest.fixture
def bids(tmp_path):
    """Return the root of a dataset with tables of three kinds."""
    for place in ("sub-01", "sub-02/ses-a", "sub-02/ses-b", "sub-03"):
        write(tmp_path / place / f"anat/{place.replace('/', '_')}_T1w.nii.gz", "")
    write(tmp_path / "participants.tsv", PEOPLE)
    return tmp_path


def look_up(names, paths, **options):
    paths = [paths] if isinstance(paths, Path) else paths
    return read_covariates(names, find_volumes(paths), rows_of_lists(paths), **options)


def test_read_covariates_by_the_names_of_files(bids):
    covariates = look_up(["age", "sex", "group"], bids)
    assert covariates.values == {
        "age": [61.5, 70, 70, None],
        "sex": ["M", "F", "F", None],
        "group": ["control", "patient", "patient", "control"],
    }
    assert covariates.subjects == ["sub-01", "sub-02", "sub-02", "sub-03"]
    assert covariates.units == {"age": "years"}  # BIDS says so
    assert (covariates.without_row, covariates.unused) == ([], 1)


def test_read_covariates_from_the_nearest_table_with_the_column(bids):
    sessions = "session_id\tage\nses-a\t70\nses-b\tn/a\n"
    write(bids / "sub-02" / "sub-02_sessions.tsv", sessions)
    scans = "filename\tsex\nanat/sub-02_ses-a_T1w.nii.gz\tO\n"
    write(bids / "sub-02/ses-a/sub-02_ses-a_scans.tsv", scans)
    covariates = look_up(["age", "sex"], bids)
    assert covariates.values["age"] == [61.5, 70, None, None]
    assert covariates.values["sex"] == ["M", "O", "F", None]


def test_read_covariates_of_sessions_among_participants(bids):
    text = "participant_id\tsession_id\tage\n01\t\t60\n02\ta\t70\n02\tses-b\t72\n"
    write(bids / "participants.tsv", text)
    covariates = look_up(["age"], bids)
    assert covariates.values["age"] == [60, 70, 72, None]
    assert [file.name for file in covariates.without_row] == ["sub-03_T1w.nii.gz"]
    one = text.replace("02\tses-b\t72\n", "")
    write(bids / "participants.tsv", one)
    assert look_up(["age"], bids).values["age"] == [60, 70, None, None]


def test_read_covariates_of_derivatives(bids):
    file = bids / "derivatives" / "x" / "sub-01" / "sub-01_desc-brain_T1w.nii.gz"
    write(file, "")
    assert look_up(["age"], [file]).values["age"] == [61.5]
    # Nearer than those of the source.
    write(file.parents[1] / "participants.tsv", "participant_id\tiq\nsub-01\t99\n")
    assert look_up(["iq"], [file]).values["iq"] == [99]
    with pytest.raises(InputError, match="they have iq"):
        look_up(["age"], [file])


def test_read_covariates_from_columns_of_lists_first(bids):
    first, third = (f"sub-0{i}/anat/sub-0{i}_T1w.nii.gz" for i in (1, 3))
    write(bids / "scans.csv", f"path;age;site\n{first};61,25;A\n{third};n/a;\n")
    covariates = look_up(["age", "site", "group"], bids / "scans.csv")
    assert covariates.values == {
        "age": [61.25, None],
        "site": ["A", None],
        "group": ["control", "control"],
    }
    assert not covariates.units  # what BIDS says of its tables is not said of others
    write(bids / "sub-04_T1w.nii.gz", "")
    write(bids / "scans.txt", f"{first}\nsub-04_T1w.nii.gz\n")
    covariates = look_up(["age"], bids / "scans.txt")
    assert covariates.without_row == [bids / "sub-04_T1w.nii.gz"]
    write(bids / "scans.json", {"age": {"Units": "Years"}})
    assert look_up(["age"], bids / "scans.csv").units == {"age": "years"}


@pytest.mark.parametrize(
    "end",
    # As pandas writes codes where some are missing, and as two tables may write them.
    ["02\t5\t2\t1\n03\t8\t\t1\n", "02\t5\t2.0\t1.0\n03\t8\t\t1\n"],
)
def test_read_covariates_with_units_levels_and_codes(bids, end):
    table = f"participant_id\tage\tsex\tgroup\n01\t3\t1\t0\n{end}"
    write(bids / "participants.tsv", table)
    levels = {"group": {"0": "control", "1": "patient"}, "sex": {"1": "male", "2": "F"}}
    # Empty units, as in a form.
    entries = {name: {"Units": " ", "Levels": own} for name, own in levels.items()}
    write(bids / "participants.json", entries | {"age": {"Units": "months"}})
    covariates = look_up(["age", "sex", "group"], bids)
    assert covariates.values["group"] == ["0", "1", "1", "1"]
    assert covariates.values["sex"] == ["M", "F", "F", None]
    assert covariates.levels["group"] == {"0": "control", "1": "patient"}
    assert covariates.units == {"age": "months"}


def test_read_covariates_with_codes_that_have_no_levels(bids):
    table = "participant_id\tsex\tgroup\n01\t1\t0\n02\t1.0\t1\n03\t\t1\n"
    write(bids / "participants.tsv", table)
    write(bids / "participants.json", {"group": {"Levels": {"0": ""}, "Units": "none"}})
    covariates = look_up(["sex", "group"], bids)
    assert covariates.values["group"] == ["0", "1", "1", "1"]
    assert covariates.values["sex"] == ["1", "1", "1", None]


def test_read_covariates_of_sessions_of_the_raw_dataset(bids):
    sessions = bids / "sub-02/sub-02_sessions.tsv"
    write(sessions, "session_id\tage\nses-a\t70\nses-b\t72\n")
    scan = bids / "derivatives/fmriprep/sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz"
    write(scan, "")
    assert look_up(["age"], scan).values == {"age": [72]}
    sessions.unlink()
    sessions.symlink_to("not-fetched")
    with pytest.raises(InputError, match=r"sessions.tsv; fetch it \(datalad get\)"):
        look_up(["age"], scan)


def test_read_covariates_rounds_to_steps(bids):
    covariates = look_up(["age", "sex"], bids, steps={"age": 5})
    assert covariates.values["age"] == [60, 70, 70, None]
    # Whole numbers could be taken for codes of classes.
    assert isinstance(covariates.values["age"][0], float)
    with pytest.raises(InputError, match="sex has classes"):
        look_up(["sex"], bids, steps={"sex": 5})
    with pytest.raises(InputError, match=r"weight, which is no condition \(age\)"):
        look_up(["age"], bids, steps={"weight": 5})
    with pytest.raises(InputError, match="a step above 0 for age, not 0"):
        look_up(["age"], bids, steps={"age": 0})


def test_read_covariates_reports_all_bad_rows(bids):
    write(bids / "participants.tsv", PEOPLE.replace("61.5", "89+").replace("70", "old"))
    write(bids / "participants.json", {"age": {"Units": "years"}})
    with pytest.raises(InputError) as refusal:
        look_up(["age", "group"], bids)
    problems = [error.problem for error in refusal.value.complaints]
    assert problems[0].endswith("line 2: age is '89+', not a number")
    assert str(refusal.value).count("line 3: age is 'old'") == 1  # of two scans
    assert "89 for 89+" in refusal.value.cure


def test_read_covariates_keeps_levels_with_commas(bids):
    rows = "".join(f"0{i}\t{i},{i}\n" for i in (1, 2, 3))
    write(bids / "participants.tsv", f"participant_id\tapoe\n{rows}")
    write(bids / "participants.json", {"apoe": {"Levels": {"1,1": "", "2,2": ""}}})
    assert look_up(["apoe"], bids).values["apoe"] == ["1,1", "2,2", "2,2", "3,3"]


@pytest.mark.parametrize(
    ("text", "names", "sentence"),
    [
        (PEOPLE, ["agee", "sex"], "no column agee .* they have age, sex, group"),
        (PEOPLE.replace("02\t", "01\t"), ["age"], r"2 rows for sub-01 \(.*2; .*3\)"),
        (PEOPLE.replace("participant_id", "id"), ["age"], "no column participant_id"),
        (PEOPLE.replace("61.5", "inf"), ["age"], "line 2: age is 'inf'"),
        ("participant_id\tage\n01\t\n02\tn/a\n", ["age"], "missing for all"),
        ("participant_id\tage\n77\t5\n", ["age"], "has 1 row, but none for the files"),
        ("participant_id\tiq\n01\t99\n02\t.\n03\t.\n", ["iq"], "line 4: iq is '.', n"),
        # Decimal commas between tabs, in all cells and in some.
        ("participant_id\tx\n01\t1,5\n02\t2,5\n", ["x"], "commas, as in 1,5.\nWrite"),
        ("participant_id\tx\n01\t2\n02\t1,5\n03\t3,5\n", ["x"], "commas, as in 1,5"),
    ],
)
def test_read_covariates_refuses_bad_tables(bids, text, names, sentence):
    write(bids / "participants.tsv", text)
    with pytest.raises(InputError, match=sentence):
        look_up(names, bids)


def test_read_covariates_refuses_two_units(bids):
    write(bids / "other/participants.tsv", "participant_id\tage\n07\t3\n")
    write(bids / "other/participants.json", {"age": {"Units": "weeks"}})
    write(bids / "other/sub-07_T1w.nii.gz", "")
    sentence = "age is in weeks in .* and years in .* one unit"
    with pytest.raises(InputError, match=sentence):
        look_up(["age"], bids)


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        (["a.nii,5\nb.nii,6\n"], "they have no named column"),
        (["file,age\na.nii,5\na.nii,6\n"], "2 rows for .*a.nii .*line 2; .*line 3"),
        (["file,age\na.nii,5\n"] * 2, "0.csv, line 2; .*1.csv, line 2"),
    ],
)
def test_read_covariates_refuses_bad_lists(tmp_path, lists, sentence):
    paths = [tmp_path / f"{i}.csv" for i in range(len(lists))]
    for path, text in zip(paths, lists, strict=True):
        write(path, text)
    with pytest.raises(InputError, match=sentence):
        look_up(["age"], paths)


def test_summarise_describes_each_covariate(bids):
    write(bids / "participants.json", {"group": {"Levels": {"patient": "ill"}}})
    write(bids / "sub-04_T1w.nii.gz", "")
    text = summarise(look_up(["age", "sex", "group"], bids))
    for line in (
        f"conditions of 5 images of 4 subjects, from {bids / 'participants.tsv'}:",
        "  age (years): 61.5 to 70, mean 67.17; 2 missing",
        "  sex: F 2, M 1; 2 missing",
        "  group: control 2, patient 2 (ill); 1 missing",
        f"no table has a row for {bids / 'sub-04_T1w.nii.gz'}",
        "1 row of participants have no image",
        "group has classes of fewer than 5 subjects, who could be re-identified: cont",
        "4 of 4 subjects have a unique combination",
    ):
        assert line in text


def test_summarise_hints_at_mistakes(tmp_path):
    rows = [f"s{i}.nii,{i % 2},{'aA'[i % 2]}" for i in range(12)]
    write(tmp_path / "list.csv", "\n".join(["file,code,case", *rows]))
    text = summarise(look_up(["code", "case"], tmp_path / "list.csv"))
    assert "code is treated as a number; if its 2 values are codes" in text
    assert "write them with a letter, such as site1" in text
    assert "case has classes that differ in case: A, a" in text


def test_summarise_takes_codes_and_truth_values_for_classes():
    values = {
        "group": [0, 1, 1],
        "lesion": [True, False, None],
        "score": [0.0, 1.0, 2.0],
        "direction": [(0.0, 0.0, 1.0)] * 3,
    }
    text = summarise(Covariates(values, {}, {}, ["a", "b", "c"]))
    for line in (
        "group: 1 2, 0 1",
        "lesion: True 1, False 1; 1 missing",
        "score: 0 to 2, mean 1",
        "group has classes of fewer than 5 subjects",
    ):
        assert line in text
    assert "group is treated as a number" not in text
    assert "direction" not in text
