"""What a training needs: subjects, devices, memory, and time by some real steps."""

from collections.abc import Callable, Mapping
from contextlib import suppress
import math
import os
import time
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm import VQVAE, _backend, plots
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.progress import log_filter
from dipy_ldm._utils.values import counted
from dipy_ldm.autoencoder import _training as autoencoder
from dipy_ldm.checking._findings import (
    Finding,
    Picture,
    amber,
    flat,
    green,
    grey,
    red,
    refused,
)
from dipy_ldm.data._cohort import Cohort, split
from dipy_ldm.data._grid import Grid, conform
from dipy_ldm.denoiser import _training as diffusion
from dipy_ldm.denoiser._training import FEWEST_SUBJECTS, guide_batches
from dipy_ldm.training import ResolvedOptions

# Share of the memory beyond which other programs are to be kept away.
_TIGHT = 0.8
# Of 20 volumes four fifths of the samples were copies, by a denoiser of 5,000 steps
# (doc/decisions/evaluation.md); the guide's 200 are learnt without.
_FEW_SUBJECTS, _ENOUGH_SUBJECTS = 20, 200
# So many were measured to begin from packaged models (doc/guide/planning.rst).
_FEW_TO_BEGIN = 25
_BEGIN = (
    "Begin from a packaged model: --init brains for T1 of brains without skull (of 25 "
    "such, 50 steps were better than 500 without it), or --init volumes, an "
    "autoencoder for any scan (of 25, 29.2 dB where one of their own has 26.9)."
)
_STAGES = {"autoencoder": "The autoencoder", "diffusion": "The diffusion model"}
_SMALLER = {
    "autoencoder": "smaller --patch or larger --voxel_size",
    "diffusion": "larger --voxel_size",
}


def check_subjects(
    cohort: Cohort, init: str | None = None, series: bool = False
) -> Finding:
    """Check the number of subjects; red where a model would copy them."""
    n = len(set(cohort.subjects) if cohort.subjects else cohort.images)
    message = f"{counted(len(cohort.images), 'image')} of {counted(n, 'subject')}"
    if n >= _ENOUGH_SUBJECTS:
        return green("subjects", f"{message}.")
    cure = (
        "Add subjects, train for fewer steps (--steps_ldm), and look for copies "
        "(dipy_audit_ldm) before anything is published."
    )
    scans = cohort.affine is not None and all(c.brightens for c in cohort.channels)
    single = cohort.shape[-1] == 1 and not series
    if scans and single and n <= _FEW_TO_BEGIN and init is None:
        cure += f" {_BEGIN}"
    if n > _FEW_SUBJECTS:
        return amber("subjects", f"{message}: so few may be memorised.", cure)
    message += ": a model of so few copies them (of 20, four fifths of the samples)."
    return red("subjects", message, cure)


def check_split(cohort: Cohort, share: float, seed: int, batch_size: int) -> Finding:
    """Check how many images are trained on and held out."""
    try:
        train, held_out = split(cohort, share, seed, batch_size)
    except InputError as error:
        return refused("held out", error)
    message = f"{counted(len(train.images), 'image')} to learn from"
    if held_out is None:
        return green("held out", f"{message}, and none held out to validate.")
    message += f", {len(held_out.images)} held out to validate"
    n = len(held_out.images)
    if cohort.subjects:
        n = len(set(held_out.subjects or ()))
        message += f" ({n} of {len(set(cohort.subjects))} subjects)"
    if n < FEWEST_SUBJECTS:
        return amber(
            "held out",
            f"{message}. When to stop is chosen by chance of so few, and below "
            f"{FEWEST_SUBJECTS} nothing is said of what conditions change.",
            "Hold more out (--validation), or add subjects.",
        )
    return green("held out", f"{message}.")


def check_device(training: ResolvedOptions) -> Finding:
    """Describe the devices and the precision of the training."""
    strategy = training.strategy
    gpus = _backend.gpu_capabilities(strategy)
    if gpus:
        able = ", ".join(sorted({".".join(map(str, gpu)) for gpu in gpus}))
        message = f"{counted(len(gpus), 'GPU')} of compute capability {able}"
    else:
        message = f"this processor ({os.cpu_count()} cores), since there is no GPU"
    replicas = _backend.count_replicas(strategy)
    if replicas > 1:
        message += f", {replicas} replicas that share each batch"
    name, reason = training.precision
    return green("device", f"Training is on {message}, in {name}: {reason}.")


def check_memory(
    recipe: Any,
    trainings: Mapping[str, ResolvedOptions],
    shape: tuple[int, ...],
) -> Finding:
    """Compare the memory that each stage needs with what there is."""
    needed = {}
    if first := trainings.get("autoencoder"):
        init = recipe.of_vqvae.get("init")
        parameters = recipe.vqvae._parameters(len(shape) - 2, init)
        how = parameters, shape, recipe.of_patches["patch"], first
        needed["autoencoder"] = autoencoder.needed_memory(*how)
    second = trainings["diffusion"]
    architecture = recipe.model._architecture(shape, init=recipe.of_model.get("init"))
    needed["diffusion"] = diffusion.needed_memory(architecture, second)
    return judge_memory(needed, _backend.free_memory(second.strategy))


def judge_memory(needed: dict[str, float], free: float) -> Finding:
    """Return a finding on the needed memory and what there is."""
    table: list[tuple] = [("stage", "needed (GiB)", "memory (GiB)")]
    table += [(s, n / 2**30, free / 2**30) for s, n in needed.items()]
    most, stage = max((n, stage) for stage, n in needed.items())
    other = ", more than the other stage" if len(needed) > 1 else ""
    message = (
        f"{_STAGES[stage]} needs {most / 2**30:.2g} GiB{other}, and "
        f"{free / 2**30:.2g} GiB can be had."
    )
    if most > free:
        cure = (
            "Give a smaller --batch_size (with --accumulate, to the same result), "
            f"--remat, or a {_SMALLER[stage]}."
        )
        return red("memory", message, cure, table=table)
    if most > _TIGHT * free:
        cure = "Let nothing else run beside it, or see --batch_size and --accumulate."
        return amber("memory", message, cure, table=table)
    return green("memory", message, table=table)


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
