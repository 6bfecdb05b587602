"""Source images on the command line: pairing, training, sampling."""

import json
from pathlib import Path
import shutil
from unittest import mock

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import execute, load_model, refuse_faults_of_bids, skipped_training
import pytest
from scans import comment_of, places, save

from dipy_ldm import _serialization, plots
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._sidecars import sidecar
from dipy_ldm.data._sources import Source
from dipy_ldm.data.channels import Channel
from dipy_ldm.data.volumes import load_volumes, plan_volumes
from dipy_ldm.workflows import _inputs as inputs, _training as report
from dipy_ldm.workflows._conditions import RequestedConditions
from dipy_ldm.workflows._evaluation_images import read_for
from dipy_ldm.workflows._sources import SourceInputs

SHORT = (
    "--voxel_size 4 --batch_size 2 --steps_vqvae 3 --steps_ldm 20 --n_codes 64 "
    "--widths_vqvae 4 --widths_ldm 4 --validation 0.2 --precision float32"
).split()


def blob(sizes, shape, centre, sign=1):
    """Return a soft blob on a grid of its own, and the affine."""
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -np.multiply(sizes, np.subtract(shape, 1)) / 2
    data = np.exp(-((places(shape, affine) - centre) ** 2).sum(-1) / 200)
    return (data if sign > 0 else 1.2 - data), affine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with volumes of eight subjects, and others on other grids."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    for name in ("T1", "T2", "seg"):
        (folder / name).mkdir()
    for i in range(8):
        centre = rng.uniform(-8, 8, 3)
        image = blob((4, 4, 4), (10, 9, 8), centre)
        other, affine = blob((3, 5, 4), (17, 9, 11), centre, -1)
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = 16
        save(folder / "T2" / f"sub-{i}_T2w.nii.gz", 500 * image[0], image[1])
        save(folder / "T1" / f"sub-{i}_T1w.nii.gz", 90 * other[::-1], affine @ flip)
        labels = np.where(other < 0.45, 41, 3)
        save(folder / "seg" / f"sub-{i}_dseg.nii.gz", labels, affine)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    arguments = ("T2", *SHORT, "--cache_dir", "cache", "--source_files", "T1")
    with skipped_training("vqvae"):
        output = execute("train", *arguments, cwd=folder)
    return folder, output


def test_train_with_sources(trained):
    folder, output = trained
    assert "8 pairs of volume and source, by subject and session: " in output
    assert "T2/sub-0_T2w.nii.gz with T1/sub-0_T1w.nii.gz; " in output
    model = load_model(folder / "ldm.safetensors")
    assert (model.source_.channels, model.source_.labels) == (1, [])
    assert "val_gain_source" in model.history_
    assert (folder / "training.png").is_file()


TWO = ("T1/sub-1_T1w.nii.gz", "T1/sub-5_T1w.nii.gz")


def test_generate_samples_named_after_their_sources(trained, monkeypatch):
    folder, _ = trained
    captions = lambda self, numbers: [f"age={number}" for number in numbers]  # noqa: E731
    monkeypatch.setattr(RequestedConditions, "captions", captions)
    save_montage = mock.Mock(wraps=plots.save_montage)
    monkeypatch.setattr(plots, "save_montage", save_montage)
    read = mock.create_autospec(SourceInputs.read, side_effect=SourceInputs.read)
    monkeypatch.setattr(SourceInputs, "read", read)
    options = ("--steps", 2, "--n_samples", 2, "--seed", 3, "--source_files", *TWO)
    execute("generate", "ldm.safetensors", *options, cwd=folder)
    assert read.call_count == 2  # sources, and not samples
    assert (folder / "samples.png").is_file()
    shown = save_montage.call_args.kwargs["captions"]
    assert shown == ["age=0", "age=1", "age=0", "age=1"]
    model = load_model(folder / "ldm.safetensors")
    grid = Grid(model.vqvae.shape_[:3], model.vqvae.affine_)
    for file in TWO:
        stem = f"{Path(file).name.removesuffix('.nii.gz')}_samples"
        source = Channel("T1w").read(folder / file, grid)[0][None]
        for number in range(2):
            facts = json.loads((folder / f"{stem}-000{number}.json").read_text())
            assert (facts["Sources"], facts["Sample"]) == ([file], number)
            first = facts["Noise"] + number
            expected = model.predict(source=source, steps=2, seed=3, first=first)
            image = nib.load(folder / f"{stem}-000{number}.nii.gz")
            npt.assert_allclose(image.affine, model.vqvae.affine_)
            npt.assert_allclose(image.get_fdata(), expected[0, ..., 0], atol=1e-4)
            assert comment_of(image) == {"Sources": [file]}


