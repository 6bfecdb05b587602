"""The check before training: subjects, memory, time, and overfitting a few images."""

from contextlib import nullcontext
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest

from dipy_ldm import VQVAE, LatentDiffusion, _presets
from dipy_ldm._utils.checks import InputError
from dipy_ldm.checking import _dry_run as dry_run
from dipy_ldm.checking._dry_run import Overfit, Paces
from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data.channels import as_channels
from dipy_ldm.training import ResolvedOptions, resolve
from dipy_ldm.workflows import _training as training
from dipy_ldm.workflows._option_table import TrainOptions

TINY = {"widths_vqvae": (8, 8), "widths_ldm": (8,), "n_codes": 16, "code_dim": 2}


@pytest.fixture(scope="module")
def recipe(blobs):
    preset = _presets.resolve(Cohort(blobs), **TINY, batch_size=4)
    options = TrainOptions(input_files=[], learning_rate=0.01, precision="float32")
    return training.prepare(preset, None, options)


@pytest.mark.parametrize(
    ("n", "share", "batch_size", "state", "message"),
    [
        (10, 0, 4, "green", "20 training images, and none held out"),
        (10, 0.05, 4, "amber", "18 training images, 2 held out .* .1 of 10 subjects"),
        (36, 0.25, 4, "amber", "18 held out for validation .9 of 36 subjects"),
        (40, 0.25, 4, "green", "20 held out for validation .10 of 40 subjects"),
        (10, 0.05, 64, "red", "Of 20 images, 18 remain"),
    ],
)
def test_check_split(n, share, batch_size, state, message):
    cohort = Cohort(np.zeros((2 * n, 2, 2, 1)), subjects=[i // 2 for i in range(2 * n)])
    finding = dry_run.check_split(cohort, share, 0, batch_size)
    assert finding.state == state
    assert re.search(message, finding.message)
    assert ("batch_size" in finding.cure) == (state == "red")


@pytest.mark.parametrize(
    ("n", "state"), [(7, "red"), (20, "red"), (21, "amber"), (200, "green")]
)
def test_check_subjects(n, state):
    pairs = Cohort(np.zeros((2 * n, 1)), subjects=[i // 2 for i in range(2 * n)])
    of_two = dry_run.check_subjects(pairs)
    of_one = dry_run.check_subjects(Cohort(pairs.images[:n]))
    assert of_two.state == of_one.state == state
    assert f"{2 * n} images of {n} subjects" in of_two.message


def test_check_subjects_recommends_the_packaged_autoencoder():
    few = Cohort(np.zeros((12, 2, 2, 2, 1)), affine=np.eye(4))
    two_channels = few._replace(images=np.zeros((12, 2, 2, 2, 2)))
    findings = [
        dry_run.check_subjects(few),
        dry_run.check_subjects(few, "volumes"),
        dry_run.check_subjects(two_channels),
        dry_run.check_subjects(few._replace(affine=None)),
        dry_run.check_subjects(few, series=True),
        dry_run.check_subjects(few._replace(channels=as_channels(["FA"]))),
        dry_run.check_subjects(few._replace(images=np.zeros((50, 2, 2, 2, 1)))),
    ]
    recommended = ["--init volumes" in finding.cure for finding in findings]
    assert recommended == [True, *[False] * 6]


def test_check_device_and_memory(recipe, blobs):
    second = resolve("ldm", 2, recipe.of_model)
    both = {"autoencoder": resolve("vqvae", 2, recipe.of_vqvae), "diffusion": second}
    message = dry_run.check_device(second).message
    assert message.startswith("Training runs on ")
    assert message.endswith(", in float32: as requested.")
    finding = dry_run.check_memory(recipe, both, blobs.shape)
    assert finding.state == "green"
    assert [row[0] for row in finding.table[1:]] == ["autoencoder", "diffusion"]
    alone = dry_run.check_memory(recipe, {"diffusion": second}, blobs.shape)
    assert "more than the other stage" not in alone.message
    assert [row[0] for row in alone.table[1:]] == ["diffusion"]


@pytest.mark.parametrize(
    ("free", "state"), [(10.0, "green"), (3.5, "amber"), (2.5, "red")]
)
def test_memory_finding(free, state):
    needed = {"autoencoder": 3 * 2**30, "diffusion": 2**30}
    finding = dry_run.memory_finding(needed, free * 2**30)
    assert finding.state == state
    assert finding.message.startswith("The autoencoder needs 3 GiB")
    # A GPU has so much in all, whatever others hold of it.
    assert finding.message.endswith(f"and {free:g} GiB are available.")
    assert ("--patch" in finding.cure) == (state == "red")
    cure = dry_run.memory_finding({"diffusion": 2**40}, free).cure
    assert "--voxel_size" in cure and "--patch" not in cure, "which has no effect"


def test_time_training_steps(recipe, blobs, caplog):
    of_patches = {"patch": 8, "augment": Augmentation(flip=True)}
    recipe = recipe._replace(of_patches=of_patches)
    with caplog.at_level(logging.WARNING):
        paces = dry_run.time_training_steps(recipe, Cohort(blobs[:4]), 5)
    assert set(paces.steps) == {"autoencoder", "guide", "diffusion"}
    assert all(0 < seconds < 60 for seconds in paces.steps.values())
    assert paces.start > 0 < paces.encoding
    # That nothing was learnt in so few steps is no news.
    assert not [r for r in caplog.records if r.name.startswith("dipy_ldm")]
    assert len(recipe.model.step_seconds_["diffusion"]) <= 12


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [
        ([9.0, 1.0, 1.0, 1.0], False),
        # The first does not count: networks are compiled in it.
        ([1.0, 3.0, 3.0], False),
        ([1.0, 3.0, 3.0, 3.0], True),
        ([1.0] + [0.1] * 11, True),
    ],
    ids=["compiled", "too few", "late", "enough"],
)
def test_stop_after_steps_or_time(seconds, ends):
    stop = dry_run._stop_after(steps=12, seconds=5.0)
    steps = {"guide": [1.0] * 99, "diffusion": seconds}
    with pytest.raises(dry_run._StopTrainingError) if ends else nullcontext():
        stop(SimpleNamespace(step_seconds_=steps))


def test_overfit_of_blobs(recipe, blobs):
    result = dry_run.overfit(recipe, Cohort(blobs[:8]), 60)
    assert result.mse < 0.5 * result.baseline_mse
    assert result.images.shape == result.reconstructed.shape == (8, 13, 10, 1)
    assert 1 < result.codes_used <= result.n_codes == 16


def test_an_autoencoder_that_is_taken_as_it_is_is_not_trained(
    recipe, vqvae, blobs, unguided
):
    model = LatentDiffusion(vqvae, widths=(8,))
    recipe = recipe._replace(vqvae=vqvae._snapshot(), model=model, of_vqvae={})
    paces = dry_run.time_training_steps(recipe, Cohort(blobs[:4]), 5)
    assert set(paces.steps) == {"diffusion"}
    result = dry_run.overfit(recipe, Cohort(blobs[:8]), 60)
    assert result.steps == 0
    message = dry_run.check_overfit(result, None).message
    assert message.startswith("Without training, reconstructions of 8 images")


def test_overfit_by_a_training_that_diverges(recipe, blobs):
    wild = recipe._replace(of_vqvae=recipe.of_vqvae | {"learning_rate": 1e6})
    result = dry_run.overfit(wild, Cohort(blobs[:8]), 60)
    assert result.steps >= 1
    assert not result.mse < result.baseline_mse


def test_overfit_passes_the_channels(recipe, blobs, monkeypatch):
    channels, passed = as_channels(["T1w"]), []

    def fit(vqvae, images, **options):
        passed.append(options["channels"])
        raise dry_run._StopTrainingError

    monkeypatch.setattr(VQVAE, "fit", fit)
    dry_run._overfitted(recipe, blobs[:8], 60, channels)
    assert passed == [channels]


def test_overfit_refuses_options_as_a_training(recipe, blobs):
    wild = recipe._replace(of_vqvae=recipe.of_vqvae | {"precision": "decimal"})
    with pytest.raises(InputError, match="unknown precision"):
        dry_run.overfit(wild, Cohort(blobs[:8]), 60)


def test_large_volumes_are_downsampled_in_place():
    images = np.zeros((2, 64, 40, 70, 1), "float32")
    images[:, 32:, 20:, 35:] = 1
    small = dry_run._reduced(images, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert small.shape == (2, 30, 19, 32, 1)
    assert small[0, :14, :, :].max() < 0.01
    assert small[0, 16:-1, 11:-1, 17:-1].min() > 0.99


def test_check_time_is_that_of_all_steps():
    first, second = {"steps": 2000, "batch_size": 4}, {"steps": 6000}
    trainings = {
        "autoencoder": ResolvedOptions(1, **first),
        "diffusion": ResolvedOptions(1, **second),
    }
    paces = Paces(
        start=60.0, steps={"autoencoder": 0.1, "diffusion": 0.5}, encoding=0.2
    )
    finding = dry_run.check_time(paces, trainings, n=100, n_all=110)
    assert finding.state == "green"
    # 200 + 3000 + 60 + 22 seconds.
    assert finding.message.startswith("About 55 minutes ")
    parts = {row[0]: row for row in finding.table[1:]}
    assert parts["autoencoder"][1:3] == (2000, 0.1)
    assert sum(row[-1] for row in finding.table[1:]) == pytest.approx(100)
    assert parts["diffusion"][-1] == pytest.approx(100 * 3000 / 3282)


def test_check_time_of_days_with_a_guide():
    each = {"autoencoder": 1.0, "diffusion": 100.0, "guide": 10.0}
    trainings = dict.fromkeys(
        ("autoencoder", "diffusion"), ResolvedOptions(5, batch_size=4)
    )
    finding = dry_run.check_time(Paces(1.0, each, 0.1), trainings, n=8000, n_all=8000)
    assert finding.state == "amber"
    assert "days" in finding.message
    assert "which is trained on patches, as long)" in finding.cure
    assert dict(row[:2] for row in finding.table[1:])["guide"] == 625


IMAGES = np.random.default_rng(0).random((8, 6, 6, 1), "float32")
GOOD = Overfit(300, 0.001, 0.08, 200, 256, images=IMAGES, reconstructed=IMAGES)


def test_check_overfit_of_images_that_are_learnt():
    finding = dry_run.check_overfit(GOOD, None)
    assert finding.state == "green"
    assert "correlation of 1.000, with 200 of 256 codes" in finding.message
    assert "8 images, with reconstructions below" in finding.pictures


@pytest.mark.parametrize(
    ("steps", "mse", "state"),
    [
        (300, 0.09, "red"),
        (300, 0.05, "amber"),
        (50, 0.09, "grey"),
        (50, 0.01, "green"),
        (0, 0.09, "amber"),
        (0, 0.01, "green"),
    ],
)
def test_check_overfit_depends_on_the_steps(steps, mse, state):
    finding = dry_run.check_overfit(GOOD._replace(steps=steps, mse=mse), None)
    assert finding.state == state
    assert bool(finding.cure) == (state in ("red", "amber"))


def test_check_overfit_of_numbers_that_are_not_finite():
    broken = GOOD._replace(mse=np.nan, reconstructed=np.nan * IMAGES)
    finding = dry_run.check_overfit(broken, None)
    assert finding.state == "red"
    assert "--learning_rate" in finding.cure


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (90, "90 s"), (150, "2.5 minutes"), (7300, "2 hours")],
)
def test_duration(seconds, text):
    assert dry_run.duration(seconds) == text
