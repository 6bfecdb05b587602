"""What a training gets, before anything is trained."""

from PIL import Image
import nibabel as nib
import numpy as np
import pytest

from dipy_ldm.data.cohort import split
from dipy_ldm.workflows import inputs

NAMES = [f"sub-{i // 2:02}_ses-{i % 2}_T1w" for i in range(12)]


@pytest.fixture
def scans(tmp_path):
    """Return a folder with two scans each of six subjects, one of them not whole."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        data = rng.uniform(1, 2, (6, 6, 6)).astype("float32")
        data[0, 0, 0] = i
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / f"{name}.nii.gz")
    whole = (tmp_path / f"{NAMES[3]}.nii.gz").read_bytes()
    (tmp_path / f"{NAMES[3]}.nii.gz").write_bytes(whole[:-20])
    return tmp_path


def test_volumes_know_their_subjects_and_are_held_out_by_them(scans):
    planned = inputs.plan([str(scans)], skip_bad=True)
    data = planned.load(cache_dir=scans / "cache")
    assert len(planned.subjects) == 12
    assert len(data.subjects) == 11
    assert data.subjects.count("sub-01") == 1  # whose other scan is cut off
    train, held_out = split(data, 0.2, 0, 1)
    assert len(held_out.images) == 11 - len(train.subjects)
    left_out = [name for name in data.subjects if name not in train.subjects]
    assert len(left_out) == len(held_out.subjects) in (3, 4)


def test_slices_are_held_out_by_subject(tmp_path):
    for i, name in enumerate(NAMES):
        Image.fromarray(np.full((4, 4), i, "uint8")).save(tmp_path / f"{name}.png")
    data = inputs.plan([str(tmp_path)]).load()
    train, held_out = split(data, 0.2, 3, 1)
    subjects = held_out.images[:, 0, 0, 0] // 2
    assert len(subjects) == 4
    assert len(set(subjects)) == 2
    assert not set(subjects) & set(train.images[:, 0, 0, 0] // 2)


def test_images_of_an_array_are_of_subjects_of_their_own(tmp_path):
    np.save(tmp_path / "slices.npy", np.arange(20.0)[:, None, None])
    data = inputs.plan([str(tmp_path)]).load()
    assert len(set(data.subjects)) == 20
    np.save(tmp_path / "sub-01_slices.npy", np.arange(20.0)[:, None, None])
    assert len(set(inputs.plan([str(tmp_path)]).subjects)) == 21
