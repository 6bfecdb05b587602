"""The forward process: a digit and its latent at six times."""

from matplotlib import pyplot as plt
from panels import as_colours, decoded, packaged, scaled, show

from dipy_ldm.data import load_mnist
from dipy_ldm.diffusion.samplers import noise_source
from dipy_ldm.diffusion.schedules import rates

TIMES = (0, 0.2, 0.4, 0.6, 0.8, 1)


def draw():
    """Draw the latent above, and decoded below."""
    model = packaged()
    digit = load_mnist("test")[0][:1]
    clean = scaled(model, digit)
    noise = noise_source(0, [0], clean.shape[1:])()
    figure, axes = plt.subplots(2, len(TIMES), figsize=(9, 3.4), layout="constrained")
    for (above, below), t in zip(axes.T, TIMES):
        alpha, sigma = rates(model.schedule, t)
        x = (alpha * clean + sigma * noise).astype("float32")
        title = f"t = {t:g}\n$\\alpha$ = {alpha:.2f}, $\\sigma$ = {sigma:.2f}"
        show(above, as_colours(x[0]), title)
        show(below, decoded(model, x)[0])
    axes[0, 0].set_ylabel("latent $z_t$")
    axes[1, 0].set_ylabel("decoded")
