"""Trials: some real steps of both stages, and overfitting eight images."""

from collections.abc import Callable, Mapping
from contextlib import suppress
import math
import time
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm import VQVAE, plots
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.progress import log_filter
from dipy_ldm.checking._findings import Finding, Picture, amber, flat, green, grey, red
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data._grid import Grid, conform
from dipy_ldm.denoiser._training import guide_batches
from dipy_ldm.training import ResolvedOptions

# Real steps of each stage at most; the first, for which networks are compiled, is none
# that counts.
_MAX_STEPS = 12
_MIN_STEPS = 4
# Images that are memorised, for how many steps at most, and voxels along a side
# of volumes: what these show can be learnt in a minute of a processor.
N_OVERFIT_IMAGES = 8
_MAX_OVERFIT_STEPS = 300
_MAX_SIDE = 32


class Paces(NamedTuple):
    """How long parts of a training take, in seconds.

    ``start`` is what both stages need before their second step, ``each`` a step of each
    stage by its name, and ``encoding`` the encoding of an image.
    """

    start: float
    each: dict[str, float]
    encoding: float


class Overfit(NamedTuple):
    """Result of overfitting eight images.

    ``steps`` is how many there were, 0 of an autoencoder that is taken as it is,
    ``mse`` the mean squared error of reconstructions and ``baseline_mse`` that of the
    mean of all eight, both of images in [0, 1]; ``images`` and ``reconstructed`` are
    those, ``(n, *space, channels)``.
    """

    steps: int
    mse: float
    baseline_mse: float
    codes_used: int
    n_codes: int
    images: np.ndarray
    reconstructed: np.ndarray


class _StopTrainingError(Exception):
    """There were enough steps, or the time is up."""


def _stop_after(steps: int, seconds: float) -> Callable:
    """Stop a training after some steps, or some time from its first step on."""

    def stop(estimator):
        # The last is the stage that goes on.
        taken = list(estimator.step_seconds_.values())[-1]
        late = sum(taken[1:]) > seconds and len(taken) >= _MIN_STEPS
        if late or len(taken) >= steps:
            raise _StopTrainingError

    return stop


def _fit_briefly(estimator, images, steps, seconds, options):
    """Train for so many steps or seconds at most, also if nothing is learnt."""
    options = options | {"steps": steps, "epochs": None}
    options["callbacks"] = [_stop_after(steps, seconds)]
    silent = log_filter("dipy_ldm.training._trainer", lambda record: False)
    try:
        with silent, suppress(_StopTrainingError):
            estimator.fit(images, **options)
    except InputError:
        # Of an option, or of the images, before there was a step.
        if not any(getattr(estimator, "step_seconds_", {}).values()):
            raise
        # What came of it is looked at, even if that was in the first round.
        vars(estimator).setdefault("history_", {})


def time_training_steps(recipe: Any, batch: Cohort, seconds: float) -> Paces:
    """Time some steps of both stages on a batch."""
    begin, taken = time.monotonic(), {}
    images = np.asarray(batch.images, "float32")
    if recipe.of_vqvae:
        options = recipe.of_patches | recipe.of_vqvae | {"channels": batch.channels}
        _fit_briefly(recipe.vqvae, images, _MAX_STEPS, seconds, options)
        taken = recipe.vqvae.step_seconds_
    else:
        recipe.vqvae.adapt(images)
    _fit_briefly(recipe.model, images, _MAX_STEPS, seconds, recipe.of_model)
    taken = taken | recipe.model.step_seconds_
    all_steps = sum(sum(durations[1:]) for durations in taken.values())
    start = time.monotonic() - begin - all_steps
    begin = time.monotonic()
    recipe.vqvae.encode(images)
    encoding = (time.monotonic() - begin) / len(images)
    each = {
        title: float(np.median(durations[1:] or durations))
        for title, durations in taken.items()
    }
    return Paces(start, each, encoding)


def overfit(recipe: Any, few: Cohort, seconds: float) -> Overfit:
    """Overfit an autoencoder to eight images, or measure one that is trained."""
    images = np.asarray(few.images, "float32")
    if recipe.of_vqvae:
        images = _reduced(images, few.affine)
        vqvae = _overfitted(recipe, images, seconds, few.channels)
        steps = len(vqvae.step_seconds_["autoencoder"])
    else:
        vqvae, steps = recipe.vqvae.adapt(images), 0
    latents, (low, high) = vqvae.encode(images), vqvae.intensity_
    scale = (high - low) or 1
    reconstructed, codes_used = np.full_like(images, np.nan), 0
    if np.isfinite(latents).all():
        reconstructed = vqvae.decode(latents)
        codes_used = len(np.unique(vqvae.codes(latents)))
    return Overfit(
        steps,
        float(np.mean((reconstructed - images) ** 2) / scale**2),
        float(np.mean((images - images.mean(axis=0)) ** 2) / scale**2),
        codes_used,
        len(vqvae.codebook_),
        images,
        reconstructed,
    )


