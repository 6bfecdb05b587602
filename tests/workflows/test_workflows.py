"""The console scripts as processes: files in, files out, exit statuses."""

import csv
from dataclasses import replace
import json
from operator import attrgetter
import os
import re
import shutil
import signal
import sys

from PIL import Image
import keras
import numpy as np
import numpy.testing as npt
from processes import (
    NO_MACHINES,
    TINY,
    answer,
    call,
    closed_late,
    execute,
    interrupt_when,
    kill_when,
    load_model,
    run,
    run_python,
    start,
)
import pytest

from dipy_ldm import LatentDiffusion, __version__, _serialization, plots
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import claimed
from dipy_ldm.data._sidecars import fingerprint
from dipy_ldm.workflows import _training
from dipy_ldm.workflows._option_table import TrainOptions
from dipy_ldm.workflows.train import TrainLDMFlow, _settings


@pytest.fixture(scope="module")
def folder(trained_folder):
    return trained_folder


@pytest.fixture(scope="module")
def trained(folder):
    return folder / "out"


def test_training_writes_model_history_and_picture(trained):
    files = sorted(path.name for path in trained.iterdir())
    assert files == ["history.csv", "ldm.safetensors", "ldm.toml", "training.png"]
    with open(trained / "history.csv") as table:
        rows = list(csv.DictReader(table))
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        *(("autoencoder", e) for e in "12"),
        *(("diffusion", e) for e in "123"),
    ]
    assert all(float(row["loss"]) > 0 for row in rows)
    assert {"perplexity", "usage", "val_mse", "val_detail", "val_loss"} < set(rows[0])
    with Image.open(trained / "training.png") as picture:
        assert picture.size == (1200, 800)


def test_train_that_learns_nothing_ends_with_status_2(folder, tmp_path):
    nothing = [*TINY[4:], "--steps_vqvae", 120, "--learning_rate", 100]
    arguments = (folder / "blobs.npy", *nothing, "--steps_ldm", 1)
    output = execute("train", *arguments, cwd=tmp_path, status=2)
    assert "the autoencoder has learnt nothing in" in answer(output)
    # Figures and pictures show it, and there is no model.
    assert not (tmp_path / "ldm.safetensors").exists()
    assert (tmp_path / "history.csv").exists()


def test_generating_writes_array_and_picture(trained, blobs, monkeypatch):
    # As of a user, who has not silenced TensorFlow.
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    arguments = ("out/ldm.safetensors", "--n_samples", 5, "--steps", 3, "--seed", 7)
    status, stdout, stderr = run("dipy_generate_ldm", *arguments, cwd=trained.parent)
    assert status == 0, stderr
    # A progress bar, what was written, and nothing else.
    assert {line[:9] for line in stderr.split("\n") if line} == {"generate:"}, stderr
    assert stdout.strip() == "INFO: wrote samples.npz, samples.png"
    with np.load(trained.parent / "samples.npz") as arrays:
        images = arrays["images"]
        npt.assert_array_equal(arrays["sample"], np.arange(5))
        assert arrays["seed"] == 7
        assert arrays["synthetic"]
        facts = json.loads(arrays["description"].item())
    expected = {
        "Synthetic": True,
        "Steps": 3,
        "Seed": 7,
        "Sampler": "dpm++",
        "Guidance": 2,
    }
    assert expected.items() <= facts.items()
    assert facts["GeneratedBy"]["Version"] == __version__
    assert facts["ModelFingerprint"] == fingerprint(trained / "ldm.safetensors")
    assert (images.shape, images.dtype) == ((5, 13, 10, 1), np.float32)
    assert images.min() >= blobs.min()
    assert images.max() <= blobs.max()
    assert (trained.parent / "samples.png").is_file()
    model = load_model(trained / "ldm.safetensors")
    npt.assert_allclose(model.predict(5, steps=3, seed=7), images, atol=1e-4)
    # Once more: nothing is overwritten unless forced.
    before = (trained.parent / "samples.npz").stat().st_mtime_ns
    output = execute("generate", *arguments, cwd=trained.parent, status=2)
    assert "--force" in answer(output)
    assert (trained.parent / "samples.npz").stat().st_mtime_ns == before
    execute("generate", *arguments, "--force", cwd=trained.parent)


@pytest.mark.tensorflow
def test_generating_one_sample_alone(trained, tmp_path):
    model_file = trained / "ldm.safetensors"
    model = load_model(model_file)
    arguments = ("--n_samples", 1, "--first_sample", 7000, "--out_samples", "a.b")
    spread = ("--strategy", "mirrored", "--devices", 0)
    execute("generate", model_file, *arguments, *spread, cwd=tmp_path)
    with np.load(tmp_path / "a.b.npz") as arrays:
        assert arrays["sample"].tolist() == [7000]
        npt.assert_allclose(arrays["images"], model.predict(1, first=7000), atol=1e-4)


