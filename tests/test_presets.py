"""Defaults by kind of data, the same for classes and commands."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import clone

from dipy_ldm import VQVAE, LatentDiffusion, _presets, vqvae as vqvae_module
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._batches import Augmentation

SMALL = {"widths": (4,), "n_codes": 8}
FIT = {"steps": 2, "verbose": False, "precision": "float32"}


def draw(rank, n=70):
    return np.random.default_rng(0).random((n, *(8,) * rank, 1), "float32")


@pytest.fixture
def trainings(monkeypatch, untrained_autoencoders):
    """Return what autoencoders would be trained with."""
    calls = []
    stage = vqvae_module.AutoencoderStage

    def spy(codec, data, options, initial):
        calls.append((data, options))
        return stage(codec, data, options, initial)

    monkeypatch.setattr(vqvae_module, "AutoencoderStage", spy)
    return calls


@pytest.mark.parametrize("rank", [2, 3])
def test_a_fit_takes_the_defaults_of_its_data(rank, trainings, tmp_path, untrained):
    usual = _presets.of_rank(rank)
    images = draw(rank)
    vqvae = VQVAE(**SMALL).fit(images, **FIT)
    chosen = vqvae.to_document()["vqvae"]
    assert chosen["code_dim"] == usual.code_dim == {2: 3, 3: 8}[rank]
    assert chosen["n_codebooks"] == usual.n_codebooks == {2: 1, 3: 4}[rank]
    (data, options), *_ = trainings
    assert options.batch_size == usual.batch_size == {2: 64, 3: 4}[rank]
    assert data.augment == usual.augment
    assert (data.augment is None) == (rank == 2)
    assert data.size == (8,) * rank
    # They stay open for the next fit, which may be to other data.
    assert vqvae.code_dim is vqvae.n_codebooks is None
    for copy in (pickle.loads(pickle.dumps(vqvae)), clone(vqvae)):
        assert copy.code_dim is None
    vqvae.save(tmp_path / "m")
    assert VQVAE.load(tmp_path / "m").code_dim == usual.code_dim
    assert vqvae.predict(images[:2]).shape == images[:2].shape
    model = LatentDiffusion(vqvae).fit(images, **FIT)
    assert model.widths is None
    widths = model.to_document()["latent_diffusion"]["widths"]
    assert widths == list(usual.widths_ldm)


def test_given_options_replace_presets(trainings):
    images = draw(3, 6)
    vqvae = VQVAE(**SMALL, code_dim=2, n_codebooks=1)
    vqvae.fit(images, batch_size=3, augment=Augmentation(), patch=6, **FIT)
    (data, options), *_ = trainings
    assert vqvae.to_document()["vqvae"]["code_dim"] == 2
    assert (options.batch_size, data.size) == (3, (6, 6, 6))
    assert data.augment == Augmentation()


def test_presets_of_training_lengths():
    volumes = _presets.VOLUMES
    assert volumes.fit_options("vqvae", {})["steps"] == 4000
    assert volumes.fit_options("ldm", {})["steps"] == 6000
    assert volumes.fit_options("ldm", {"epochs": 3})["steps"] is None
    assert _presets.IMAGES.fit_options("ldm", {"steps": 9})["epochs"] == 10
    data = SimpleNamespace(affine=np.eye(4))
    chosen = _presets.resolve(data, epochs_ldm=7)
    assert chosen.length("ldm") == {"epochs": 7}
    with pytest.raises(InputError, match="give `epochs` or `steps`, not both"):
        volumes.fit_options("ldm", {"epochs": 7, "steps": 10})


def test_options_of_none_are_the_defaults():
    usual = _presets.VOLUMES.fit_options("ldm", {})
    options = dict.fromkeys(("epochs", "steps", "batch_size", "learning_rate"))
    assert _presets.VOLUMES.fit_options("ldm", options) == usual
    # A strategy of None is one.
    assert "strategy" in _presets.VOLUMES.fit_options("ldm", {"strategy": None})
