"""Files of scans and channels are found by their names."""

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.testing as npt
import pytest
from scans import save

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._scans import (
    files_of,
    find_channel_files,
    read_cohort,
    read_sources,
    refuse_other_range,
    resolve_channel_files,
)
from dipy_ldm.data._sources import Source
from dipy_ldm.data.channels import as_channels


def test_resolve_channel_files_refuses_two_of_a_channel(tmp_path):
    for stem in ("sub-1_T1w", "sub-1_run-2_T1w", "sub-1_T2w"):
        (tmp_path / f"{stem}.nii").touch()
    with pytest.raises(InputError, match="both the T1w of .*; name one of them"):
        resolve_channel_files([tmp_path], as_channels(["T1w", "T2w"]))


def test_files_of_images_in_memory_keep_their_names(tmp_path, caplog):
    kinds = {".nii.gz": nib.Nifti1Image, ".mgz": nib.MGHImage, ".img": nib.Nifti1Pair}
    for end, kind in kinds.items():
        image = kind(np.ones((3, 3, 3), "float32"), np.eye(4))
        image.set_filename(tmp_path / f"sub-1.1_T1w{end}")
        with files_of(image) as ((file,), _):
            logging.getLogger("dipy_ldm").warning("%s is dark", file)
    assert caplog.messages == ["image-0/sub-1.1_T1w.nii is dark"] * 3


def test_read_cohort_of_images_in_memory_keeps_nothing(caplog, rng):
    images = [nib.Nifti1Image(rng.random((4, 5, 6)), np.eye(4)) for _ in range(2)]
    caplog.set_level("INFO", "dipy_ldm")
    assert read_cohort(images).shape == (2, 4, 5, 6, 1)
    assert "cache" not in caplog.text


def test_find_channel_files_warns_of_a_lone_file_of_another_kind(tmp_path, caplog):
    for stem in ("p7_FLAIR", "p7_T1w", "scan"):
        file = tmp_path / f"{stem}.nii"
        file.touch()
        assert find_channel_files([file], as_channels(["T1w"])) == [[file]]
    sentence = "p7_FLAIR.nii is used as T1w, although its name does not contain it."
    assert caplog.messages == [sentence]


def test_read_sources_of_scans_by_name(tmp_path, rng):
    info, grid = Source(1, [0.0, 1.0], [], ""), Grid((5, 5, 5), np.eye(4))
    scans = [Path(f"sub-{i}_T2w.nii") for i in "12"]
    files = [tmp_path / f"sub-{i}_T1w.nii" for i in "21"]
    for file in files:
        save(file, rng.random((5, 5, 5)))
    second, first = (read_sources([f], info, grid)[0][0] for f in files)
    images, names = read_sources(files, info, grid, scans=scans)
    npt.assert_array_equal(images, [first, second])
    assert names == [[files[1]], [files[0]]]
    images, names = read_sources(files[:1], info, grid, scans=scans)  # that of all
    npt.assert_array_equal(images, [second])
    with pytest.raises(InputError, match="1 of 1 volumes have no source of their subj"):
        read_sources(files[:1], info, grid, scans=scans[:1])


def test_read_sources_names_unknown_labels(tmp_path):
    info, grid = Source(1, [0.0, 9.0], [0, 9], ""), Grid((5, 5, 5), np.eye(4))
    save(tmp_path / "sub-1_dseg.nii", np.arange(125).reshape(5, 5, 5))
    sentence = "sub-1_dseg.nii has the unknown label 1; replace it by one of 0, 9"
    with pytest.raises(InputError, match=sentence):
        read_sources([tmp_path / "sub-1_dseg.nii"], info, grid)


def test_read_cohort_of_images_in_files(tmp_path, rng):
    arrays = rng.random((2, 2, 6, 5)).astype("float32")
    files = [tmp_path / name for name in ("sub-1.npy", "others.npy")]
    for file, array in zip(files, arrays, strict=True):
        np.save(file, array)
    first, same, *unnamed = read_cohort(files).subjects
    assert first == same == "sub-1"
    assert len(set(unnamed)) == 2
    images, names = read_sources(files[0], Source(1, [0.0, 1.0], [], ""), None)
    npt.assert_array_equal(images, arrays[0][..., None])
    assert names == []


def test_read_cohort_explains_options_of_the_loader(tmp_path, rng):
    for kind in ("T1w", "T2w"):
        save(tmp_path / f"sub-1_{kind}.nii", rng.random((5, 5, 5)))
    with pytest.raises(InputError) as refusal:
        read_cohort(tmp_path)
    assert refusal.value.options == {"suffix"}
    assert "options of dipy_ldm.data.load_volumes" in refusal.value.cure


def test_refuse_other_range_but_not_overshoot():
    refuse_other_range((-0.04, 1.06))
    with pytest.raises(InputError, match="arrays from 0 to 255; give"):
        refuse_other_range((0, 255))
