"""What a training would be: subjects, devices, precision and memory."""

from collections.abc import Mapping
import os
from typing import Any

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import counted
from dipy_ldm.autoencoder import _training as autoencoder
from dipy_ldm.checking._findings import Finding, amber, green, red, refused
from dipy_ldm.data._cohort import Cohort, split
from dipy_ldm.denoiser import _training as diffusion
from dipy_ldm.denoiser._training import FEWEST_SUBJECTS
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
