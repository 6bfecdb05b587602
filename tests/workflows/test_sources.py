"""Images as conditions on the command line: pairs, training, samples of sources."""

import json
from pathlib import Path
import shutil
from unittest import mock

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import execute, load_model, refuse_faults_of_bids
import pytest
from scans import comment_of, places, save

from dipy_ldm import _serialization, plots
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._preprocessing import conform_source
from dipy_ldm.data._sidecars import sidecar
from dipy_ldm.data._sources import Source
from dipy_ldm.data.volumes import load_volumes, plan_volumes
from dipy_ldm.workflows import _inputs as inputs, _training as report
from dipy_ldm.workflows._conditions import RequestedConditions
from dipy_ldm.workflows._evaluation_images import read_for, refuse_unnamed
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
    output = execute("train", *arguments, cwd=folder)
    return folder, output


def test_training_logs_pairs(trained):
    folder, stdout = trained
    assert "8 pairs of volume and source, by subject and session: " in stdout
    assert "T2/sub-0_T2w.nii.gz with T1/sub-0_T1w.nii.gz; " in stdout
    model = load_model(folder / "ldm.safetensors")
    assert model.source_.channels == 1
    assert model.source_.labels == []
    assert "val_gain_source" in model.history_
    assert (folder / "training.png").is_file()


def test_samples_are_named_after_their_sources(trained):
    folder, _ = trained
    arguments = ("ldm.safetensors", "--steps", 2, "--n_samples", 2, "--seed", 3)
    files = ("T1/sub-1_T1w.nii.gz", "T1/sub-5_T1w.nii.gz")
    execute("generate", *arguments, "--source_files", *files, cwd=folder)
    model = load_model(folder / "ldm.safetensors")
    grid = Grid(model.vqvae.shape_[:3], model.vqvae.affine_)
    for file in files:
        stem = f"{Path(file).name.removesuffix('.nii.gz')}_samples"
        source = conform_source(folder / file, grid)[None]
        facts = json.loads((folder / f"{stem}-0001.json").read_text())
        wanted = model.predict(2, source=source, steps=2, seed=3, first=facts["Noise"])
        for number in range(2):
            image = nib.load(folder / f"{stem}-000{number}.nii.gz")
            npt.assert_allclose(image.affine, model.vqvae.affine_)
            npt.assert_allclose(image.get_fdata(), wanted[number, ..., 0], atol=1e-4)
            facts = json.loads((folder / f"{stem}-000{number}.json").read_text())
            assert facts["Sources"] == [file]
            assert facts["Sample"] == number
            assert comment_of(image) == {"Sources": [file]}
    assert (folder / "samples.png").is_file()


def test_samples_of_each_source_have_captions(trained, tmp_path, monkeypatch):
    captions = lambda self, numbers: [f"age={number}" for number in numbers]  # noqa: E731
    monkeypatch.setattr(RequestedConditions, "captions", captions)
    save_montage, read = mock.Mock(), SourceInputs.read
    monkeypatch.setattr(plots, "save_montage", save_montage)
    read = mock.create_autospec(read, side_effect=read)
    monkeypatch.setattr(SourceInputs, "read", read)
    options = ("--steps", 1, "--n_samples", 2, "--out_dir", tmp_path)
    files = ("T1/sub-1_T1w.nii.gz", "T1/sub-5_T1w.nii.gz")
    arguments = ("ldm.safetensors", *options, "--source_files", *files)
    execute("generate", *arguments, cwd=trained[0])
    shown = save_montage.call_args.kwargs["captions"]
    assert shown == ["age=0", "age=1", "age=0", "age=1"]
    assert read.call_count == 2  # sources, and not samples


