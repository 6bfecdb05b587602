"""
Denoise digits
==============

Add noise to an image's latent, and walk back from there: details below the noise are
regenerated, as the model finds likely. How much noise is added is the ``strength``. At
0 it is none, and the result is the autoencoder's reconstruction; at 1 nothing is left
of the image.
"""

# sphinx_gallery_thumbnail_number = 3

import matplotlib.pyplot as plt
import numpy as np

from dipy_ldm import LatentDiffusion
from dipy_ldm.data import load_mnist
from dipy_ldm.plots import montage

# %%
# Test digits, much noise, and what is made of them at several strengths.

digits = load_mnist("test")[0][:100]
rng = np.random.default_rng(0)
noisy = np.clip(digits + rng.normal(0, 0.5, digits.shape), 0, 1).astype("float32")

model = LatentDiffusion.load("mnist")
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
REPEATS = 8
denoised = {
    strength: np.stack(
        [
            model.denoise(noisy, strength=strength, first=repeat * len(noisy))
            for repeat in range(REPEATS)
        ]
    )
    for strength in STRENGTHS
}

rows = {"digits": digits, "noisy": noisy}
rows |= {f"strength {s:g}": repeats[0] for s, repeats in denoised.items()}
figure, axes = plt.subplots(len(rows), 1, figsize=(9, 5.9), layout="constrained")
for ax, (name, images) in zip(axes, rows.items()):
    ax.imshow(montage(images[:16], columns=16), cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %%
# Too little strength keeps noise, and too much makes another digit. Each repeat starts
# from other noise and generates other details, so that the mean of several is nearer to
# the truth than any of them.

one = [np.mean((repeats[0] - digits) ** 2) for repeats in denoised.values()]
mean = [np.mean((repeats.mean(0) - digits) ** 2) for repeats in denoised.values()]

figure, ax = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
ax.axhline(np.mean((noisy - digits) ** 2), color="0.5", ls="--", label="noisy")
ax.plot(STRENGTHS, one, "o-", label="denoised once")
ax.plot(STRENGTHS, mean, "o-", label=f"mean of {REPEATS}")
ax.set(xlabel="strength", ylabel="mean squared error", ylim=(0, None))
ax.legend()
plt.show()

# %%
# Where the repeats differ, they guess: their spread, the standard deviation, shows
# where not to trust the mean.

repeats = denoised[0.3]
rows = {
    "digits": digits,
    "noisy": noisy,
    f"mean of {REPEATS}": repeats.mean(0),
    "their spread": repeats.std(0),
}
figure, axes = plt.subplots(len(rows), 1, figsize=(9, 4.0), layout="constrained")
for ax, (name, images) in zip(axes, rows.items()):
    picture = montage(images[:10], columns=10, gap=0)
    ax.imshow(picture, cmap="magma" if "spread" in name else "gray")
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()
