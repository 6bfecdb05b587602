"""Estimators: parameters, clones and copies, as of scikit-learn."""

import copy
import pickle

import numpy as np
import numpy.testing as npt
import pytest
from sklearn.base import clone

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm.validation import InputError

COPIES = {
    "pickle": lambda estimator: pickle.loads(pickle.dumps(estimator)),
    "deepcopy": copy.deepcopy,
}


def test_parameters_are_those_of_the_constructor():
    vqvae = VQVAE(widths=(8, 8), seed=3)
    model = LatentDiffusion(vqvae, target="noise")
    assert vqvae.get_params()["widths"] == (8, 8)
    assert VQVAE(**vqvae.get_params()).get_params() == vqvae.get_params()
    assert model.get_params(deep=False)["vqvae"] is vqvae
    assert model.get_params()["vqvae__seed"] == 3
    assert model.set_params(target="v", vqvae__seed=4) is model
    assert (model.target, vqvae.seed) == ("v", 4)
    for name in ("colour", "vqvae__colour", "target__colour"):
        with pytest.raises(InputError, match="has no parameter '.*colour'; choose one"):
            model.set_params(**{name: 1})


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_what_is_not_fitted(how):
    vqvae = COPIES[how](VQVAE(widths=np.array([8, 8])))
    npt.assert_array_equal(vqvae.widths, [8, 8])
    with pytest.raises(InputError, match="not fitted"):
        vqvae.encode(np.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_what_is_fitted(diffusion, blobs, how):
    model = COPIES[how](diffusion)
    assert model.denoiser_ is not diffusion.denoiser_
    assert model.history_ == diffusion.history_
    npt.assert_array_equal(
        model.vqvae.encode(blobs[:3]), diffusion.vqvae.encode(blobs[:3])
    )
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
    npt.assert_array_equal(
        model.vqvae.encode(blobs[:3]), diffusion.vqvae.encode(blobs[:3])
    )
