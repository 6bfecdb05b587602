"""Checks of subjects, devices and memory, and of time and overfitting by real steps."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
import math
import os
import time
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm import VQVAE, InputError, LatentDiffusion, _backend, plots
from dipy_ldm._utils.progress import log_filter
from dipy_ldm._utils.values import counted
from dipy_ldm.autoencoder import _training as autoencoder
from dipy_ldm.checking._findings import (
    Finding,
    amber,
    green,
    grey,
    red,
    refused,
    to_pictures,
)
from dipy_ldm.data import Grid
from dipy_ldm.data._cohort import Cohort, split
from dipy_ldm.data._grid import conform
from dipy_ldm.denoiser import _training as diffusion
from dipy_ldm.denoiser._training import FEWEST_SUBJECTS, guide_batches
from dipy_ldm.evaluation import _page as html
from dipy_ldm.training import ResolvedOptions

# Share of the memory above which no other program should run.
_HIGH_MEMORY_SHARE = 0.8
# Of 20 volumes four fifths of the samples were copies, after 5,000 steps of a denoiser
# (doc/decisions/evaluation.md), and of the guide's 200 none.
_MAX_RED_SUBJECTS, _MIN_GREEN_SUBJECTS = 20, 200
# The benefit of packaged models was measured with 25 (doc/guide/planning.rst).
_MAX_INIT_SUBJECTS = 25
_INIT_CURE = (
    "Start from a packaged model: --init brains for skull-stripped T1-weighted brains "
    "(with 25, 50 steps were better than 500 without it), or --init volumes, an "
    "autoencoder for any scan (with 25, 29.2 dB instead of 26.9 dB without it)."
)
_STAGES = {"autoencoder": "The autoencoder", "diffusion": "The diffusion model"}
_SMALLER = {
    "autoencoder": "smaller --patch or larger --voxel_size",
    "diffusion": "larger --voxel_size",
}


def check_subjects(
    cohort: Cohort, init: str | None = None, series: bool = False
) -> Finding:
    """Check the number of subjects; red if a model would memorise them."""
    n = len(set(cohort.subjects) if cohort.subjects else cohort.images)
    message = f"{counted(len(cohort.images), 'image')} of {counted(n, 'subject')}"
    if n >= _MIN_GREEN_SUBJECTS:
        return green("subjects", f"{message}.")
    cure = (
        "Add subjects, train for fewer steps (--steps_ldm), and search for copies "
        "(dipy_audit_ldm) before you publish anything."
    )
    scans = cohort.affine is not None and all(c.brightens for c in cohort.channels)
    single = cohort.shape[-1] == 1 and not series
    if scans and single and n <= _MAX_INIT_SUBJECTS and init is None:
        cure += f" {_INIT_CURE}"
    if n > _MAX_RED_SUBJECTS:
        return amber("subjects", f"{message}, few enough to be memorised.", cure)
    message += ": the model will memorise them (of 20, 4 in 5 samples were copies)."
    return red("subjects", message, cure)


def check_split(cohort: Cohort, share: float, seed: int, batch_size: int) -> Finding:
    """Check the numbers of training and of held-out images."""
    try:
        train, held_out = split(cohort, share, seed, batch_size)
    except InputError as error:
        return refused("held out", error)
    message = counted(len(train.images), "training image")
    if held_out is None:
        return green("held out", f"{message}, and none held out for validation.")
    n = len(held_out.images)
    message += f", {n} held out for validation"
    if cohort.subjects:
        n = len(set(held_out.subjects or ()))
        message += f" ({n} of {len(set(cohort.subjects))} subjects)"
    if n < FEWEST_SUBJECTS:
        return amber(
            "held out",
            f"{message}. Early stopping is unreliable with so few, and condition "
            f"ablation needs {FEWEST_SUBJECTS}.",
            "Hold out more (--validation), or add subjects.",
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
        message = f"the CPU ({os.cpu_count()} cores), since there is no GPU"
    replicas = _backend.count_replicas(strategy)
    if replicas > 1:
        message += f", {replicas} replicas that share each batch"
    name, reason = training.precision
    return green("device", f"Training runs on {message}, in {name}: {reason}.")


def check_memory(
    recipe: Any,
    trainings: Mapping[str, ResolvedOptions],
    shape: tuple[int, ...],
) -> Finding:
    """Compare the memory that each stage needs with the available memory."""
    needed = {}
    if first := trainings.get("autoencoder"):
        init = recipe.of_vqvae.get("init")
        parameters = recipe.vqvae._parameters(len(shape) - 2, init)
        patch = recipe.of_patches["patch"]
        memory = autoencoder.needed_memory(parameters, shape, patch, first)
        needed["autoencoder"] = memory
    second = trainings["diffusion"]
    architecture = recipe.model._architecture(shape, init=recipe.of_model.get("init"))
    needed["diffusion"] = diffusion.needed_memory(architecture, second)
    return memory_finding(needed, _backend.free_memory(second.strategy))


def memory_finding(needed: dict[str, float], free: float) -> Finding:
    """Return a finding on the needed and the available memory, in bytes."""
    table: list[tuple] = [("stage", "needed (GiB)", "memory (GiB)")]
    table += [(s, n / 2**30, free / 2**30) for s, n in needed.items()]
    most, stage = max((n, stage) for stage, n in needed.items())
    other = ", more than the other stage" if len(needed) > 1 else ""
    message = (
        f"{_STAGES[stage]} needs {most / 2**30:.2g} GiB{other}, and "
        f"{free / 2**30:.2g} GiB are available."
    )
    if most > free:
        cure = (
            "Use a smaller --batch_size (with --accumulate the results are the same), "
            f"--remat, or a {_SMALLER[stage]}."
        )
        return red("memory", message, cure, table=table)
    if most > _HIGH_MEMORY_SHARE * free:
        cure = "Run nothing else, or use a smaller --batch_size with --accumulate."
        return amber("memory", message, cure, table=table)
    return green("memory", message, table=table)


# Steps of each stage that are timed; the first, which compiles, does not count.
_MAX_STEPS = 12
_MIN_STEPS = 4
# Images, steps and voxels along a side of volumes for overfitting, which takes about a
# minute of a CPU.
N_OVERFIT_IMAGES = 8
_MAX_OVERFIT_STEPS = 300
_MAX_SIDE = 32


class Paces(NamedTuple):
    """Durations of parts of a training, in seconds.

    ``start`` is of both stages up to their second step, ``steps`` of a step by stage,
    and ``encoding`` of encoding an image.
    """

    start: float
    steps: dict[str, float]
    encoding: float


class Overfit(NamedTuple):
    """Result of overfitting eight images.

    ``steps`` is 0 for an autoencoder that is already trained; ``mse`` is that of the
    reconstructions and ``baseline_mse`` that of the mean image, in units of [0, 1];
    ``images`` and ``reconstructed`` are ``(n, *space, channels)``.
    """

    steps: int
    mse: float
    baseline_mse: float
    codes_used: int
    n_codes: int
    images: np.ndarray
    reconstructed: np.ndarray


class _StopTrainingError(Exception):
    """The limit of steps or of time is reached."""


def _stop_after(steps: int, seconds: float) -> Callable:
    """Return a callback that stops after some steps, or seconds after the first."""

    def stop(estimator: VQVAE | LatentDiffusion) -> None:
        # The last stage is the current one.
        taken = list(estimator.step_seconds_.values())[-1]
        late = sum(taken[1:]) > seconds and len(taken) >= _MIN_STEPS
        if late or len(taken) >= steps:
            raise _StopTrainingError

    return stop


def _fit_briefly(
    estimator: VQVAE | LatentDiffusion,
    images: np.ndarray,
    steps: int,
    seconds: float,
    options: dict,
) -> None:
    """Train up to a number of steps or seconds, even if nothing is learnt."""
    options = options | {"steps": steps, "epochs": None}
    options["callbacks"] = [_stop_after(steps, seconds)]
    silent = log_filter("dipy_ldm.training._trainer", lambda record: False)
    try:
        with silent, suppress(_StopTrainingError):
            estimator.fit(images, **options)
    except InputError:
        # Of invalid options or images, before any step.
        if not any(getattr(estimator, "step_seconds_", {}).values()):
            raise
        # Other errors leave a result to report, even without a validation round.
        vars(estimator).setdefault("history_", {})


def time_training_steps(recipe: Any, batch: Cohort, seconds: float) -> Paces:
    """Time steps of both stages on a batch."""
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
    medians = {
        title: float(np.median(durations[1:] or durations))
        for title, durations in taken.items()
    }
    return Paces(start, medians, encoding)


def overfit(recipe: Any, few: Cohort, seconds: float) -> Overfit:
    """Overfit an autoencoder to eight images, or measure a trained one on them."""
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


def _overfitted(
    recipe: Any, images: np.ndarray, seconds: float, channels: Sequence
) -> VQVAE:
    """Train a new autoencoder with the same parameters on few images."""
    vqvae = VQVAE(**recipe.vqvae.get_params())
    options = recipe.of_vqvae | {"accumulate": 1, "strategy": None}
    options["batch_size"] = min(options["batch_size"], len(images))
    options["channels"] = channels
    _fit_briefly(vqvae, images, _MAX_OVERFIT_STEPS, seconds, options)
    return vqvae


def _reduced(images: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """Downsample volumes to at most 32 voxels along each side."""
    times = max(images.shape[1:-1]) / _MAX_SIDE
    if affine is None or times <= 1:
        return images
    shape = tuple(int(np.ceil(n / times)) for n in images.shape[1:-1])
    coarse = affine @ np.diag([times, times, times, 1.0])
    coarse[:3, 3] = affine[:3, 3] + np.diag(affine)[:3] * (times - 1) / 2
    return np.stack([conform(image, affine, Grid(shape, coarse)) for image in images])


# Error of images that were learnt, as a share of that of the mean image.
_MAX_LEARNT_ERROR = 0.5
# With fewer steps, overfitting is inconclusive.
_MIN_TRIAL_STEPS = 100
# Hours above which a smaller training is advised.
_LONG_HOURS = 24.0


def check_time(
    paces: Paces, trainings: Mapping[str, ResolvedOptions], n: int, n_all: int
) -> Finding:
    """Estimate how long the training will take."""
    steps = {stage: options.length(n).total for stage, options in trainings.items()}
    if "guide" in paces.steps:
        accumulate = trainings["diffusion"].accumulate
        steps["guide"] = guide_batches(steps["diffusion"], accumulate)
    rows: list[tuple] = [
        (stage, n, paces.steps[stage], n * paces.steps[stage])
        for stage, n in steps.items()
    ]
    encoding = n_all * paces.encoding + paces.start
    rows.append(("compiling, encoding", None, None, encoding))
    total = sum(row[-1] for row in rows)
    table: list[tuple] = [("part", "steps", "seconds a step", "time", "share (%)")]
    table += [(*row, duration(s), 100 * s / total) for *row, s in rows]
    measured = ", ".join(f"{stage} {count:,}" for stage, count in steps.items())
    message = (
        f"About {duration(total)} for these steps ({measured}) at the current load of "
        "the machine, plus validation, pictures and checkpoints."
    )
    if total > _LONG_HOURS * 3600:
        cure = (
            "Start with larger voxels (at twice the size, the diffusion model takes an "
            "eighth of the time, but the autoencoder, which is trained on patches, as "
            "long), fewer --steps_vqvae and --steps_ldm, or a GPU."
        )
        return amber("time", message, cure, table=table)
    return green("time", message, table=table)


def duration(seconds: float) -> str:
    """Format a duration in its usual unit."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{math.ceil(seconds)} s"


