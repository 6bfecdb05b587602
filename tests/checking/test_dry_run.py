"""Trials: real steps of both stages are timed, and few images are memorised."""

from contextlib import nullcontext
import logging
from types import SimpleNamespace

import numpy as np
from processes import CHOSEN
import pytest

from dipy_ldm import VQVAE, LatentDiffusion, _presets
from dipy_ldm._utils.checks import InputError
from dipy_ldm.checking import _dry_run as trials
from dipy_ldm.checking._dry_run import Overfit, Paces
from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data.channels import as_channels
from dipy_ldm.training import ResolvedOptions
from dipy_ldm.workflows import _training as training

TINY = {"widths_vqvae": (8, 8), "widths_ldm": (8,), "n_codes": 16, "code_dim": 2}


@pytest.fixture(scope="module")
def recipe(blobs):
    settings = _presets.resolve(Cohort(blobs), **TINY, batch_size=4)
    return training.prepare(
        settings, None, SimpleNamespace(**CHOSEN, learning_rate=0.01)
    )


def test_steps_of_all_networks_are_timed(recipe, blobs, caplog):
    of_patches = {"patch": 8, "augment": Augmentation(flip=True)}
    recipe = recipe._replace(of_patches=of_patches)
    with caplog.at_level(logging.WARNING):
        paces = trials.time_training_steps(recipe, Cohort(blobs[:4]), 5)
    assert set(paces.each) == {"autoencoder", "guide", "diffusion"}
    assert all(0 < seconds < 60 for seconds in paces.each.values())
    assert paces.start > 0 < paces.encoding
    # That nothing was learnt in so few steps is no news.
    assert not [r for r in caplog.records if r.name.startswith("dipy_ldm")]
    assert len(recipe.model.step_seconds_["diffusion"]) <= 12


@pytest.mark.parametrize(
    ("taken", "ends"),
    [
        ([9.0, 1.0, 1.0, 1.0], False),
        # The first does not count: networks are compiled in it.
        ([1.0, 3.0, 3.0], False),
        ([1.0, 3.0, 3.0, 3.0], True),
        ([1.0] + [0.1] * 11, True),
    ],
    ids=["compiled", "too few", "late", "enough"],
)
def test_the_time_or_the_steps_end_a_trial(taken, ends):
    until = trials._stop_after(steps=12, seconds=5.0)
    estimator = SimpleNamespace(step_seconds_={"guide": [1.0] * 99, "diffusion": taken})
    with pytest.raises(trials._StopTrainingError) if ends else nullcontext():
        until(estimator)


def test_blobs_are_overfitted(recipe, blobs):
    trial = trials.overfit(recipe, Cohort(blobs[:8]), 60)
    assert trial.mse < 0.5 * trial.baseline_mse
    assert trial.images.shape == trial.reconstructed.shape == (8, 13, 10, 1)
    assert 1 < trial.codes_used <= trial.n_codes == 16


def test_an_autoencoder_that_is_taken_as_it_is_is_not_trained(recipe, vqvae, blobs):
    taken = recipe._replace(
        vqvae=vqvae._snapshot(),
        model=LatentDiffusion(vqvae, widths=(8,)),
        of_vqvae={},
    )
    paces = trials.time_training_steps(taken, Cohort(blobs[:4]), 5)
    assert set(paces.each) == {"guide", "diffusion"}
    result = trials.overfit(taken, Cohort(blobs[:8]), 60)
    assert result.steps == 0
    message = trials.check_overfit(result, None).message
    assert message.startswith("Without training, reconstructions of 8 images")


def test_early_stopped_training_is_judged_by_its_results(recipe, blobs):
    wild = recipe._replace(of_vqvae=recipe.of_vqvae | {"learning_rate": 1e6})
    trial = trials.overfit(wild, Cohort(blobs[:8]), 60)
    assert trial.steps >= 1
    assert not trial.mse < trial.baseline_mse


