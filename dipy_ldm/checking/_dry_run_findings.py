"""What trials tell: time, whether images are learnt, codes and latents."""

import math
from typing import Any

import numpy as np

from dipy_ldm.checking._dry_run import ByHeart, Paces
from dipy_ldm.checking._findings import Finding, Picture, amber, green, grey, red
from dipy_ldm.checking._pictures import reconstructed
from dipy_ldm.denoiser._training import guide_steps
from dipy_ldm.training import Training

# Of the mean's error, what is left of images that are learnt by heart.
_LEARNT = 0.5
# Steps with which it can be told that nothing is learnt.
_ENOUGH = 100
# With less perplexity all latents have one code, by dipy_ldm.autoencoder._assessment
# too.
_PERPLEXITY = 1.5
# Share of the codes that are used, of as many as there are latents.
_USED = 0.3
# Of the widest channel's standard deviation, what a channel without content has.
_IDLE = 0.01
# Hours after which a smaller beginning is wise.
_LONG = 24.0


def time(
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
    what = (
        f"About {duration(total)} for these steps ({measured}) on a machine as busy as "
        "now, and some more for validation, pictures and checkpoints."
    )
    if total > _LONG * 3600:
        cure = (
            "Begin with larger voxels (twice as wide take an eighth of the time), "
            "fewer --steps_vqvae and --steps_ldm, or a GPU."
        )
        return amber("time", what, cure, table=table)
    return green("time", what, table=table)


def duration(seconds: float) -> str:
    """Write a time as people do."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{math.ceil(seconds)} s"


def by_heart(found: ByHeart, affine: np.ndarray | None) -> Finding:
    """Say whether a few images could be learnt by heart."""
    title, n = "learning by heart", len(found.images)
    if not math.isfinite(found.mse):
        return red(
            title,
            f"Within {found.steps} steps numbers were no longer finite.",
            "Give a lower --learning_rate, or --precision float32.",
        )
    alike = float(np.corrcoef(found.images.ravel(), found.made.ravel())[0, 1])
    share = found.mse / found.nothing if found.nothing else math.inf
    what = (
        f"After {found.steps} steps on {n} images, their reconstructions have a mean "
        f"squared error of {found.mse:.2g} ({share:.1%} of that of their mean, "
        f"{found.nothing:.2g}), and a correlation of {alike:.3f}"
    )
    pictures = [
        Picture(
            reconstructed(found.images, found.made, affine),
            f"{n} images, reconstructed below",
        )
    ]
    if share < _LEARNT:
        return green(title, f"{what}: they are learnt.", pictures=pictures)
    if found.steps < _ENOUGH:
        why = f"{what}; so few steps, in the time there was, tell nothing."
        return grey(title, why)._replace(pictures=pictures)
    cure = (
        "Look at the pictures: are images dark but for a few voxels, or all alike? If "
        "not, try another --learning_rate (0.001 to 0.002 is usual for volumes)."
    )
    if share < 1:
        return amber(title, f"{what}.", cure, pictures=pictures)
    return red(title, f"{what}: nothing is learnt.", cure, pictures=pictures)


def codes(found: ByHeart, n_codes: int) -> Finding:
    """Say how many of the codes are used."""
    if not math.isfinite(found.perplexity):
        return grey("codes", "Not counted: the trial stopped before that.")
    latents = math.prod(found.latents.shape[:-1])
    what = (
        f"{found.usage:.0%} of {n_codes:,} codes were used by {latents:,} latents of "
        f"{len(found.images)} images (perplexity {found.perplexity:.0f})."
    )
    cure = (
        "Give a smaller --n_codes if reconstructions are good; if they are bad, see "
        "that the images are not empty for the most part (--shape, --background)."
    )
    if found.perplexity < _PERPLEXITY and found.steps >= _ENOUGH:
        return red("codes", f"{what} Nearly all latents have the same code.", cure)
    if found.usage * n_codes < _USED * min(n_codes, latents):
        return amber("codes", what, cure)
    return green("codes", what)


def latents(found: ByHeart) -> Finding:
    """Say how much each channel of the latents varies."""
    rows = found.latents.reshape(-1, found.latents.shape[-1])
    if not np.isfinite(rows).all():
        return grey("latents", "Not measured: their numbers are not finite.")
    means, spreads = rows.mean(axis=0), rows.std(axis=0)
    scale = float(np.sqrt(np.mean(spreads**2)))
    table: list[tuple[Any, ...]] = [("channel", "mean", "standard deviation")]
    table += [(i + 1, *map(float, pair)) for i, pair in enumerate(zip(means, spreads))]
    what = (
        f"Standard deviations of the {len(spreads)} channels are {spreads.min():.2g} "
        f"to {spreads.max():.2g}; all are divided by {scale:.2g}, to add noise to."
    )
    if scale <= 1e-6:
        cure = "See that the images differ, and give a lower --learning_rate."
        return red("latents", "All latents are the same.", cure, table=table)
    idle = int((spreads < _IDLE * spreads.max()).sum())
    if idle:
        cure = "Give a smaller --code_dim: these channels hold nothing."
        return amber("latents", f"{what} {idle} hardly vary.", cure, table=table)
    return green("latents", what, table=table)
