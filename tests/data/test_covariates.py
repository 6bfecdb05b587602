"""What tables say of scans."""

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


def test_participants_are_looked_up_by_the_names_of_files(bids):
    covariates = look_up(["age", "sex", "group"], bids)
    assert covariates.values == {
        "age": [61.5, 70, 70, None],
        "sex": ["M", "F", "F", None],
        "group": ["control", "patient", "patient", "control"],
    }
    assert covariates.subjects == ["sub-01", "sub-02", "sub-02", "sub-03"]
    assert covariates.units == {"age": "years"}  # BIDS says so
    assert (covariates.without_row, covariates.unused) == ([], 1)


def test_the_nearest_table_that_has_the_column_decides(bids):
    sessions = "session_id\tage\nses-a\t70\nses-b\tn/a\n"
    write(bids / "sub-02" / "sub-02_sessions.tsv", sessions)
    scans = "filename\tsex\nanat/sub-02_ses-a_T1w.nii.gz\tO\n"
    write(bids / "sub-02/ses-a/sub-02_ses-a_scans.tsv", scans)
    covariates = look_up(["age", "sex"], bids)
    assert covariates.values["age"] == [61.5, 70, None, None]
    assert covariates.values["sex"] == ["M", "O", "F", None]


def test_participants_may_have_a_row_for_each_session(bids):
    text = "participant_id\tsession_id\tage\n01\t\t60\n02\ta\t70\n02\tses-b\t72\n"
    write(bids / "participants.tsv", text)
    covariates = look_up(["age"], bids)
    assert covariates.values["age"] == [60, 70, 72, None]
    assert [file.name for file in covariates.without_row] == ["sub-03_T1w.nii.gz"]
    one = text.replace("02\tses-b\t72\n", "")
    write(bids / "participants.tsv", one)
    assert look_up(["age"], bids).values["age"] == [60, 70, None, None]


def test_derivatives_find_the_tables_of_their_source(bids):
    file = bids / "derivatives" / "x" / "sub-01" / "sub-01_desc-brain_T1w.nii.gz"
    write(file, "")
    assert look_up(["age"], [file]).values["age"] == [61.5]
    # Nearer than those of the source.
    write(file.parents[1] / "participants.tsv", "participant_id\tiq\nsub-01\t99\n")
    assert look_up(["iq"], [file]).values["iq"] == [99]
    with pytest.raises(InputError, match="they have iq"):
        look_up(["age"], [file])


def test_columns_beside_the_paths_come_first(bids):
    first, third = (f"sub-0{i}/anat/sub-0{i}_T1w.nii.gz" for i in (1, 3))
    write(bids / "scans.csv", f"path;age;site\n{first};61,25;A\n{third};n/a;\n")
    covariates = look_up(["age", "site", "group"], bids / "scans.csv")
    both = {"age": [61.25, None], "site": ["A", None]}
    assert covariates.values == both | {"group": ["control", "control"]}
    assert not covariates.units  # what BIDS says of its tables is not said of others
    write(bids / "sub-04_T1w.nii.gz", "")
    write(bids / "scans.txt", f"{first}\nsub-04_T1w.nii.gz\n")
    covariates = look_up(["age"], bids / "scans.txt")
    assert covariates.without_row == [bids / "sub-04_T1w.nii.gz"]
    write(bids / "scans.json", {"age": {"Units": "Years"}})
    assert look_up(["age"], bids / "scans.csv").units == {"age": "years"}


def test_units_levels_and_codes(bids):
    text = "participant_id\tage\tsex\tgroup\n01\t3\t1\t0\n02\t5\t2\t1\n03\t8\t\t1\n"
    write(bids / "participants.tsv", text)
    levels = {"group": {"0": "control", "1": "patient"}, "sex": {"1": "male", "2": "F"}}
    empty = {"Units": " "}  # as in a form
    said = {name: empty | {"Levels": some} for name, some in levels.items()}
    write(bids / "participants.json", said | {"age": {"Units": "months"}})
    covariates = look_up(["age", "sex", "group"], bids)
    assert covariates.values["group"] == ["0", "1", "1", "1"]
    assert covariates.values["sex"] == ["M", "F", "F", None]
    assert covariates.levels["group"] == {"0": "control", "1": "patient"}
    assert covariates.units == {"age": "months"}
    assert look_up(["group"], bids).values["group"] == ["0", "1", "1", "1"]
    # As pandas writes them where some are missing.
    write(bids / "participants.tsv", text.replace("\t1", "\t1.0"))
    covariates = look_up(["sex", "group"], bids)
    assert covariates.values["group"] == ["0", "1", "1", "1"]
    assert covariates.values["sex"] == ["M", "F", "F", None]
    # Two tables may write codes in two ways.
    write(bids / "participants.tsv", text.replace("02\t5\t2", "02\t5\t1.0"))
    write(bids / "participants.json", {"group": {"Levels": {"0": ""}, "Units": "none"}})
    covariates = look_up(["sex", "group"], bids)
    assert covariates.values["group"] == ["0", "1", "1", "1"]
    assert covariates.values["sex"] == ["1", "1", "1", None]


def test_derivatives_have_the_sessions_of_their_raw_dataset(bids):
    sessions = bids / "sub-02/sub-02_sessions.tsv"
    write(sessions, "session_id\tage\nses-a\t70\nses-b\t72\n")
    scan = bids / "derivatives/fmriprep/sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz"
    write(scan, "")
    assert look_up(["age"], scan).values == {"age": [72]}
    sessions.unlink()
    sessions.symlink_to("not-fetched")
    with pytest.raises(InputError, match=r"sessions.tsv; fetch it \(datalad get\)"):
        look_up(["age"], scan)


