"""
Denoise digits
==============

Noise an image's latent to a level, and walk back from there: details that the noise has
drowned are made up anew, to what the model knows to be likely. How far to go is the
``strength``. At 0 nothing is noised and the result is the autoencoder's reconstruction,
at 1 nothing is left of the image.
"""

import matplotlib.pyplot as plt
import numpy as np

from dipy_ldm import LatentDiffusion
from dipy_ldm.data import load_mnist
from dipy_ldm.plots import montage

# %%
# Test digits, and the same with noise.

digits = load_mnist("test")[0][:200]
rng = np.random.default_rng(0)
noisy = np.clip(digits + rng.normal(0, 0.3, digits.shape), 0, 1).astype("float32")

model = LatentDiffusion.load("mnist")
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8)
denoised = {s: model.denoise(noisy, strength=s) for s in STRENGTHS}

figure, axes = plt.subplots(
    len(STRENGTHS) + 2, 1, figsize=(9, 5.6), layout="constrained"
)
rows = {"digits": digits, "noisy": noisy}
rows |= {f"strength {s:g}": images for s, images in denoised.items()}
for ax, (name, images) in zip(axes, rows.items()):
    ax.imshow(montage(images[:16], columns=16), cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %%
# The error falls and rises again: too little strength keeps noise, and too much makes
# another digit.

errors = [np.mean((images - digits) ** 2) for images in denoised.values()]
before = np.mean((noisy - digits) ** 2)

figure, ax = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
ax.plot(STRENGTHS, errors, "o-", label="denoised")
ax.axhline(before, color="0.5", ls="--", label="noisy")
ax.set(xlabel="strength", ylabel="mean squared error", ylim=(0, None))
ax.legend()
plt.show()

# %%
# Each seed makes up other details. Where the results differ, they are guesses: the
# standard deviation of several tells where not to believe them.

number = 8
guesses = np.stack(
    [
        model.denoise(noisy[number : number + 1], strength=0.5, first=i)[0]
        for i in range(12)
    ]
)
figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
for ax, image, title in zip(
    axes,
    (digits[number], noisy[number], guesses.mean(0), guesses.std(0)),
    ("digit", "noisy", "mean of 12", "standard deviation"),
):
    ax.imshow(image[..., 0], cmap="magma" if "deviation" in title else "gray")
    ax.set_title(title)
    ax.set_axis_off()
plt.show()