def _overfitted(recipe, images, seconds, channels):
    """Train an autoencoder like that of the training on few images."""
    vqvae = VQVAE(**recipe.vqvae.get_params())
    options = recipe.of_vqvae | {"accumulate": 1, "strategy": None}
    options["batch_size"] = min(options["batch_size"], len(images))
    options["channels"] = channels
    _fit_briefly(vqvae, images, _MAX_OVERFIT_STEPS, seconds, options)
    return vqvae


def _reduced(images, affine):
    """Downsample volumes so that few voxels are left along each side."""
    times = max(images.shape[1:-1]) / _MAX_SIDE
    if affine is None or times <= 1:
        return images
    shape = tuple(int(np.ceil(n / times)) for n in images.shape[1:-1])
    coarse = affine @ np.diag([times, times, times, 1.0])
    coarse[:3, 3] = affine[:3, 3] + np.diag(affine)[:3] * (times - 1) / 2
    return np.stack([conform(image, affine, Grid(shape, coarse)) for image in images])


# Of the mean's error, what is left of images that are memorised.
_MAX_LEARNT_ERROR = 0.5
# Steps with which it can be told that nothing is learnt.
_MIN_TRIAL_STEPS = 100
# Hours after which a smaller beginning is wise.
_LONG_HOURS = 24.0


def check_time(
    paces: Paces, trainings: Mapping[str, ResolvedOptions], n: int, n_all: int
) -> Finding:
    """Estimate how long the training will take."""
    steps = {stage: options.length(n).total for stage, options in trainings.items()}
    if "guide" in paces.each:
        accumulate = trainings["diffusion"].accumulate
        steps["guide"] = guide_batches(steps["diffusion"], accumulate)
    rows: list[tuple] = [
        (stage, n, paces.each[stage], n * paces.each[stage])
        for stage, n in steps.items()
    ]
    encoding = n_all * paces.encoding + paces.start
    rows.append(("compiling, encoding", None, None, encoding))
    total = sum(row[-1] for row in rows)
    table: list[tuple] = [("part", "steps", "seconds a step", "time", "share (%)")]
    table += [(*row, duration(s), 100 * s / total) for *row, s in rows]
    measured = ", ".join(f"{stage} {count:,}" for stage, count in steps.items())
    message = (
        f"About {duration(total)} for these steps ({measured}) on a machine as busy as "
        "now, and some more for validation, pictures and checkpoints."
    )
    if total > _LONG_HOURS * 3600:
        cure = (
            "Begin with larger voxels (twice as wide, the diffusion model takes an "
            "eighth of the time; the autoencoder, which learns from patches, takes "
            "about as long), fewer --steps_vqvae and --steps_ldm, or a GPU."
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
    """Check whether a few images could be overfitted."""
    title, n = "overfitting", len(result.images)
    if not math.isfinite(result.mse):
        return red(
            title,
            f"Within {result.steps} steps numbers were no longer finite.",
            "Give a lower --learning_rate, or --precision float32.",
        )
    pair = result.images, result.reconstructed
    alike = float(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1])
    share = result.mse / result.baseline_mse if result.baseline_mse else math.inf
    when = f"After {result.steps} steps on them" if result.steps else "Without training"
    message = (
        f"{when}, reconstructions of {n} images have a mean squared error of "
        f"{result.mse:.2g} ({share:.1%} of that of their mean, "
        f"{result.baseline_mse:.2g}), and a correlation of {alike:.3f}, by "
        f"{result.codes_used:,} of {result.n_codes:,} codes"
    )
    n_shown = n if affine is None else 3
    shown = plots.beside(*(flat(x[:n_shown], affine) for x in pair))
    pictures = [Picture(shown, f"{n} images, reconstructed below")]
    if share < _MAX_LEARNT_ERROR:
        return green(title, f"{message}: they are learnt.", pictures=pictures)
    if result.steps == 0:
        cure = "Train the autoencoder, too (--steps_vqvae 1000), or leave out --init."
        return amber(title, f"{message}.", cure, pictures)
    if result.steps < _MIN_TRIAL_STEPS:
        why = f"{message}; so few steps, in the time there was, are too few to judge."
        return grey(title, why, pictures=pictures)
    cure = (
        "Look at the pictures: are images dark but for a few voxels, or all alike? If "
        "not, try another --learning_rate (0.001 to 0.002 is usual for volumes)."
    )
    if share < 1:
        return amber(title, f"{message}.", cure, pictures)
    return red(title, f"{message}: nothing is learnt.", cure, pictures)
