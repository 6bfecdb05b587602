"""Shared code of the guide's figures: the packaged model, and panels of images."""

from functools import cache
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from matplotlib.ticker import MaxNLocator
import numpy as np

from dipy_ldm import LatentDiffusion
from dipy_ldm.diffusion.schedules import path

BLUE, ORANGE, GREEN, GREY = "#1f77b4", "#e8710a", "#2a9d4a", "#888888"


@cache
def packaged():
    """Load the packaged model of digits."""
    return LatentDiffusion.load("mnist")


def scaled(model, images):
    """Encode images to latents of unit variance."""
    return (model.vqvae.encode(images) - model.latent_mean_) / model.latent_scale_


def decoded(model, latents):
    """Decode latents of unit variance."""
    return model.vqvae.decode(latents * model.latent_scale_ + model.latent_mean_)


def levels(model, times):
    """Return the noise levels of a sampler."""
    return path(model.schedule, times)


def show(ax, image, title=None, **options):
    """Show a grey image, ``(h, w, 1)``, or a coloured one, without axes."""
    grey = {} if image.shape[-1] == 3 else {"cmap": "gray", "vmin": 0, "vmax": 1}
    ax.imshow(image.squeeze(), interpolation="nearest", **grey | options)
    ax.set(xticks=[], yticks=[])
    if title:
        ax.set_title(title, fontsize=9)


def as_colours(latent):
    """Show three channels of unit variance as colours."""
    return np.clip(0.5 + latent[..., :3] / 5, 0, 1)


def curve(ax, values, label, colour=None, **options):
    """Plot one value per epoch."""
    epochs = np.arange(1, len(values) + 1)
    ax.plot(epochs, values, ".-", label=label, color=colour, **options)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