def test_samples_of_sources_in_a_dataset(trained, command, monkeypatch):
    monkeypatch.chdir(trained[0])
    options = ("--bids", "--source_files", "T1/sub-1_T1w.nii.gz", "--steps", 1)
    command("generate", "ldm.safetensors", *options, "--out_dir", "ds")
    (sample,) = Path("ds").rglob("*.nii.gz")
    assert sample == Path("ds/sub-1/anat/sub-1_desc-synthetic_T2w.nii.gz")
    assert json.loads(sidecar(sample).read_text())["Sources"][0].endswith("_T1w.nii.gz")
    assert not Path("ds/participants.tsv").exists()
    assert "Scans processed by" in Path("ds/README").read_text()
    refuse_faults_of_bids("ds")


def test_models_with_sources_are_evaluated_and_audited(trained, tmp_path):
    folder, _ = trained
    path = folder / "ldm.safetensors"
    document = _serialization.read_document(path, "latent_diffusion")
    how = {"source_files": [folder / "T1"], "cache_dir": tmp_path / "kept"}
    real = read_for(document, [folder / "T2"], "real_files", **how)
    assert (tmp_path / "kept").is_dir()
    grid = Grid(tuple(document["shape"][:3]), np.array(document["affine"]))
    for file, source in zip(real.files, real.sources, strict=True):
        own = folder / "T1" / file.name.replace("T2w", "T1w")
        npt.assert_allclose(source, conform_source(own, grid), atol=1e-5)
    # They go as far as to count the volumes, and to look whose they are.
    for name, words, sentence in (
        ("evaluate", "--real T2", "needs 40 real images"),
        ("audit", "--train T2 --held_out T2", "images share subjects (sub-0"),
    ):
        words = (name, "ldm.safetensors", *words.split())
        output = execute(*words, cwd=folder, status=2)
        assert "conditioned on source images; give them as --source_files" in output
        further = ("--source_files", "T1", "--cache_dir", "kept")
        assert sentence in execute(*words, *further, cwd=folder, status=2)


def test_sources_of_an_audit_need_subject_names(tmp_path):
    for name in ("sub-1_T1w.nii.gz", "one.nii.gz"):
        save(tmp_path / name, np.zeros((2, 2, 2)), np.eye(4))
    named, other = (str(tmp_path / n) for n in ("sub-1_T1w.nii.gz", "one.nii.gz"))
    refuse_unnamed(None, [other])
    refuse_unnamed([named], [named])
    sentence = "one.nii.gz has no sub- in its name, which"
    with pytest.raises(InputError, match=sentence):
        refuse_unnamed([named], [other], [named])


