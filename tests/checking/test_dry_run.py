"""Trials: real steps of both stages are timed, and few images are learnt by heart."""

from contextlib import nullcontext
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from dipy_ldm import _presets
from dipy_ldm._utils.checks import InputError
from dipy_ldm.checking import _dry_run as trials
from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.workflows import _recipes as recipes

TINY = {
    "batch_size": 4,
    "widths_vqvae": (8, 8),
    "widths_ldm": (8,),
    "n_codes": 16,
    "code_dim": 2,
}


@pytest.fixture(scope="module")
def recipe(blobs):
    settings = _presets.resolve(Cohort(blobs), **TINY)
    method = {"schedule": "cosine", "target": "v", "guide": False, "seed": 0}
    how = {"precision": "float32", "learning_rate": 0.01}
    return recipes.make(settings, None, **method, **how)


def test_steps_of_all_networks_are_timed(recipe, blobs, caplog):
    options = {"patch": 8, "augment": Augmentation(flip=True)}
    with caplog.at_level(logging.WARNING):
        paces = trials.measure_paces(recipe, blobs[:4], 5, **options)
    assert set(paces.each) == {"autoencoder", "guide", "diffusion"}
    assert all(0 < seconds < 5 for seconds in paces.each.values())
    assert paces.start > 0 < paces.encoding
    # That nothing was learnt in so few steps is no news.
    assert not caplog.records
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


def test_blobs_are_learnt_by_heart(recipe, blobs):
    found = trials.overfit(recipe, blobs[:8], None, 60)
    assert found.mse < 0.5 * found.baseline_mse
    assert found.images.shape == found.reconstructed.shape == (8, 13, 10, 1)
    assert found.latents.shape == (8, 4, 3, 2)
    assert 0 < found.usage <= 1 <= found.perplexity <= 16


def test_a_training_that_stops_itself_is_judged_by_what_it_made(recipe, blobs):
    wild = recipe._replace(of_vqvae=recipe.of_vqvae | {"learning_rate": 1e6})
    found = trials.overfit(wild, blobs[:8], None, 60)
    assert found.steps >= 1
    assert not found.mse < found.baseline_mse


def test_an_option_that_makes_no_sense_is_refused(recipe, blobs):
    wild = recipe._replace(of_vqvae=recipe.of_vqvae | {"precision": "decimal"})
    with pytest.raises(InputError, match="unknown precision"):
        trials.overfit(wild, blobs[:8], None, 60)


def test_large_volumes_are_made_smaller_in_place():
    images = np.zeros((2, 64, 40, 70, 1), "float32")
    images[:, 32:, 20:, 35:] = 1
    small = trials._reduced(images, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert small.shape == (2, 30, 19, 32, 1)
    assert small[0, :14, :, :].max() < 0.01
    assert small[0, 16:-1, 11:-1, 17:-1].min() > 0.99
