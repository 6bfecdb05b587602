"""A dead codebook, without initialisation by k-means and revival of codes."""

from matplotlib import pyplot as plt
import numpy as np
from panels import BLUE, ORANGE, curve, show
from trained import autoencoders

from dipy_ldm.data import load_mnist
from dipy_ldm.plots import montage

N = 8


def draw():
    """Draw error, perplexity and reconstructions of both."""
    kinds = dict(zip(("k-means and revival", "neither"), autoencoders()))
    digits = load_mnist("test")[0][:N]
    figure = plt.figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    axes = left.subplots(1, 2)
    rows = {"digits": digits}
    for (label, model), colour in zip(kinds.items(), (BLUE, ORANGE)):
        curve(axes[0], model.history_["val_mse"], label, colour)
        curve(axes[1], model.history_["perplexity"], label, colour)
        rows[label] = model.predict(digits)
    axes[0].set(title="val_mse", yscale="log")
    axes[1].set(title="perplexity (of 256 codes)", ylim=(0, None))
    axes[0].legend()
    for ax, (title, images) in zip(right.subplots(3, 1), rows.items()):
        used = (
            ""
            if title == "digits"
            else f": {usage(kinds[title]):.0%} of the codes used"
        )
        show(ax, montage(images, columns=N), title + used)


def usage(model):
    """Return the share of codes in use in the last epoch."""
    return np.float64(model.history_["usage"][-1])