BAD = {
    "none": ("", "conditioned on source images; give them as --source_files"),
    "not there": ("--source_files T3", "there is no file T3"),
    "bad": ("--source_files T1 bad.nii", "bad.nii is empty; copy or convert"),
    "twice": (
        "--bids --out_dir twice --source_files T1/sub-1_T1w.nii.gz more",
        "2 of the source images would be written to",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_options_are_refused(trained, command, monkeypatch, case):
    arguments, sentence = BAD[case]
    monkeypatch.chdir(trained[0])
    Path("more").mkdir(exist_ok=True)
    shutil.copy("T1/sub-1_T1w.nii.gz", "more")
    Path("bad.nii").touch()
    output = command("generate", "ldm.safetensors", *arguments.split(), status=2)
    assert sentence in output
    assert "skip_bad" not in output


def test_all_bad_sources_are_refused_before_the_first_sample(
    trained, command, monkeypatch
):
    monkeypatch.chdir(trained[0])
    files = [f"constant-{name}.nii" for name in "ab"]
    for file in files:
        save(file, np.ones((9, 8, 7)))
    sources = ("--source_files", "T1/sub-1_T1w.nii.gz", *files)
    options = ("--steps", 1, "--out_dir", "none")
    output = command("generate", "ldm.safetensors", *sources, *options, status=2)
    assert all(f"{file} is constant" in output for file in files)
    assert not Path("none").exists()


def test_sources_for_a_model_without(command):
    older = Path(__file__).parents[1] / "files" / "format-11.safetensors"
    output = command("generate", older, "--source_files", "x.nii.gz", status=2)
    assert "trained without source images; leave out --source_files" in output


def test_other_commands_take_sources_too(trained, command, monkeypatch):
    folder, _ = trained
    monkeypatch.chdir(folder)
    scan, source = "T2/sub-1_T2w.nii.gz", "T1/sub-1_T1w.nii.gz"
    mask = np.zeros((10, 9, 8))
    mask[:4] = 1
    save(folder / "m.nii.gz", mask, nib.load(scan).affine)
    for name, further, sources in (
        ("denoise", ["--strength", 0.9, "--steps", 2], [scan, source]),
        ("inpaint", ["--mask_files", "m.nii.gz"], [scan, "m.nii.gz", source]),
    ):
        output = command(name, "ldm.safetensors", scan, *further, status=2)
        assert "conditioned on source images; give them as --source_files" in output
        made = []
        inputs = [scan] if name == "denoise" else [scan, "m.nii.gz"]
        for number, file in enumerate((source, "T1/sub-2_T1w.nii.gz")):
            if number:
                # The other's, by another name.
                (folder / source).rename("aside")
                (folder / file).rename(source)
            arguments = ("--source_files", "T1", "--out_dir", f"{name}{number}")
            command(name, "ldm.safetensors", scan, *further, *arguments)
            (path,) = (folder / f"{name}{number}").glob("*ed_T2w.nii.gz")
            made.append(nib.load(path).get_fdata())
            assert json.loads(sidecar(path).read_text())["Sources"] == sources
        model = load_model("ldm.safetensors")
        image = getattr(model, name)(*inputs, source=source, steps=1)
        assert image.facts["Sources"] == sources
        (folder / source).rename(file)
        Path("aside").rename(source)
        assert np.abs(made[1] - made[0]).max() > 0


def plan(folder, **options):
    return inputs.plan([str(folder / "T2")], voxel_size=4, **options)


@pytest.mark.parametrize("kind", ["T1", "seg"])
def test_sources_lie_on_the_grid_of_their_volumes(folder, kind):
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


def test_sources_are_held_out_with_their_volumes(folder):
    planned = plan(folder, source_files=[str(folder / "T1")])
    data = planned.load(cache_dir=folder / "cache")
    train, held_out = inputs.split(data, 0.3, 0, 2)
    assert (len(train.sources), len(held_out.sources)) == (5, 3)
    npt.assert_array_equal(held_out.sources, data.sources[5:])


def test_bad_sources_are_skipped_with_their_volumes(folder, tmp_path):
    files = sorted(map(str, (folder / "T1").iterdir()))
    whole = Path(files[2]).read_bytes()
    cut = tmp_path / "sub-2_T1w.nii.gz"
    cut.write_bytes(whole[:-20])
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
        ({"source_files": ["T1/sub-[0-5]*"]}, r"2 of 8 .* no source .*sub-6.*sub-7"),
        ({"source_files": ["T1", "seg"]}, "sub-0_T2w.nii.gz has 2 sources"),
    ],
)
def test_unpaired_sources_are_refused(folder, monkeypatch, options, sentence):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=sentence):
        plan(folder, **options)


def test_labels_are_whole(folder, tmp_path):
    options = {"source_files": [str(folder / "T1")], "source_labels": True}
    with pytest.raises(InputError, match="fractional values"):
        plan(folder, **options).load(cache_dir=tmp_path)


def test_pictures_of_a_training_are_of_sources(tmp_path):
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


def test_source_channels_are_paired_by_subject(bids, caplog):
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
        npt.assert_allclose(source[..., :1], conform_source(t1, grid), atol=1e-6)
        assert (source[..., 1:].sum(-1) <= 1).all()


