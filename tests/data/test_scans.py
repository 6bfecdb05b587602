"""The files of scans are found by their names."""

import logging

import nibabel as nib
import numpy as np
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._scans import files_of, find_channel_files, resolve_channel_files
from dipy_ldm.data.channels import as_channels


def test_two_files_of_a_channel_are_refused(tmp_path):
    for stem in ("sub-1_T1w", "sub-1_run-2_T1w", "sub-1_T2w"):
        (tmp_path / f"{stem}.nii").touch()
    with pytest.raises(InputError, match="both the T1w of .*; name one of them"):
        resolve_channel_files([tmp_path], as_channels(["T1w", "T2w"]))


def test_images_in_memory_are_called_as_their_files(tmp_path, caplog):
    kinds = {".nii.gz": nib.Nifti1Image, ".mgz": nib.MGHImage, ".img": nib.Nifti1Pair}
    for end, kind in kinds.items():
        image = kind(np.ones((3, 3, 3), "float32"), np.eye(4))
        image.set_filename(tmp_path / f"sub-1.1_T1w{end}")
        with files_of(image) as ((file,), _):
            logging.getLogger("dipy_ldm").warning("%s is dark", file)
    assert caplog.messages == ["image-0/sub-1.1_T1w.nii is dark"] * 3


def test_a_lone_file_of_another_kind_is_warned_of(tmp_path, caplog):
    for stem in ("p7_FLAIR", "p7_T1w", "scan"):
        file = tmp_path / f"{stem}.nii"
        file.touch()
        assert find_channel_files([file], as_channels(["T1w"])) == [[file]]
    sentence = "p7_FLAIR.nii is taken for T1w, which its name does not say."
    assert caplog.messages == [sentence]
