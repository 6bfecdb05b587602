"""The commands on volumes: NIfTI files in, NIfTI files out."""

from functools import partial
import json
import shutil
from types import SimpleNamespace

from PIL import Image
import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import (
    NO_DEVICE,
    answer,
    closed_late,
    execute,
    interrupt_when,
    load_model,
)
import pytest
from scans import list_cached, places, save, small_files

from dipy_ldm import _backend, _serialization, latent_diffusion
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import claimed
from dipy_ldm._utils.progress import without_repeats
from dipy_ldm.data import load_volumes
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._nifti import read_volume
from dipy_ldm.data._sidecars import fingerprint
from dipy_ldm.data.channels import Channel
from dipy_ldm.denoiser import _networks
from dipy_ldm.workflows import _process_scans as process_scans, _training as training
from dipy_ldm.workflows.denoise import DenoiseLDMFlow

VOXEL_SIZE = 8
# Where the brightest place of all volumes is, up to a few millimetres.
LANDMARK = 0, 0, 0
# Not the centre of the volumes: one that is mirrored would be seen.
CENTRE = 8, -12, 6
# Sizes, voxel sizes, orientation, type and version of the format.
FILES = [
    ((33, 17, 21), (3, 6.5, 4.5), "RAS", "int16", 1),
    ((19, 24, 16), (5, 4.5, 6), "LPS", "uint8", 1),
    ((17, 19, 31), (5.8, 5.8, 3), "PIR", "float32", 2),
    ((29, 22, 19), (3.5, 5, 5), "LAS", ">i2", 1),
    ((19, 20, 22), (5, 5.5, 4.4), "ASR", "int16", 2),
    ((25, 25, 17), (4, 4.4, 5.5), "RPI", "float64", 1),
    ((27, 23, 21), (3.7, 4.8, 4.6), "SRA", "uint16", 1),
    ((18, 26, 21), (5.5, 4.2, 4.5), "LIP", "float32", 2),
]
TINY = (
    "--batch_size 2 --n_codes 16 --code_dim 2 --widths_vqvae 8 8 --widths_ldm 8 16 "
    "--precision float32 --no_augment"
).split()
# As much as it takes to learn where the bright place is.
TRAINING = (
    f"--voxel_size {VOXEL_SIZE} --learning_rate 0.01 --epochs_vqvae 40 --epochs_ldm 20"
).split()


def bright_place(path):
    """Return the centre of the brighter half of a volume, in mm."""
    data, affine = read_volume(path)
    weights = np.where(data > data.max() / 2, data, 0)
    return (places(data.shape[:3], affine) * weights).sum((0, 1, 2)) / weights.sum()


