"""
Explore the latent space
========================

What do latents look like, how are they scaled for the diffusion model, and what lies
between two of them?
"""

# sphinx_gallery_thumbnail_number = 4

import matplotlib.pyplot as plt
import numpy as np

from dipy_ldm import LatentDiffusion
from dipy_ldm.data import load_mnist
from dipy_ldm.plots import montage, plot_latents

# %%
# The packaged model has its autoencoder in ``vqvae``. Each digit is encoded as 7 × 7
# positions with three channels, shown here as colours. They still resemble the digit:
# latents are smaller images.

model = LatentDiffusion.load("mnist")
digits, labels = load_mnist("test")
latents = model.vqvae.encode(digits[:2000])
plot_latents(latents[:16], columns=16)

# %%
# Each vector is replaced by the nearest of 1024 codes. Larger points are codes that the
# digits of this page use more often.

codes = model.vqvae.codes(latents)
counts = np.bincount(codes.ravel(), minlength=model.vqvae.n_codes)
print(f"{np.count_nonzero(counts)} of {len(counts)} codes in use")
book = model.vqvae.codebook_
low, high = np.percentile(book, (1, 99), axis=0)

figure = plt.figure(figsize=(9, 3.8), layout="constrained")
ax = figure.add_subplot(1, 2, 1, projection="3d")
ax.scatter(*book.T, s=2 * np.sqrt(counts), c=np.clip((book - low) / (high - low), 0, 1))
ax.set_title("codes, in the colours of their channels")
ax = figure.add_subplot(1, 2, 2)
ax.plot(np.sort(counts)[::-1])
ax.set(yscale="log", xlabel="codes, sorted by use", ylabel="times used")
plt.show()

# %%
# A diffusion model needs latents with about the standard deviation of the noise, 1.
# So the model subtracts the mean of each channel, and divides all channels by one
# standard deviation.

scaled = (latents - model.latent_mean_) / model.latent_scale_

figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained", sharey=True)
for ax, values, title in zip(axes, (latents, scaled), ("latents", "scaled")):
    for channel in range(3):
        ax.hist(values[..., channel].ravel(), 80, density=True, histtype="step", lw=1.5)
    ax.set(title=title, xlabel="value", xlim=(-5, 5))
plt.show()

# %%
# The first two principal components of the latents. Equal digits form clusters, though
# the autoencoder was trained without labels.

rows = latents.reshape(len(latents), -1)
_, _, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
places = (rows - rows.mean(0)) @ directions[:2].T

figure, ax = plt.subplots(figsize=(6.5, 4.8), layout="constrained")
points = ax.scatter(*places.T, c=labels[:2000], s=8, cmap="tab10", vmin=-0.5, vmax=9.5)
figure.colorbar(points, ticks=range(10), label="digit")
ax.set(xlabel="first component", ylabel="second component")
plt.show()

# %%
# Between two digits: the decoded linear interpolation of their latents (above), and the
# same after noising and denoising by the model (below). In the interpolation one digit
# fades into the other; denoising turns the steps in between into digits.

ends = latents[[0, 2]]
way = np.linspace(0, 1, 12)[:, None, None, None]
between = model.vqvae.decode((1 - way) * ends[0] + way * ends[1])
likely = model.denoise(between, strength=0.6, seed=1)

figure, axes = plt.subplots(2, 1, figsize=(9, 1.8), layout="constrained")
for ax, images in zip(axes, (between, likely)):
    ax.imshow(montage(images, columns=12), cmap="gray")
    ax.set_axis_off()
plt.show()
