"""What ``dipy_check_ldm`` looks at, in which order, and how it tells of it."""

from collections.abc import Mapping, Sequence
import logging
from pathlib import Path
import time
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm import __version__, _backend, _presets
from dipy_ldm._conditions import learn, summary
from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm.autoencoder import losses
from dipy_ldm.checking import _dry_run as verdicts, _findings as report, _plan as plans
from dipy_ldm.checking._dry_run import N_OVERFIT_IMAGES, measure_paces, overfit
from dipy_ldm.checking._findings import Finding, amber, green, grey, red, worst
from dipy_ldm.checking._headers import Material, read_volumes
from dipy_ldm.checking._outliers import check_images
from dipy_ldm.data._cohort import Cohort, split
from dipy_ldm.data._covariates import (
    Covariates,
    count_alone,
    read_covariates,
    summarise,
)
from dipy_ldm.data._paths import holds_volumes, listed_rows
from dipy_ldm.diffusion import schedules
from dipy_ldm.nn import building
from dipy_ldm.workflows import _inputs as inputs, _recipes as recipes
from dipy_ldm.workflows._outputs import write_page

logger = logging.getLogger(__name__)

_TRIALS = "time", "learning by heart", "codes", "latents"


class Looked(NamedTuple):
    """What was found by looking, by sections, and what is left to be trained on."""

    findings: dict[str, list[Finding]]
    material: Material | None


def start(
    strategy: str, devices: Sequence[str] | None, loss: str | None, **method: Any
) -> Any:
    """Choose the devices, and refuse unknown names before files are read."""
    choose("schedule", method["schedule"], schedules.SCHEDULES)
    choose("target", method["target"], schedules.TARGETS)
    choose("precision", method["precision"], {"auto": None, **building.PRECISIONS})
    if loss is not None:
        choose("loss", loss, losses.LOSSES)
    return _backend.make_strategy(strategy, devices, alone=True)


def look(
    input_files: Sequence[str],
    conditions: Sequence[str],
    steps: Mapping[str, float],
    *,
    cache_dir: str | None,
    cache_limit: float | None,
    **options: Any,
) -> Looked:
    """Look at files, tables and images."""
    if input_files == ["mnist"] or not holds_volumes(input_files):
        return _look_at_images(input_files, conditions, steps, options)
    if steps and not conditions:
        raise InputError("`coarsen` is for `conditions`; give these, too.")
    caching: dict[str, Any] = {"cache_dir": cache_dir, "cache_limit": cache_limit}
    files, material = read_volumes(input_files, verbose=True, **caching, **options)
    findings = {"Files": files}
    if material is not None:
        if conditions:
            listed = listed_rows(input_files)
            lookup = conditions, material.files, listed, steps
            findings["Conditions"] = _of_tables(*lookup)
        findings["Images"] = check_images(material, verbose=True)
    return Looked(findings, material)


def _look_at_images(input_files, conditions, steps, options):
    data = inputs.plan(input_files, conditions, steps, **options).load()
    names = [f"image {i}" for i in range(len(data.images))]
    subjects = data.subjects or names
    material = Material(data.images, None, names, (), subjects)
    sections = {"Images": check_images(material, verbose=True)}
    if conditions:
        learnt = learn(data.conditions, len(names))
        values = Covariates(data.conditions or {}, {}, {}, list(subjects))
        findings = [green("conditions", " ".join(summary(learnt))), _unique(values)]
        sections["Conditions"] = findings
    return Looked(sections, material)


def _of_tables(names, files, listed, steps):
    """Say what tables tell of volumes, as the training does before it begins."""
    try:
        covariates = read_covariates(names, files, listed, steps)
        learn(covariates.values, len(files))
    except InputError as error:
        problem, _, cure = str(error).rpartition("; ")
        return [red("conditions", problem, f"{cure[:1].upper()}{cure[1:]}")]
    return [green("conditions", summarise(covariates)), _unique(covariates)]


