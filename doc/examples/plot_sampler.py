r"""
Add a sampler of your own
=========================

A sampler is a function that takes the noisy latent from one noise level to the next
lower one. This example adds one, checks its order of convergence on data with a known
solution, and generates digits with it.
"""

import matplotlib.pyplot as plt
import numpy as np

from dipy_ldm import LatentDiffusion
from dipy_ldm.diffusion import samplers
from dipy_ldm.diffusion.schedules import path, uniform_log_snr
from dipy_ldm.plots import montage

# %%
# DDIM assumes that the noise ``eps`` in the latent is constant until the next level.
# The Adams-Bashforth method is more accurate: it extrapolates from this estimate and
# the previous one,
#
# .. math:: \hat\epsilon = \epsilon + \tfrac{1}{2} r\,(\epsilon - \epsilon_{before})
#
# where ``r`` is the width of this step relative to the previous one, in the variable in
# which DDIM is Euler's method, :math:`\sigma / \alpha`. The step function gets the
# estimate of the clean latent, the two levels, and a ``state`` that it returned in the
# previous step.


def adams_bashforth(x, clean, now, after, noise, state):
    """Step like DDIM, with the noise extrapolated to second order."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = now, after
    eps = (x - alpha_t * clean) / sigma_t
    width = sigma_s / alpha_s - sigma_t / alpha_t
    slope = 0.0
    if state is not None:
        eps_before, width_before = state
        slope = 0.5 * width / width_before * (eps - eps_before)
    x = alpha_s * (x / alpha_t + width * (eps + slope))
    return x, (eps, width)


# %%
# Register it in a dictionary, with its grid of times.

samplers.SAMPLERS["ab2"] = samplers.Sampler(adams_bashforth, uniform_log_snr)

# %%
# Is it correct? For normally distributed data with standard deviation ``s``, the best
# denoiser and the exact solution are known: noise ``x`` is mapped to ``s * x``, except
# for the little signal that remains at time 1. Doubling the number of steps reduces the
# error of a second-order method to a quarter, that of a first-order method to a half.

SPREAD = 0.5
NUMBERS = (5, 10, 20, 40, 80, 160)


def error(name, steps):
    step = samplers.SAMPLERS[name].step
    levels = path("cosine", uniform_log_snr("cosine", steps, end=0.02))[:-1]
    rates = dict(levels)

    def denoise(x, t):
        alpha, sigma = rates[t]
        return alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * x

    def deviation(alpha, sigma):
        return np.hypot(alpha * SPREAD, sigma)

    x = np.ones(1)
    end = samplers.sample(denoise, x, levels, step)
    right = deviation(*levels[-1][1]) / deviation(*levels[0][1])
    return abs(end - right).item()


figure, ax = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
for name in ("ddim", "dpm++", "ab2"):
    ax.loglog(NUMBERS, [error(name, n) for n in NUMBERS], "o-", label=name)
ax.set(xlabel="steps", ylabel="error at the end of the path")
ax.legend()
plt.show()

# %%
# Generate with it by its name, as with the packaged samplers.

model = LatentDiffusion.load("mnist")

figure, axes = plt.subplots(3, 1, figsize=(9, 1.7), layout="constrained")
for ax, name in zip(axes, ("ddim", "dpm++", "ab2")):
    images = model.predict(20, sampler=name, steps=8, seed=2)
    ax.imshow(montage(images, columns=20), cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %%
# To contribute it, add it to ``dipy_ldm/diffusion/samplers.py`` with its equation and
# its source, add the line to ``SAMPLERS``, and its order of convergence to
# ``tests/diffusion/test_samplers.py``, which checks it.
