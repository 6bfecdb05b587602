"""
Generate digits: samplers and steps
===================================

A sampler turns noise into a clean latent, step by step. Each step costs one call of the
network, so the time of a sample is proportional to the number of steps. How good are
samples of few steps, and of many?
"""

# sphinx_gallery_thumbnail_number = 2

import time

import matplotlib.pyplot as plt

from dipy_ldm import LatentDiffusion
from dipy_ldm.plots import montage, plot_samples

# %%
# Samples of the packaged model of digits, with the default options:

model = LatentDiffusion.load("mnist")
digits = model.predict(60, seed=1)
plot_samples(digits, columns=20)

# %%
# Now the same noise for three samplers and several numbers of steps. The network was
# compiled above, so the times do not include that.

SAMPLERS = ("ddpm", "ddim", "dpm++")
STEPS = (3, 5, 10, 20, 50)

figure, axes = plt.subplots(
    len(STEPS), len(SAMPLERS), figsize=(9, 4.1), layout="constrained"
)
for row, steps in zip(axes, STEPS):
    for ax, sampler in zip(row, SAMPLERS):
        start = time.perf_counter()
        images = model.predict(8, sampler=sampler, steps=steps, seed=3)
        seconds = time.perf_counter() - start
        ax.imshow(montage(images, columns=8), cmap="gray")
        ax.set(xticks=[], yticks=[], xlabel=f"{seconds:.2f} s")
for ax, sampler in zip(axes[0], SAMPLERS):
    ax.set_title(sampler)
for ax, steps in zip(axes[:, 0], STEPS):
    ax.set_ylabel(f"{steps} steps")
plt.show()

# %%
# The time grows with the number of steps and hardly differs between samplers.
# ``dpm++``, the default, and ``ddim`` converge to the same digits, since both solve the
# same differential equation from the same noise; ``dpm++`` needs fewer steps. ``ddpm``
# adds new noise at each step, generates other digits, and needs the most steps.
#
# Guidance extrapolates estimates away from those of a smaller network (autoguidance).
# More guidance gives clearer digits, which vary less.

GUIDANCE = (1.0, 2.0, 4.0)

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for ax, guidance in zip(axes, GUIDANCE):
    images = model.predict(36, guidance=guidance, seed=5)
    ax.imshow(montage(images), cmap="gray")
    ax.set_title(f"guidance {guidance:g}")
    ax.set_axis_off()
plt.show()