def test_ages_are_coarsened(bids):
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


def test_all_bad_rows_are_in_one_report(bids):
    write(bids / "participants.tsv", PEOPLE.replace("61.5", "89+").replace("70", "old"))
    write(bids / "participants.json", {"age": {"Units": "years"}})
    with pytest.raises(InputError) as refusal:
        look_up(["age", "group"], bids)
    report = str(refusal.value)
    assert "line 2: age is '89+', not a number\n" in report
    assert report.count("line 3: age is 'old'") == 1  # of two scans
    assert "89 for 89+" in report


def test_decimal_commas_between_tabs_are_refused(bids):
    rows = "".join(f"0{i}\t2{i},5\t{i},{i}\n" for i in (1, 2, 3))
    write(bids / "participants.tsv", f"participant_id\tbmi\tapoe\n{rows}")
    with pytest.raises(InputError, match="bmi has decimal commas, as in 21,5\nWrite"):
        look_up(["bmi"], bids)
    write(bids / "participants.json", {"apoe": {"Levels": {"1,1": "", "2,2": ""}}})
    assert look_up(["apoe"], bids).values["apoe"] == ["1,1", "2,2", "2,2", "3,3"]
    (bids / "participants.json").unlink()
    mixed = "participant_id\tbmi\n01\t22\n02\t21,5\n03\t23,5\n"
    write(bids / "participants.tsv", mixed)
    with pytest.raises(InputError, match="bmi has decimal commas, as in 21,5"):
        look_up(["bmi"], bids)


def test_texts_among_numbers_are_refused(bids):
    write(bids / "participants.tsv", PEOPLE.replace("61.5", "inf"))
    with pytest.raises(InputError, match="line 2: age is 'inf'"):
        look_up(["age"], bids)
    write(bids / "participants.tsv", "participant_id\tiq\n01\t99\n02\t.\n03\t.\n")
    with pytest.raises(InputError, match="line 4: iq is '.', not a number"):
        look_up(["iq"], bids)


@pytest.mark.parametrize(
    ("text", "names", "sentence"),
    [
        (PEOPLE, ["agee", "sex"], "no column agee .* they have age, sex, group"),
        (PEOPLE.replace("02\t", "01\t"), ["age"], r"2 rows for sub-01 \(.*2; .*3\)"),
        (PEOPLE.replace("participant_id", "id"), ["age"], "no column participant_id"),
        ("participant_id\tage\n01\t\n02\tn/a\n", ["age"], "missing for all"),
        ("participant_id\tage\n77\t5\n", ["age"], "has 1 row, but none for the files"),
    ],
)
def test_bad_tables_are_answered(bids, text, names, sentence):
    write(bids / "participants.tsv", text)
    with pytest.raises(InputError, match=sentence):
        look_up(names, bids)


def test_two_units_are_refused(bids):
    write(bids / "other/participants.tsv", "participant_id\tage\n07\t3\n")
    write(bids / "other/participants.json", {"age": {"Units": "weeks"}})
    write(bids / "other/sub-07_T1w.nii.gz", "")
    sentence = "age is in weeks in .* and years in .* one unit"
    with pytest.raises(InputError, match=sentence):
        look_up(["age"], bids)


def test_a_list_without_names_has_no_columns(tmp_path):
    write(tmp_path / "list.csv", "a.nii,5\nb.nii,6\n")
    with pytest.raises(InputError, match="they have no named column"):
        look_up(["age"], tmp_path / "list.csv")
    write(tmp_path / "list.csv", "file,age\na.nii,5\na.nii,6\n")
    with pytest.raises(InputError, match=r"2 rows for .*a.nii \(.*line 2; .*line 3\)"):
        look_up(["age"], tmp_path / "list.csv")
    for name in ("one", "two"):
        write(tmp_path / f"{name}.csv", f"file,{name}\na.nii,5\n")
    with pytest.raises(InputError, match=r"one.csv, line 2; .*two.csv, line 2\)"):
        look_up(["one"], [tmp_path / "one.csv", tmp_path / "two.csv"])


def test_summary_describes_each_covariate(bids):
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


def test_the_summary_hints_at_mistakes(tmp_path):
    rows = [f"s{i}.nii,{i % 2},{'aA'[i % 2]}" for i in range(12)]
    write(tmp_path / "list.csv", "\n".join(["file,code,case", *rows]))
    text = summarise(look_up(["code", "case"], tmp_path / "list.csv"))
    assert "code is treated as a number; if its 2 values are codes" in text
    assert "write them with a letter, such as site1" in text
    assert "case has classes that differ in case: A, a" in text


def test_the_summary_takes_codes_and_truth_values_for_classes():
    values = {
        "group": [0, 1, 1],
        "lesion": [True, False, None],
        "score": [0.0, 1.0, 2.0],
    }
    values["direction"] = [(0.0, 0.0, 1.0)] * 3
    text = summarise(Covariates(values, {}, {}, ["a", "b", "c"]))
    assert "group: 1 2, 0 1" in text
    assert "lesion: True 1, False 1; 1 missing" in text
    assert "score: 0 to 2, mean 1" in text
    assert "group has classes of fewer than 5 subjects" in text
    assert "group is treated as a number" not in text
    assert "direction" not in text
