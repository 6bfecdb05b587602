"""Small, fast trainings for the guide, good ones and ones made to fail.

What the package does so that trainings succeed is undone here, one thing at a time.
"""

from functools import cache
from unittest import mock

import numpy as np
from panels import packaged

from dipy_ldm import VQVAE, LatentDiffusion, training, vqvae
from dipy_ldm.data import load_mnist


def digits(n):
    """Return some training digits."""
    return load_mnist("train")[0][:n]


@cache
def autoencoders():
    """Train an autoencoder as the package does, and one whose codes may die."""

    def fit():
        images, held_out = digits(2900)[:-340], digits(2900)[-340:]
        model = VQVAE(widths=(16, 32), n_codes=256)
        options = {"epochs": 6, "learning_rate": 3e-3, "verbose": False}
        return model.fit(images, validation_data=held_out, strategy=None, **options)

    def scatter(self, model, images):
        """Start the codes anywhere, most of them far from the encoded images."""
        codes = np.random.default_rng(0).normal(0, 20, (self.n_codes, self.code_dim))
        model.get_layer("quantizer").codebook.assign(codes)

    start = mock.patch.object(VQVAE, "_start_codebook", scatter)
    revive = mock.patch.object(vqvae._AfterEpoch, "_revive", lambda *args: None)
    good = fit()
    with start, revive:
        return good, fit()


def fit_diffusion(images, epochs, kind=LatentDiffusion):
    """Train a small diffusion model on the latents of the packaged autoencoder."""
    fit = training.fit

    def fit_but_guide(*args, title, **options):
        # Nothing here is guided, and time is short.
        if title != "guide":
            fit(*args, title=title, **options)

    with mock.patch.object(training, "fit", fit_but_guide):
        return kind(packaged().vqvae, widths=(64, 64)).fit(
            images,
            epochs=epochs,
            batch_size=32,
            learning_rate=4e-3,
            strategy=None,
            verbose=False,
        )


@cache
def good():
    """Train as the package does."""
    return fit_diffusion(digits(3200), epochs=5)


class WithoutScale(LatentDiffusion):
    """Takes latents as they come, here thirty times smaller than unit variance."""

    def _scaled(self, latents):
        return super()._scaled(latents) / 30

    def _unscaled(self, latents):
        return super()._unscaled(latents * 30)


@cache
def without_scale():
    """Train on latents that are not brought to unit variance."""
    return fit_diffusion(digits(3200), epochs=5, kind=WithoutScale)


@cache
def by_heart():
    """Train on so few digits that they are learnt by heart."""
    return fit_diffusion(np.tile(digits(16), (20, 1, 1, 1)), epochs=45)