def assert_same_model(folder, other):
    models = [LatentDiffusion.load(f / "ldm.safetensors") for f in (folder, other)]
    for name in ("denoiser_", "guide_", "vqvae.encoder_", "vqvae.decoder_"):
        weights = (attrgetter(name)(model).get_weights() for model in models)
        for a, b in zip(*weights, strict=True):
            npt.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert models[0].history_ == models[1].history_
    tables = [(path / "history.csv").read_text() for path in (folder, other)]
    assert tables[0] == tables[1]


# What runs rewritten graphs (conftest.py) rounds other digits.
TRAIN_WITHOUT_OPTIMIZER = """
from contextlib import suppress
with suppress(ImportError):
    import tensorflow as tf
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
from dipy_ldm.workflows import cli
cli.train()
"""


@closed_late
def test_stopped_three_times_and_resumed_is_the_uninterrupted(trained, tmp_path):
    # Checkpoints within the epochs too, so that it is stopped in the middle of one.
    arguments = (trained.parent / "blobs.npy", *TINY, "--checkpoint_steps", 1)
    resumed = (*arguments, "--resume")  # from the first, which has nothing to resume
    for checkpoint, sent, expected in (
        ("autoencoder-checkpoint", signal.SIGKILL, -signal.SIGKILL),
        ("diffusion-checkpoint.guide", signal.SIGTERM, 143),
        ("diffusion-checkpoint", signal.SIGINT, 130),
    ):
        path = tmp_path / f"ldm.safetensors.{checkpoint}"
        if sent == signal.SIGKILL:
            process = start(
                sys.executable, "-c", TRAIN_WITHOUT_OPTIMIZER, *resumed, cwd=tmp_path
            )
            stdout, _ = kill_when(process, path, sent)
            status = process.returncode
        else:
            with interrupt_when(path, sent):
                status, stdout, stderr = call("dipy_train_ldm", *resumed, cwd=tmp_path)
            assert "--resume" in answer(stderr)
        assert status == expected
        # DIPY sends what is logged to the standard output.
        nothing = "there is no checkpoint to resume from" in stdout
        assert nothing == (checkpoint == "autoencoder-checkpoint")
        assert not (tmp_path / "ldm.safetensors").exists()
        output = execute("train", *arguments, cwd=tmp_path, status=2)
        assert "--resume" in answer(output)
    execute("train", *resumed, cwd=tmp_path)
    assert_same_model(trained, tmp_path)
    assert not list(tmp_path.glob("*checkpoint*"))


@pytest.mark.parametrize("more", [(), ("--resume",), ("--force",)])
def test_a_second_training_of_the_same_outputs_is_refused(
    command, folder, tmp_path, more
):
    out = tmp_path / "out"
    out.mkdir()
    with claimed(out / "ldm.safetensors"):
        before = sorted(out.iterdir())
        options = (folder / "blobs.npy", *TINY, "--out_dir", out, *more)
        output = command("train", *options, status=2)
        assert f"written by process {os.getpid()} on" in answer(output)
        assert sorted(out.iterdir()) == before
        # Nor one that began at the same time.
        flow = TrainLDMFlow(force=True)
        flow.checkpoints = []
        with pytest.raises(OSError, match="is being written by"):
            with flow._claim_outputs([out / "ldm.safetensors"], False, chief=True):
                pass


def test_two_runs_do_not_generate_the_same_samples(command, tmp_path):
    with claimed(tmp_path / "samples.npz"):
        output = command("generate", "mnist", "--n_samples", 1, status=2)
    assert "samples.npz is being written by process" in answer(output)
    assert not list(tmp_path.iterdir())


@closed_late
def test_images_are_there_if_their_picture_is_interrupted(command, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "save_montage", interrupt)
    options = ("--n_samples", 2, "--steps", 1)
    output = command("generate", "mnist", *options, status=130)
    assert "the images written so far (2) are complete" in answer(output)


@pytest.fixture
def ended(tmp_path):
    """Return the model file of a training of the digits that has ended."""
    path = tmp_path / "ldm.safetensors"
    shutil.copy(_serialization.find("mnist"), path)
    return path


def save_with_settings(path, settings):
    """Write a model file as a training with these options does."""
    tensors, document = _serialization.load(path, "latent_diffusion")
    document["settings"] = settings
    _serialization.save(path, "latent_diffusion", tensors, document)


