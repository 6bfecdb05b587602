"""Samples and their nearest training digits: models of many digits, and of few."""

from matplotlib import pyplot as plt
import numpy as np
from panels import packaged, show
from trained import digits, memorised

from dipy_ldm.metrics import nearest_distance
from dipy_ldm.plots import montage

N = 12


def draw():
    """Draw samples of both models above their nearest training digits."""
    figure, axes = plt.subplots(2, 1, figsize=(10, 4.4), layout="constrained")
    kinds = {"57,000 digits": (packaged(), 60_000), "16 digits": (memorised(), 16)}
    for ax, (label, (model, n)) in zip(axes, kinds.items()):
        samples, train = model.predict(N, guidance=1, seed=5, strategy=None), digits(n)
        distance = nearest_distance(samples, train)
        near = np.concatenate([nearest(sample, train) for sample in samples])
        title = f"trained on {label}: median distance {np.median(distance):.1f}"
        show(ax, montage(np.concatenate([samples, near]), columns=N), title)
        ax.set_ylabel("nearest    sample")


def nearest(sample, train):
    """Return the training digit that is nearest to a sample."""
    best = ((train - sample) ** 2).sum((1, 2, 3)).argmin()
    return train[best : best + 1]
