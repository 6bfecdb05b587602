"""Small, fast trainings for the guide, some of them made to fail.

Each failure switches off one thing that the package does to avoid it.
"""

from functools import cache
from typing import Any

import numpy as np
from panels import packaged

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm.autoencoder.quantizers import BOTTLENECKS, Codebook
from dipy_ldm.data import load_mnist

FIT_OPTIONS: dict[str, Any] = {"strategy": None, "verbose": False}


def digits(n):
    """Return the first training digits."""
    return load_mnist("train")[0][:n]


class Neglected(Codebook):
    """Start with random codes, most far from the encoded images, and revive none."""

    def initial(self, draw, rng):
        return rng.normal(0, 20, self.codebook.shape)

    def figures(self):
        figures, dead = super().figures()
        return figures, dead[:0]


BOTTLENECKS["neglected"] = Neglected


@cache
def autoencoders():
    """Train an autoencoder as the package does, and one whose codes may die."""
    images, held_out = digits(2900)[:-340], digits(2900)[-340:]
    return [
        VQVAE(widths=(16, 32), n_codes=256, bottleneck=bottleneck).fit(
            images,
            validation_data=held_out,
            epochs=6,
            learning_rate=3e-3,
            **FIT_OPTIONS,
        )
        for bottleneck in ("codebook", "neglected")
    ]


def fit_diffusion(images, epochs, kind=LatentDiffusion):
    """Train a small diffusion model on the latents of the packaged autoencoder."""
    # Figures use no guidance, and must be fast.
    return kind(packaged().vqvae, widths=(64, 64), guide=False).fit(
        images,
        epochs=epochs,
        batch_size=32,
        learning_rate=4e-3,
        **FIT_OPTIONS,
    )


@cache
def good():
    """Train as the package does."""
    return fit_diffusion(digits(3200), epochs=5)


class WithoutScale(LatentDiffusion):
    """Train on latents that are ten times smaller than unit variance."""

    def _scaled(self, latents):
        return super()._scaled(latents) / 10

    def _decode(self, latents, tile):
        return super()._decode(latents * 10, tile)


@cache
def without_scale():
    """Train on latents that are not scaled to unit variance."""
    return fit_diffusion(digits(3200), epochs=5, kind=WithoutScale)


@cache
def memorised():
    """Train on so few digits that they are memorised."""
    return fit_diffusion(np.tile(digits(16), (20, 1, 1, 1)), epochs=45)
