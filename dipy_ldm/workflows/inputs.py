"""What a training gets: images or volumes."""

from collections.abc import Callable, Sequence
from functools import partial
import logging
from typing import NamedTuple

import numpy as np

from dipy_ldm.conditions import learn, summary
from dipy_ldm.data import arrays, load_mnist
from dipy_ldm.data.cohort import Cohort
from dipy_ldm.data.entities import entity
from dipy_ldm.data.images import read_images
from dipy_ldm.data.paths import holds_volumes
from dipy_ldm.data.volumes import conform_volumes, plan_volumes
from dipy_ldm.validation import InputError
from dipy_ldm.values import ALONE

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What the inputs are, before volumes are read.

    ``shape`` is that of all images, ``affine`` is None for images, ``subjects`` are as
    of :class:`dipy_ldm.data.cohort.Cohort`, and ``load`` takes the further arguments of
    :func:`dipy_ldm.data.volumes.conform_volumes` and returns the
    :class:`dipy_ldm.data.cohort.Cohort`.
    """

    shape: tuple
    affine: np.ndarray | None
    subjects: list | None
    load: Callable


def plan(input_files: list[str], conditions: Sequence[str] = (), **options) -> Plan:
    """Find out what the inputs are: digits, images of one's own, or volumes.

    Of volumes only the headers are read, images are read at once.

    Parameters
    ----------
    input_files : list of str
        What the user gave.
    conditions : sequence of str
        Names of those that shall be learnt.
    **options
        As of :func:`dipy_ldm.data.volumes.plan_volumes`.

    Returns
    -------
    Plan
        Shape and affine, and what loads them.

    Raises
    ------
    InputError
        If they can't be read, or an option is not for them.
    """
    if input_files != ["mnist"] and holds_volumes(input_files):
        # In the order of the files, those held out could be all of one site.
        planned = plan_volumes(input_files, shuffle=True, **options)
        return Plan(
            planned.shape, planned.affine, planned.subjects, partial(_load, planned)
        )
    for name, value in options.items():
        if value:
            raise InputError(f"`{name}` is for volumes; leave it out for images.")
    data = _read_images(input_files, conditions)
    return Plan(data.shape, None, data.subjects, lambda **options: data)


def _read_images(input_files, conditions):
    if input_files == ["mnist"]:
        images, labels = load_mnist("train")
        return Cohort(images, conditions=_choose(conditions, {ALONE: labels.tolist()}))
    images, files = read_images(input_files)
    # Without a name, each image of an array is of a subject of its own.
    subjects = [entity(file, "sub") or str(i) for i, file in enumerate(files)]
    return Cohort(images, conditions=_choose(conditions, {}), subjects=subjects)


def _choose(names, known):
    """Take some of the conditions that are known; None if there shall be none."""
    if unknown := [name for name in names if name not in known]:
        cure = f"choose one of {', '.join(known)}" if known else "leave it out"
        raise InputError(f"unknown condition {unknown[0]!r} of these images; {cure}.")
    return {name: known[name] for name in names} or None


def _load(planned, **options):
    volumes = conform_volumes(planned, **options)
    # Some may have turned out to be bad.
    whose = dict(zip((info.file for info in planned.infos), planned.subjects))
    subjects = [whose[file] for file in volumes.files]
    return Cohort(volumes.images, volumes.masks, volumes.affine, subjects=subjects)


def survey(data: Cohort, verbose: bool = False) -> None:
    """Look at volumes for all workers, who find beside them what the chief found.

    Parameters
    ----------
    data : Cohort
        What is learnt from.
    verbose : bool
        Show a progress bar.
    """
    if data.affine is not None:
        arrays.survey(data.images, verbose=verbose)


def tell_of(conditions: dict[str, list] | None) -> None:
    """Say what is known of the conditions that shall be learnt, before they are.

    Parameters
    ----------
    conditions : dict of str to list or None
        Values of each.

    Raises
    ------
    InputError
        If nothing can be learnt from one.
    """
    for name, values in (conditions or {}).items():
        (line,) = summary(learn({name: values}, len(values)))
        logger.info("%s", line)