def test_resuming_an_ended_training(command, ended, tmp_path):
    options = TrainOptions(input_files=["mnist"], conditions=["label"])
    save_with_settings(ended, _settings(options))
    before = ended.read_bytes()
    # It was stopped before its last picture.
    checkpoint = tmp_path / "ldm.safetensors.diffusion-checkpoint"
    checkpoint.touch()
    os.utime(checkpoint, (0, 0))
    # As a job does that is put into the queue again.
    options = ("mnist", "--conditions", "label", "--resume")
    status, _, stderr = call("dipy_train_ldm", *options, cwd=tmp_path)
    assert (status, stderr) == (0, "")
    assert [*tmp_path.iterdir()] == [ended] and ended.read_bytes() == before
    # A training with --force was interrupted, and did not replace it.
    checkpoint.touch()
    output = command("train", *options, status=2)
    assert "is older than the checkpoint of a training that" in answer(output)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        # Sizes that were chosen may be named, and devices may be others.
        ("mnist --devices 1 --n_codes 1024", None),
        ("/data/mnist/", None),
        ("a b", "input_files is not what it was"),
        ("mnist --seed 5", "seed was 0 and is 5"),
        ("mnist --steps_ldm 20000", "steps_ldm was 6000 and is 20000"),
        ("mnist --steps_detector 5", "steps_detector was None and is 5"),
        ("mnist --voxel_size 2", "voxel_size was None and is 2.0"),
        ("mnist --channels T1w T2w", "channels was None and is ['T1w', 'T2w']"),
        ("mnist --source_channels T1w", "source_channels was None and is ['T1w']"),
        ("mnist --dwi", "dwi was False and is True"),
    ],
)
def test_resuming_an_ended_training_with_options(command, ended, words, change):
    options = TrainOptions(input_files=["mnist"], conditions=["label"])
    settings = _settings(replace(options, steps_ldm=6000, n_codes=1024))
    del settings["background"]  # as if by an earlier version without it
    save_with_settings(ended, settings)
    resumed = (*words.split(), "--conditions", "label", "--resume")
    output = command("train", *resumed, status=2 if change else 0)
    assert (f"{change}); name" if change else "nothing to resume") in output


@pytest.mark.parametrize("name", ["channels", "source_channels"])
def test_settings_of_channels_have_the_same_meaning(name):
    def settings(*words):
        return _settings(TrainOptions(input_files=["a"], **{name: [*words]}))

    assert settings("T1w,T2w") == settings("T2w", "T1w")
    assert settings("CBF=0:200") != settings("CBF=0:100")


def test_settings_in_a_model_name_no_files():
    options = TrainOptions(input_files=["/data/sub-07_T1w.nii"], init="of/ann.st")
    assert not {"sub-07", "ann"} & set(re.findall(r"[\w-]+", str(_settings(options))))