def test_the_autoencoder_of_a_trial_knows_the_channels(recipe, blobs, monkeypatch):
    channels, passed = as_channels(["T1w"]), []

    def fit(vqvae, images, **options):
        passed.append(options["channels"])
        raise trials._StopTrainingError

    monkeypatch.setattr(VQVAE, "fit", fit)
    trials._overfitted(recipe, blobs[:8], 60, channels)
    assert passed == [channels]


def test_an_option_that_makes_no_sense_is_refused(recipe, blobs):
    wild = recipe._replace(of_vqvae=recipe.of_vqvae | {"precision": "decimal"})
    with pytest.raises(InputError, match="unknown precision"):
        trials.overfit(wild, Cohort(blobs[:8]), 60)


def test_large_volumes_are_downsampled_in_place():
    images = np.zeros((2, 64, 40, 70, 1), "float32")
    images[:, 32:, 20:, 35:] = 1
    small = trials._reduced(images, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert small.shape == (2, 30, 19, 32, 1)
    assert small[0, :14, :, :].max() < 0.01
    assert small[0, 16:-1, 11:-1, 17:-1].min() > 0.99


RNG = np.random.default_rng(0)
IMAGES = RNG.random((8, 6, 6, 1), "float32")
GOOD = Overfit(300, 0.001, 0.08, 200, 256, images=IMAGES, reconstructed=IMAGES)


def test_time_is_that_of_all_steps():
    first, second = {"steps": 2000, "batch_size": 4}, {"steps": 6000}
    trainings = {
        "autoencoder": ResolvedOptions(1, **first),
        "diffusion": ResolvedOptions(1, **second),
    }
    paces = Paces(start=60.0, each={"autoencoder": 0.1, "diffusion": 0.5}, encoding=0.2)
    finding = trials.check_time(paces, trainings, n=100, n_all=110)
    assert finding.state == "green"
    # 200 + 3000 + 60 + 22 seconds.
    assert finding.message.startswith("About 55 minutes ")
    parts = {row[0]: row for row in finding.table[1:]}
    assert parts["autoencoder"][1:3] == (2000, 0.1)
    assert sum(row[-1] for row in finding.table[1:]) == pytest.approx(100)
    assert parts["diffusion"][-1] == pytest.approx(100 * 3000 / 3282)


def test_a_guide_is_counted_and_days_are_amber():
    each = {"autoencoder": 1.0, "diffusion": 100.0, "guide": 10.0}
    options = ResolvedOptions(5, batch_size=4)
    trainings = {"autoencoder": options, "diffusion": options}
    finding = trials.check_time(Paces(1.0, each, 0.1), trainings, n=8000, n_all=8000)
    assert finding.state == "amber"
    assert "days" in finding.message
    assert "which is trained on patches, as long)" in finding.cure
    assert dict(row[:2] for row in finding.table[1:])["guide"] == 625


def test_images_that_are_learnt_are_green():
    finding = trials.check_overfit(GOOD, None)
    assert finding.state == "green"
    assert "correlation of 1.000, with 200 of 256 codes" in finding.message
    assert finding.pictures[0].image.ndim == 3


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
def test_overfitting_verdict_depends_on_the_steps(steps, mse, state):
    finding = trials.check_overfit(GOOD._replace(steps=steps, mse=mse), None)
    assert finding.state == state
    assert bool(finding.cure) == (state in ("red", "amber"))


def test_numbers_that_are_not_finite_are_red():
    broken = GOOD._replace(mse=np.nan, reconstructed=np.nan * IMAGES)
    finding = trials.check_overfit(broken, None)
    assert finding.state == "red"
    assert "--learning_rate" in finding.cure


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (90, "90 s"), (150, "2.5 minutes"), (7300, "2 hours")],
)
def test_times_are_written_as_people_do(seconds, words):
    assert trials.duration(seconds) == words
