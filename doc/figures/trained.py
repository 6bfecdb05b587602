"""Small, fast trainings for the guide, good ones and ones made to fail.

What the package does so that trainings succeed is undone here, one thing at a time.
"""

from functools import cache
from unittest import mock

import numpy as np
from panels import packaged

from dipy_ldm import VQVAE, LatentDiffusion, latent_diffusion, schedules, vqvae
from dipy_ldm.data import load_mnist

EPOCHS = 8


def digits(n):
    """Return some training digits."""
    return load_mnist("train")[0][:n]


@cache
def autoencoders():
    """Train an autoencoder as the package does, and one whose codes may die."""

    def fit():
        images, held_out = digits(3500)[:-300], digits(3500)[-300:]
        model = VQVAE(widths=(16, 32), n_codes=256)
        options = {"epochs": EPOCHS, "learning_rate": 3e-3, "verbose": False}
        return model.fit(images, validation_data=held_out, strategy=None, **options)

    good = fit()
    # No k-means: the codes stay where they were drawn, all near zero.
    start = mock.patch.object(VQVAE, "_start_codebook", lambda *args: None)
    revive = mock.patch.object(vqvae._AfterEpoch, "_revive", lambda *args: None)
    with start, revive:
        return good, fit()


def fit_diffusion(kind=LatentDiffusion, images=None, epochs=EPOCHS, **options):
    """Train a small diffusion model on the latents of the packaged autoencoder."""
    images = digits(6400) if images is None else images
    model = kind(packaged().vqvae, widths=(64, 64), **options)
    # The guide is not used, and need not be good.
    with mock.patch.object(latent_diffusion, "_GUIDE_STEPS", 1):
        return model.fit(
            images,
            validation_data=load_mnist("test")[0][:1000],
            epochs=epochs,
            learning_rate=4e-3,
            strategy=None,
            verbose=False,
        )


@cache
def good():
    """Train as the package does."""
    return fit_diffusion()


class WithoutScale(LatentDiffusion):
    """Takes latents as they come, ten times smaller than unit variance."""

    def _scaled(self, latents):
        return super()._scaled(latents) / 10

    def _unscaled(self, latents):
        return super()._unscaled(latents * 10)


@cache
def without_scale():
    """Train on latents that are not brought to unit variance."""
    return fit_diffusion(WithoutScale)


def early_end(t, steps=200):
    """The linear schedule of betas from 0.0001 to 0.02, cut off after some steps."""
    from keras import ops

    # Its continuous form, with rates that belong to so many steps.
    first, last = 1e-4 * steps, 0.02 * steps
    t = 1e-3 + (1 - 1e-3) * ops.convert_to_tensor(t)
    log_alpha = -0.25 * (last - first) * t**2 - 0.5 * first * t
    return ops.exp(log_alpha), ops.sqrt(-ops.expm1(2 * log_alpha))


EARLY = mock.patch.dict(schedules.SCHEDULES, early=early_end)


@cache
def too_early():
    """Train with a schedule that ends where much signal is left."""
    with EARLY:
        return fit_diffusion(schedule="early")


@cache
def by_heart():
    """Train on so few digits that they are learnt by heart."""
    images = np.tile(digits(16), (100, 1, 1, 1))
    return fit_diffusion(images=images, epochs=4 * EPOCHS)