BAD_TRAINING = {
    "no widths": ("blobs.npy --widths_ldm", "length of widths_ldm"),
    "all held out": ("blobs.npy --validation 1", "below 1"),
    "no checkpoints": ("blobs.npy --checkpoint_steps 0", "at least 1"),
    "a name that is too long": (
        f"blobs.npy --out_model {'é' * 121}",
        "has 242 bytes, and at most 240 are allowed; give a shorter one",
    ),
    "no augmentation": ("blobs.npy --no_augment", "--no_augment is for volumes"),
    "a cache": ("mnist --cache_dir cache", "--cache_dir is for volumes; leave"),
    "a time": (
        "blobs.npy --seconds 9",
        "--seconds has no effect without --check; add --check, or",
    ),
    "several machines": (
        "blobs.npy --batch_size 16 --strategy multi_worker",
        NO_MACHINES,
    ),
    "init of images": (
        "blobs.npy --batch_size 16 --init blobs.npy",
        "is not a model file",
    ),
    "init of nothing": (
        "blobs.npy --batch_size 16 --init nothing",
        "there is no model file nothing",
    ),
    "init of other channels": (
        "colours.npy --batch_size 4 --init out/ldm.safetensors",
        "with 1 channel, and these have 2 with 3",
    ),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_input_to_training(folder, blobs, case):
    arguments, sentence = BAD_TRAINING[case]
    np.save(folder / "colours.npy", np.repeat(blobs[:20], 3, -1))
    words = (*arguments.split(), "--out_dir", "bad_out")
    assert sentence in answer(execute("train", *words, cwd=folder, status=2))
    assert not list(folder.glob("bad_out/*"))


BAD_GENERATING = {
    "an empty file": ("empty.safetensors", "is truncated"),
    "a seed below 0": ("mnist --seed -1", "seed must be"),
    "no dataset": (
        "mnist --suffix T1w",
        "has no effect without --bids; add --bids, or leave",
    ),
    "a name of a dataset": ("mnist --bids", "--out_samples has no effect with --bids"),
    "a type of images": ("mnist --dtype int16", "--dtype is for volumes; leave it"),
}


@pytest.mark.parametrize("case", BAD_GENERATING)
def test_bad_input_to_generating(folder, case):
    (folder / "empty.safetensors").write_bytes(b"")
    arguments, sentence = BAD_GENERATING[case]
    words = (*arguments.split(), "--out_samples", "bad_samples")
    assert sentence in answer(execute("generate", *words, cwd=folder, status=2))
    assert not list(folder.glob("bad_samples*"))


COMMANDS = ["train", "generate", "denoise", "inpaint", "check", "evaluate", "audit"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_version(name, tmp_path):
    status, stdout, _ = call(f"dipy_{name}_ldm", "--version", cwd=tmp_path)
    assert (status, stdout.strip()) == (0, f"dipy_ldm {__version__}")
    # That processes are silent is a matter of how any of them starts.
    start_it = run if name == "train" else call
    status, stdout, stderr = start_it(f"dipy_{name}_ldm", "--help", cwd=tmp_path)
    assert status == 0
    assert "--seed" in stdout
    assert stderr == ""


def test_help_needs_neither_keras_nor_tensorflow():
    names = {"cli", *COMMANDS} - {"check"}  # which is the training's
    modules = ", ".join(f"dipy_ldm.workflows.{name}" for name in sorted(names))
    heavy = "{'keras', 'tensorflow', 'matplotlib'}"
    run_python("-c", f"import {modules}, sys; assert not {heavy} & set(sys.modules)")


def test_a_training_begins_from_a_model_file(
    diffusion, blobs, tmp_path, monkeypatch, untrained
):
    diffusion.save(tmp_path / "m.safetensors")
    small = str(tmp_path / "small.npy")
    np.save(small, blobs[:20, :11])
    options = {"init": str(tmp_path / "m.safetensors"), "batch_size": 4, "steps_ldm": 2}
    TrainLDMFlow().run([small], out_dir=str(tmp_path), **options)
    new = LatentDiffusion.load(tmp_path / "ldm.safetensors")
    with open(tmp_path / "history.csv") as table:
        assert {row["stage"] for row in csv.DictReader(table)} == {"diffusion"}
    assert new.vqvae_.shape_ == (11, 10, 1)
    assert new._fitted_with["widths"] == diffusion._fitted_with["widths"]
    npt.assert_array_equal(new.vqvae_.codebook_, diffusion.vqvae_.codebook_)
    # With steps of its own, the autoencoder is trained, too.
    tuned = []

    def stop(model, *images, **options):
        tuned.append(model.vqvae)
        raise ZeroDivisionError

    monkeypatch.setattr(LatentDiffusion, "fit", stop)
    options |= {"steps_vqvae": 2, "out_dir": str(tmp_path / "tuned")}
    with pytest.raises(ZeroDivisionError):
        TrainLDMFlow().run([small], **options)
    assert tuned[0].shape_ == (11, 10, 1)
    assert not np.array_equal(tuned[0].codebook_, diffusion.vqvae_.codebook_)


def test_figures_for_tensorboard(blobs, tmp_path, monkeypatch, unguided):
    np.save(tmp_path / "small.npy", blobs[:20])
    options = {"batch_size": 4, "steps_vqvae": 2, "steps_ldm": 2}
    options |= {"widths_vqvae": [8], "n_codes": 16, "widths_ldm": [8]}
    options |= {"tensorboard": str(tmp_path / "tb"), "out_dir": str(tmp_path / "out")}
    monkeypatch.setattr(_training, "find_spec", lambda name: name != "tensorboard")
    with pytest.raises(InputError, match="pip install tensorboard.*or leave it out"):
        TrainLDMFlow().run([str(tmp_path / "small.npy")], **options)
    monkeypatch.setattr(_training, "find_spec", lambda name: True)

    def table(folder, write_graph):
        folder.mkdir(parents=True)
        return keras.callbacks.CSVLogger(folder / "log.csv")

    monkeypatch.setattr(keras.callbacks, "TensorBoard", table)
    TrainLDMFlow().run([str(tmp_path / "small.npy")], **options)
    for stage, figure in (("autoencoder", "mse"), ("diffusion", "val_loss")):
        assert figure in (tmp_path / "tb" / stage / "log.csv").read_text()
