"""The codebook: a digit as 49 codes, codes among latent vectors, and their usage."""

from matplotlib import pyplot as plt
import numpy as np
from panels import BLUE, GREY, as_colours, packaged, show

from dipy_ldm.data import load_mnist


def draw():
    """Draw a digit and its codes, latent vectors and codes, and the counts of codes."""
    model = packaged()
    vqvae = model.vqvae
    digits = load_mnist("test")[0][:2000]
    latents = vqvae.encode(digits)
    codes = vqvae.codes(latents)
    colours = as_colours((vqvae.codebook_ - model.latent_mean_) / model.latent_scale_)
    figure = plt.figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1.1, 1, 1))
    axes = left.subplots(1, 3)
    show(axes[0], digits[0], "digit")
    show(axes[1], colours[codes[0, ..., 0]], "codes")
    show(axes[2], vqvae.predict(digits[:1])[0], "reconstruction")
    ax = middle.subplots()
    vectors = latents[:500].reshape(-1, vqvae.code_dim)
    ax.scatter(*vectors.T[:2], s=1, color=GREY, alpha=0.3, label="vectors")
    ax.scatter(
        *vqvae.codebook_.T[:2],
        s=9,
        c=colours,
        edgecolors="k",
        linewidths=0.2,
        label="codes",
    )
    ax.set(xlabel="channel 1", ylabel="channel 2", title="vectors (grey) and codes")
    ax = right.subplots()
    counts = np.sort(np.bincount(codes.ravel(), minlength=vqvae.n_codes))[::-1]
    ax.semilogy(np.arange(1, len(counts) + 1), np.maximum(counts, 0.5), color=BLUE)
    ax.set(xlabel="codes, by usage", ylabel="times used", title="usage of codes")
    ax.grid(alpha=0.3)