def test_models_know_the_channels_of_their_sources(bids, command, monkeypatch):
    monkeypatch.chdir(bids.parent)
    sources = ("--suffix", "T2w", "--source_channels", "T1w", "dseg")
    short = (*SHORT, "--steps_ldm", 1, "--steps_vqvae", 1, "--out_dir", "named")
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
    both = [f"bids/sub-0/anat/sub-0_{kind}.nii.gz" for kind in ("T1w", "dseg")]
    assert json.loads(sidecar(samples[0]).read_text())["Sources"] == both
    # The same in Python, of the channels by their names.
    source = {"T1w": both[0], "dseg": both[1]}
    noise = json.loads(sidecar(samples[0]).read_text())["Noise"]
    volume = model.predict(source=source, steps=1, first=noise)
    npt.assert_allclose(volume[0, ..., 0], nib.load(samples[0]).get_fdata(), atol=1e-4)
    scan = "bids/sub-0/anat/sub-0_T2w.nii.gz"
    command("denoise", "named/ldm.safetensors", scan, *how[:2], "--out_dir", "less")
    (path,) = Path("less").glob("*_T2w.nii.gz")
    assert json.loads(sidecar(path).read_text())["Sources"] == [scan, *both]
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
def test_wrong_channels_of_sources_are_refused(bids, monkeypatch, options, sentence):
    monkeypatch.chdir(bids.parent)
    Path("x").mkdir(exist_ok=True)
    shutil.copy("T1/sub-1_T1w.nii.gz", "x/x_T1w.nii.gz")
    with pytest.raises(InputError, match=sentence):
        load_volumes([bids], suffix="T2w", **options)


def plan_first(bids, source_file):
    """Plan the first volume, whose sources are beside it and in a file."""
    source_files = [bids / "sub-0", source_file]
    how = {"suffix": "T2w", "source_channels": ["T1w"], "source_files": source_files}
    return plan_volumes([bids / "sub-0"], **how)


def test_bad_sources_of_no_volume_do_not_matter(bids, tmp_path):
    (tmp_path / "sub-9_T1w.nii.gz").touch()
    (task,) = plan_first(bids, tmp_path / "sub-9_T1w.nii.gz").tasks
    assert task.source.file == bids / "sub-0" / "anat" / "sub-0_T1w.nii.gz"


def test_two_sources_of_a_volume_are_refused(bids, tmp_path):
    (tmp_path / "sub-0_run-2_T1w.nii.gz").touch()
    sentence = "both the T1w of .*; name one of them in `source_files`"
    with pytest.raises(InputError, match=sentence):
        plan_first(bids, tmp_path / "sub-0_run-2_T1w.nii.gz")


def test_the_folder_of_a_study_pairs_no_sources(folder, tmp_path):
    study = tmp_path / "sub-cortical"
    study.mkdir()
    for i in (1, 2):
        for kind in ("T1", "T2"):
            shutil.copy(
                folder / kind / f"sub-{i}_{kind}w.nii.gz", study / f"{i}_{kind}w.nii.gz"
            )
    t1, t2 = ([study / f"*_{kind}w.nii.gz"] for kind in ("T1", "T2"))
    with pytest.raises(InputError, match="1_T1w.nii.gz has no sub- in its name, which"):
        load_volumes(t2, source_channels=["T1w"], source_files=t1)


def test_sources_of_several_kinds_are_refused(tmp_path):
    known = Source(1, [0.0, 1.0], [], "")._asdict()
    document = {"source": known, "shape": [8, 8, 8, 1], "affine": np.eye(4).tolist()}
    for kind in ("T1w", "T2w"):
        save(tmp_path / f"sub-1_{kind}.nii", np.ones((4, 4, 4)), np.eye(4))
    one = SourceInputs.of(document, [str(tmp_path / "*_T1w.nii")])
    assert [file.name for file in one.files] == ["sub-1_T1w.nii"]
    with pytest.raises(InputError, match=r"T1w \(1\), T2w \(1\); name those of one"):
        SourceInputs.of(document, [str(tmp_path)])
