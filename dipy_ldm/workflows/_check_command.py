"""Check a training before it starts (``dipy_train_ldm --check``), and report."""

from collections.abc import Sequence
from functools import partial
import json
import logging
from pathlib import Path
import time

from dipy_ldm import __version__, _presets, _serialization
from dipy_ldm._conditions import learn
from dipy_ldm._utils.checks import InputError, check_patch, write_options
from dipy_ldm.checking import (
    _dry_run as dry_run,
    _findings as report,
)
from dipy_ldm.checking._findings import amber, green, grey, refused, worst
from dipy_ldm.checking._headers import read_volumes
from dipy_ldm.checking._outliers import check_channels, check_images
from dipy_ldm.data._cohort import Cohort, split
from dipy_ldm.data._covariates import (
    as_covariates,
    count_identifiable,
    read_covariates,
    summarise,
)
from dipy_ldm.data._paths import holds_volumes, rows_of_lists
from dipy_ldm.data._table_rows import shared_names_error
from dipy_ldm.workflows import _inputs as inputs, _training as training
from dipy_ldm.workflows._option_table import TrainOptions
from dipy_ldm.workflows._options import option_writer
from dipy_ldm.workflows._outputs import write_page

logger = logging.getLogger(__name__)


def check(options: TrainOptions, strategy: object, outputs: Sequence[Path]) -> str:
    """Check a training, write the findings, and return what must be fixed."""
    if options.init:  # before the volumes, which take longer
        _serialization.read_document(_serialization.find(options.init))
    if options.input_files == ["mnist"] or not holds_volumes(options.input_files):
        sections, cohort = _check_image_inputs(options)
    else:
        sections, cohort = _check_volume_inputs(options)
    if cohort is None:
        why = "Not checked: there is no file to train on."
        sections["Training"] = [grey("training", why)]
    else:
        sections |= _check_training(cohort, options, strategy)
    if unchecked := _uncovered_options(options):
        sections["Not checked"] = unchecked
    return _write(outputs, options, sections)


def _uncovered_options(options):
    """Report the options of a training that the check does not cover."""
    why = {"steps_detector": "The check does not cover it."}
    headers_only = "The trials and estimates of time and memory ignore source images."
    why |= dict.fromkeys(["source_files", "source_channels"], headers_only)
    why["dwi"] = "The estimates of time and memory ignore directions and b = 0."
    return [grey(f"--{n}", text) for n, text in why.items() if getattr(options, n)]


def _check_volume_inputs(options):
    paths, conditions, steps = inputs.files_and_conditions(options)
    findings, volumes = read_volumes(
        paths,
        cache_dir=options.cache_dir,
        cache_limit=options.cache_limit,
        **inputs.volume_options(options),
    )
    sections = {"Files": findings}
    if volumes is None:
        return sections, None
    files, subjects = volumes.files, volumes.subjects
    if error := shared_names_error(files, subjects):
        finding = refused("names of subjects", error)
        findings.append(finding._replace(state="amber"))
    if conditions:
        sections["Conditions"] = _check_tables(conditions, files, paths, steps)
    cohort = Cohort(volumes.images, affine=volumes.affine, subjects=subjects)
    cohort = previewed = cohort._replace(channels=volumes.channels)
    if options.dwi and volumes.sources is not None:
        # One image of each series: its b = 0.
        rows = [files.index(file) for file in dict.fromkeys(files)]
        previewed = cohort.take_metadata(rows)._replace(images=volumes.sources[rows])
    names = _short_names(list(dict.fromkeys(files)))
    sections["Images"] = check_images(previewed, names)
    if channels := check_channels(previewed, names):
        sections["Channels"] = channels
    return sections, cohort


def _short_names(files):
    """Return the names of files, or their paths if names are equal."""
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else list(map(str, files))


def _check_image_inputs(options):
    data = inputs.plan_training(options).load()
    names = [f"image {i}" for i in range(len(data.images))]
    cohort = data._replace(subjects=data.subjects or names)
    sections = {"Images": check_images(cohort, names)}
    if data.conditions:
        learnt = learn(data.conditions, len(names), subjects=cohort.subjects)
        covariates = as_covariates(data.conditions, learnt, cohort.subjects)
        sections["Conditions"] = _check_conditions(covariates)
    return sections, cohort


