"""Diffusion series on the command line: training on them, and making them of b = 0."""

from functools import partial
import json
from pathlib import Path
import re
import shutil
import tomllib
from types import SimpleNamespace
import warnings

from dipy.core.gradients import gradient_table
from dipy.data import get_fnames
from dipy.io.gradients import read_bvals_bvecs
from dipy.reconst.dti import TensorModel
import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import answer, call, execute, load_model
import pytest

from dipy_ldm import InputError
from dipy_ldm._conditions import Condition, to_saved
from dipy_ldm.data import load_volumes
from dipy_ldm.evaluation._diffusion_tensors import compare_series
from dipy_ldm.workflows._evaluation_images import read_series
from dipy_ldm.workflows._sources import read_gradients

SHORT = (
    "--dwi --batch_size 4 --steps_vqvae 4 --steps_ldm 10 --n_codes 64 "
    "--widths_vqvae 4 --widths_ldm 4 --validation 0.4 --precision float32"
).split()
B0S = "sub-0_b0.nii", "sub-1_b0.nii"
AFFINE = np.diag([-4.0, 4, 4, 1])
AFFINE[:3, 3] = 18, -16, -14


def save_series(folder, number, n):
    """Write a series of so many directions."""
    rng = np.random.default_rng(number)
    bvecs = rng.normal(size=(n + 1, 3))
    bvecs /= np.linalg.norm(bvecs, axis=1, keepdims=True)
    bvecs[0] = 0
    bvals = np.array([0] + [1000] * n)
    places = np.moveaxis(np.indices((10, 9, 8)), 0, -1) - rng.uniform(3, 5, 3)
    b0 = 500 * np.exp(-(places**2).sum(-1) / 20)
    data = b0[..., None] * np.exp(-bvals * (0.3e-3 + 1e-3 * bvecs[:, 0] ** 2))
    stem = folder / f"sub-{number}_dwi"
    nib.save(nib.Nifti1Image(data.astype("float32"), AFFINE), f"{stem}.nii.gz")
    np.savetxt(f"{stem}.bval", bvals[None], "%g")
    np.savetxt(f"{stem}.bvec", bvecs.T)
    nib.save(nib.Nifti1Image(b0.astype("float32"), AFFINE), folder / f"b0-{number}.nii")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with series of five subjects, and a model of them."""
    folder = tmp_path_factory.mktemp("series")
    for number in range(5):
        save_series(folder, number, 4 + number)
    files = sorted(folder.glob("*_dwi.nii.gz"))
    output = execute("train", *files, *SHORT, "--cache_dir", "cache", cwd=folder)
    assert "5 series: 30 diffusion-weighted volumes with b of about 1000" in output
    assert re.search("[23] of 5 subjects are held out", output)
    b = np.array([0, 1000, 20, 1000, 1000, 1000, 1000, 1000])
    vectors = np.random.default_rng(9).normal(size=(8, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[4] = -vectors[3]
    np.savetxt(folder / "table.bval", b[None], "%g")
    np.savetxt(folder / "table.bvec", vectors.T)
    return folder


def generate(folder, *arguments, status=0):
    how = ("ldm.safetensors", "--steps", 2, "--source_files", "b0-1.nii")
    return execute("generate", *how, *arguments, cwd=folder, status=status)


def test_generated_series_are_read_by_dipy(trained):
    generate(trained, *TABLE)
    stem = str(trained / "b0-1_samples")
    image = nib.load(f"{stem}.nii.gz")
    data = image.get_fdata()
    b0 = nib.as_closest_canonical(nib.load(trained / "b0-1.nii"))
    npt.assert_allclose(image.affine, b0.affine)
    for volume in (0, 2):
        npt.assert_allclose(data[..., volume], b0.get_fdata(), rtol=1e-5, atol=1e-3)
    # The opposite direction gives the same volume.
    npt.assert_array_equal(data[..., 3], data[..., 4])
    assert np.abs(data[..., 1] - data[..., 3]).max() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bvals, bvecs = read_bvals_bvecs(f"{stem}.bval", f"{stem}.bvec")
        fit = TensorModel(gradient_table(bvals, bvecs=bvecs)).fit(data)
    assert np.isfinite(fit.fa).all()
    # Both grids differ by left and right alone, which FSL's axes don't.
    vectors = np.loadtxt(trained / "table.bvec").T
    npt.assert_allclose(bvecs, vectors, atol=1e-6)
    facts = json.loads((trained / "b0-1_samples.json").read_text())
    assert facts["Sources"] == ["b0-1.nii"]
    world = vectors[[1, *range(3, 8)]] * [-1, 1, 1]
    npt.assert_allclose(facts["Conditions"]["direction"], world, atol=1e-6)
    assert "b0-1_samples.bval" in answer(generate(trained, *TABLE, status=2))


def test_a_real_series_keeps_its_tensors(tmp_path):
    files = [Path(file) for file in get_fnames(name="small_25")]
    for file, end in zip(files, (".nii.gz", ".bval", ".bvec"), strict=True):
        shutil.copy(file, tmp_path / f"sub-1_dwi{end}")
    volumes = load_volumes([tmp_path], dwi=True, cache_dir=tmp_path / "cache")
    bvals, bvecs = read_bvals_bvecs(*map(str, files[1:]))
    raw = nib.load(files[0]).get_fdata()
    data = np.concatenate([volumes.sources[:1], volumes.images])[..., 0]
    directions = np.array([(0, 0, 0), *volumes.gradients["direction"]])
    own = gradient_table(np.array([0, *volumes.gradients["bval"]]), bvecs=directions)
    tensors = TensorModel(own).fit(np.moveaxis(data, 0, -1))
    expected = TensorModel(gradient_table(bvals, bvecs=bvecs)).fit(raw)
    npt.assert_allclose(np.median(np.abs(tensors.fa - expected.fa)), 0, atol=1e-4)
    assert np.corrcoef(tensors.fa.ravel(), expected.fa.ravel())[0, 1] > 0.99


def test_a_model_of_series_has_its_conditions(trained):
    model = load_model(trained / "ldm.safetensors")
    assert [c.kind for c in model.conditions_.values()] == ["continuous", "direction"]
    assert model.conditions_["bval"].units == "s/mm^2"
    assert "val_gain_direction" in model.history_
    assert "val_gain_bval" not in model.history_  # of one shell
    assert model.default_guidance == 3
    images = model.predict(source=np.full((1, 10, 9, 8, 1), 0.5), steps=1)
    assert images.shape == (1, 10, 9, 8, 1)


TABLE = ("--bvals", "table.bval", "--bvecs", "table.bvec")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "makes diffusion series; give their b-values as --bvals"),
        (("--bvals", "table.bval"), "their directions as --bvecs"),
        (("--bvals", "no.bval", "--bvecs", "table.bvec"), "can't be read as b-values"),
        (("--bvals", "sub-1_dwi.bval", "--bvecs", "table.bvec"), "6 b-values and"),
        ((*TABLE, "--conditions", "bval=9"), "bval is in the tables of --bvals and"),
    ],
)
def test_bad_tables_are_refused(trained, arguments, sentence):
    assert sentence in answer(generate(trained, *arguments, status=2))


def test_b_values_beyond_the_training_are_warned_of(trained):
    np.savetxt(trained / "high.bval", [[0, 3000, 1000, 1000, 1000, 1000, 1000, 1000]])
    table = ("--bvals", "high.bval", "--bvecs", "table.bvec", "--out_samples", "high")
    output = generate(trained, *table)
    assert "bval 3000 is outside the model's range of 950 to 1050" in output


def test_tables_are_for_models_of_series(model_path, tmp_path):
    arguments = (model_path, "--bvals", "a.bval", "--bvecs", "a.bvec")
    output = execute("generate", *arguments, cwd=tmp_path, status=2)
    assert "trained without dwi; leave out --bvals and --bvecs" in answer(output)


@pytest.mark.parametrize("source", [None, {"channels": 1}])
def test_series_are_for_models_of_sources_and_b_values(source):
    conditions = to_saved({"direction": Condition("direction", {}, [])})
    document = {"conditions": conditions, "source": source}
    with pytest.raises(InputError, match="not one of series .* train one with `dwi`"):
        read_gradients(document, "a.bval", "a.bvec", {})


def denoise(folder, *arguments, status=0):
    words = ("ldm.safetensors", *arguments, "--out_dir", "clean")
    return execute("denoise", *words, cwd=folder, status=status)


def test_series_are_denoised_in_their_own_space(trained, tmp_path):
    # The b = 0 of the second stands between its other volumes.
    source, moved = trained / "sub-1_dwi.nii.gz", tmp_path / "sub-9_dwi.nii.gz"
    data, order = nib.load(source).get_fdata(dtype="float32"), [2, 1, 0, 3, 4, 5]
    nib.save(nib.Nifti1Image(data[..., order], AFFINE), moved)
    for end in (".bval", ".bvec"):
        table = np.loadtxt(trained / f"sub-1_dwi{end}", ndmin=2)[:, order]
        np.savetxt(tmp_path / f"sub-9_dwi{end}", table)
    denoise(trained, source, moved, "--strength", 0)
    stems = [trained / "clean" / f"sub-{i}_desc-denoised_dwi" for i in (1, 9)]
    images = [nib.load(f"{stem}.nii.gz") for stem in stems]
    first, second = (image.get_fdata(dtype="float32") for image in images)
    npt.assert_allclose(second, first[..., order], rtol=1e-4, atol=1e-2)
    npt.assert_array_equal(first[..., 0], data[..., 0])
    assert all(np.abs(first - data).max((0, 1, 2))[1:] > 1)
    npt.assert_array_equal(images[0].affine, AFFINE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bvals, bvecs = read_bvals_bvecs(f"{stems[1]}.bval", f"{stems[1]}.bvec")
        fit = TensorModel(gradient_table(bvals, bvecs=bvecs)).fit(second)
    assert np.isfinite(fit.fa).all()
    facts = json.loads(stems[1].with_suffix(".json").read_text())
    assert facts["Conditions"]["bval"] == [1000.0] * 5
    assert [Path(file).name for file in facts["Sources"]] == [
        f"sub-9_dwi{end}" for end in (".nii.gz", ".bval", ".bvec")
    ]
    denoise(trained, source, "--strength", 0, "--resume")
    (tmp_path / "sub-9_dwi.bval").write_text("900 900 0 900 900 900")
    output = denoise(trained, moved, "--strength", 0, "--resume", status=2)
    assert "sub-9_dwi.bval has changed); resume" in answer(output)


def test_repeated_series_have_deviations_and_differences(trained):
    denoise(trained, "sub-2_dwi.nii.gz", "--repeats", 2, "--difference")
    name = "clean/sub-2_desc-denoised{}_dwi.nii.gz"
    data = nib.load(trained / "sub-2_dwi.nii.gz").get_fdata()
    mean, std, difference = (
        nib.load(trained / name.format(end)).get_fdata()
        for end in ("", "Std", "Difference")
    )
    npt.assert_allclose(data - mean, difference, rtol=1e-3, atol=1e-2)
    for volumes in (std, difference):
        assert (volumes[..., 0] == 0).all()
        assert all(np.abs(volumes).max((0, 1, 2))[1:] > 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["b0-0.nii"], "not a diffusion series; give 4-D files (x, y, z, volumes)."),
        (["sub-1_dwi.nii.gz", "--source_files", "b0-1.nii"], "out --source_files"),
        (["sub-1_dwi.nii.gz", "--conditions", "bval=9"], "bval is in the tables besid"),
        (["sub-1_dwi.nii.gz", "--lesions"], "makes diffusion series"),
    ],
)
def test_unusable_options_of_denoising_series_are_refused(trained, arguments, sentence):
    assert sentence in answer(denoise(trained, *arguments, status=2))


def test_series_are_not_inpainted(trained):
    words = ("sub-1_dwi.nii.gz", "--mask_files", "b0-1.nii")
    output = execute("inpaint", "ldm.safetensors", *words, cwd=trained, status=2)
    assert "makes diffusion series, from a b = 0 that it can't inpaint" in answer(
        output
    )


def test_scans_are_refused_by_a_model_of_series(trained):
    model = load_model(trained / "ldm.safetensors")
    with pytest.raises(InputError, match="makes diffusion series"):
        model.denoise(trained / "b0-0.nii", source=trained / "b0-0.nii")


def test_series_are_evaluated_by_their_tensors(trained):
    files = [f"sub-{i}_dwi.nii.gz" for i in (3, 4)]
    how = ("--cache_dir", "cache", "--out_evaluation", "tensors")
    real = ("ldm.safetensors", "--real_files", *files)
    execute("evaluate", *real, *how, "--steps", 2, cwd=trained)
    figures = json.loads((trained / "tensors.json").read_text())["Figures"]
    off = figures["direction, error in degrees"]
    assert off["real"]["value"] == 0
    assert 0 < off["generated"]["value"] < 90
    assert figures["FA, mean error"]["reconstructed"]["value"] > 0
    assert "FA of the first series" in (trained / "tensors.html").read_text()
    config = tomllib.loads((trained / "tensors.toml").read_text())
    assert "start" not in config["dipy_evaluate_ldm"]
    # Measured series against themselves have no error.
    generated = ("--generated_files", *files, "--force")
    execute("evaluate", *real, *generated, *how, cwd=trained)
    figures = json.loads((trained / "tensors.json").read_text())["Figures"]
    assert figures["FA, mean error"]["generated"]["value"] == 0
    few = ("ldm.safetensors", "--real_files", "sub-0_dwi.nii.gz", "--force")
    again = {"cwd": trained, "status": 2}
    for option in (["--n_samples", 3], ["--classifier"]):
        output = execute("evaluate", *real, *how, *option, "--force", **again)
        assert f"{option[0]} is not for models of diffusion series" in answer(output)
    output = execute("evaluate", *few, *how, cwd=trained, status=2)
    assert "4 diffusion-weighted volumes, but a tensor needs 6" in answer(output)


def test_series_to_compare_have_the_conditions_of_measured_ones(tmp_path, caplog):
    for number in (0, 1):
        save_series(tmp_path, number, 6)
    files = sorted(tmp_path.glob("*_dwi.nii.gz"))
    volumes = load_volumes(files, dwi=True, cache_dir=tmp_path / "cache")
    requested = []

    def predict(n, conditions, **options):
        requested.append(conditions)
        return volumes.images[:n]

    vqvae = SimpleNamespace(predict=lambda images: images)
    number = Condition("continuous", {}, [20.0, 80.0])
    conditions = dict.fromkeys(("age", "bval", "direction"), number)
    model = SimpleNamespace(conditions_=conditions, vqvae_=vqvae, predict=predict)
    compare_series(model, volumes)
    sentence = "age of the real series is drawn at random: neither a participants.tsv"
    assert sentence in caplog.text
    ages = "participant_id\tage\nsub-0\t30\nsub-1\t40\n"
    (tmp_path / "participants.tsv").write_text(ages)
    compare_series(model, volumes)
    unknown, _, *known = requested
    assert unknown.keys() == {"bval", "direction"}
    assert [own["age"] for own in known] == [[30] * 6, [40] * 6]
    figures, pieces = compare_series(model, volumes)
    assert figures["series"] == figures["subjects"] == 2
    assert "2 series of 2 subjects; 95 % intervals below" in pieces["tensors"]
    alone = load_volumes(files[:1], dwi=True, cache_dir=tmp_path / "cache")
    figures, pieces = compare_series(model, alone)
    assert figures["FA, mean error"]["real"] == 0
    assert 0 < figures["FA, mean"]["generated"] < 1
    assert "1 series of 1 subject; intervals need two subjects." in pieces["tensors"]


def test_series_without_a_tensor_are_refused_before_any_is_generated(tmp_path):
    for number, n in enumerate((6, 4)):
        save_series(tmp_path, number, n)
    files = sorted(tmp_path.glob("*_dwi.nii.gz"))
    volumes = load_volumes(files, dwi=True, cache_dir=tmp_path / "cache")
    model = SimpleNamespace(conditions_={"bval": None, "direction": None})
    with pytest.raises(InputError, match=r"sub-1.* has 4 .*, but a tensor needs 6"):
        compare_series(model, volumes)


def test_generated_series_are_no_measured_ones(tmp_path):
    save_series(tmp_path, 0, 6)
    facts = {"Synthetic": True, "Sample": 0, "Sources": ["b0-0.nii"]}
    (tmp_path / "sub-0_dwi.json").write_text(json.dumps(facts))
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -18, -16, -14
    document = {"shape": [10, 9, 8, 1], "affine": affine.tolist()}
    document["intensity"] = [0.0, 1.0]
    options = {"source_files": None, "measurements": None}
    options |= {"cache_dir": tmp_path / "cache"}
    read = partial(read_series, document, [str(tmp_path / "sub-0_dwi.nii.gz")])
    with pytest.raises(InputError, match="was generated by a model; give real images"):
        read(SimpleNamespace(**options), {})
    assert len(read(SimpleNamespace(**options), {"generated": True}).images) == 6


def test_a_folder_of_series_is_checked(trained, command, tmp_path):
    for file in trained.glob("sub-*_dwi.*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "sub-0_dwi.bvec").unlink()
    bvals = np.loadtxt(tmp_path / "sub-1_dwi.bval")
    bvals[-1] = 3000
    np.savetxt(tmp_path / "sub-1_dwi.bval", bvals[None], "%g")
    more = ("--cache_dir", "cache", "--seconds", 0, "--batch_size", 4)
    command("check", ".", "--dwi", *more, status=1)
    page = json.loads((tmp_path / "check.json").read_text())
    (unchecked,) = page["Findings"]["Not checked"]
    assert (unchecked["title"], unchecked["state"]) == ("--dwi", "grey")
    findings = {f["title"]: f for f in page["Findings"]["Files"]}
    (bad,) = findings["files"]["table"]
    assert "sub-0_dwi.nii.gz has no .bvec beside it" in "".join(bad.values())
    series = findings["series"]
    assert series["state"] == "amber"
    assert "Few series have b-values of about 3000" in series["what"]
    assert [row["series"] for row in series["table"]] == [4, 1]
    assert series["table"][0]["most directions"] == 8


def test_series_are_audited_by_subject(trained, tmp_path):
    # Other people than those of the training, in turn with other directions.
    for number in range(10, 30):
        save_series(tmp_path, number, 4)
    files = sorted(trained.glob("sub-*_dwi.nii.gz"))
    how = ("--held_out", *tmp_path.glob("*_dwi.nii.gz"), "--cache_dir", "cache")
    how += ("--train_files", *files, "--pictures")
    words = ("ldm.safetensors", *how, "--steps", 1)
    # Of shapes that differ in three numbers, some are near by chance.
    assert call("dipy_audit_ldm", *words, cwd=trained)[0] in (0, 1)
    facts = json.loads((trained / "audit.json").read_text())
    counts = [facts[f"{name}Images"] for name in ("Train", "HeldOut")]
    assert counts == [30, 20]
    notes = " ".join(facts["Notes"])
    assert "Of 80 held-out images, one per subject is compared (20 subjects)" in notes
    assert "with the conditions bval, direction" in notes
    assert "_dwi.nii.gz, volume " in (trained / "audit-private.html").read_text()
    # The training series themselves are copies.
    for file in trained.glob("sub-*_dwi.*"):
        shutil.copy(file, tmp_path / file.name.replace("sub-", "copy-"))
    copies = ("--generated_files", *tmp_path.glob("copy-*.nii.gz"), "--force")
    output = execute("audit", "ldm.safetensors", *how, *copies, cwd=trained, status=1)
    assert "more copies of training images than expected by chance" in answer(output)
    named = ("--train_files", "copy-0_dwi.nii.gz", "--held_out", "copy-1_dwi.nii.gz")
    output = execute(
        "audit", trained / "ldm.safetensors", *named, cwd=tmp_path, status=2
    )
    assert "has no sub- in its name" in answer(output)
    named = ("--train_files", "sub-11_dwi.nii.gz", "--held_out", "sub-10_dwi.nii.gz")
    named += ("--source_files", trained / "b0-0.nii")
    output = execute(
        "audit", trained / "ldm.safetensors", *named, cwd=tmp_path, status=2
    )
    assert "its b = 0 the source; leave out --source_files" in answer(output)
