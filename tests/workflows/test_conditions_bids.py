"""The commands with conditions from tables: BIDS in, and BIDS out."""

from functools import partial
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import answer, execute, skipped_training
import pytest

from dipy_ldm import _serialization
from dipy_ldm.data._sidecars import sidecar

TINY = (
    "--batch_size 2 --n_codes 16 --code_dim 2 --widths_vqvae 8 --widths_ldm 8 "
    "--precision float32 --no_augment --epochs_vqvae 4 --epochs_ldm 2 --patch 8 "
    "--cache_dir cache"
).split()
AGES = [62, 71, "n/a", 48, 53, 80, 24, 39]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a dataset of eight subjects, one of them with two scans."""
    path = tmp_path_factory.mktemp("conditions")
    rng = np.random.default_rng(0)
    names = [f"sub-{i:02}" for i in range(8)] + ["sub-00_ses-2"]
    for name in names:
        x, y, z = np.indices((10, 12, 11)) - rng.uniform(4, 6, (3, 1, 1, 1))
        data = 100 * np.exp(-(x**2 + y**2 + z**2) / rng.uniform(10, 20))
        file = path / "bids" / name[:6] / "anat" / f"{name}_T2w.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data.astype("float32"), np.diag([8, 8, 8, 1])), file)
    lines = [f"sub-{i:02}\t{AGES[i]}\t{'mf'[i % 2]}" for i in range(8)]
    table = path / "bids" / "participants.tsv"
    table.write_text("\n".join(["participant_id\tage\tsex", *lines]) + "\n")
    table.with_suffix(".json").write_text('{"sex": {"Levels": {"F": "female"}}}')
    return path


@pytest.fixture(scope="module")
def trained(folder):
    """Return the folder with a model in ``out``, and what the command said."""
    arguments = ("bids", "--conditions", "age,sex", "--coarsen", "age=5", *TINY)
    with skipped_training("latent_diffusion"):
        output = execute("train", *arguments, "--out_dir", "out", cwd=folder)
    return folder, output


def test_train_keeps_conditions_from_tables(trained):
    folder, said = trained
    path = folder / "out" / "ldm.safetensors"
    document = _serialization.read_document(path, "latent_diffusion")
    age, sex = document["conditions"]["age"], document["conditions"]["sex"]
    assert (age["kind"], age["units"]) == ("continuous", "years")
    assert all(number % 5 == 0 for number in age["quantiles"][::2])
    assert sex["levels"].keys() == {"F", "M"}
    assert sex["meanings"] == {"F": "female"}
    assert document["suffix"] == "T2w"
    assert "conditions of 9 images of 8 subjects, from " in said
    assert "bids/participants.tsv:" in said
    assert "use fewer or coarser ones (--coarsen)" in said


@pytest.fixture
def generate(trained, command):
    """Return what generates samples in one step, beside a table of two."""
    rows = "participant_id\tage\tsex\tiq", "x\t70\tfemale\t99", "y\t\tM\t98"
    Path("wanted.tsv").write_text("\n".join(rows))
    path = trained[0] / "out" / "ldm.safetensors"
    return partial(command, "generate", path, "--steps", 1)


def volume_of(number):
    name = f"sub-S000{number}"
    return Path("made", name, "anat", f"{name}_desc-synthetic_T2w.nii.gz")


def read_rows():
    return Path("made/participants.tsv").read_text().splitlines()


def test_generate_a_dataset_from_a_table(generate):
    table = ("--bids", "--out_dir", "made", "--table", "wanted.tsv")
    output = generate(*table, "--first_sample", 1)
    assert "columns iq of wanted.tsv are ignored: the model has the cond" in output
    assert "recorded with a skull; if not, add --skull_stripped." in output
    header, first, second = read_rows()
    assert header == "participant_id\tage\tsex"
    assert first == "sub-S0001\t70\tF"
    name, age, sex = second.split("\t")
    # What the table leaves open is drawn.
    assert (name, sex) == ("sub-S0002", "M") and 25 <= float(age) <= 80
    facts = json.loads(sidecar(volume_of(1)).read_text())
    assert facts["Conditions"] == {"age": 70, "sex": "F"}
    assert (facts["Sample"], facts["SkullStripped"]) == (1, False)
    columns = json.loads(Path("made/participants.json").read_text())
    description = "Requested or drawn age of the sample."
    assert columns["age"] == {"Description": description, "Units": "years"}
    assert columns["sex"]["Levels"] == {"F": "female", "M": "M"}
    assert not list(Path("made").glob("*.png"))
    # The same sample as one that is asked for in words, elsewhere.
    generate("--n_samples", 1, "--conditions", "sex=M", "--first_sample", 2)
    alone, of_dataset = map(nib.load, ("samples-0002.nii.gz", volume_of(2)))
    npt.assert_array_equal(alone.get_fdata(), of_dataset.get_fdata())


def test_generate_adds_to_a_dataset(generate):
    dataset = ("--bids", "--out_dir", "made", "--skull_stripped")
    table = ("--table", "wanted.tsv", "--first_sample")
    output = generate(*dataset, *table, 1)
    assert "recorded with a skull" not in output
    rows = read_rows()
    output = generate(*dataset, *table, 2, status=2)
    assert "exist already; add --force to overwrite, or give another" in answer(output)
    one = (*dataset, "--n_samples", 1, "--conditions", "none", "--first_sample")
    generate(*one, 3)
    assert read_rows() == [*rows, "sub-S0003\tn/a\tn/a"]
    assert json.loads(sidecar(volume_of(3)).read_text())["SkullStripped"] is True
    generate(*one, 1, "--force")
    assert read_rows()[1] == "sub-S0001\tn/a\tn/a"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--bids --out_dir theirs", "holds another dataset"),
        ("--n_samples 3 --conditions age=60,70", "age must have one value or 3"),
        ("--table wanted.tsv --conditions none", "remove it, or the --table"),
        ("--table wanted.tsv --conditions none age=70", "must be name=value"),
        ("--table wanted.tsv --conditions age=7", "in --conditions and in the --table"),
    ],
)
def test_generate_refuses_datasets_and_conditions(generate, words, sentence):
    Path("theirs").mkdir()
    Path("theirs/participants.tsv").touch()
    assert sentence in answer(generate(*words.split(), status=2))
    assert sorted(map(str, Path().rglob("*"))) == [
        "theirs",
        "theirs/participants.tsv",
        "wanted.tsv",
    ]


def test_generate_refuses_a_dataset_of_images(command):
    output = command("generate", "mnist", "--bids", status=2)
    assert "--bids is for volumes" in answer(output)
