"""Noisy digits, denoised with increasing strength."""

from matplotlib import pyplot as plt
import numpy as np
from panels import packaged, show

from dipy_ldm.data import load_mnist

STRENGTHS = (0, 0.1, 0.2, 0.4, 0.8)


def draw():
    """Draw originals, noisy digits and results, one column each."""
    model = packaged()
    digits = load_mnist("test")[0][[2, 4, 7, 18]]
    noise = np.random.default_rng(0).normal(0, 0.5, digits.shape)
    noisy = np.clip(digits + noise, 0, 1).astype("float32")
    columns = {"original": digits, "noisy": noisy}
    for strength in STRENGTHS:
        columns[f"strength {strength:g}"] = model.denoise(
            noisy, strength=strength, seed=1
        )
    shape = len(digits), len(columns)
    figure, axes = plt.subplots(*shape, figsize=(9, 5.2), layout="constrained")
    for place, (title, images) in zip(axes.T, columns.items()):
        for row, (ax, image) in enumerate(zip(place, images)):
            error = np.mean((image - digits[row]) ** 2)
            show(ax, image, title if row == 0 else None)
            if title != "original":
                ax.set_xlabel(f"error {error:.3f}", fontsize=8)