def _unique(covariates):
    """Say how many subjects could be known again by their conditions."""
    n, alone = len(set(covariates.subjects)), count_alone(covariates)
    title = "unique combinations"
    if not alone:
        return green(title, "No subject is alone with a combination of conditions.")
    return amber(
        title,
        f"{alone} of {n} subjects are alone with their combination of conditions, and "
        "could be known again by it.",
        "Take fewer conditions or coarser ones, --coarsen age=5 say.",
    )


def try_out(
    material: Material | None,
    sizes: Mapping[str, Any],
    method: Mapping[str, Any],
    *,
    strategy: Any,
    validation: float,
    changes: tuple[bool, bool],
    seconds: float,
) -> dict[str, list[Finding]]:
    """Look at what the training would be, and try it."""
    if material is None:
        why = "Not looked at: there is no file to learn from."
        return {"Training": [grey("training", why)]}
    cohort = Cohort(
        material.images, affine=material.affine, subjects=list(material.subjects)
    )
    settings = _presets.resolve(cohort, **sizes)
    recipe = recipes.make(settings, strategy, **method)
    parts = plans.check_split(cohort, validation, method["seed"], settings.batch_size)
    end = plans.check_schedule(method["schedule"])
    people = plans.check_subjects(cohort)
    if parts.state == "red":
        rest = _not_tried("there are too few images")
        return {"Training": [people, parts, end, *rest]}
    train, _ = split(cohort, validation, method["seed"], settings.batch_size)
    shape, patch = material.images.shape, settings.patch
    chosen = plans.resolve_options(recipe, len(shape) - 2)
    memory = plans.check_memory(recipe, chosen, train.images.shape, patch)
    plan_findings = [
        people,
        parts,
        plans.check_device(chosen),
        plans.check_precision(chosen),
        memory,
        plans.check_patches(material.images, patch, recipe.vqvae.factor),
        end,
    ]
    if memory.state == "red":
        return {
            "Training": plan_findings,
            "Trials": _not_tried("the memory would not suffice"),
        }
    recipe.check(train.images.shape, patch)
    if not seconds:
        return {
            "Training": plan_findings,
            "Trials": _not_tried("no time was given for it"),
        }
    augment = recipes.augmentation(changes[0], settings, changes[1])
    few = np.asarray(train.images[: settings.batch_size], "float32")
    paces = measure_paces(recipe, few, seconds / 2, patch=patch, augment=augment)
    n = len(train.images), len(material.images)
    trials = [verdicts.check_time(paces, chosen, *n)]
    trials += _by_heart(
        recipe, train.images[:N_OVERFIT_IMAGES], material.affine, seconds
    )
    return {"Training": plan_findings, "Trials": trials}


def _not_tried(why):
    return [grey(title, f"Not tried: {why}.") for title in _TRIALS]


def _by_heart(recipe, images, affine, seconds):
    """Let a few images be learnt by heart, and tell what came of it."""
    trial = overfit(recipe, images, affine, seconds)
    return [
        verdicts.check_overfit(trial, affine),
        verdicts.check_codes(trial, recipe.vqvae.n_codes),
        verdicts.check_latents(trial),
    ]


def write(
    outputs: Sequence[Path],
    input_files: Sequence[str],
    sections: Mapping[str, Sequence[Finding]],
) -> str:
    """Write both files, and say in short what is in them."""
    every = [finding for findings in sections.values() for finding in findings]
    bad = [finding.title for finding in every if finding.state == "red"]
    document = {
        "GeneratedBy": {"Name": "dipy_ldm", "Version": __version__},
        "Time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "Inputs": list(map(str, input_files)),
        "State": worst(every),
        "Findings": {
            title: [finding.to_saved() for finding in findings]
            for title, findings in sections.items()
        },
    }
    for line in report.summarise_findings(sections):
        logger.info("%s", line)
    write_page(outputs, document, report.write_page(input_files, sections))
    if not bad:
        return ""
    return f"mend what is red before you train: {', '.join(bad)}; see {outputs[1]}."
