"""Faults that headers show when compared are found and named."""

from unittest.mock import create_autospec

import nibabel as nib
import numpy as np
import pytest
from scans import save

from dipy_ldm._utils.checks import InputError
from dipy_ldm.checking import _headers as headers
from dipy_ldm.data import _pairing
from dipy_ldm.data._nifti import read_headers
from dipy_ldm.data.volumes import load_volumes

N = 8
FLAIR = {"source_channels": ["FLAIR"]}


def write(file, voxel_size=10, side=16, origin=0.0):
    affine = np.diag([voxel_size, voxel_size, voxel_size, 1.0])
    affine[:3, 3] = origin
    save(file, np.random.default_rng(0).random((side, side, side)), affine)


@pytest.fixture
def files(tmp_path):
    """Return paths of volumes of 160 mm with voxels of 10 mm."""
    files = [tmp_path / f"sub-{i}.nii" for i in range(N)]
    for file in files:
        write(file)
    return files


@pytest.fixture
def pairs(tmp_path):
    """Return paths of volumes of two channels of four subjects."""
    files = [tmp_path / f"sub-{i}_{k}.nii" for i in range(4) for k in ("T1w", "T2w")]
    for file in files:
        write(file)
    return files


def read(files):
    infos, complaints = read_headers(files)
    assert not complaints
    return infos


def test_checks_of_equal_headers(files):
    heads = read(files)
    for finding in (
        headers.check_units(heads)[0],
        headers.check_places(heads)[0],
        headers.check_sizes(heads),
        headers.check_axes(heads),
    ):
        assert finding.state == "green", finding


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(1e-3, "metres"), (1e3, "micrometres"), (0.1, "centimetres"), (10, "")],
)
def test_check_units_guesses_another_unit(files, factor, unit):
    write(files[3], 10 * factor)
    finding, bad = headers.check_units(read(files))
    assert (finding.state, bad) == ("red", [3])
    assert (f"as if in {unit}" in finding.message) == bool(unit)
    assert "sub-3.nii" in finding.message
    assert "affine" in finding.cure


def test_check_units_of_a_crop_or_fine_voxels(files):
    write(files[0], side=3)
    write(files[1], 2, side=80)
    assert headers.check_units(read(files))[1] == []


@pytest.mark.parametrize(
    ("size", "state"), [(0.01, "red"), (1, "amber"), (10, "green"), (1e3, "red")]
)
def test_check_units_of_a_common_size(files, size, state):
    for file in files:
        write(file, size)
    finding, bad = headers.check_units(read(files))
    assert (finding.state, bad) == (state, [])


def test_check_places_of_one_elsewhere(files):
    write(files[5], origin=(0, 300, 0))
    finding, bad = headers.check_places(read(files))
    assert (finding.state, bad) == ("red", [5])
    assert "sub-5.nii" in finding.message


def test_check_units_and_places_of_half_the_files(files):
    for file in files[::2]:
        write(file, 0.01)
    assert len(headers.check_units(read(files))[1]) == N / 2
    for file in files[::2]:
        write(file, origin=(900, 0, 0))
    assert len(headers.check_places(read(files))[1]) == N / 2


def test_check_units_and_places_of_two_volumes(files):
    write(files[0], 0.01)
    heads = read(files[:2])
    assert headers.check_units(heads)[1] == headers.check_places(heads)[1] == []


def test_check_sizes_of_thick_slices_and_wide_voxels(files):
    save(files[2], np.ones((16, 16, 4)), np.diag([10, 10, 40, 1.0]))
    write(files[4], 20, side=8)
    finding = headers.check_sizes(read(files))
    assert finding.state == "amber"
    assert [row[0] for row in finding.table[1:]] == [str(files[i]) for i in (2, 4)]


def test_check_axes_of_missing_and_contradicting_ones(files):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), "f4"), None), files[0])
    image = nib.Nifti1Image(np.ones((4, 4, 4), "f4"), None)
    image.set_sform(np.diag([10, 10, 10, 1.0]), 1)
    image.set_qform(np.diag([-10, 10, 10, 1.0]), 1)
    nib.save(image, files[1])
    finding = headers.check_axes(read(files))
    assert finding.state == "amber"
    assert "sub-0.nii" in finding.message
    assert "sub-1.nii (RAS, LAS)" in finding.message


def test_checks_of_invalid_qforms_and_units(files):
    """Quaternions are often rounded, beside a good sform, and units of no code."""
    affine = np.diag([10, 10, 10, 1.0])
    image = nib.Nifti1Image(np.ones((16, 16, 16), "f4"), affine)
    image.set_qform(affine, 1)
    image.header["quatern_b"], image.header["quatern_c"] = 0.70712, 0.70712
    nib.save(image, files[0])
    data = bytearray(files[1].read_bytes())
    data[123] = 7
    files[1].write_bytes(data)
    heads = read(files)
    finding = headers.check_axes(heads)
    assert finding.state == "amber"
    assert "1 file whose qform is invalid or has other axes" in finding.message
    assert "sub-0.nii (RAS, invalid)" in finding.message
    assert headers.check_units(heads)[0].state == "green"


@pytest.mark.parametrize("channels", [None, ()])
def test_read_volumes_without_names_of_channels(files, channels, tmp_path):
    for file in files:
        save(file, np.ones((16, 16, 16)))
    options = {"channels": channels, "cache_dir": tmp_path / "cache"}
    findings, _ = headers.read_volumes(files, **options)
    # All are constant.
    assert findings[0].message == "8 of 8 files cannot be used."
    assert "skip_bad" not in findings[0].cure


