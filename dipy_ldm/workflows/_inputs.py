"""Inputs of a training: images or volumes, and their conditions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm._conditions import Condition, learn
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import ALONE
from dipy_ldm.data import load_mnist
from dipy_ldm.data._cohort import Cohort, split
from dipy_ldm.data._covariates import as_covariates, read_covariates, summarise
from dipy_ldm.data._paths import common_suffix, holds_volumes
from dipy_ldm.data._sources import Source, learn as learn_source
from dipy_ldm.data._table_rows import find_image_subjects
from dipy_ldm.data.images import read_images
from dipy_ldm.data.volumes import conform_volumes, plan_volumes
from dipy_ldm.workflows._option_table import TrainOptions
from dipy_ldm.workflows._options import (
    one_or_more,
    parse_channels,
    parse_filter,
    parse_names,
    parse_steps,
)

logger = logging.getLogger("dipy_ldm")


class InputPlan(NamedTuple):
    """Inputs of a training, before volumes are read.

    ``shape`` is that of all images, ``cohort`` has indices in place of its images,
    ``load`` takes the other arguments of ``conform_volumes`` and returns the complete
    cohort; ``source`` describes source images, from their headers.
    """

    shape: tuple
    cohort: Cohort
    load: Callable
    source: Source | None = None


def plan(
    input_files: list[str],
    conditions: Sequence[str] = (),
    steps: Mapping[str, float] | None = None,
    **options,
) -> InputPlan:
    """Plan the inputs: packaged digits, the user's images, or volumes.

    Of volumes, only headers and tables are read; images are read completely.
    """
    if input_files != ["mnist"] and holds_volumes(input_files):
        # In the order of the files, all held-out volumes could be from one site.
        planned = plan_volumes(input_files, shuffle=True, **options)
        files = [info.file for info in planned.infos]
        cohort = Cohort(
            np.arange(len(files)),
            affine=planned.affine,
            subjects=planned.subjects,
            suffix=common_suffix(files),
            channels=planned.channels,
            source_channels=planned.source_channels,
        )
        cohort = _add_conditions(cohort, conditions, files, planned.listed, steps)
        if gradients := planned.gradients(cohort.images):
            values = (cohort.conditions or {}) | gradients
            units = (cohort.units or {}) | (gradients.units or {})
            cohort = cohort._replace(conditions=values, units=units)
        columns = planned.source_columns
        # The number of labels is unknown before the files are read.
        labels = [0] * bool(options.get("source_labels"))
        source = Source(columns, [0.0, 1.0], labels, "") if columns else None
        load = partial(_load, planned, cohort)
        return InputPlan(planned.shape, cohort, load, source)
    data = _read_images(input_files, conditions, steps)
    _refuse_volume_options(options)  # missing files are reported first
    cohort = data._replace(images=np.arange(len(data.images)))
    return InputPlan(data.shape, cohort, lambda **how: data)


def _refuse_volume_options(options):
    for name, value in options.items():
        if value:
            raise InputError(f"`{name}` is for volumes", "leave it out for images")


def plan_training(options: TrainOptions) -> InputPlan:
    """Plan the inputs of a training from its options."""
    planned = plan(*files_and_conditions(options), **volume_options(options))
    if planned.cohort.affine is None:
        names = "no_augment", "cache_dir", "cache_limit"
        _refuse_volume_options({name: getattr(options, name) for name in names})
    return planned


def files_and_conditions(
    options: TrainOptions,
) -> tuple[list[str], list[str], dict[str, float]]:
    """Return input files, names of conditions, and the steps these are rounded to."""
    steps, names = parse_steps(options.coarsen), parse_names(options.conditions)
    return options.input_files, names, steps


def volume_options(options: TrainOptions) -> dict[str, Any]:
    """Return the arguments of :func:`plan` that select volumes and their grid."""
    source_channels = parse_channels(options.source_channels)
    if source_channels is True:
        raise InputError("name the channels of `source_channels`, such as T1w FLAIR")
    return {
        "suffix": options.suffix,
        "filter": parse_filter(options.filter),
        "voxel_size": one_or_more(options.voxel_size),
        "shape": one_or_more(options.shape),
        "channels": parse_channels(options.channels),
        "source_channels": source_channels or (),
        "mask_files": options.mask_files,
        "source_files": options.source_files,
        "source_labels": options.source_labels,
        "dwi": options.dwi,
        "skip_bad": options.skip_bad,
    }


def _read_images(input_files, conditions, steps):
    if input_files == ["mnist"]:
        if Path("mnist").exists():
            logger.warning(
                "mnist stands for the packaged digits; write ./mnist for your own."
            )
        images, labels = load_mnist("train")
        if steps:
            raise InputError("`coarsen` is for numbers", "leave it out for labels")
        if unknown := [name for name in conditions if name != ALONE]:
            raise InputError(
                f"unknown condition {unknown[0]!r} of these images",
                f"choose one of {ALONE}",
            )
        values = {ALONE: labels.tolist()} if conditions else None
        return Cohort(images, conditions=values)
    images, files = read_images(input_files)
    data = Cohort(images, subjects=find_image_subjects(files))
    return _add_conditions(data, conditions, files, {}, steps)


def _add_conditions(data, names, files, listed, steps):
    """Add the conditions from tables, and log them."""
    if not names:
        return data
    covariates = read_covariates(names, files, listed, steps)
    covariates = covariates._replace(subjects=data.subjects)
    logger.info("%s", summarise(covariates))
    return data._replace(
        conditions=covariates.values, units=covariates.units, meanings=covariates.levels
    )


def _load(planned, cohort, **options):
    volumes = conform_volumes(planned, **options)
    # Without volumes that could not be read.
    cohort = cohort.take_metadata(volumes.kept)
    arrays = {name: getattr(volumes, name) for name in ("images", "masks", "sources")}
    return cohort._replace(**arrays)


def check_split(
    planned: InputPlan, validation: float, seed: int, batch_size: int
) -> None:
    """Check the split and the conditions before volumes are read."""
    train, held_out = split(planned.cohort, validation, seed, batch_size)
    conditions = check_conditions(train)
    if conditions and planned.cohort.units is None:
        # Only conditions of tables have been logged.
        covariates = as_covariates(train.conditions, conditions, train.images)
        logger.info("%s", summarise(covariates))
    if held_out is not None and held_out.subjects:
        held_out_ids, training_ids = set(held_out.subjects), set(train.subjects or ())
        text = "%d of %d subjects are held out for validation."
        logger.info(text, len(held_out_ids), len(held_out_ids | training_ids))


def check_conditions(train: Cohort) -> dict[str, Condition]:
    """Refuse conditions and source images from which nothing can be learnt."""
    conditions = learn(train.conditions, len(train.images), subjects=train.subjects)
    # As if named: the fit logs how unnamed channels are interpreted.
    learn_source(train.sources, train.images.shape, True, conditions)
    return conditions
