"""Digits with a hole, filled in several ways."""

from matplotlib import pyplot as plt
import numpy as np
from panels import packaged, show

from dipy_ldm.data import load_mnist
from dipy_ldm.diffusion import _inpainting as inpainting


def draw():
    """Draw originals, holes and fillings, one column each."""
    digits = load_mnist("test")[0][[2, 4, 7, 18]]
    y, x = np.mgrid[:28, :28]
    masks = np.broadcast_to((y - 16) ** 2 + (x - 14) ** 2 <= 25, digits.shape[:3])
    samples = packaged().inpaint(digits, masks, n_samples=8, seed=1)
    columns = {
        "original": digits,
        "hole": np.where(masks[..., None], 0.5, digits),
        "smooth filling": inpainting.fill(digits, masks),
        **{f"sample {i}": samples[:, i] for i in range(3)},
        "mean of 8": samples.mean(1),
        "spread": samples.std(1, ddof=1) * 2,
    }
    shape = len(digits), len(columns)
    figure, axes = plt.subplots(*shape, figsize=(9, 4.7), layout="constrained")
    for place, (title, images) in zip(axes.T, columns.items()):
        for row, (ax, image) in enumerate(zip(place, images)):
            show(ax, image, title if row == 0 else None)
