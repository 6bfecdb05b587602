"""What a training gets, before anything is trained."""

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


def test_volumes_know_their_subjects_and_are_held_out_by_them(scans):
    planned = inputs.plan([str(scans)], skip_bad=True)
    data = planned.load(cache_dir=scans / "cache")
    assert len(planned.cohort.subjects) == 12
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
    assert len(set(inputs.plan([str(tmp_path)]).cohort.subjects)) == 21


def test_files_called_as_the_packaged_digits_are_warned_of(
    tmp_path, monkeypatch, caplog
):
    few = np.zeros((9, 28, 28, 1), "float32"), np.arange(9)
    monkeypatch.setattr(inputs, "load_mnist", lambda split: few)
    monkeypatch.chdir(tmp_path)
    inputs.plan(["mnist"])
    assert not caplog.text
    (tmp_path / "mnist").mkdir()
    inputs.plan(["mnist"])
    assert "write ./mnist for your own" in caplog.text


def table(folder, **columns):
    """Write a table of six participants, and return the folder as inputs."""
    lines = [["participant_id", *columns]]
    lines += [[f"sub-{i:02}", *(v[i] for v in columns.values())] for i in range(6)]
    text = "\n".join("\t".join(map(str, line)) for line in lines)
    (folder / "participants.tsv").write_text(text + "\n")
    return [str(folder)]


def test_conditions_follow_their_volumes(scans, caplog):
    ages = {"age": [62, 71, "n/a", 48, 53, 80], "sex": ["M", "f", "F", "m", "F", "M"]}
    given = table(scans, **ages)
    (scans / "participants.json").write_text('{"sex": {"Levels": {"F": "female"}}}')
    with caplog.at_level(logging.INFO, "dipy_ldm"):
        planned = inputs.plan(given, ["age", "sex"], {"age": 10}, skip_bad=True)
        inputs.check_split(planned, 0.2, 0, 1)
    assert "age (years): 50 to 80, mean" in caplog.text
    assert "2 of 6 subjects are held out" in caplog.text
    data = planned.load(cache_dir=scans / "cache")
    assert len(data.conditions["age"]) == len(data.images) == 11
    for part in split(data, 0.2, 0, 1):
        for i, subject in enumerate(part.subjects):
            number = int(subject[-2:])
            assert part.conditions["age"][i] == [60, 70, None, 50, 50, 80][number]
            assert part.conditions["sex"][i] == "MFFMFM"[number]
    assert data.units == {"age": "years"}
    assert data.meanings == {"sex": {"F": "female"}}


def test_scans_of_a_dataset_are_chosen_by_their_names(scans):
    other = scans / "sub-00_ses-0_T2w.nii.gz"
    (scans / f"{NAMES[3]}.nii.gz").unlink()
    other.write_bytes((scans / f"{NAMES[0]}.nii.gz").read_bytes())
    with pytest.raises(InputError, match=r"T1w \(11\), T2w \(1\); choose with"):
        inputs.plan([str(scans)])
    planned = inputs.plan([str(scans)], suffix=["T1w"], filter={"ses": ["0"]})
    assert len(planned.cohort.subjects) == 6
    assert planned.cohort.suffix == "T1w"
    np.save(scans / "a.npy", np.zeros((3, 4, 4)))
    with pytest.raises(InputError, match="`suffix` is for volumes"):
        inputs.plan([str(scans / "a.npy")], suffix=["T1w"])


def test_slices_have_conditions_too(tmp_path):
    for name in NAMES:
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    planned = inputs.plan(table(tmp_path, age=[62, 71, 50, 48, 53, 80]), ["age"])
    assert planned.load().conditions["age"][:3] == [62, 62, 71]


@pytest.mark.parametrize(
    ("names", "steps", "sentence"),
    [
        (["age", "sexx"], {}, "no column sexx .* they have age, same"),
        (["same"], {}, "same is 'x' for all images"),
        (["same"], {"sex": 5}, "`coarsen` names sex, which is no condition"),
        (["age"], {}, "age is '89[+]', not a number"),
    ],
)
def test_invalid_options_are_refused_before_reading(scans, names, steps, sentence):
    given = table(scans, age=[62, 71, "89+", 48, 53, 80], same=["x"] * 6)
    with pytest.raises(InputError, match=sentence):
        inputs.check_split(inputs.plan(given, names, steps, skip_bad=True), 0.2, 0, 1)


@pytest.mark.parametrize(
    ("n_labels", "name", "sentence"),
    [
        (400, "age", "source has more than 256 labels as int32; merge some"),
        (40, "source", "a condition can't be called source"),
    ],
)
def test_sources_that_cannot_be_learnt_are_refused(n_labels, name, sentence):
    images, numbers = np.zeros((4, 5, 5, 4, 1)), np.arange(400, dtype="int32")
    cohort = Cohort(
        images,
        conditions={name: [1.5, 2.5, 3.5, 4.5]},
        sources=(numbers % n_labels).reshape(images.shape),
    )
    with pytest.raises(InputError, match=sentence):
        inputs.check_conditions(cohort)


def test_labels_of_digits_are_no_numbers():
    with pytest.raises(InputError, match="`coarsen` is for numbers"):
        inputs.plan(["mnist"], ["label"], {"label": 5})
    with pytest.raises(InputError, match="unknown condition 'age'"):
        inputs.plan(["mnist"], ["age"])
