"""Curves of a good training: that of the packaged model."""

from matplotlib import pyplot as plt
from panels import BLUE, GREEN, ORANGE, curve, packaged


def draw():
    """Draw the curves of ``training.png``, of both stages."""
    model = packaged()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    first, second = model.vqvae.history_, model.history_
    for name, colour in {"loss": BLUE, "mse": ORANGE, "val_mse": GREEN}.items():
        if name in first:
            curve(axes[0], first[name], name, colour)
    axes[0].set(title="autoencoder", yscale="log")
    axes[0].legend()
    curve(axes[1], first["perplexity"], "perplexity", "k")
    axes[1].set(title="perplexity of 1024 codes", ylim=(0, 1024))
    for name, colour in {"loss": BLUE, "val_loss": GREEN}.items():
        curve(axes[2], second[name], name, colour)
    axes[2].set(title="diffusion model")
    axes[2].legend()
