"""A schedule that ends too early: sampling starts from pure noise, training did not."""

from matplotlib import pyplot as plt
import numpy as np
from panels import (
    BLUE,
    GREY,
    decoded,
    levels,
    packaged,
    scaled,
    show,
)

from dipy_ldm.data import load_mnist
from dipy_ldm.diffusion.samplers import SAMPLERS, noise_source, sample
from dipy_ldm.diffusion.schedules import rates
from dipy_ldm.plots import montage

STEPS = (50, 100, 200, 1000)


def draw():
    """Draw the loss at each time, and samples that start from pure noise too early."""
    model = packaged()
    figure = plt.figure(figsize=(11, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.2))
    ax = left.subplots()
    times = np.linspace(0, 1, 15)
    ax.plot(times, [loss(model, t) for t in times], color=BLUE)
    for steps, place in zip(STEPS, right.subplots(1, len(STEPS))):
        end, alpha = last_time(steps)
        ax.axvline(end, ls="--", color=GREY)
        ax.text(
            end, 0.02, f"{steps} ", rotation=90, ha="right", va="bottom", fontsize=8
        )
        title = f"{steps} steps\nends at $\\alpha$ = {alpha:.3f}"
        show(place, montage(samples_from(model, end), columns=5), title)
    ax.set(title="loss at each time", xlabel="time t", ylim=(0, None), xlim=(0, 1.02))
    ax.grid(alpha=0.3)


def last_time(steps):
    """Return the time with the noise at which the betas end, and its alpha."""
    alpha = np.prod(1 - np.linspace(1e-4, 0.02, steps)) ** 0.5
    fine = np.linspace(0, 1, 10_001)
    full_rates, _ = rates("cosine", fine)
    return float(np.interp(-alpha, -full_rates, fine)), alpha


def samples_from(model, end):
    """Sample from pure noise at the last time, as that schedule does."""
    sampler = SAMPLERS["ddim"]
    path = levels(model, end * sampler.grid(model.schedule, 10))
    noise = noise_source(0, range(25), model.latent_shape_)
    clean = sample(model.denoiser(), noise(), path, sampler.step, noise)
    return decoded(model, clean.astype("float32"))


def loss(model, t):
    """Return the loss at one time, on held-out digits."""
    clean = scaled(model, load_mnist("test")[0][:100])
    noise = noise_source(1, range(len(clean)), clean.shape[1:])()
    alpha, sigma = rates(model.schedule, t)
    x = (alpha * clean + sigma * noise).astype("float32")
    # The velocity is (alpha x - clean) / sigma.
    return float(np.mean((model.denoiser()(x, t) - clean) ** 2) / sigma**2)
