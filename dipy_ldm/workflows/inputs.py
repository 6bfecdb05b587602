"""What a training gets: images or volumes."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from dipy_ldm.data import arrays, load_mnist
from dipy_ldm.data.cohort import Cohort
from dipy_ldm.data.entities import entity
from dipy_ldm.data.images import read_images
from dipy_ldm.data.paths import holds_volumes
from dipy_ldm.data.volumes import conform_volumes, plan_volumes
from dipy_ldm.validation import InputError


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


def plan(input_files: list[str], **options) -> Plan:
    """Find out what the inputs are: digits, images of one's own, or volumes.

    Of volumes only the headers are read, images are read at once.

    Parameters
    ----------
    input_files : list of str
        What the user gave.
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
    data = _read_images(input_files)
    return Plan(data.shape, None, data.subjects, lambda **options: data)


def _read_images(input_files):
    if input_files == ["mnist"]:
        return Cohort(load_mnist("train")[0])
    images, files = read_images(input_files)
    # Without a name, each image of an array is of a subject of its own.
    subjects = [entity(file, "sub") or str(i) for i, file in enumerate(files)]
    return Cohort(images, subjects=subjects)


def _load(planned, **options):
    volumes = conform_volumes(planned, **options)
    # Some may have turned out to be bad.
    whose = dict(zip((info.file for info in planned.infos), planned.subjects))
    subjects = [whose[file] for file in volumes.files]
    return Cohort(volumes.images, volumes.masks, volumes.affine, subjects)


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