def test_generate_a_dataset_of_sources(trained, command, monkeypatch):
    monkeypatch.chdir(trained[0])
    options = ("--bids", "--source_files", TWO[0], "--steps", 1, "--out_dir", "ds")
    command("generate", "ldm.safetensors", *options)
    (sample,) = Path("ds").rglob("*.nii.gz")
    assert sample == Path("ds/sub-1/anat/sub-1_desc-synthetic_T2w.nii.gz")
    assert json.loads(sidecar(sample).read_text())["Sources"] == [TWO[0]]
    assert not Path("ds/participants.tsv").exists()
    assert "Scans processed by" in Path("ds/README").read_text()
    refuse_faults_of_bids("ds")
    # They have no number that could be another one.
    output = command("generate", "ldm.safetensors", *options, status=2)
    assert "add --force to overwrite" in output and "--first_sample" not in output


def test_evaluate_and_audit_with_sources(trained, tmp_path):
    folder, _ = trained
    document = _serialization.read_document(folder / "ldm.safetensors")
    how = {"source_files": [folder / "T1"], "cache_dir": tmp_path / "kept"}
    real = read_for(document, [folder / "T2"], "real_files", **how)
    assert (tmp_path / "kept").is_dir()
    grid = Grid(tuple(document["shape"][:3]), np.array(document["affine"]))
    for file, source in zip(real.files, real.sources, strict=True):
        own = folder / "T1" / file.name.replace("T2w", "T1w")
        npt.assert_allclose(source, Channel("T1w").read(own, grid)[0], atol=1e-5)
    # They go as far as to count the volumes, and to look whose they are.
    shutil.copy(folder / "T2/sub-1_T2w.nii.gz", folder / "one.nii.gz")
    for name, options, sentence in (
        ("evaluate", "--real T2", "needs 40 real images"),
        ("audit", "--train T2 --held_out T2", "images share subjects (sub-0"),
        ("audit", "--train T2 --held_out one.nii.gz", "one.nii.gz has no sub- in its"),
    ):
        words = (name, "ldm.safetensors", *options.split())
        output = execute(*words, cwd=folder, status=2)
        assert "conditioned on source images; give them as --source_files" in output
        further = ("--source_files", "T1", "--cache_dir", "kept")
        assert sentence in execute(*words, *further, cwd=folder, status=2)


@pytest.mark.parametrize(
    ("options", "sentences"),
    [
        ("", ["conditioned on source images; give them as --source_files"]),
        ("--source_files T3", ["there is no file T3"]),
        ("--source_files T1 bad.nii", ["bad.nii is empty; copy or convert"]),
        (
            "--bids --source_files T1/sub-1_T1w.nii.gz more",
            ["2 of the source images would be written to"],
        ),
        (
            "--source_files T1 constant-a.nii constant-b.nii",
            ["constant-a.nii is constant", "constant-b.nii is constant"],
        ),
    ],
)
def test_generate_refuses_sources(trained, command, monkeypatch, options, sentences):
    monkeypatch.chdir(trained[0])
    Path("more").mkdir(exist_ok=True)
    shutil.copy(TWO[0], "more")
    Path("bad.nii").touch()
    for name in "ab":
        save(f"constant-{name}.nii", np.ones((9, 8, 7)))
    words = ("ldm.safetensors", "--out_dir", "none", *options.split())
    output = command("generate", *words, status=2)
    assert all(sentence in output for sentence in sentences)
    assert "skip_bad" not in output
    assert not Path("none").exists()


def test_source_inputs_of_a_model_without_are_refused():
    path = Path(__file__).parents[1] / "files" / "format-11.safetensors"
    with pytest.raises(InputError, match="trained without source images; leave out"):
        SourceInputs.of(_serialization.read_document(path), ["x.nii.gz"])


@pytest.mark.parametrize(
    ("name", "options", "masks"),
    [
        ("denoise", "--strength 0.9 --steps 2", []),
        ("inpaint", "--mask_files m.nii.gz", ["m.nii.gz"]),
    ],
)
def test_denoise_and_inpaint_with_sources(
    trained, command, monkeypatch, name, options, masks
):
    monkeypatch.chdir(trained[0])
    scan, source = "T2/sub-1_T2w.nii.gz", "T1/sub-1_T1w.nii.gz"
    save("m.nii.gz", np.indices((10, 9, 8))[0] < 4, nib.load(scan).affine)
    Path("other").mkdir(exist_ok=True)
    shutil.copy("T1/sub-2_T1w.nii.gz", "other/sub-1_T1w.nii.gz")
    words = (name, "ldm.safetensors", scan, *options.split())
    output = command(*words, status=2)
    assert "conditioned on source images; give them as --source_files" in output
    results = []
    for folder in ("T1", "other"):
        out = f"{name}-{folder}"
        command(*words, "--source_files", folder, "--out_dir", out)
        (path,) = Path(out).glob("*ed_T2w.nii.gz")
        results.append(nib.load(path).get_fdata())
        sources = [scan, *masks, f"{folder}/sub-1_T1w.nii.gz"]
        assert json.loads(sidecar(path).read_text())["Sources"] == sources
    assert (results[0] != results[1]).any()
    model = load_model("ldm.safetensors")
    image = getattr(model, name)(scan, *masks, source=source, steps=1)
    assert image.facts["Sources"] == [scan, *masks, source]


