"""One sample, step by step: noisy latents, and estimates of the clean one."""

from matplotlib import pyplot as plt
from panels import decoded, levels, packaged, show

from dipy_ldm.diffusion.samplers import SAMPLERS, noise_source, sample

STEPS = 10


def draw():
    """Draw each step: the noisy latent above, the estimate below, both decoded."""
    model = packaged()
    sampler = SAMPLERS["dpm++"]
    path = levels(model, sampler.grid(model.schedule, STEPS))
    denoise = model.denoiser(model.default_guidance)
    estimates = []

    def record(x, t):
        clean = denoise(x, t)
        estimates.append((x, clean))
        return clean

    noise = noise_source(0, [4], model.latent_shape_)
    sample(record, noise(), path, sampler.step, noise)
    figure, axes = plt.subplots(2, STEPS, figsize=(11, 2.8), layout="constrained")
    for (above, below), (x, clean), (_, (alpha, sigma)) in zip(axes.T, estimates, path):
        show(
            above,
            decoded(model, x)[0],
            f"$\\alpha$ = {alpha:.2g}\n$\\sigma$ = {sigma:.2f}",
        )
        show(below, decoded(model, clean)[0])
    axes[0, 0].set_ylabel("noisy")
    axes[1, 0].set_ylabel("estimate")
