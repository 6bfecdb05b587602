"""Training on latents that are not scaled to unit variance."""

from matplotlib import pyplot as plt
from panels import BLUE, ORANGE, curve, show
from trained import good, without_scale

from dipy_ldm.plots import montage


def draw():
    """Draw the losses left, and samples of each model right."""
    models = {"unit variance": good(), "ten times smaller": without_scale()}
    figure = plt.figure(figsize=(11, 3.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.7))
    ax = left.subplots()
    axes = right.subplots(1, 2)
    for (label, model), colour, place in zip(models.items(), (BLUE, ORANGE), axes):
        curve(ax, model.history_["loss"], label, colour)
        samples = model.predict(25, guidance=1, seed=3, strategy=None)
        show(place, montage(samples, columns=5), f"samples, {label}")
    ax.set(title="loss", ylim=(0, None))
    ax.legend()
