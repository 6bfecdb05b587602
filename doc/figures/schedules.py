"""Schedules: rates, signal-to-noise ratios, and time grids of samplers."""

from matplotlib import pyplot as plt
import numpy as np
from panels import BLUE, GREEN, GREY, ORANGE

from dipy_ldm.diffusion.samplers import SAMPLERS
from dipy_ldm.diffusion.schedules import SCHEDULES, rates

COLOURS = {"cosine": BLUE, "linear": ORANGE}
STEPS = 10


def draw():
    """Draw rates, ratios and grids side by side."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    draw_rates(axes[0])
    draw_ratios(axes[1])
    draw_grids(axes[2])


def draw_rates(ax):
    t = np.linspace(0, 1, 201)
    for name in SCHEDULES:
        alpha, sigma = rates(name, t)
        ax.plot(t, alpha, color=COLOURS[name], label=f"{name}, $\\alpha$")
        ax.plot(t, sigma, "--", color=COLOURS[name], label=f"{name}, $\\sigma$")
    ax.set(title="rates", xlabel="time t")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)


def draw_ratios(ax):
    t = np.linspace(0, 1, 201)
    for name in SCHEDULES:
        alpha, sigma = rates(name, t)
        ax.semilogy(t, (alpha / sigma) ** 2, color=COLOURS[name], label=name)
    for steps, colour in ((200, GREY), (300, GREEN)):
        kept = np.cumprod(1 - np.linspace(1e-4, 0.02, steps))
        label = f"{steps} steps, ends too early"
        t = np.arange(1, steps + 1) / steps
        ax.semilogy(t, kept / (1 - kept), "--", color=colour, label=label)
        ax.plot(1, kept[-1] / (1 - kept[-1]), "o", color=colour, clip_on=False)
    ax.set(title="signal-to-noise ratio", xlabel="time t")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)


def draw_grids(ax):
    names = "dpm++", "ddim", "ddpm"
    for row, name in enumerate(names):
        alpha, sigma = rates("cosine", SAMPLERS[name].grid("cosine", STEPS))
        ax.plot(sigma, np.full(STEPS, row), "|", ms=22, color=BLUE)
    ax.set(
        title=f"calls of the network in {STEPS} steps", xlabel="noise rate $\\sigma$"
    )
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(-0.6, len(names) - 0.4))
    ax.set(xlim=(1.03, -0.03))
    ax.grid(axis="x", alpha=0.3)
