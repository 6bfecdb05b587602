"""Files of volumes are found without being read."""

import errno
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._paths import (
    choose_files,
    common_suffix,
    entity,
    expand,
    find_volumes,
    holds_volumes,
    suffix,
)

IMAGE = nib.Nifti1Image(np.zeros((2, 2, 2), "float32"), np.eye(4))
FILES = (
    "a/b/3.nii.gz a/1.nii a/2.NII.GZ a/notes.json a/._1.nii a/.git/annex/4.nii.gz "
    "b/5.nii c/6.png"
).split()


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(files):
    return [file.name for file in files]


@pytest.mark.parametrize("paths", [IMAGE, [IMAGE], ["a.nii", float("nan")]])
def test_find_volumes_refuses_values_that_are_not_paths(paths):
    with pytest.raises(InputError, match="a path must be text or a Path, not a "):
        find_volumes(paths)


def test_find_volumes_names_folders_that_can_not_be_read(folder, monkeypatch):
    def scan(path):
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(InputError, match=r"folder .*b can't be read \(Permission"):
        find_volumes([folder / "a"])


def test_find_volumes_searches_links_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "7.nii").touch()
    targets = {"linked": elsewhere, "again": elsewhere, "gone": folder / "nothing"}
    targets |= {"aa_back": folder / "a", "aa_b": folder / "a" / "b"}
    for name, target in targets.items():
        (folder / "a" / name).symlink_to(target)
    files = find_volumes([folder / "a"])
    assert names(files) == ["1.nii", "2.NII.GZ", "7.nii", "3.nii.gz"]
    assert folder / "a" / "b" / "3.nii.gz" in files
    (folder / "links").mkdir()
    (folder / "links" / "sub-01").symlink_to(elsewhere)
    assert holds_volumes([folder / "links"])


@pytest.fixture
def bids(tmp_path):
    for name in ("", "derivatives/x/", "sourcedata/"):
        folder = tmp_path / "bids" / name / "sub-01" / "anat"
        folder.mkdir(parents=True)
        (folder / "sub-01_T1w.nii.gz").touch()
    return tmp_path / "bids"


def test_find_volumes_skips_derivatives_and_sourcedata_unless_named(bids, caplog):
    raw = bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    with caplog.at_level("INFO", "dipy_ldm"):
        assert find_volumes([bids]) == [raw]
    assert "left out: files in derivatives (1), in sourcedata (1); name" in caplog.text
    assert find_volumes([bids.parent]) == find_volumes([bids / "**" / "*"]) == [raw]
    derived = bids / "derivatives" / "x" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    for path in (derived, bids / "derivatives", bids / "derivatives/**/*_T1w.nii*"):
        caplog.clear()
        assert find_volumes([path]) == [derived]
        assert not caplog.text
    with caplog.at_level("INFO", "dipy_ldm"):
        assert find_volumes([bids, bids / "derivatives"]) == [raw, derived]
    assert "left out: files in sourcedata (1); name" in caplog.text
    (bids / "list.csv").write_text(f"file\n{derived}\n")
    assert find_volumes([bids / "list.csv"]) == [derived]
    raw.unlink()
    with pytest.raises(InputError, match="but those in derivatives .*name that folder"):
        find_volumes([bids])


def put_output(folder, name, entries=""):
    """Write what a command wrote, with further entries of its sidecar."""
    (folder / f"{name}.nii.gz").touch()
    text = f'{{"GeneratedBy": {{"Name": "dipy_ldm"}}{entries}}}'
    (folder / f"{name}.json").write_text(text)


def test_find_volumes_skips_outputs_among_scans(folder, caplog):
    place = folder / "b"
    put_output(place, "1_std")
    for name, text in (("1_other", "[1]"), ("1_pipe", '{"a": 1}')):
        (place / f"{name}.nii.gz").touch()
        (place / f"{name}.json").write_text(text)
    with caplog.at_level("INFO", "dipy_ldm"):
        scans = names(find_volumes([place]))
    assert scans == ["1_other.nii.gz", "1_pipe.nii.gz", "5.nii"]
    assert "left out: files made by dipy_ldm (1)" in caplog.text
    assert len(find_volumes([place], generated=True)) == 4
    assert names(find_volumes([place / "*.nii*"])) == scans
    assert names(find_volumes([place / "1_std.nii.gz"])) == ["1_std.nii.gz"]


@pytest.mark.parametrize(
    "entry", ['"Role": "mask"', '"Difference": ""', '"Deviation": ""']
)
def test_find_volumes_skips_outputs_that_are_no_scans(folder, caplog, entry):
    place = folder / "c"
    put_output(place, "1")
    put_output(place, "1_mask", f", {entry}")
    with caplog.at_level("INFO", "dipy_ldm"):
        assert names(find_volumes([place])) == ["1.nii.gz"]
    assert "files that are masks, maps, differences or deviations (1)" in caplog.text
    assert names(find_volumes([place / "*.nii.gz"], generated=True)) == ["1.nii.gz"]
    assert names(find_volumes([place / "*_mask.nii.gz"])) == ["1_mask.nii.gz"]
    if "mask" in entry:
        assert names(expand([place], masks=True)) == ["1_mask.nii.gz"]
    (place / "list.txt").write_text("1.nii.gz\n1_mask.nii.gz\n")
    assert len(find_volumes([place / "list.txt"])) == 2


