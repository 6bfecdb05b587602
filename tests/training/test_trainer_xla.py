"""Both stages train when compiled by XLA, as Keras does on a single GPU."""

import numpy as np
import pytest

from dipy_ldm import VQVAE, LatentDiffusion

VQ = {"widths": (8,), "blocks": 1, "n_codes": 16, "code_dim": 2}
FIT = {"epochs": 1, "batch_size": 4, "verbose": False}

# XLA takes long on a processor: these few have each rank, precision and remat.
# Precision "auto" is bfloat16 where there is that.
AUTOENCODERS = {
    2: {"accumulate": 2},
    3: {"precision": "auto", "remat": True},
}
CONDITIONS = {"age": np.arange(8) / 2, "sex": ["F", "M", None, "F"] * 2}
DENOISERS = {
    2: ((8,), {"precision": "auto", "accumulate": 2, "conditions": CONDITIONS}),
    3: ((8, 8), {"remat": True}),
}


def images(rank):
    rng = np.random.default_rng(0)
    shape = (*(8, 9, 10)[:rank], 1)
    # Of volumes that are alike, more is known before the denoiser is trained.
    return rng.random(shape, "float32") + 0.3 * rng.random((8, *shape), "float32")


@pytest.mark.parametrize("rank", AUTOENCODERS)
def test_autoencoder_trains_with_xla(rank, compile_by_xla):
    models = compile_by_xla()
    vqvae = VQVAE(**VQ).fit(images(rank), **FIT, **AUTOENCODERS[rank])
    assert models and all(model.jit_compile for model in models)
    assert np.isfinite(vqvae.history_["loss"]).all()
    assert 0 < vqvae.history_["usage"][0] <= 1


@pytest.mark.parametrize("rank", DENOISERS)
def test_denoiser_trains_with_xla(rank, compile_by_xla):
    vqvae = VQVAE(**VQ).fit(images(rank), **FIT)
    models = compile_by_xla()
    widths, options = DENOISERS[rank]
    model = LatentDiffusion(vqvae, widths=widths, guide=False)
    model.fit(images(rank), **FIT, **options)
    assert models and all(model.jit_compile for model in models)
    assert np.isfinite(model.history_["loss"]).all()
    assert (model.gaussian_ is None) == (rank == 2)
