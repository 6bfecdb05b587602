"""The commands with conditions from tables: BIDS in, and BIDS out."""

from functools import partial
import json
from unittest.mock import patch

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import execute, load_model, skipped_training
import pytest

from dipy_ldm import LatentDiffusion, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._nifti import read_volume
from dipy_ldm.data._sidecars import sidecar
from dipy_ldm.workflows.generate import GenerateLDMFlow

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


def generate(folder, out_dir, force=False, **options):
    """Run the workflow, with a model that is loaded once."""
    flow = GenerateLDMFlow()
    flow._force_overwrite = force
    options = {"steps": 1, "out_dir": str(out_dir)} | options
    load = partial(load_model, load=LatentDiffusion.load)
    with patch.object(LatentDiffusion, "load", load):
        flow.run(str(folder / "out" / "ldm.safetensors"), **options)


@pytest.fixture
def table(tmp_path):
    """Return the file of a table of two samples."""
    rows = "x\t70\tfemale\t99", "y\t\tM\t98"
    (tmp_path / "wanted.tsv").write_text(
        "\n".join(["participant_id\tage\tsex\tiq", *rows, ""])
    )
    return str(tmp_path / "wanted.tsv")


def volume_of(dataset, number):
    name = f"sub-S000{number}"
    return dataset / name / "anat" / f"{name}_desc-synthetic_T2w.nii.gz"


def rows_of(dataset):
    return (dataset / "participants.tsv").read_text().splitlines()


def test_generate_a_dataset_from_a_table(trained, table, tmp_path, caplog):
    folder, _ = trained
    dataset = tmp_path / "made"
    with caplog.at_level("INFO", "dipy_ldm"):
        generate(folder, dataset, table=table, bids=True, first_sample=1)
    assert "are ignored" in caplog.text
    assert "recorded with a skull; if not, add --skull_stripped." in caplog.text
    header, first, second = rows_of(dataset)
    assert header == "participant_id\tage\tsex"
    assert first == "sub-S0001\t70\tF"
    name, age, sex = second.split("\t")
    # What the table leaves open is drawn.
    assert (name, sex) == ("sub-S0002", "M") and 25 <= float(age) <= 80
    facts = json.loads(sidecar(volume_of(dataset, 1)).read_text())
    assert facts["Conditions"] == {"age": 70, "sex": "F"}
    assert (facts["Sample"], facts["SkullStripped"]) == (1, False)
    columns = json.loads((dataset / "participants.json").read_text())
    description = "Requested or drawn age of the sample."
    assert columns["age"] == {"Description": description, "Units": "years"}
    assert columns["sex"]["Levels"] == {"F": "female", "M": "M"}
    assert not list(dataset.glob("*.png"))
    # The same sample as one that is asked for in words, elsewhere.
    generate(folder, tmp_path, n_samples=1, conditions=["sex=M"], first_sample=2)
    files = tmp_path / "samples-0002.nii.gz", volume_of(dataset, 2)
    (alone, _), (of_dataset, _) = map(read_volume, files)
    npt.assert_array_equal(alone, of_dataset)


def test_generate_adds_to_a_dataset(trained, table, tmp_path, caplog):
    folder, _ = trained
    dataset = tmp_path / "made"
    caplog.set_level("INFO", "dipy_ldm")
    how = {"bids": True, "skull_stripped": True}
    generate(folder, dataset, table=table, first_sample=1, **how)
    rows = rows_of(dataset)
    with pytest.raises(InputError, match="exist already; .* --first_sample"):
        generate(folder, dataset, table=table, first_sample=2, **how)
    how |= {"n_samples": 1, "conditions": ["none"]}
    generate(folder, dataset, first_sample=3, **how)
    assert rows_of(dataset) == [*rows, "sub-S0003\tn/a\tn/a"]
    generate(folder, dataset, force=True, first_sample=1, **how)
    assert rows_of(dataset)[1] == "sub-S0001\tn/a\tn/a"
    facts = json.loads(sidecar(volume_of(dataset, 3)).read_text())
    assert facts["SkullStripped"] is True
    assert "recorded with a skull" not in caplog.text


def test_generate_refuses_wrong_datasets_and_conditions(trained, table, tmp_path):
    folder, _ = trained
    with pytest.raises(InputError, match="holds another dataset"):
        generate(folder, folder / "bids", bids=True)
    with pytest.raises(InputError, match="`bids` is for volumes"):
        GenerateLDMFlow().run("mnist", bids=True, out_dir=str(tmp_path))
    with pytest.raises(InputError, match="age must have one value or 3"):
        generate(folder, tmp_path, n_samples=3, conditions=["age=60,70"])
    for words, sentence in (
        (["none"], "none leaves all unspecified; remove it, or the `table`"),
        (["none", "age=70"], "must be name=value"),
        (["age=7"], "age is in `conditions` and in the `table`"),
    ):
        with pytest.raises(InputError, match=sentence):
            generate(folder, tmp_path, conditions=words, table=table)
    assert [path.name for path in tmp_path.iterdir()] == ["wanted.tsv"]