def test_read_volumes_with_one_bad_channel(pairs, tmp_path, monkeypatch):
    options = {"channels": ["T1w", "T2w"], "cache_dir": tmp_path / "cache"}
    write(pairs[5], origin=900)
    every, *rest = headers.read_volumes(pairs, **options)[0]
    assert every.message.startswith("All 8 files")
    assert ["sub-2_T2w.nii" in f.message for f in rest] == [False, True, False, False]
    write(pairs[5])
    pairs[3].write_bytes(b"")
    read = create_autospec(_pairing.read_headers, side_effect=read_headers)
    monkeypatch.setattr(_pairing, "read_headers", read)
    for skip_bad, state in ((False, "red"), (True, "amber")):
        findings, volumes = headers.read_volumes(pairs, **options, skip_bad=skip_bad)
        assert read.call_count == 1 + skip_bad
        assert findings[0].state == state
        assert findings[0].message.startswith("1 of 7 files cannot be used")
        assert len(volumes.images) == 3


def test_read_volumes_with_two_files_of_a_channel(pairs):
    another = pairs[0].with_name("sub-0_run-2_T1w.nii")
    write(another)
    (finding,), _ = headers.read_volumes([*pairs[:2], another], channels=["T1w", "T2w"])
    assert "choose with `filter`" in finding.table[1][1].lower()
    assert "skip_bad" not in finding.cure


def test_read_volumes_refuses_a_suffix_beside_named_channels(files):
    with pytest.raises(InputError, match="leave out `suffix`"):
        headers.read_volumes(files, channels=["T1w", "T2w"], suffix="T1w")


@pytest.fixture
def study(tmp_path):
    """Return a folder with scans, masks and sources of four subjects."""
    folder = tmp_path / "study"
    for name in ("raw", "masks", "sources", "labels", "dwi"):
        (folder / name).mkdir(parents=True)
    affine = np.diag([20, 20, 20, 1])
    for i in range(4):
        for name in ("T1w", "T2w", "acq-x_T1w"):
            write(folder / "raw" / f"sub-{i}_{name}.nii")
        write(folder / "masks" / f"sub-{i}_mask.nii")
        # Another grid than that of the volumes, and in another order.
        write(folder / "sources" / f"sub-{3 - i}_FLAIR.nii", 20, 8)
        labels = np.arange(512).reshape(8, 8, 8) % 3
        save(folder / "labels" / f"sub-{i}_dseg.nii", labels, affine)
        series = folder / "dwi" / f"sub-{i}_dwi.nii"
        save(series, np.random.default_rng(i).random((8, 8, 8, 3)), affine)
        series.with_suffix(".bval").write_text("0 1000 1000")
        series.with_suffix(".bvec").write_text("0 1 0\n0 0 1\n0 0 0")
    return folder


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("raw", {"suffix": "T1w", "filter": {"acq": ""}, "mask_files": ["masks"]}),
        ("raw", {"suffix": "T1w", "filter": {"acq": ""}, "source_files": ["sources"]}),
        ("raw", {"channels": ["T1w", "T2w"], "filter": {"acq": ""}, "shape": 12}),
        (
            "raw",
            {
                "suffix": "T2w",
                "source_files": ["sources"],
                "source_channels": ["FLAIR"],
            },
        ),
        ("raw", {"suffix": "T2w", "source_channels": ["T1w"], "filter": {"acq": ""}}),
        ("raw", {"suffix": "T2w", "source_files": ["labels"], "source_labels": True}),
        ("dwi", {"dwi": True, "voxel_size": 25}),
    ],
)
def test_the_check_fills_the_cache_of_the_training(
    study, tmp_path, monkeypatch, place, options
):
    monkeypatch.chdir(study)
    options["cache_dir"] = tmp_path / "cache"
    findings, checked = headers.read_volumes([place], **options)
    assert {finding.state for finding in findings} == {"green"}
    caches = sorted(options["cache_dir"].glob("*/"))
    volumes = load_volumes([place], shuffle=True, **options)
    assert sorted(options["cache_dir"].glob("*/")) == caches
    assert volumes.files == checked.files
    np.testing.assert_array_equal(volumes.images, checked.images)
    assert (volumes.sources is None) == (checked.sources is None)


def test_bad_sources_are_on_the_page_and_volumes_are_planned_without(study, tmp_path):
    options = {"suffix": "T2w", "source_files": [study / "sources"]}
    options["cache_dir"] = tmp_path / "cache"
    (study / "sources/sub-2_FLAIR.nii").write_bytes(b"")
    for skip_bad, state in ((False, "red"), (True, "amber")):
        findings, volumes = headers.read_volumes(
            [study / "raw"], skip_bad=skip_bad, **options
        )
        states = {finding.title: finding.state for finding in findings}
        assert states.pop("sources") == state
        assert set(states.values()) == {"green"}
        assert "sub-2_FLAIR.nii is empty" in findings[-1].message
        assert {*volumes.subjects} == {"sub-0", "sub-1", "sub-3"}
    # Sources of other subjects are refused as by the training.
    for file in (study / "sources").glob("sub-[12]*"):
        file.unlink()
    for read in (headers.read_volumes, load_volumes):
        with pytest.raises(InputError, match="2 of 4 volumes have no source"):
            read([study / "raw"], **options)


def test_check_files_lists_cures():
    error = InputError("a.nii is empty", "copy it again")
    finding = headers.check_files([error], 3)
    assert finding.state == "red"
    assert finding.message == "1 of 3 files cannot be used."
    assert finding.table[1] == ("a.nii is empty.", "Copy it again.")
    assert headers.check_files([], 3).state == "green"
    finding = headers.check_files([error], 3, skip_bad=True)
    assert finding.state == "amber"
    assert finding.message.endswith("left out because of --skip_bad.")