def plan(folder, **options):
    return inputs.plan([str(folder / "T2")], voxel_size=4, **options)


@pytest.mark.parametrize("kind", ["T1", "seg"])
def test_plan_reads_sources_on_the_grid_of_their_volumes(folder, kind):
    labels = kind == "seg"
    planned = plan(folder, source_files=[str(folder / kind)], source_labels=labels)
    assert planned.source.channels == 1
    data = planned.load(cache_dir=folder / "cache")
    again = planned.load(cache_dir=folder / "cache")
    npt.assert_array_equal(again.sources, data.sources)
    assert data.sources.shape == data.images.shape
    assert data.sources.dtype == ("int32" if labels else "float32")
    if labels:
        # Beyond the files there is nothing.
        assert set(np.unique(data.sources)) <= {0, 3, 41}
        inside = data.sources == 41
    else:
        inside = (data.sources < 0.5) & (data.sources > 0)
    for image, mask in zip(data.images, inside, strict=True):
        centre = np.argwhere(mask[..., 0]).mean(0)
        bright = np.unravel_index(image[..., 0].argmax(), image.shape[:3])
        npt.assert_allclose(centre, bright, atol=1.5)
    train, held_out = inputs.split(data, 0.3, 0, 2)
    assert (len(train.sources), len(held_out.sources)) == (5, 3)
    npt.assert_array_equal(held_out.sources, data.sources[5:])


def test_plan_skips_bad_sources_with_their_volumes(folder, tmp_path):
    files = sorted(map(str, (folder / "T1").iterdir()))
    cut = tmp_path / "sub-2_T1w.nii.gz"
    cut.write_bytes(Path(files[2]).read_bytes()[:-20])
    options = {"source_files": [*files[:2], str(cut), *files[3:]]}
    data = plan(folder, skip_bad=True, **options).load(cache_dir=tmp_path / "cache")
    assert len(data.images) == len(data.sources) == 7
    assert "sub-2" not in data.subjects
    with pytest.raises(InputError, match="sub-2_T1w.nii.gz"):
        plan(folder, **options).load(cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"source_labels": True}, "`source_labels` is for `source_files`"),
        ({"source_files": ["T1", "seg"]}, "sub-0_T2w.nii.gz has 2 sources"),
        ({"source_files": ["T1"], "source_labels": True}, "out in a training"),
    ],
)
def test_plan_refuses_sources(folder, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=sentence):
        plan(folder, **options).load(cache_dir=tmp_path)


def test_report_shows_samples_of_sources(tmp_path):
    class Model:
        def predict(self, n, source, steps):
            assert n == len(source)
            return source

    sources = np.random.default_rng(0).random((9, 6, 6, 6, 1))
    paths = tmp_path / "h.csv", tmp_path / "t.png"
    cohort = Cohort(sources, affine=np.eye(4), sources=sources)
    shown = report.Report(*paths, cohort)
    shown._sample(Model())
    assert len(shown.samples) == 4


@pytest.fixture(scope="module")
def bids(folder):
    """Return a folder of scans of eight subjects, of whom one has no segmentation."""
    for kind in ("T1", "T2", "seg"):
        for file in (folder / kind).glob("sub-[0-7]_*"):
            place = folder / "bids" / file.name.partition("_")[0] / "anat"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    (folder / "bids" / "sub-7" / "anat" / "sub-7_dseg.nii.gz").unlink()
    return folder / "bids"


def test_load_volumes_with_source_channels(bids, caplog):
    how = {"suffix": "T2w", "source_channels": ["T1w", "dseg"], "shuffle": True}
    with caplog.at_level("INFO", "dipy_ldm"):
        volumes = load_volumes([bids], voxel_size=4, cache_dir=bids.parent / "c", **how)
    assert "1 of 8 volumes have no source (T1w, dseg), and are left out" in caplog.text
    assert "sub-7" not in volumes.subjects
    assert [c.kind for c in volumes.source_channels] == ["intensity", "labels"]
    # A column for each of the labels 3 and 41, and the rest of the grid for none.
    assert volumes.sources.shape == (*volumes.images.shape[:4], 3)
    grid = Grid(volumes.images.shape[1:4], volumes.affine)
    for subject, source in zip(volumes.subjects, volumes.sources, strict=True):
        t1 = bids / subject / "anat" / f"{subject}_T1w.nii.gz"
        npt.assert_allclose(
            source[..., :1], Channel("T1w").read(t1, grid)[0], atol=1e-6
        )
        assert (source[..., 1:].sum(-1) <= 1).all()