def _check_tables(names, files, paths, steps):
    """Check the conditions that tables list for volumes."""
    try:
        covariates = read_covariates(names, files, rows_of_lists(paths), steps)
        learn(covariates.values, len(files), subjects=covariates.subjects)
    except InputError as error:
        return [refused("conditions", error)]
    return _check_conditions(covariates)


def _check_conditions(covariates):
    """Summarise conditions, and count the subjects who could be re-identified."""
    n, alone = len(set(covariates.subjects)), count_identifiable(covariates)
    title, cure = "unique combinations", "Use fewer or coarser ones (--coarsen)."
    message = f"{alone} of {n} subjects have a unique combination of conditions"
    unique = amber(title, f"{message}, and could be re-identified.", cure)
    unique = unique if alone else green(title, f"{message}.")
    return [green("conditions", summarise(covariates)), unique]


def _check_training(cohort, options, strategy):
    """Check the options and the memory of a training, and run its trials."""
    preset = _presets.resolve(cohort, **options.sizes())
    split_options = options.validation, options.seed, preset.batch_size
    findings = [
        dry_run.check_subjects(cohort, options.init, options.dwi),
        dry_run.check_split(cohort, *split_options),
    ]
    if findings[-1].state == "red":
        return _untried(findings, "there are too few images")
    train, _ = split(cohort, *split_options)
    shape = train.images.shape
    try:
        recipe = training.prepare(preset, strategy, options)
        if options.source_files or options.source_channels or options.dwi:
            # Trials have neither sources nor directions, which that model has.
            recipe.of_model.pop("init", None)
        resolved = recipe.resolved(len(shape) - 2)
        check_patch(preset.patch, len(shape) - 2)
        recipe.check_images(shape, cohort.channels)
        memory = dry_run.check_memory(recipe, resolved, shape)
        findings += [dry_run.check_device(resolved["diffusion"]), memory]
        if memory.state == "red":
            return _untried(findings, "the memory would not suffice")
        recipe.check(train, shape)
    except InputError as error:
        return _untried([*findings, refused("options", error)], "invalid options")
    if not options.seconds:
        return _untried(findings, "--seconds is 0")
    trials = _try_training(recipe, resolved, train, len(cohort.images), options.seconds)
    return {"Training": findings, "Trials": trials}


def _untried(findings, why):
    trials = [grey(title, f"Not tried: {why}.") for title in ("time", "overfitting")]
    return {"Training": findings, "Trials": trials}


def _try_training(recipe, resolved, train, n_all, seconds):
    """Time some training steps, and overfit a few images."""
    batch = train._replace(images=train.images[: resolved["diffusion"].batch_size])
    few = train._replace(images=train.images[: dry_run.N_OVERFIT_IMAGES])
    paces = dry_run.time_training_steps(recipe, batch, seconds / 2)
    trial = dry_run.overfit(recipe, few, seconds)
    return [
        dry_run.check_time(paces, resolved, len(train.images), n_all),
        dry_run.check_overfit(trial, train.affine),
    ]


def _write(outputs, options, sections):
    """Write both files, and return a sentence on what must be fixed, if anything."""
    all_findings = [finding for findings in sections.values() for finding in findings]
    document = {
        "GeneratedBy": {"Name": "dipy_ldm", "Version": __version__},
        "Time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "Inputs": list(map(str, options.input_files)),
        "State": worst(all_findings),
        "Findings": {
            title: [finding.to_saved() for finding in findings]
            for title, findings in sections.items()
        },
    }
    write_option = option_writer(vars(options))
    worded = partial(write_options, write_option=write_option)
    for line in report.summarise_findings(sections):
        logger.info("%s", worded(line))
    page = worded(report.write_page(options.input_files, sections))
    write_page(outputs, json.loads(worded(json.dumps(document))), page)
    bad = ", ".join(finding.title for finding in all_findings if finding.state == "red")
    return bad and f"fix what is red before you train: {bad}; see {outputs[1]}."
