"""
Look into the latent space
==========================

What do latents look like, are they what a diffusion model wants, and what lies between
two of them?
"""

# sphinx_gallery_thumbnail_number = 4

import matplotlib.pyplot as plt
import numpy as np

from dipy_ldm import LatentDiffusion
from dipy_ldm.data import load_mnist
from dipy_ldm.plots import montage, plot_latents

# %%
# The packaged model has the autoencoder in ``vqvae``. Each digit becomes 7 × 7 places
# with three channels, here shown as colours. They still look like the digit: the
# latents are an image, only smaller.

model = LatentDiffusion.load("mnist")
digits, labels = load_mnist("test")
latents = model.vqvae.encode(digits[:2000])
plot_latents(latents[:16], columns=16)

# %%
# Each vector is replaced by the nearest of 1024 codes. The digits of this page use them
# all, the more often the larger the point.

codes = model.vqvae.codes(latents)
counts = np.bincount(codes.ravel(), minlength=model.vqvae.n_codes)
print(f"{np.count_nonzero(counts)} of {len(counts)} codes in use")
book = model.vqvae.codebook_
low, high = np.percentile(book, (1, 99), axis=0)

figure = plt.figure(figsize=(9, 3.8), layout="constrained")
ax = figure.add_subplot(1, 2, 1, projection="3d")
ax.scatter(*book.T, s=2 * np.sqrt(counts), c=np.clip((book - low) / (high - low), 0, 1))
ax.set_title("the codes, in colours of their own")
ax = figure.add_subplot(1, 2, 2)
ax.plot(np.sort(counts)[::-1])
ax.set(yscale="log", xlabel="codes, in order", ylabel="times used")
plt.show()

# %%
# A diffusion model wants each channel to have about the spread of the noise, 1. The
# latents have another one. The model knows mean and spread, and scales by them.

scaled = (latents - model.latent_mean_) / model.latent_scale_

figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", sharey=True)
for ax, values, title in zip(axes, (latents, scaled), ("latents", "scaled")):
    for channel in range(3):
        ax.hist(values[..., channel].ravel(), 80, density=True, histtype="step", lw=1.5)
    ax.set(title=title, xlabel="value", xlim=(-5, 5))
plt.show()

# %%
# The two directions in which latents of digits differ most, by principal components.
# Digits of a kind lie together, though the autoencoder was trained without labels.

rows = latents.reshape(len(latents), -1)
_, _, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
places = (rows - rows.mean(0)) @ directions[:2].T

figure, ax = plt.subplots(figsize=(6.5, 4.8), layout="constrained")
points = ax.scatter(*places.T, c=labels[:2000], s=8, cmap="tab10", vmin=-0.5, vmax=9.5)
figure.colorbar(points, ticks=range(10), label="digit")
ax.set(xlabel="first component", ylabel="second component")
plt.show()

# %%
# Between two digits: the straight line between their latents, decoded (above), and the
# same after noising and walking back to what the model finds likely (below). On the
# straight line one digit fades into the other; the model makes digits on the way.

ends = latents[[0, 2]]
way = np.linspace(0, 1, 12)[:, None, None, None]
between = model.vqvae.decode((1 - way) * ends[0] + way * ends[1])
likely = model.denoise(between, strength=0.6, seed=1)

figure, axes = plt.subplots(2, 1, figsize=(9, 1.8), layout="constrained")
for ax, images in zip(axes, (between, likely)):
    ax.imshow(montage(images, columns=12), cmap="gray")
    ax.set_axis_off()
plt.show()
