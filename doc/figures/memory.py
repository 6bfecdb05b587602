"""Estimated memory of trainings by the size of patches and of latents."""

from matplotlib import pyplot as plt
import numpy as np
from panels import BLUE, ORANGE

from dipy_ldm.autoencoder._network import encoder_and_decoder
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.nn import _building as building
from dipy_ldm.training._memory import estimate_training

BATCH = 4
CODES = 1024
STYLES = {
    "float32": ("float32", False, BLUE, "-"),
    "bfloat16": ("bfloat16", False, ORANGE, "-"),
    "bfloat16, remat": ("bfloat16", True, ORANGE, "--"),
}


def draw():
    """Draw both stages side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    draw_lines(axes[0], np.array([16, 32, 64, 96, 128]), autoencoder)
    axes[0].set(title="autoencoder", xlabel="voxels along a side of the patch")
    draw_lines(axes[1], np.array([8, 16, 24, 32, 40]), denoiser)
    axes[1].set(title="diffusion model", xlabel="positions along a side of the latent")


def draw_lines(ax, sides, estimate):
    for label, (precision, remat, colour, line) in STYLES.items():
        with building.precision(precision):
            gibibytes = [estimate(int(side), remat) / 2**30 for side in sides]
        ax.loglog(sides, gibibytes, line, marker=".", color=colour, label=label)
    ax.set_xticks(sides, sides)
    ax.minorticks_off()
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    ax.set_yticks(ticks, ticks)
    low, high = ax.dataLim.intervaly
    ax.set(ylabel="GiB", ylim=(0.8 * low, 1.25 * high))
    ax.grid(alpha=0.3)
    ax.legend()


def autoencoder(side, remat):
    networks = encoder_and_decoder(
        (side,) * 3, 1, widths=(32, 64), blocks=1, code_dim=8, seed=0, remat=remat
    )
    distances = 4 * CODES * (side // 4) ** 3
    return estimate_training(networks, BATCH, distances)


def denoiser(side, remat):
    widths = (64, 128, 256)
    attention = [False] * len(widths)
    shape = (side, side, side, 8)
    unet = unet_network.unet(
        shape, widths=widths, blocks=1, attention=attention, remat=remat
    )
    return estimate_training([unet], BATCH)
