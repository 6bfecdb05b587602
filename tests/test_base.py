"""Estimators: parameters, clones and copies, as in scikit-learn."""

import copy
import json
import pickle

from models import assert_same_weights
import numpy as np
import numpy.testing as npt
import pytest
from sklearn.base import clone

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm._base import Entry
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._sources import Source
from dipy_ldm.prior._condition_sampler import Population


def pickled(estimator):
    return pickle.loads(pickle.dumps(estimator))


def test_parameters_are_those_of_the_constructor():
    vqvae = VQVAE(widths=(8, 8), seed=3)
    model = LatentDiffusion(vqvae, target="noise")
    assert vqvae.get_params()["widths"] == (8, 8)
    assert VQVAE(**vqvae.get_params()).get_params() == vqvae.get_params()
    assert model.get_params(deep=False)["vqvae"] is vqvae
    assert model.get_params()["vqvae__seed"] == 3
    assert model.set_params(target="v", vqvae__seed=4) is model
    assert (model.target, vqvae.seed) == ("v", 4)
    other = VQVAE()
    model.set_params(vqvae__seed=5, vqvae=other)
    assert (model.vqvae, other.seed, vqvae.seed) == (other, 5, 4)
    for name in ("colour", "vqvae__colour", "target__colour"):
        with pytest.raises(InputError, match="has no parameter '.*colour'; choose one"):
            model.set_params(**{name: 1})


@pytest.mark.parametrize(
    "record",
    [Source(2, [0.5, 3.0], [], "abc"), Population(2, [[[0, 0], [1, 1]]], [9]), None],
)
def test_entries_of_records_go_through_json(record):
    entry = Entry.of_record("record", "record_", type(record))
    assert entry.read(json.loads(json.dumps(entry.write(record)))) == record


def test_copies_of_unfitted_estimators():
    vqvae = pickled(VQVAE(widths=np.array([8, 8])))
    npt.assert_array_equal(vqvae.widths, [8, 8])
    with pytest.raises(InputError, match="not fitted"):
        vqvae.encode(np.zeros((1, 8, 8, 1)))


def test_copies_of_fitted_estimators(diffusion):
    model = pickled(diffusion)
    assert model.denoiser_ is not diffusion.denoiser_
    assert model.history_ == diffusion.history_
    assert_same_weights(model, diffusion)
    npt.assert_allclose(model.predict(3), diffusion.predict(3), atol=1e-4)
    assert model.get_params(deep=False).keys() == diffusion.get_params(False).keys()
    assert model.vqvae.get_params() == diffusion.vqvae.get_params()


def test_clones_are_not_fitted(vqvae, diffusion, blobs):
    plain = clone(vqvae)
    assert plain.get_params() == vqvae.get_params()
    with pytest.raises(InputError, match="not fitted"):
        plain.encode(blobs)
    model = clone(diffusion)
    with pytest.raises(InputError, match="not fitted"):
        model.predict()
    # But for the autoencoder, without which it could not be fitted.
    latents = (m.vqvae.encode(blobs[:3]) for m in (model, diffusion))
    npt.assert_array_equal(*latents)
    model.set_params(vqvae__seed=9)
    assert (model.vqvae.seed, diffusion.vqvae.seed) == (9, 0)


@pytest.mark.parametrize("how", [lambda model: model, pickled])
def test_parameters_of_the_next_fit_change_nothing_of_the_last(diffusion, blobs, how):
    model = copy.deepcopy(diffusion)
    document, samples = model.to_document(), model.predict(2)
    model.set_params(widths=(4,), schedule="linear", target="clean", guide=False)
    model.vqvae.set_params(widths=(8,), blocks=2, code_dim=5, n_codes=4)
    model = how(model)
    assert (model.schedule, model.vqvae.code_dim) == ("linear", 5)
    assert model.to_document() == document
    npt.assert_allclose(model.predict(2), samples, atol=1e-4)
    assert model.vqvae.factor == 4
    latents = model.vqvae.encode(blobs[:3])
    assert latents.shape == (3, *model.vqvae.latent_shape((13, 10, 1))) == (3, 4, 3, 2)
    assert model.vqvae.codes(latents).shape == (3, 4, 3, 1)
    assert model.vqvae.decode(latents).shape == (3, 13, 10, 1)
    assert model.vqvae.to_document()["vqvae"] == document["vqvae"]


def test_a_further_fit_uses_the_current_parameters(
    vqvae, blobs, untrained_autoencoders
):
    again = copy.deepcopy(vqvae).set_params(widths=(4,), code_dim=3, n_codes=8)
    again.check(blobs.shape, batch_size=16)
    again.fit(blobs, steps=1, batch_size=16, verbose=False)
    assert again.factor == 2
    assert again.encode(blobs[:1]).shape == (1, 7, 5, 3)
    assert again.to_document()["vqvae"]["widths"] == [4]


def test_summary_has_the_figures_of_the_kept_weights(diffusion, monkeypatch):
    history = {"step": [500_000, 1_000_000], "epoch": [0.5, 1], "loss": [0.3, 0.2]}
    history["val_loss"] = [0.4, 0.6]
    monkeypatch.setattr(diffusion, "history_", history)
    training = diffusion._summary()["training"]
    assert training == "1 epochs, 1,000,000 steps, loss 0.3, val_loss 0.4"


def test_estimators_show_parameters_and_training(diffusion):
    unfitted = VQVAE(widths=(8, 8), seed=3)
    assert repr(unfitted) == "VQVAE(widths=(8, 8), seed=3)"
    assert "not fitted" in unfitted._repr_html_()
    head, *lines = repr(diffusion).splitlines()
    assert head.startswith("LatentDiffusion(vqvae=VQVAE(widths=(8, 8), ")
    shown = dict(line.strip().split(": ", 1) for line in lines)
    assert shown["images"] == "13 x 10, channels: 1, from -5 to 20"
    assert shown["conditions"] == "none"
    assert shown["training"].startswith("2 epochs, 8 steps, loss ")
    html = diffusion._repr_html_()
    assert f"<td>{shown['weights']}</td>" in html
    assert 'src="data:image/png;base64,' in html
