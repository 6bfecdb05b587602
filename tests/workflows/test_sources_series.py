"""Diffusion series on the command line: training, and generation from b = 0."""

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
from processes import (
    answer,
    call,
    execute,
    load_model,
    refuse_faults_of_bids,
    skipped_training,
)
import pytest

from dipy_ldm import InputError, LatentDiffusion
from dipy_ldm._conditions import Condition, to_saved
from dipy_ldm._serialization import read_document
from dipy_ldm.data import load_volumes
from dipy_ldm.data._bvals_bvecs import EXTENSIONS, Gradients
from dipy_ldm.evaluation._diffusion_tensors import compare_series
from dipy_ldm.workflows._sources import Series, read_gradients

SHORT = (
    "--dwi --batch_size 4 --steps_vqvae 4 --steps_ldm 10 --n_codes 64 "
    "--widths_vqvae 4 --widths_ldm 4 --validation 0.4 --precision float32"
).split()
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
    with skipped_training("vqvae"):
        output = execute("train", *files, *SHORT, "--cache_dir", "cache", cwd=folder)
    assert "5 series: 30 diffusion-weighted volumes with b of about 1000" in output
    assert re.search("[23] of 5 subjects are held out", output)
    b = np.array([0, 1000, 20, 1000, 1000, 1000, 1000, 3000])
    vectors = np.random.default_rng(9).normal(size=(8, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[4] = -vectors[3]
    np.savetxt(folder / "table.bval", b[None], "%g")
    np.savetxt(folder / "table.bvec", vectors.T)
    return folder


GENERATE = "generate --source_files b0-1.nii"
FROM_TABLE = f"{GENERATE} --bvals table.bval --bvecs table.bvec"


def run(folder, words, *further, status=0):
    """Run a command with the model of a folder."""
    name, *words = words.split()
    words = ("ldm.safetensors", *words, *further)
    return execute(name, *words, cwd=folder, status=status)


def fit_tensors(stem, data):
    """Fit tensors by DIPY, which must have no complaint about the tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bvals, bvecs = read_bvals_bvecs(f"{stem}.bval", f"{stem}.bvec")
        fit = TensorModel(gradient_table(bvals, bvecs=bvecs)).fit(data)
    assert np.isfinite(fit.fa).all()
    return bvecs


def test_generate_series_that_dipy_reads(trained):
    output = run(trained, f"{FROM_TABLE} --steps 2")
    assert "bval 3000 is outside the model's range of 950 to 1050" in output
    stem = trained / "b0-1_samples"
    image = nib.load(f"{stem}.nii.gz")
    data = image.get_fdata()
    b0 = nib.as_closest_canonical(nib.load(trained / "b0-1.nii"))
    npt.assert_allclose(image.affine, b0.affine)
    for volume in (0, 2):
        npt.assert_allclose(data[..., volume], b0.get_fdata(), rtol=1e-5, atol=1e-3)
    # The opposite direction gives the same volume.
    npt.assert_array_equal(data[..., 3], data[..., 4])
    assert np.abs(data[..., 1] - data[..., 3]).max() > 0
    # Both grids differ by left and right alone, which FSL's axes don't.
    vectors = np.loadtxt(trained / "table.bvec").T
    npt.assert_allclose(fit_tensors(stem, data), vectors, atol=1e-6)
    facts = json.loads(stem.with_suffix(".json").read_text())
    assert facts["Sources"] == ["b0-1.nii"]
    assert facts["SameNoise"] is True
    world = vectors[[1, *range(3, 8)]] * [-1, 1, 1]
    npt.assert_allclose(facts["Conditions"]["direction"], world, atol=1e-6)
    output = run(trained, FROM_TABLE, status=2)
    assert "b0-1_samples.bval" in answer(output)


def test_python_scales_a_b0_with_negative_voxels_as_the_commands_do(trained, tmp_path):
    file, b0 = tmp_path / "b0.nii", nib.load(trained / "b0-1.nii")
    nib.save(nib.Nifti1Image(b0.get_fdata() - 30, b0.affine), file)
    model = LatentDiffusion.load(trained / "ldm.safetensors")
    grid, _ = model.vqvae_._grid()
    tables = [trained / f"table{end}" for end in EXTENSIONS]
    series = Series.of(file, Gradients.read(*tables), grid)
    npt.assert_array_equal(model._read_source(file)[0], series.source[None])


def test_load_volumes_keeps_the_tensors_of_a_real_series(tmp_path):
    files = [Path(file) for file in get_fnames(name="small_25")]
    for file, end in zip(files, (".nii.gz", ".bval", ".bvec"), strict=True):
        shutil.copy(file, tmp_path / f"sub-1_dwi{end}")
    (tmp_path / "sub-1_T1w.nii").touch()
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


def test_train_on_series(trained):
    model = load_model(trained / "ldm.safetensors")
    assert [c.kind for c in model.conditions_.values()] == ["continuous", "direction"]
    assert model.conditions_["bval"].units == "s/mm^2"
    assert "val_gain_direction" in model.history_
    assert "val_gain_bval" not in model.history_  # of one shell
    assert model.default_guidance == 3
    images = model.predict(source=np.full((1, 10, 9, 8, 1), 0.5), steps=1)
    assert images.shape == (1, 10, 9, 8, 1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (GENERATE, "series; give their b-values as --bvals"),
        (f"{GENERATE} --bvals table.bval", "their directions as --bvecs"),
        (f"{FROM_TABLE} --bvals no.bval", "can't be read as b-values"),
        (
            FROM_TABLE.replace("b0-1.nii", "sub-1_dwi.nii.gz"),
            "give a volume or a map of it, such as b = 0 (by dipy_extract_b0)",
        ),
        (f"{FROM_TABLE} --conditions bval=9", "in the tables of --bvals and"),
        ("denoise b0-0.nii", "not a diffusion series; give 4-D files (x, y, z, vol"),
        (
            "denoise sub-1_dwi.nii.gz --source_files b0-1.nii",
            "leave out --source_files",
        ),
        (
            "denoise sub-1_dwi.nii.gz --conditions bval=9",
            "bval is in the tables beside",
        ),
        ("denoise sub-1_dwi.nii.gz --lesions", "makes diffusion series"),
        (
            "inpaint sub-1_dwi.nii.gz --mask_files b0-1.nii",
            "makes diffusion series, from a b = 0 that it can't inpaint",
        ),
    ],
)
def test_commands_refuse_options_for_models_of_series(trained, words, sentence):
    assert sentence in answer(run(trained, words, status=2))


def test_denoise_refuses_scans_for_a_model_of_series(trained):
    model = load_model(trained / "ldm.safetensors")
    with pytest.raises(InputError, match="makes diffusion series"):
        model.denoise(trained / "b0-0.nii", source=trained / "b0-0.nii")


def test_read_gradients_of_other_models_is_refused():
    document = read_document(Path(__file__).parents[1] / "files/format-11.safetensors")
    with pytest.raises(InputError, match="trained without `dwi`; leave out `bvals`"):
        read_gradients(document, "a.bval", "a.bvec", {})


@pytest.mark.parametrize("source", [None, {"channels": 1}])
def test_read_gradients_needs_a_model_of_sources_and_b_values(source):
    conditions = to_saved({"direction": Condition("direction", {}, [])})
    document = {"conditions": conditions, "source": source}
    with pytest.raises(InputError, match="not one of series .* train one with `dwi`"):
        read_gradients(document, "a.bval", "a.bvec", {})


def test_denoise_series_in_their_own_space(trained, tmp_path):
    # The b = 0 of the second stands between its other volumes.
    source, moved = trained / "sub-1_dwi.nii.gz", tmp_path / "sub-9_dwi.nii.gz"
    data, order = nib.load(source).get_fdata(dtype="float32"), [2, 1, 0, 3, 4, 5]
    nib.save(nib.Nifti1Image(data[..., order], AFFINE), moved)
    for end in (".bval", ".bvec"):
        table = np.loadtxt(trained / f"sub-1_dwi{end}", ndmin=2)[:, order]
        np.savetxt(tmp_path / f"sub-9_dwi{end}", table)
    words = "denoise --out_dir clean --strength 0"
    run(trained, f"{words} {source} {moved}")
    stems = [trained / "clean" / f"sub-{i}_desc-denoised_dwi" for i in (1, 9)]
    images = [nib.load(f"{stem}.nii.gz") for stem in stems]
    first, second = (image.get_fdata(dtype="float32") for image in images)
    npt.assert_allclose(second, first[..., order], rtol=1e-4, atol=1e-2)
    npt.assert_array_equal(first[..., 0], data[..., 0])
    assert all(np.abs(first - data).max((0, 1, 2))[1:] > 1)
    npt.assert_array_equal(images[0].affine, AFFINE)
    fit_tensors(stems[1], second)
    facts = json.loads(stems[1].with_suffix(".json").read_text())
    assert facts["Conditions"]["bval"] == [1000.0] * 5
    assert [Path(file).name for file in facts["Sources"]] == [
        f"sub-9_dwi{end}" for end in (".nii.gz", ".bval", ".bvec")
    ]
    run(trained, f"{words} {source} --resume")
    (tmp_path / "sub-9_dwi.bval").write_text("900 900 0 900 900 900")
    output = run(trained, f"{words} {moved} --resume", status=2)
    assert "sub-9_dwi.bval has changed); resume" in answer(output)


def test_denoise_series_repeatedly(trained):
    words = "denoise sub-2_dwi.nii.gz --repeats 2 --difference --out_dir clean"
    run(trained, words)
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


def test_series_in_datasets(trained, tmp_path):
    b0 = tmp_path / "sub-1_b0.nii"
    shutil.copy(trained / "b0-1.nii", b0)
    tables = "--bvals table.bval --bvecs table.bvec --suffix dwi --steps 1"
    scans, generated, clean = (tmp_path / name for name in ("scans", "made", "clean"))
    scans.mkdir()
    for file in trained.glob("sub-1_dwi.*"):
        shutil.copy(file, scans)
    (scans / "sub-1_T1w.nii").touch()
    run(trained, f"generate --source_files {b0} {tables} --bids --out_dir {generated}")
    run(trained, f"denoise {scans} --bids --out_dir {clean}")
    for root in (generated, clean):
        assert (root / ".bidsignore").read_text() == "*_dwi.bval\n*_dwi.bvec\n"
        assert [*root.glob("sub-1/dwi/*_dwi.bvec")]
        refuse_faults_of_bids(root)


def test_evaluate_series_by_their_tensors(trained, monkeypatch):
    evaluate = "evaluate --cache_dir cache --out_evaluation tensors --force --real"
    files = "sub-3_dwi.nii.gz sub-4_dwi.nii.gz"
    run(trained, f"{evaluate} {files} --steps 2")
    figures = json.loads((trained / "tensors.json").read_text())["Figures"]
    off = figures["direction, error in degrees"]
    assert off["real"]["value"] == 0
    assert 0 < off["generated"]["value"] < 90
    assert figures["FA, mean error"]["reconstructed"]["value"] > 0
    assert "FA of the first series" in (trained / "tensors.html").read_text()
    config = tomllib.loads((trained / "tensors.toml").read_text())
    assert "start" not in config["dipy_evaluate_ldm"]
    # Measured series against themselves have no error.
    (trained / "made").mkdir()
    for file in trained.glob("sub-[34]_dwi.*"):
        shutil.copy(file, trained / "made")
        facts = {"Synthetic": True, "Sample": 0, "Sources": ["b0.nii"]}
        (trained / "made" / f"{file.name[:9]}.json").write_text(json.dumps(facts))
    run(trained, f"{evaluate} {files} --generated_files made")
    figures = json.loads((trained / "tensors.json").read_text())["Figures"]
    assert figures["FA, mean error"]["generated"]["value"] == 0
    output = run(trained, f"{evaluate} made", status=2)
    assert "was generated by a model; give real images" in answer(output)
    for option in ("--n_samples 3", "--classifier"):
        output = run(trained, f"{evaluate} {files} {option}", status=2)
        assert f"{option.split()[0]} is not for models of diffusion" in answer(output)
    # Before any is generated.
    monkeypatch.delattr(LatentDiffusion, "predict")
    output = run(trained, f"{evaluate} {files} sub-0_dwi.nii.gz", status=2)
    assert "sub-0_dwi.nii.gz has 4 diffusion-weighted volumes, but a" in answer(output)


def test_compare_series_of_the_conditions_of_measured_ones(tmp_path, caplog):
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
    figures, pieces = compare_series(model, volumes)
    without_ages, _, *with_ages = requested
    assert without_ages.keys() == {"bval", "direction"}
    assert [own["age"] for own in with_ages] == [[30] * 6, [40] * 6]
    assert figures["series"] == figures["subjects"] == 2
    assert "2 series of 2 subjects; 95 % intervals below" in pieces["tensors"]
    alone = load_volumes(files[:1], dwi=True, cache_dir=tmp_path / "cache")
    figures, pieces = compare_series(model, alone)
    assert figures["FA, mean error"]["real"] == 0
    assert 0 < figures["FA, mean"]["generated"] < 1
    assert "1 series of 1 subject; intervals need two subjects." in pieces["tensors"]


def test_check_a_folder_of_series(trained, command, tmp_path):
    for file in trained.glob("sub-*_dwi.*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "sub-0_T1w.nii").touch()
    (tmp_path / "sub-0_dwi.bvec").unlink()
    data = nib.load(tmp_path / "sub-2_dwi.nii.gz").get_fdata(dtype="float32")
    data[0, 0, 0, 1:3] = np.nan
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "sub-2_dwi.nii.gz")
    bvals = np.loadtxt(tmp_path / "sub-1_dwi.bval")
    bvals[-1] = 3000
    np.savetxt(tmp_path / "sub-1_dwi.bval", bvals[None], "%g")
    more = ("--cache_dir", "cache", "--seconds", 0, "--batch_size", 4)
    command("check", ".", "--dwi", *more, status=1)
    page = json.loads((tmp_path / "check.json").read_text())
    (unchecked,) = page["Findings"]["Not checked"]
    assert (unchecked["title"], unchecked["state"]) == ("--dwi", "grey")
    findings = {f["title"]: f for f in page["Findings"]["Files"]}
    message = "1 of 5 files and 2 volumes of 1 other file cannot be used."
    assert findings["files"]["what"] == message
    bad, *volumes = findings["files"]["table"]
    assert len(volumes) == 2
    assert "sub-0_dwi.nii.gz has no .bvec beside it" in "".join(bad.values())
    series = findings["series"]
    assert series["state"] == "amber"
    assert "Few series have b-values of about 3000" in series["what"]
    assert [row["series"] for row in series["table"]] == [4, 1]
    assert series["table"][0]["most directions"] == 8


def test_audit_series_by_subject(trained, tmp_path):
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
    path, b0 = trained / "ldm.safetensors", "--source_files b0-11.nii"
    for words, sentence in (
        ("copy-0_dwi.nii.gz --held_out copy-1_dwi.nii.gz", "has no sub- in its name"),
        (f"sub-11_dwi.nii.gz --held_out sub-10_dwi.nii.gz {b0}", "its b = 0 the"),
    ):
        words = ("--train_files", *words.split())
        output = execute("audit", path, *words, cwd=tmp_path, status=2)
        assert sentence in answer(output)