def test_commands_with_source_channels(
    bids, command, monkeypatch, untrained_autoencoders
):
    monkeypatch.chdir(bids.parent)
    sources = ("--suffix", "T2w", "--source_channels", "T1w", "dseg")
    short = (*SHORT, "--steps_ldm", 1, "--out_dir", "named")
    command("train", "bids", *short, *sources, "--cache_dir", "cache")
    model = load_model("named/ldm.safetensors")
    assert [channel.name for channel in model.source_channels_] == ["T1w", "dseg"]
    assert model.source_.bounds == [0, 1]
    assert "T1w, dseg" in repr(model)
    how = ("--source_files", "bids", "--steps", 1, "--out_dir", "of-named", "--bids")
    command("generate", "named/ldm.safetensors", *how)
    samples = sorted(Path("of-named").rglob("*.nii.gz"))
    assert len(samples) == 7
    assert samples[0].name == "sub-0_desc-synthetic_T2w.nii.gz"
    files = [f"bids/sub-0/anat/sub-0_{kind}.nii.gz" for kind in ("T1w", "dseg")]
    assert json.loads(sidecar(samples[0]).read_text())["Sources"] == files
    # The same in Python, of the channels by their names.
    source = dict(zip(("T1w", "dseg"), files, strict=True))
    noise = json.loads(sidecar(samples[0]).read_text())["Noise"]
    volume = model.predict(source=source, steps=1, first=noise)
    npt.assert_allclose(volume[0, ..., 0], nib.load(samples[0]).get_fdata(), atol=1e-4)
    scan = "bids/sub-0/anat/sub-0_T2w.nii.gz"
    command("denoise", "named/ldm.safetensors", scan, *how[:2], "--out_dir", "less")
    (path,) = Path("less").glob("*_T2w.nii.gz")
    assert json.loads(sidecar(path).read_text())["Sources"] == [scan, *files]
    output = command(
        "generate", "named/ldm.safetensors", "--source_files", "T1", status=2
    )
    assert "no file has the suffix dseg" in output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"source_channels": ["FLAIR"]}, r"no file has the suffix FLAIR; there are"),
        ({"source_channels": ["dseg"], "source_labels": True}, "leave out `source_l"),
        ({"source_channels": ["T1w"], "dwi": True}, "leave out `source_channels`"),
        ({"source_channels": ["T1w"], "source_files": ["x"]}, "x_T1w.nii.gz has no su"),
    ],
)
def test_load_volumes_refuses_source_channels(bids, monkeypatch, options, sentence):
    monkeypatch.chdir(bids.parent)
    Path("x").mkdir(exist_ok=True)
    shutil.copy("T1/sub-1_T1w.nii.gz", "x/x_T1w.nii.gz")
    with pytest.raises(InputError, match=sentence):
        load_volumes([bids], suffix="T2w", **options)


def test_plan_volumes_needs_one_source_of_each(bids, tmp_path):
    further = tmp_path / "sub-9_T1w.nii.gz"
    how = {"suffix": "T2w", "source_channels": ["T1w"]}
    how["source_files"] = [bids / "sub-0", tmp_path]
    # A bad one of no volume does not matter.
    further.touch()
    (task,) = plan_volumes([bids / "sub-0"], **how).tasks
    ((_, file),) = task.source_parts
    assert file == bids / "sub-0" / "anat" / "sub-0_T1w.nii.gz"
    further.rename(tmp_path / "sub-0_run-2_T1w.nii.gz")
    sentence = "both the T1w of .*; name one of them in `source_files`"
    with pytest.raises(InputError, match=sentence):
        plan_volumes([bids / "sub-0"], **how)


def test_source_inputs_of_several_kinds_are_refused(tmp_path):
    document = {"shape": [8, 8, 8, 1], "affine": np.eye(4).tolist()}
    document["source"] = Source(1, [0.0, 1.0], [], "")._asdict()
    for kind in ("T1w", "T2w"):
        save(tmp_path / f"sub-1_{kind}.nii", np.ones((4, 4, 4)), np.eye(4))
    one = SourceInputs.of(document, [str(tmp_path / "*_T1w.nii")])
    assert [file.name for file in one.files] == ["sub-1_T1w.nii"]
    with pytest.raises(InputError, match=r"T1w \(1\), T2w \(1\); name those of one"):
        SourceInputs.of(document, [str(tmp_path)])
