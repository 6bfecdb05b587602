"""What the names of files say."""

from pathlib import Path

import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._paths import choose_files, suffix
from dipy_ldm.data._table_rows import find_subjects

T1W = [Path(f"sub-{i}/ses-{s}/anat/sub-{i}_T1w.nii.gz") for i in (1, 2) for s in "ab"]
T2W = [Path("sub-1/ses-a/anat/sub-1_acq-fast_T2w.nii.gz")]
OTHER = [Path("atlas.nii.gz")]


def test_scans_of_one_kind_are_taken_as_they_are(caplog):
    with caplog.at_level("INFO", "dipy_ldm"):
        assert choose_files(T1W) == T1W
        assert choose_files([*T1W, *OTHER]) == [*T1W, *OTHER]
    assert "taken: 4 files (T1w (4))" in caplog.text
    assert "left out" not in caplog.text
    dates = [Path(f"sub-{i}_2020010{i}.nii.gz") for i in range(3)]
    assert suffix(dates[0]) is None
    assert choose_files(dates) == dates


def test_several_kinds_are_refused_with_their_counts():
    several = r"kinds, T1w \(4\), T2w \(1\); choose with `suffix`, such as T1w"
    with pytest.raises(InputError, match=several):
        choose_files([*T1W, *T2W, *OTHER])


def test_scans_are_chosen_by_suffix_and_entities(caplog):
    every = [*T1W, *T2W, *OTHER]
    with caplog.at_level("INFO", "dipy_ldm"):
        assert choose_files(every, "T1w") == T1W
    assert "taken: 4 files (T1w (4))" in caplog.text
    assert "left out by their names: T2w (1), none (1)" in caplog.text
    assert choose_files(every, ["T1w", "T2w"]) == [*T1W, *T2W]
    assert choose_files(every, None, {"ses": "a", "acq": ""}) == [T1W[0], T1W[2]]
    assert choose_files(every, "T1w", {"sub": ["1", "2"], "ses": "b"}) == T1W[1::2]
    assert choose_files(every, values={"acq": "fast"}) == T2W


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (("t1w",), r"no file has the suffix t1w; there are T1w \(4\), T2w \(1\)"),
        ((None, {"ses": "c"}), r"the ses c; there are a \(3\), b \(2\)"),
        (("T1w", {"task": "rest"}), r"the task rest; there are none \(5\)"),
    ],
)
def test_what_no_name_has_is_told_with_what_there_is(choice, sentence):
    with pytest.raises(InputError, match=sentence):
        choose_files([*T1W, *T2W], *choice)


def test_the_folder_of_a_study_is_no_subject():
    study = [Path(f"/data/sub-cortical/IXI{i}/T1.nii.gz") for i in range(3)]
    assert len(set(find_subjects(study))) == 3
    folders = [Path(f"/data/sub-{i}/T1.nii.gz") for i in (1, 2)]
    assert find_subjects(folders) == ["sub-1", "sub-2"]
    assert find_subjects([folders[0]]) == ["sub-1"]
    runs = [Path(f"/data/sub-1/sub-1_run-{i}_T1w.nii.gz") for i in (1, 2)]
    assert find_subjects(runs) == ["sub-1", "sub-1"]
