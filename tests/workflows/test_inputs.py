"""Inputs of a training."""

import logging

from PIL import Image
import nibabel as nib
import numpy as np
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._cohort import Cohort, split
from dipy_ldm.workflows import _inputs as inputs

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


def write_table(folder, **columns):
    """Write a table of six participants, and return the folder as inputs."""
    lines = [["participant_id", *columns]]
    lines += [[f"sub-{i:02}", *(v[i] for v in columns.values())] for i in range(6)]
    text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
    (folder / "participants.tsv").write_text(text)
    return [str(folder)]


def test_slices_have_subjects_and_conditions(tmp_path):
    for i, name in enumerate(NAMES):
        Image.fromarray(np.full((4, 4), i, "uint8")).save(tmp_path / f"{name}.png")
    ages = [62, 71, 50, 48, 53, 80]
    data = inputs.plan(write_table(tmp_path, age=ages), ["age"]).load()
    assert data.conditions["age"][:3] == [62, 62, 71]
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
    assert len(set(inputs.plan([str(tmp_path)]).cohort.subjects)) == 21


@pytest.fixture
def few_digits(monkeypatch):
    """Let the packaged digits be nine."""
    digits = np.zeros((9, 28, 28, 1), "float32"), np.arange(9)
    monkeypatch.setattr(inputs, "load_mnist", lambda split: digits)


def test_digits_have_labels_on_demand(few_digits, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    labels = inputs.plan(["mnist"], ["label"]).load().conditions["label"]
    assert labels == [*range(9)]
    assert inputs.plan(["mnist"]).load().conditions is None
    assert not caplog.text
    (tmp_path / "mnist").mkdir()
    inputs.plan(["mnist"])
    assert "write ./mnist for your own" in caplog.text


def test_conditions_that_images_have_not_are_refused(few_digits, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((9, 8, 8)))
    with pytest.raises(
        InputError, match="neither a participants.tsv .* lists them; add"
    ):
        inputs.plan([str(tmp_path / "images.npy")], ["age"])
    with pytest.raises(InputError, match="`coarsen` is for numbers"):
        inputs.plan(["mnist"], ["label"], {"label": 5})
    with pytest.raises(InputError, match="unknown condition 'age'"):
        inputs.plan(["mnist"], ["age"])


def test_volumes_are_held_out_by_subject_with_their_conditions(scans, caplog):
    ages = {"age": [62, 71, "n/a", 48, 53, 80], "sex": ["M", "f", "F", "m", "F", "M"]}
    files = write_table(scans, **ages)
    (scans / "participants.json").write_text('{"sex": {"Levels": {"F": "female"}}}')
    with caplog.at_level(logging.INFO, "dipy_ldm"):
        planned = inputs.plan(files, ["age", "sex"], {"age": 10}, skip_bad=True)
        inputs.check_split(planned, 0.2, 0, 1)
    assert "age (years): 50 to 80, mean" in caplog.text
    assert "2 of 6 subjects are held out" in caplog.text
    assert len(planned.cohort.subjects) == 12
    data = planned.load(cache_dir=scans / "cache")
    assert len(data.conditions["age"]) == len(data.images) == len(data.subjects) == 11
    assert data.subjects.count("sub-01") == 1  # whose other scan is cut off
    assert data.units == {"age": "years"}
    assert data.meanings == {"sex": {"F": "female"}}
    train, held_out = split(data, 0.2, 0, 1)
    assert not set(train.subjects) & set(held_out.subjects)
    assert len(held_out.subjects) in (3, 4)
    for part in (train, held_out):
        assert len(part.images) == len(part.subjects)
        for i, subject in enumerate(part.subjects):
            number = int(subject[-2:])
            assert part.conditions["age"][i] == [60, 70, None, 50, 50, 80][number]
            assert part.conditions["sex"][i] == "MFFMFM"[number]


def test_scans_of_a_dataset_are_chosen_by_their_names(scans):
    (scans / f"{NAMES[3]}.nii.gz").unlink()
    first = scans / f"{NAMES[0]}.nii.gz"
    (scans / "sub-00_ses-0_T2w.nii.gz").write_bytes(first.read_bytes())
    planned = inputs.plan([str(scans)], suffix=["T1w"], filter={"ses": ["0"]})
    assert len(planned.cohort.subjects) == 6
    assert planned.cohort.suffix == "T1w"
    np.save(scans / "a.npy", np.zeros((3, 4, 4)))
    with pytest.raises(InputError, match="`suffix` is for volumes"):
        inputs.plan([str(scans / "a.npy")], suffix=["T1w"])


def test_conditions_are_refused_before_volumes_are_read(scans):
    files = write_table(scans, same=["x"] * 6)
    planned = inputs.plan(files, ["same"], skip_bad=True)
    with pytest.raises(InputError, match="same is 'x' for all images"):
        inputs.check_split(planned, 0.2, 0, 1)


def test_check_conditions_refuses_sources_of_many_labels():
    images, numbers = np.zeros((4, 5, 5, 4, 1)), np.arange(400, dtype="int32")
    cohort = Cohort(images, sources=numbers.reshape(images.shape))
    with pytest.raises(InputError, match="more than 256 labels as int32; merge some"):
        inputs.check_conditions(cohort)
