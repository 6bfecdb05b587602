"""The commands with conditions from tables: BIDS in, and BIDS out."""

from functools import partial
import json
from types import SimpleNamespace
from unittest.mock import patch

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import answer, execute, load_model, skipped_training
import pytest

from dipy_ldm import LatentDiffusion, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._nifti import read_volume
from dipy_ldm.data._sidecars import sidecar
from dipy_ldm.workflows import generate as generating
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


def test_model_keeps_conditions_from_tables(trained):
    folder, said = trained
    path = folder / "out" / "ldm.safetensors"
    document = _serialization.read_document(path, "latent_diffusion")
    known = document["conditions"]
    assert known["age"]["kind"] == "continuous"
    assert known["age"]["units"] == "years"
    assert all(age % 5 == 0 for age in known["age"]["quantiles"][::2])
    assert set(known["sex"]["levels"]) == {"F", "M"}
    assert known["sex"]["meanings"] == {"F": "female"}
    assert document["suffix"] == "T2w"
    assert "conditions of 9 images of 8 subjects, from " in said
    assert "bids/participants.tsv:" in said
    assert "age (years): 25 to 80, mean" in said
    assert "have a unique combination of these conditions" in said
    assert "use fewer or coarser ones (--coarsen)" in said


def test_errors_in_tables_are_one_sentence(folder):
    train = partial(execute, "train", "bids", *TINY, cwd=folder, status=2)
    output = answer(train("--conditions", "age,site", "--out_dir", "no"))
    assert "there is no column site" in output
    assert "they have age, sex" in output
    output = answer(train("--coarsen", "age=5", "--out_dir", "no"))
    assert "--coarsen is for --conditions" in output
    assert not (folder / "no").exists()


def generate(folder, out_dir, force=False, **options):
    """Run the workflow in this process, without the seconds that a new one takes."""
    flow = GenerateLDMFlow()
    flow._force_overwrite = force
    options = {"steps": 1, "out_dir": str(out_dir)} | options
    load = partial(load_model, load=LatentDiffusion.load)
    with patch.object(LatentDiffusion, "load", load):
        flow.run(str(folder / "out" / "ldm.safetensors"), **options)


def lines_of(dataset):
    return (dataset / "participants.tsv").read_text().splitlines()


def test_samples_are_taken_to_have_a_skull(caplog):
    caplog.set_level("INFO")
    options = {"seed": 0, "bids": True, "suffix": None, "out_samples": "samples"}
    for stripped in (True, False):
        options |= {"dtype": "float32", "skull_stripped": stripped}
        generating._check_options(SimpleNamespace(**options), is_volume=True)
    sentence = "samples are recorded with a skull; if not, add --skull_stripped."
    assert caplog.messages == [sentence]


def test_a_table_asks_for_a_dataset(trained, tmp_path, caplog):
    folder, _ = trained
    table = tmp_path / "wanted.tsv"
    table.write_text("participant_id\tage\tsex\tiq\nx\t70\tfemale\t99\ny\t\tM\t98\n")
    dataset = tmp_path / "made"
    generate(folder, dataset, table=str(table), bids=True, first_sample=1)
    header, *lines = lines_of(dataset)
    assert header == "participant_id\tage\tsex"
    assert lines[0] == "sub-S0001\t70\tF"
    name, age, sex = lines[1].split("\t")
    # What the table leaves open is drawn.
    assert (name, sex) == ("sub-S0002", "M") and 25 <= float(age) <= 80
    assert "are ignored" in caplog.text
    scan = dataset / "sub-S0001" / "anat" / "sub-S0001_desc-synthetic_T2w.nii.gz"
    facts = json.loads(sidecar(scan).read_text())
    assert facts["Conditions"] == {"age": 70, "sex": "F"}
    assert (facts["Sample"], facts["SkullStripped"]) == (1, False)
    said = json.loads((dataset / "participants.json").read_text())
    assert said["age"]["Units"] == "years"
    assert said["sex"]["Levels"]["F"] == "female"
    assert not list(dataset.glob("*.png"))
    # Volumes are added, and none is overwritten.
    with pytest.raises(InputError, match="exist already; .* --first_sample"):
        generate(folder, dataset, table=str(table), bids=True, first_sample=2)
    nothing = {"n_samples": 1, "bids": True, "conditions": ["none"]}
    generate(folder, dataset, first_sample=3, **nothing)
    assert lines_of(dataset)[1:] == [*lines, "sub-S0003\tn/a\tn/a"]
    generate(folder, dataset, True, first_sample=1, **nothing)
    assert lines_of(dataset)[1] == "sub-S0001\tn/a\tn/a"
    # The same sample as one that is asked for in words, elsewhere.
    generate(folder, tmp_path, n_samples=1, conditions=["sex=M"], first_sample=2)
    other = dataset / "sub-S0002" / "anat" / "sub-S0002_desc-synthetic_T2w.nii.gz"
    (one, _), (same, _) = map(read_volume, (tmp_path / "samples-0002.nii.gz", other))
    npt.assert_array_equal(one, same)


def test_invalid_datasets_are_refused(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(InputError, match="holds another dataset"):
        generate(folder, folder / "bids", bids=True)
    with pytest.raises(InputError, match="`bids` is for volumes"):
        GenerateLDMFlow().run("mnist", bids=True, out_dir=str(tmp_path))
    table = tmp_path / "wanted.tsv"
    table.write_text("age\n70\n")
    for words, sentence in (
        (["none"], "none leaves all unspecified; remove it, or the `table`"),
        (["none", "age=70"], "must be name=value"),
        (["age=7"], "age is in `conditions` and in the `table`"),
    ):
        with pytest.raises(InputError, match=sentence):
            generate(folder, tmp_path, conditions=words, table=str(table))
    assert [path.name for path in tmp_path.iterdir()] == ["wanted.tsv"]