def test_choose_files_refuses_a_volume_that_is_there_twice(folder):
    (folder / "b" / "5.nii.gz").touch()
    for paths in ([folder / "b"], [folder / "b" / "5.nii", folder / "b" / "5.nii.gz"]):
        with pytest.raises(InputError, match=r"5.nii and .*5.nii.gz differ only in"):
            choose_files(find_volumes(paths))


def test_find_volumes_keeps_the_order_of_paths_and_counts_files_once(folder):
    paths = [folder / "b" / "5.nii", folder / "a" / "*.nii", str(folder)]
    ordered = ["5.nii", "1.nii", "2.NII.GZ", "3.nii.gz"]
    assert names(find_volumes(paths)) == ordered
    assert names(expand([folder / "b", folder / "b"])) == ["5.nii", "5.nii"]
    assert names(find_volumes([folder / "**" / "*.nii.gz"])) == ["3.nii.gz"]
    assert names(find_volumes(folder / "b")) == ["5.nii"]
    twice = [folder / "b" / "5.nii", folder / "a" / ".." / "b"]
    assert names(find_volumes(twice)) == ["5.nii"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "a/1.nii\n\n# a comment\nb/5.nii\n"),
        ("list.txt", "file\na/1.nii\nb/5.nii"),
        ("list.txt", "id\tfile\n1\ta/1.nii\n2\tb/5.nii\n"),
        ("list.csv", "id,file,age\nx,a/1.nii,3\ny,b/5.nii,4\n"),
        ("list.csv", '"a/1.nii","lesion, left"\n"b/5.nii",none\n'),
        ("list.csv", "id;file\r\n1;a/1.nii\r\n2;b/5.nii\r\n; \r\n"),
        ("list.csv", "\ufeffa/1.nii,mask-a.nii\nb/5.nii,mask-b.nii\n"),
        ("list.tsv", "id\tfile\n1, the first\ta/1.nii\n2\t b/5.nii\n"),
    ],
)
def test_find_volumes_in_lists_of_every_kind(folder, name, text):
    (folder / name).write_text(text, "utf-8")
    files = [folder / "a" / "1.nii", folder / "b" / "5.nii"]
    assert find_volumes([folder / name]) == files


@pytest.mark.parametrize(
    ("text", "warned"), [("a/1.nii,.nii,a/2.nii", True), ("a/1.nii,.nii", False)]
)
def test_find_volumes_warns_of_several_columns_of_files(folder, caplog, text, warned):
    (folder / "list.csv").write_text(f"{text}\n")
    find_volumes([folder / "list.csv"])
    warning = "list.csv has several columns of NIfTI files; the first one"
    assert (warning in caplog.text) == bool(caplog.text) == warned


def test_find_volumes_in_lists_of_absolute_paths_with_commas(folder):
    path = folder / "b" / "5, again.nii"
    path.touch()
    (folder / "list.txt").write_text(f"{path}\n")
    assert find_volumes([folder / "list.txt"]) == [path]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("list.csv", b"id,age\n1,2\n", "names no NIfTI files"),
        ("list.txt", b"", "names no NIfTI files"),
        ("list.csv", b"id,file\n1,a.nii\n2,n/a\n", r"line without .*\(2, n/a\)"),
        (
            "list.csv",
            b"file,mask\na.nii,b.nii\nn/a,c.nii\n",
            r"without .*\(n/a, c.nii\)",
        ),
        ("list.csv", b"\x1f\x8b\x00\xff", "can't be read as text"),
        ("c", None, "has no NIfTI files"),
        ("d.nii", None, "there is no file"),
        ("*.nii", None, "there is no file"),
        ("c/6.png", None, "is no NIfTI file"),
    ],
)
def test_find_volumes_refuses_bad_paths(folder, name, content, sentence):
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence) as refusal:
        find_volumes([folder / name])
    assert str(folder / name) in str(refusal.value)


def test_find_volumes_refuses_nothing():
    with pytest.raises(InputError, match="there are no volumes"):
        find_volumes([])
    for find in (find_volumes, holds_volumes):
        with pytest.raises(InputError, match="a path is empty"):
            find([" "])


def test_holds_volumes_but_not_images(folder):
    (folder / "list.csv").write_text("a/1.nii")
    for path in ("a/1.nii", "a", ".", "a/*.nii", "a/2.NII.GZ", "list.csv", "*"):
        assert holds_volumes([folder / path]), path
    for path in ("c", "c/6.png", "c/*", "none.npy"):
        assert not holds_volumes([folder / path]), path
    assert not holds_volumes(["mnist"])
    assert holds_volumes([folder / "c", Path(folder, "a")])


