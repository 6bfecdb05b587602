"""Conditions from tables of BIDS, and outputs in BIDS."""

from functools import partial
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import answer, execute, load_model
import pytest
from scans import comment_of

from dipy_ldm._serialization import read_document
from dipy_ldm.data._nifti import read_volume
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
    return folder, execute("train", *arguments, "--out_dir", "out", cwd=folder)


def test_train_keeps_conditions_from_tables(trained):
    folder, output = trained
    document = read_document(folder / "out" / "ldm.safetensors")
    age, sex = document["conditions"]["age"], document["conditions"]["sex"]
    assert (age["kind"], age["units"]) == ("continuous", "years")
    assert all(number % 5 == 0 for number in age["quantiles"][::2])
    assert sex["levels"].keys() == {"F", "M"}
    assert sex["meanings"] == {"F": "female"}
    assert document["suffix"] == "T2w"
    assert "conditions of 9 images of 8 subjects, from " in output
    assert "bids/participants.tsv:" in output
    assert "use fewer or coarser ones (--coarsen)" in output


@pytest.fixture
def generate(trained, command):
    """Return what generates samples in one step, beside a table of two."""
    rows = "participant_id\tage\tsex\tiq", "x\t70\tfemale\t99", "y\t\tM\t98"
    Path("wanted.tsv").write_text("\n".join(rows))
    path = trained[0] / "out" / "ldm.safetensors"
    return partial(command, "generate", path, "--steps", 1)


@pytest.mark.parametrize(
    ("words", "conditions"),
    [
        ("", None),
        ("--conditions none", "none"),
        ("--conditions sex=F", {"sex": "F"}),
        ("--conditions age=99", {"age": 99}),
        ("--same_noise --conditions age=60,99 sex=F", {"age": [60, 99], "sex": "F"}),
    ],
)
def test_generate_records_requested_and_drawn_conditions(
    generate, trained, words, conditions
):
    how = {"seed": 5, "first": 3, "same_noise": "--same_noise" in words}
    options = ("--n_samples", 2, "--seed", 5, "--first_sample", 3)
    output = generate(*options, *words.split())
    assert output.count("age 99 is outside") == ("99" in words)  # once
    model = load_model(trained[0] / "out" / "ldm.safetensors")
    if conditions == "none":
        table, drawn = dict.fromkeys(("age", "sex"), ["n/a"] * 2), []
    else:
        table = model.draw_conditions(2, conditions, **how)
        drawn = [name for name in table if name not in (conditions or {})]
    images = model.predict(2, conditions=conditions, steps=1, **how)
    for i, image in enumerate(images):
        facts = json.loads(Path(f"samples-000{3 + i}.json").read_text())
        file = nib.load(f"samples-000{3 + i}.nii.gz")
        npt.assert_allclose(file.get_fdata(), image[..., 0], atol=1e-4)
        own = {name: values[i] for name, values in table.items()}
        assert facts["Conditions"] == comment_of(file)["Conditions"] == own
        assert facts.get("DrawnConditions", []) == drawn
        assert facts["SameNoise"] == how["same_noise"]
        warned = "age 99 is outside the model's range" in str(facts.get("Warnings"))
        assert warned == (own["age"] == 99)


def test_denoise_difference_is_the_effect_of_conditions(trained, command):
    path = trained[0] / "out" / "ldm.safetensors"
    file = trained[0] / "bids" / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    words = ("denoise", path, file, "--strength", 1, "--difference", "--out_denoised")
    command(*words, "plain")
    command(*words, "asked", "--conditions", "age=50", "sex=M", "--repeats", 2)

    def read(name):
        facts = Path(f"sub-01_desc-{name}_T2w.json").read_text()
        return read_volume(f"sub-01_desc-{name}_T2w.nii.gz")[0], json.loads(facts)

    (plain, _), (difference, facts) = map(read, ("plain", "plainDifference"))
    assert facts["Difference"] == "scan minus result"
    npt.assert_allclose(difference, read_volume(file)[0] - plain, atol=1e-4)
    (_, facts), (difference, about) = map(read, ("asked", "askedDifference"))
    assert facts["Conditions"] == {"age": 50, "sex": "M"}
    assert "Difference" not in facts
    assert about["Difference"] == "result without conditions minus result"
    model = load_model(path)

    def denoise(conditions):
        how = {"strength": 1, "conditions": conditions}
        images = [model.denoise(file, first=facts["Noise"] + i, **how) for i in (0, 1)]
        return np.mean([image.get_fdata() for image in images], axis=0)

    expected = denoise(None) - denoise({"age": 50, "sex": "M"})
    assert np.abs(expected).max() > 0.1
    # A latent between two codes may become either, by rounding.
    assert np.isclose(difference[..., 0], expected, atol=1e-3).mean() > 0.9


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
    assert [str(path) for path in Path("made").rglob("*.png")] == [
        "made/code/samples.png"
    ]
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
    pictures = sorted(path.name for path in Path("made/code").glob("*.png"))
    assert pictures == ["samples-2.png", "samples.png"]
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