def check_overfit(result: Overfit, affine: np.ndarray | None) -> Finding:
    """Check whether the eight images were learnt."""
    title, n = "overfitting", len(result.images)
    if not math.isfinite(result.mse):
        return red(
            title,
            f"The training diverged within {result.steps} steps (NaN or infinite).",
            "Use a lower --learning_rate, or --precision float32.",
        )
    images, reconstructed = result.images, result.reconstructed
    similarity = float(np.corrcoef(images.ravel(), reconstructed.ravel())[0, 1])
    share = result.mse / result.baseline_mse if result.baseline_mse else math.inf
    when = f"After {result.steps} steps on them" if result.steps else "Without training"
    message = (
        f"{when}, reconstructions of {n} images have a mean squared error of "
        f"{result.mse:.2g} ({share:.1%} of that of the mean image, "
        f"{result.baseline_mse:.2g}) and a correlation of {similarity:.3f}, with "
        f"{result.codes_used:,} of {result.n_codes:,} codes used"
    )
    count = n if affine is None else 3
    above, below = (to_pictures(x[:count], affine) for x in (images, reconstructed))
    pairs = plots.montage_pairs(above, below)
    pictures = html.picture(pairs, f"{n} images, with reconstructions below")
    if share < _MAX_LEARNT_ERROR:
        return green(title, f"{message}: the images are learnt.", pictures=pictures)
    if result.steps == 0:
        cure = "Train the autoencoder, too (--steps_vqvae 1000), or remove --init."
        return amber(title, f"{message}.", cure, pictures)
    if result.steps < _MIN_TRIAL_STEPS:
        why = f"{message}; the steps within the time limit are too few for a verdict."
        return grey(title, why, pictures=pictures)
    cure = (
        "Look at the pictures: are images dark except for a few voxels, or all alike? "
        "If not, try another --learning_rate (0.001 to 0.002 is usual for volumes)."
    )
    if share < 1:
        return amber(title, f"{message}.", cure, pictures)
    return red(title, f"{message}: nothing is learnt.", cure, pictures)