T1W = [Path(f"sub-{i}/ses-{s}/anat/sub-{i}_T1w.nii.gz") for i in (1, 2) for s in "ab"]
T2W = [Path("sub-1/ses-a/anat/sub-1_acq-fast_T2w.nii.gz")]
OTHER = [Path("atlas.nii.gz")]


def test_choose_files_takes_scans_of_one_kind(caplog):
    with caplog.at_level("INFO", "dipy_ldm"):
        assert choose_files(T1W) == T1W
        assert choose_files([*T1W, *OTHER]) == [*T1W, *OTHER]
    assert "taken: 4 files (T1w (4))" in caplog.text
    assert "left out" not in caplog.text
    dates = [Path(f"sub-{i}_2020010{i}.nii.gz") for i in range(3)]
    assert choose_files(dates) == dates


def test_choose_files_takes_series_among_other_kinds():
    series = [Path("sub-1/ses-a/dwi/sub-1_dwi.nii.gz")]
    assert choose_files([*T1W, *series, *OTHER], dwi=True) == series
    assert choose_files([*series, *OTHER], dwi=True) == [*series, *OTHER]
    assert choose_files([*T1W, *series], "T1w", dwi=True) == T1W
    with pytest.raises(InputError, match="such as T1w"):
        choose_files([*T1W, *T2W], dwi=True)


def test_choose_files_by_suffix_and_entities(caplog):
    every = [*T1W, *T2W, *OTHER]
    with caplog.at_level("INFO", "dipy_ldm"):
        assert choose_files(every, "T1w") == T1W
    assert "taken: 4 files (T1w (4))" in caplog.text
    assert "left out by their names: T2w (1), none (1)" in caplog.text
    assert choose_files(every, ["T1w", "T2w"]) == [*T1W, *T2W]
    assert choose_files(every, None, {"ses": "a", "acq": ""}) == [T1W[0], T1W[2]]
    assert choose_files(every, "T1w", {"sub": ["1", 2], "ses": "b"}) == T1W[1::2]
    assert choose_files(every, "T1w", {"sub": 1}) == T1W[:2]
    assert choose_files(every, values={"acq": "fast"}) == T2W


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ((), r"kinds, T1w \(4\), T2w \(1\); choose with `suffix`, such as T1w"),
        (("t1w",), r"no file has the suffix t1w; there are T1w \(4\), T2w \(1\)"),
        ((None, {"ses": "c"}), r"the ses c; there are a \(3\), b \(2\)"),
        (("T1w", {"task": "rest"}), r"the task rest; there are none \(6\)"),
    ],
)
def test_choose_files_names_the_kinds_and_entities_there_are(choice, sentence):
    with pytest.raises(InputError, match=sentence):
        choose_files([*T1W, *T2W, *OTHER], *choice)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("x/sub-01/ses-2/anat/sub-01_ses-2_desc-brain_T1w.nii.gz", "sub", "sub-01"),
        ("x/sub-01/ses-2/anat/T1w.nii.gz", "ses", "ses-2"),
        ("mysub-01.nii", "sub", None),
        ("a.nii", "ses", None),
        ("sub-01.5_acq-0.8mm_T1w.nii.gz", "sub", "sub-01.5"),
        ("sub-01.5_acq-0.8mm_T1w.nii.gz", "acq", "acq-0.8mm"),
        ("sub-01.brain.nii.gz", "sub", "sub-01"),
    ],
)
def test_entity(file, key, value):
    assert entity(file, key) == value


def test_suffix():
    files = ["x/sub-1_T1w.nii.gz", "sub-1.5_acq-0.8mm_T1w.nii", "sub-1_T1w.v2.nii.gz"]
    assert [*map(suffix, files)] == ["T1w"] * 3
    assert common_suffix(files) == "T1w"
    assert common_suffix([*files, "sub-2_T2w.nii"]) is None
    assert suffix("brain_T1w.nii.gz") is suffix("sub-01.nii") is None
    assert suffix("sub-1_20200101.nii.gz") is None


def test_choose_files_warns_of_variants_of_a_scan(caplog):
    native = [Path(f"sub-{i}_T1w.nii.gz") for i in range(2)]
    template = [Path(f"sub-{i}_space-MNI_T1w.nii.gz") for i in range(2)]
    assert len(choose_files([*native, *template])) == 4
    assert "the files differ in space (none (2), MNI (2))" in caplog.text
    assert "to use one kind only, use filter (space= for those" in caplog.text
    caplog.clear()
    choose_files([*native, *template], cure="name those of one kind")
    assert "to use one kind only, name those of one kind" in caplog.text
    assert "use filter" not in caplog.text
    caplog.clear()
    choose_files(native)
    assert choose_files([*native, *template], None, {"space": "MNI"}) == template
    choose_files([*native, *template], None, {"space": ["MNI", ""]})
    assert "differ" not in caplog.text