def draw(number):
    """Draw a soft ball near the landmark, as a NIfTI image."""
    shape, sizes, axes, dtype, version = FILES[number]
    rng = np.random.default_rng(number)
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = CENTRE - np.multiply(sizes, np.subtract(shape, 1)) / 2
    squared = ((places(shape, affine) - LANDMARK - rng.uniform(-3, 3, 3)) ** 2).sum(-1)
    data = 200 * np.exp(-squared / (2 * rng.uniform(16, 20) ** 2))
    kind = nib.Nifti2Image if version == 2 else nib.Nifti1Image
    image = kind(np.where(data > 10, data, 0).astype(dtype), affine)
    return image.as_reoriented(nib.orientations.axcodes2ornt(axes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a cohort, in which the commands are run."""
    path = tmp_path_factory.mktemp("volumes")
    (path / "cohort").mkdir()
    for i in range(len(FILES)):
        nib.save(draw(i), path / "cohort" / f"sub-{i:02}.nii{'.gz' if i % 2 else ''}")
    return path


@pytest.fixture(scope="module")
def trained(folder):
    """Return the folder with a model in ``out``."""
    arguments = ("cohort", *TINY, *TRAINING, "--cache_dir", "cache")
    execute("train", *arguments, "--out_dir", "out", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def path(trained):
    return trained / "out" / "ldm.safetensors"


@pytest.fixture(scope="module")
def generated(trained):
    """Return the folder with three generated volumes in ``generated``."""
    arguments = "--n_samples 3 --steps 10 --seed 7 --out_dir generated".split()
    execute("generate", "out/ldm.safetensors", *arguments, cwd=trained)
    return trained / "generated"


def test_generated_volumes_lie_where_the_training_volumes_do(trained, generated):
    for file in (trained / "cohort").iterdir():
        npt.assert_allclose(bright_place(file), LANDMARK, atol=4)
    how = {"voxel_size": VOXEL_SIZE, "cache_dir": trained / "cache"}
    volumes = load_volumes([trained / "cohort"], **how)
    for i in range(3):
        file = generated / f"samples-{i:04d}.nii.gz"
        image = nib.load(file)
        assert image.shape == volumes.images.shape[1:4]
        npt.assert_allclose(image.affine, volumes.affine, atol=1e-4)
        npt.assert_allclose(image.get_qform(), volumes.affine, atol=1e-4)
        assert image.header["sform_code"] == image.header["qform_code"] == 2
        assert image.get_data_dtype() == np.float32
        data = image.get_fdata()
        assert 0 <= data.min() < data.max() <= 1
        npt.assert_allclose(bright_place(file), LANDMARK, atol=VOXEL_SIZE)


def test_generated_volumes_record_their_origin(trained, generated):
    mark = fingerprint(trained / "out" / "ldm.safetensors")
    facts = json.loads((generated / "samples-0002.json").read_text())
    origin = {"Synthetic": True, "Model": "ldm.safetensors", "ModelFingerprint": mark}
    origin |= {"Sampler": "dpm++", "Steps": 10, "Guidance": 1.0, "Seed": 7, "Sample": 2}
    assert origin.items() <= facts.items()
    header = nib.load(generated / "samples-0002.nii.gz").header
    description = header["descrip"].item().decode()
    for text in ("synthetic", f"model {mark[:8]}", "seed 7", "sample 2"):
        assert text in description
    with Image.open(generated / "samples.png") as picture:
        assert min(picture.size) > 50


def test_samples_are_generated_alone_and_added(command, path, generated, tmp_path):
    options = "--n_samples 1 --steps 10 --seed 7 --dtype int16 --out_samples a.b"
    command("generate", path, *options.split(), "--first_sample", 2)
    names = ["a.b-0002.json", "a.b-0002.nii.gz", "a.b.png", "a.b.toml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    alone = nib.load(tmp_path / "a.b-0002.nii.gz")
    assert alone.get_data_dtype() == np.int16
    of_three = nib.load(generated / "samples-0002.nii.gz")
    npt.assert_array_equal(alone.affine, of_three.affine)
    npt.assert_allclose(alone.get_fdata(), of_three.get_fdata(), atol=1e-4)
    output = command("generate", path, *options.split(), "--first_sample", 0)
    assert "a.b-2.png" in output
    added = {f"a.b-{end}" for end in ("0000.json", "0000.nii.gz", "2.png", "2.toml")}
    assert {path.name for path in tmp_path.iterdir()} == {*names, *added}


def test_denoise_at_strength_zero_reconstructs(command, folder, path, tmp_path):
    command("denoise", path, folder / "cohort", "--strength", 0, "--out_dir", "clean")
    vqvae = load_model(path).vqvae
    grid = Grid(vqvae.shape_[:3], vqvae.affine_)
    files = sorted((folder / "cohort").iterdir())
    for file, (shape, *_) in zip(files, FILES, strict=True):
        own = nib.load(file)
        assert sorted(own.shape) == sorted(shape)
        stem = file.name.partition(".")[0]
        clean = nib.load(tmp_path / "clean" / f"{stem}_denoised.nii.gz")
        assert clean.shape == own.shape
        npt.assert_allclose(clean.affine, own.affine, atol=1e-4)
        image, origin = Channel("T1w").read(file, grid)
        predicted = vqvae.predict(image[None])[0]
        expected = Channel("T1w").bring_back(predicted, origin)
        npt.assert_allclose(clean.get_fdata(), expected[..., 0], atol=0.01)
    facts = json.loads((tmp_path / "clean" / "sub-00_denoised.json").read_text())
    assert (facts["Strength"], facts["Steps"]) == (0, 1)
    assert facts["Sources"] == [str(files[0])]


def test_denoise_repeats_measure_variation(command, folder, path, tmp_path):
    options = "--strength 0.6 --steps 8 --repeats 2 --out_denoised x".split()
    command("denoise", path, folder / "cohort" / "sub-00.nii", *options)
    names = ["sub-00_x", "sub-00_x_std"]
    files = {f"{name}{end}" for name in names for end in (".json", ".nii.gz")}
    assert {path.name for path in tmp_path.iterdir()} == {*files, "x.toml", "x.png"}
    mean, spread = (nib.load(tmp_path / f"{name}.nii.gz") for name in names)
    assert mean.shape == spread.shape == (33, 17, 21)
    npt.assert_array_equal(mean.affine, spread.affine)
    assert 0 < spread.get_fdata().max() < mean.get_fdata().max()
    assert json.loads((tmp_path / "sub-00_x.json").read_text())["Repeats"] == 2


def test_train_with_channels_masks_and_bad_files(command, tmp_path, untrained):
    for name in ("both", "masks"):
        (tmp_path / name).mkdir()
    for i in (0, 1, 2, 3):
        image = draw(i)
        data = np.stack([image.get_fdata(), 250 - image.get_fdata()], -1)
        both = nib.Nifti1Image(data.astype("float32"), image.affine)
        nib.save(both, tmp_path / "both" / f"{i}.nii.gz")
        mask = nib.Nifti1Image((data[..., 0] > 50).astype("uint8"), image.affine)
        nib.save(mask, tmp_path / "masks" / f"{i}.nii")
    bad = tmp_path / "both" / "1.nii.gz"
    bad.write_bytes(bad.read_bytes()[:1000])
    options = "--channels --skip_bad --mask_files masks --background 0.2 --voxel_size 8"
    small = "--steps_vqvae 1 --steps_ldm 1 --widths_vqvae 4 --widths_ldm 4"
    further = (*TINY, *small.split(), "--cache_dir", "cache")
    output = command("train", "both", *options.split(), *further)
    assert "both/1.nii.gz is cut off" in output
    command("generate", "ldm.safetensors", "--n_samples", 1, "--steps", 1)
    assert nib.load(tmp_path / "samples-0000.nii.gz").shape[3] == 2


@closed_late
def test_ctrl_c_leaves_whole_volumes(command, folder, path, tmp_path):
    arguments = (path, folder / "cohort", "--repeats", 12, "--strength", 1)
    # The last file of the second volume: the first is counted then.
    with interrupt_when(tmp_path / "sub-01_denoised_std.json"):
        output = command("denoise", *arguments, "--steps", 4, status=130)
    assert "the images written so far" in answer(output)
    assert "add --resume to go on" in answer(output)
    assert read_volume(tmp_path / "sub-00_denoised.nii.gz")[0].shape[:3] == (33, 17, 21)
    assert not (tmp_path / "sub-07_denoised.nii.gz").exists()
    assert not [path.name for path in tmp_path.iterdir() if "partial" in path.name]


NOISE = np.random.default_rng(0).random((9, 8, 7))
MISSING = np.where(NOISE == NOISE.max(), -3.4e38, NOISE)
# What makes a file bad (voxels and affine), and what is said of it: in its header, when
# it is read, and when it is rescaled. More of them in tests/data/test_nifti.py.
BAD_VOLUMES = {
    "a zero affine": ([NOISE, np.zeros((4, 4))], "zero, NaN or singular affine"),
    "missing voxels": ([MISSING], "beyond 1e+37, in 1 voxels; replace"),
    "a large offset": ([1e6 + 1000 * NOISE], "collapse when rescaled to 0 to 1; subt"),
}


@pytest.fixture
def volumes(tmp_path):
    """Return a folder of four good volumes."""
    folder = tmp_path / "volumes"
    folder.mkdir()
    for i in range(4):
        save(folder / f"{i}.nii.gz", np.random.default_rng(i).random((9, 8, 7)))
    return folder


@pytest.mark.parametrize("case", BAD_VOLUMES)
def test_training_names_a_bad_volume_and_the_cure(command, volumes, case, tmp_path):
    content, sentence = BAD_VOLUMES[case]
    save(volumes / "bad.nii.gz", *content)
    before = sorted(tmp_path.rglob("*"))
    output = command("train", "volumes", "--cache_dir", "cache", status=2)
    assert "volumes/bad.nii.gz " in output
    assert sentence in output
    assert "--skip_bad to go on without it (4 good)" in answer(output)
    # Of what only reading finds, the work on the others is kept, and whole.
    written = [path for path in tmp_path.rglob("*") if path not in before]
    kept = {path.name for path in written if path.is_file()}
    assert kept in (set(), {"images.npy", "volumes.json"})
    assert not list(tmp_path.rglob("*.partial"))
    # Alone it leaves nothing at all.
    alone = "--batch_size 1 --validation 0 --cache_dir other".split()
    assert sentence in answer(command("train", "volumes/bad.nii.gz", *alone, status=2))
    assert not list(tmp_path.glob("other/*"))


BAD_TRAINING = {
    "devices": ("volumes --validation 0 --devices GPU:9", NO_DEVICE),
    "seed": (
        "volumes --seed 5000000000",
        "seed must be a whole number from 0 to 4294967295, not",
    ),
    "widths": ("volumes --widths_vqvae 0", "widths_vqvae must be at least 1"),
    "background": (
        "volumes --background 2",
        "background must lie between 0 and 1",
    ),
    "learning rate": ("volumes --learning_rate 0", "learning_rate must be above 0"),
    "patch": ("volumes --patch 0", "patch must be at least 1"),
    "no batch": ("volumes --batch_size 0", "batch_size must be at least 1"),
    "two sizes": ("volumes --shape 8 9", "shape must be one positive number"),
    "masks of no use": (
        "volumes --mask_files mask.nii",
        "--mask_files has no effect without --background; give the weight",
    ),
    "a patch of no use": (
        "volumes --init volumes --patch 8",
        "--patch has no effect without training the autoencoder; leave",
    ),
    "no such path": ("nowhere.nii.gz", "there is no file nowhere.nii.gz; check"),
    "one": ("volumes/0.nii.gz", "fewer than a batch of 4; add volumes, or lower"),
    "below a file": ("volumes --out_dir a.mgz/b", "a.mgz is a file; name anot"),
    "over a folder": ("volumes --out_model empty --force", "empty is a folder; give"),
    "several kinds of scans": (
        "volumes sub-1_T1w.nii sub-1_T2w.nii",
        "several kinds, T1w (1), T2w (1); choose with --suffix, such as T1w",
    ),
    "an entity without a value": (
        "volumes --filter task",
        "filter must be entity=value, such as task=rest, not 'task'",
    ),
    "a cache below a file": (
        "volumes --validation 0 --cache_dir a.mgz/cache",
        "name another place with --cache_dir",
    ),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_input_to_training(command, volumes, case, tmp_path):
    arguments, sentence = BAD_TRAINING[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mgz").write_text("no folder")
    save(tmp_path / "mask.nii", NOISE > 0.5)
    for kind in ("T1w", "T2w"):
        (tmp_path / f"sub-1_{kind}.nii").touch()
    before = sorted(tmp_path.rglob("*"))
    if "--cache_dir" not in arguments:
        arguments += " --cache_dir cache"
    assert sentence in answer(command("train", *arguments.split(), status=2))
    assert sorted(tmp_path.rglob("*")) == before


def test_memory_and_devices_are_checked_before_reading(
    command, volumes, monkeypatch, tmp_path
):
    train = partial(command, "train", "volumes", "--validation", 0, status=2)
    monkeypatch.setattr(_backend, "free_memory", lambda strategy: 1e6)
    assert "GiB of memory" in answer(train("--cache_dir", "cache"))
    monkeypatch.setattr(_backend.sharing, "count_replicas", lambda strategy: 3)
    assert "use a --batch_size of 3 or 6" in answer(train("--cache_dir", "cache"))
    assert [path.name for path in tmp_path.iterdir()] == ["volumes"]


def test_a_disk_too_full_for_the_cache(command, volumes, tmp_path):
    arguments = ("volumes", "--validation", 0, "--cache_dir", "cache")
    with small_files(4000):
        output = command("train", *arguments, status=2)
    assert "free some space there or name another place" in answer(output)
    assert not list_cached(tmp_path / "cache")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "volumes"]


BAD_GENERATING = {
    "a text": ("text", "text is not a model file; choose one"),
    "no such path": ("nowhere", "there is no model file nowhere; check"),
    "below a file": ("MODEL --out_dir text/b", "text is a file; name another"),
    "another type": ("MODEL --dtype int17", "choose one of float32"),
    "no samples": ("MODEL --n_samples 0", "n_samples must be at least 1"),
    "no steps": ("MODEL --steps 0", "steps must be at least 1"),
    "a number below 0": ("MODEL --first_sample -1", "--first_sample must be at"),
    "a volume in the way": ("MODEL --out_samples old", "add --force"),
    "a JSON file in the way": ("MODEL --out_samples older", "add --force"),
    "a picture in the way": ("MODEL --out_samples drawn", "drawn.png exists already"),
    "a folder of a sample": ("MODEL --out_samples part --force", "is a folder; give"),
    "a folder there": ("MODEL --out_samples sub --force", "sub.png is a folder; give"),
}
BAD_DENOISING = {
    "a model of images": ("images volumes", "give a model of volumes"),
    "no such path": ("MODEL nowhere.nii", "there is no file nowhere.nii; check"),
    "a bad file": ("MODEL bad.nii", "bad.nii has NaN or infinite values, or "),
    "two of a name": (
        "MODEL volumes/0.nii.gz volumes/0.nii",
        "differ only in their extensions",
    ),
    "two of a name in a dataset": (
        "MODEL a b --bids",
        "2 of the volumes would be written to sub-1/anat/sub-1_desc-denoised_T1w.nii",
    ),
    "another strategy": ("MODEL volumes --strategy x", "one of auto, none"),
    "no such device": ("MODEL volumes/0.nii --devices GPU:9", NO_DEVICE),
    "a file in the way": ("MODEL volumes/1.nii.gz", "overwrite what no JSON file of"),
    "a file in the way of a resumed run": (
        "MODEL volumes/1.nii.gz --resume",
        "1_denoised.json exists already; name another --out_dir",
    ),
    "a picture in the way": ("MODEL volumes/2.nii.gz", "denoised.png exists already"),
    "channels": (
        "MODEL both.nii --channels",
        "model is of 1 channels, and both.nii has 2; give",
    ),
    "no dataset": (
        "MODEL volumes --skull_stripped",
        "has no effect without --bids; add --bids, or leave",
    ),
    "repeats of no effect": (
        "MODEL volumes --strength 0 --repeats 2",
        "--repeats has no effect at --strength 0",
    ),
    "conditions of no effect": (
        "MODEL volumes --strength 0 --conditions age=60",
        "--conditions has no effect at --strength 0",
    ),
    "no repeats": ("MODEL volumes --repeats 0", "repeats must be at least 1"),
    # In one sentence, not one of each volume.
    "too much": ("MODEL volumes --strength 2", ": --strength must lie between 0 and"),
    "a seed below 0": ("MODEL volumes --seed -1", ": --seed must be a whole number"),
}


@pytest.mark.parametrize("case", BAD_GENERATING)
def test_bad_input_to_generating(path, command, case, tmp_path):
    arguments, sentence = BAD_GENERATING[case]
    (tmp_path / "text").write_text("this is no model")
    for name in ("old-0003.nii.gz", "older-0003.json", "drawn.png"):
        (tmp_path / name).touch()
    for name in ("sub.png", "part-0000.nii.gz"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.iterdir())
    words = arguments.replace("MODEL", str(path)).split()
    assert sentence in answer(command("generate", *words, status=2))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("case", BAD_DENOISING)
def test_bad_input_to_denoising(path, command, volumes, case, tmp_path):
    arguments, sentence = BAD_DENOISING[case]
    shutil.copy(_serialization.find("mnist"), tmp_path / "images")
    (tmp_path / "1_denoised.json").touch()
    if case == "a picture in the way":
        (tmp_path / "denoised.png").touch()
    save(volumes / "0.nii", NOISE)
    for name in "ab":
        (tmp_path / name).mkdir()
        save(tmp_path / name / "sub-1_T1w.nii", NOISE)
    save(tmp_path / "both.nii", np.stack([NOISE, NOISE], -1))
    save(tmp_path / "bad.nii", MISSING)
    before = sorted(tmp_path.iterdir())
    words = arguments.replace("MODEL", str(path)).split()
    assert sentence in answer(command("denoise", *words, status=2))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("module", [latent_diffusion, _networks])
def test_warnings_name_the_volume_and_are_shown_once(module, caplog):
    logger = module.logger
    with without_repeats("dipy_ldm.latent_diffusion", "a.nii.gz: "):
        for number in (1, 1, 2):
            logger.warning("the image is unlike %d others", number)
    logger.warning("it is over")
    sentence = "a.nii.gz: the image is unlike {} others"
    assert caplog.messages == [*map(sentence.format, (1, 2)), "it is over"]


@pytest.fixture
def denoise(command, path):
    """Return what denoises as fast as it goes."""
    return partial(command, "denoise", path, "--strength", 0)


def test_an_interrupted_denoising_goes_on(denoise, volumes, tmp_path):
    def written(number):
        path = tmp_path / f"{number}_denoised.nii.gz"
        return path.exists() and path.stat().st_mtime_ns

    arguments = ("volumes", "--difference", "--resume")
    denoise(*arguments)
    before = [written(i) for i in range(4)]
    picture = (tmp_path / "denoised.png").read_bytes()
    for end in ("denoised", "denoised_difference"):  # in the space of the scanner
        assert nib.load(tmp_path / f"0_{end}.nii.gz").header["sform_code"] == 1
    # Not begun, without what is written last, cut off.
    (tmp_path / "0_denoised.nii.gz").unlink()
    for end in ("json", "nii.gz"):
        (tmp_path / f"1_denoised_difference.{end}").unlink()
    (tmp_path / "2_denoised_difference.nii.gz").write_bytes(b"")
    denoise(*arguments)
    assert [written(i) != before[i] for i in range(4)] == [True, True, True, False]
    assert all(map(written, range(4)))
    assert (tmp_path / "denoised.png").read_bytes() == picture
    output = denoise(*arguments[:-1], status=2)
    assert "add --resume to go on, or --force to overwrite" in answer(output)
    # Those of other options are not taken for its own.
    output = denoise(*arguments, "--seed", 5, status=2)
    assert "of another run (Seed was 0 and is 5); resume with the" in answer(output)
    output = denoise(*arguments, "--dtype", "int16", status=2)
    assert "of another run (Dtype was float32 and is int16)" in answer(output)
    (tmp_path / "3_denoised.json").unlink()
    output = denoise(*arguments, status=2)
    assert "3_denoised.nii.gz exists already; name another --out_dir" in answer(output)
    assert written(3) == before[3]
    denoise(*arguments, "--seed", 5, "--force")
    assert written(3) != before[3]
    assert (tmp_path / "denoised.png").read_bytes() != picture


def test_two_runs_do_not_write_the_same_volumes(denoise, volumes, tmp_path):
    with claimed(tmp_path / "0_denoised.nii.gz"):
        output = denoise("volumes", status=2)
    assert "0_denoised.nii.gz is being written by process" in output
    assert answer(output) == "The 3 other volumes were denoised."
    assert len(list(tmp_path.glob("*_denoised.nii.gz"))) == 3
    # As if another run had ended since this began.
    channel = SimpleNamespace(texts=lambda: {".bval": "0 1\n"})
    part = process_scans.Part(channel, volumes / "0.nii.gz", [tmp_path / "0.nii.gz"])
    is_written = partial(
        process_scans._is_written, DenoiseLDMFlow(), process_scans.Task([part], {})
    )
    (tmp_path / "0.bval").write_text("mine\n")
    for resume in (True, False):
        with pytest.raises(InputError, match=r"0\.bval exists already; name another"):
            is_written(resume=resume)
    # What an interrupted run wrote before the sidecar.
    (tmp_path / "0.bval").write_text("0 1\n")
    assert not is_written(resume=True)
    (tmp_path / "0.json").write_text('{"GeneratedBy": {"Name": "dipy_ldm"}}')
    for end in ("json", "nii.gz"):
        (tmp_path / f"0.{end}").touch()
        with pytest.raises(InputError, match=rf"{end}.* exist already; add --resume"):
            is_written(resume=False)


def test_volumes_of_one_name_keep_their_folders(denoise, tmp_path):
    files = [tmp_path / "fs" / name / "mri" / "T1.nii.gz" for name in "ab"]
    for i, file in enumerate(files):
        file.parent.mkdir(parents=True)
        save(file, np.random.default_rng(i).random((9, 8, 7)))
    denoise("fs", "--out_dir", "clean")
    for name, file in zip("ab", files, strict=True):
        facts = (tmp_path / "clean" / name / "mri" / "T1_denoised.json").read_text()
        assert json.loads(facts)["Sources"] == [str(file.relative_to(tmp_path))]
    # Results among the inputs are not denoised once more.
    denoise("clean", "--out_dir", "clean")
    denoise("clean", "--out_dir", "clean", "--resume")
    assert len(list((tmp_path / "clean").rglob("*.nii.gz"))) == 4
    # One alone, or of another name, needs none.
    denoise(files[0])
    assert (tmp_path / "T1_denoised.nii.gz").is_file()


def test_bad_volume_does_not_stop_the_rest(denoise, volumes, tmp_path):
    save(volumes / "1.nii.gz", MISSING)
    save(volumes / "2.nii.gz", NOISE, np.zeros((4, 4)))
    lines = denoise("volumes", status=2).strip().splitlines()[-3:]
    assert any("1.nii.gz has NaN" in line for line in lines)
    assert any("2.nii.gz has a zero, NaN" in line for line in lines)
    assert lines[-1] == "The 2 other volumes were denoised."
    names = {path.name for path in tmp_path.glob("*.nii.gz")}
    assert names == {"0_denoised.nii.gz", "3_denoised.nii.gz"}


def test_a_disk_too_full_for_results(path, command, tmp_path):
    with small_files(500):
        output = command("generate", path, "--n_samples", 1, "--steps", 1, status=2)
    assert "samples-0000.nii.gz (File too large); free some space" in answer(output)
    assert not list(tmp_path.iterdir())


def test_recipe_fit_has_the_subjects():
    class Fitted:
        def fit(self, *images, **options):
            self.options = options
            return self

    cohort = Cohort(np.zeros((3, 9, 9, 9, 1)), subjects=["a", "a", "b"])
    held_out = Cohort(np.zeros((1, 9, 9, 9, 1)), subjects=["c"])
    report = SimpleNamespace(autoencoder=None, diffusion=None)
    for validation, expected in ((held_out, ["c"]), (None, None)):
        recipe = training.Recipe(Fitted(), Fitted(), {"steps": 1}, {})
        options = recipe.fit(cohort, validation, (None, None), report, [[], []]).options
        assert options["subjects"] == ["a", "a", "b"]
        assert options["validation_subjects"] == expected
