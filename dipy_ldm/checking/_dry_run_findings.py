"""What trials tell: time, whether images are learnt, codes and latents."""

import math
from typing import Any

import numpy as np

from dipy_ldm.checking._dry_run import Overfit, Paces
from dipy_ldm.checking._findings import Finding, Picture, amber, green, grey, red
from dipy_ldm.checking._pictures import show_reconstructions
from dipy_ldm.denoiser._training import guide_steps
from dipy_ldm.training import Training

# Of the mean's error, what is left of images that are learnt by heart.
_MAX_LEARNT_ERROR = 0.5
# Steps with which it can be told that nothing is learnt.
_MIN_JUDGED_STEPS = 100
# With less perplexity all latents have one code, by dipy_ldm.autoencoder._assessment
# too.
_MIN_PERPLEXITY = 1.5
# Share of the codes that are used, of as many as there are latents.
_MIN_SHARE_USED = 0.3
# Of the widest channel's standard deviation, what a channel without content has.
_MIN_CHANNEL_SPREAD = 0.01
# Hours after which a smaller beginning is wise.
_LONG_HOURS = 24.0


def check_time(
    paces: Paces, trainings: tuple[Training, Training], n: int, n_all: int
) -> Finding:
    """Say how long the training will take."""
    steps = {
        "autoencoder": trainings[0].length(n).total,
        "diffusion": trainings[1].length(n).total,
    }
    if "guide" in paces.each:
        steps["guide"] = guide_steps(steps["diffusion"])
    seconds = {stage: count * paces.each[stage] for stage, count in steps.items()}
    encoding = n_all * paces.encoding + paces.start
    total = sum(seconds.values()) + encoding
    table: list[tuple] = [("part", "steps", "seconds a step", "time", "share (%)")]
    table += [
        (stage, steps[stage], paces.each[stage], duration(s), 100 * s / total)
        for stage, s in seconds.items()
    ]
    start = "compiling, encoding"
    table.append((start, None, None, duration(encoding), 100 * encoding / total))
    measured = ", ".join(f"{stage} {count:,}" for stage, count in steps.items())
    message = (
        f"About {duration(total)} for these steps ({measured}) on a machine as busy as "
        "now, and some more for validation, pictures and checkpoints."
    )
    if total > _LONG_HOURS * 3600:
        cure = (
            "Begin with larger voxels (twice as wide take an eighth of the time), "
            "fewer --steps_vqvae and --steps_ldm, or a GPU."
        )
        return amber("time", message, cure, table=table)
    return green("time", message, table=table)


def duration(seconds: float) -> str:
    """Write a time as people do."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{math.ceil(seconds)} s"


def check_overfit(result: Overfit, affine: np.ndarray | None) -> Finding:
    """Say whether a few images could be learnt by heart."""
    title, n = "learning by heart", len(result.images)
    if not math.isfinite(result.mse):
        return red(
            title,
            f"Within {result.steps} steps numbers were no longer finite.",
            "Give a lower --learning_rate, or --precision float32.",
        )
    alike = float(
        np.corrcoef(result.images.ravel(), result.reconstructed.ravel())[0, 1]
    )
    share = result.mse / result.baseline_mse if result.baseline_mse else math.inf
    message = (
        f"After {result.steps} steps on {n} images, their reconstructions have a mean "
        f"squared error of {result.mse:.2g} ({share:.1%} of that of their mean, "
        f"{result.baseline_mse:.2g}), and a correlation of {alike:.3f}"
    )
    pictures = [
        Picture(
            show_reconstructions(result.images, result.reconstructed, affine),
            f"{n} images, reconstructed below",
        )
    ]
    if share < _MAX_LEARNT_ERROR:
        return green(title, f"{message}: they are learnt.", pictures=pictures)
    if result.steps < _MIN_JUDGED_STEPS:
        why = f"{message}; so few steps, in the time there was, tell nothing."
        return grey(title, why)._replace(pictures=pictures)
    cure = (
        "Look at the pictures: are images dark but for a few voxels, or all alike? If "
        "not, try another --learning_rate (0.001 to 0.002 is usual for volumes)."
    )
    if share < 1:
        return amber(title, f"{message}.", cure, pictures=pictures)
    return red(title, f"{message}: nothing is learnt.", cure, pictures=pictures)


def check_codes(result: Overfit, n_codes: int) -> Finding:
    """Say how many of the codes are used."""
    if not math.isfinite(result.perplexity):
        return grey("codes", "Not counted: the trial stopped before that.")
    latents = math.prod(result.latents.shape[:-1])
    message = (
        f"{result.usage:.0%} of {n_codes:,} codes were used by {latents:,} latents of "
        f"{len(result.images)} images (perplexity {result.perplexity:.0f})."
    )
    cure = (
        "Give a smaller --n_codes if reconstructions are good; if they are bad, see "
        "that the images are not empty for the most part (--shape, --background)."
    )
    if result.perplexity < _MIN_PERPLEXITY and result.steps >= _MIN_JUDGED_STEPS:
        return red("codes", f"{message} Nearly all latents have the same code.", cure)
    if result.usage * n_codes < _MIN_SHARE_USED * min(n_codes, latents):
        return amber("codes", message, cure)
    return green("codes", message)


def check_latents(result: Overfit) -> Finding:
    """Say how much each channel of the latents varies."""
    rows = result.latents.reshape(-1, result.latents.shape[-1])
    if not np.isfinite(rows).all():
        return grey("latents", "Not measured: their numbers are not finite.")
    means, spreads = rows.mean(axis=0), rows.std(axis=0)
    scale = float(np.sqrt(np.mean(spreads**2)))
    table: list[tuple[Any, ...]] = [("channel", "mean", "standard deviation")]
    table += [(i + 1, *map(float, pair)) for i, pair in enumerate(zip(means, spreads))]
    message = (
        f"Standard deviations of the {len(spreads)} channels are {spreads.min():.2g} "
        f"to {spreads.max():.2g}; all are divided by {scale:.2g}, to add noise to."
    )
    if scale <= 1e-6:
        cure = "See that the images differ, and give a lower --learning_rate."
        return red("latents", "All latents are the same.", cure, table=table)
    idle = int((spreads < _MIN_CHANNEL_SPREAD * spreads.max()).sum())
    if idle:
        cure = "Give a smaller --code_dim: these channels hold nothing."
        return amber("latents", f"{message} {idle} hardly vary.", cure, table=table)
    return green("latents", message, table=table)
