"""Samples beside their nearest training digits: of many digits, and of few."""

from matplotlib import pyplot as plt
import numpy as np
from panels import packaged, show
from trained import by_heart, digits, good

from dipy_ldm.plots import montage

N = 10


def draw():
    """Draw samples above their neighbours, of both models."""
    packaged()
    figure, axes = plt.subplots(2, 1, figsize=(9, 4.4), layout="constrained")
    kinds = {"6,400 digits": (good(), 6400), "16 digits": (by_heart(), 16)}
    for ax, (label, (model, n)) in zip(axes, kinds.items()):
        samples, train = model.predict(N, guidance=1, seed=5, strategy=None), digits(n)
        squared = ((samples[:, None] - train[None]) ** 2).sum((2, 3, 4))
        near = train[squared.argmin(1)]
        title = f"trained on {label}; median distance {np.median(squared.min(1)) ** 0.5:.1f}"
        show(ax, montage(np.concatenate([samples, near]), columns=N), title)
        ax.set_ylabel("nearest    sample")
