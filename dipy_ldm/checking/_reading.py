"""Volumes as they are: every file is read, and none refused but told of."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm.checking import _headers as headers
from dipy_ldm.checking._findings import Finding, green, red
from dipy_ldm.data._entities import choose_files
from dipy_ldm.data._grid import choose_grid
from dipy_ldm.data._headers import read_headers
from dipy_ldm.data._pairing import Task, pair_masks, with_masks
from dipy_ldm.data._paths import expand, find_volumes, listed_rows
from dipy_ldm.data._plan import make_plan
from dipy_ldm.data._preprocessing import conform_task
from dipy_ldm.data.volumes import conform_volumes


class Material(NamedTuple):
    """What is left to be looked at.

    ``images`` ``(n, *space, channels)``, where their voxels are (``affine``, or None),
    what they are called, the files of volumes, and whose they are.
    """

    images: np.ndarray
    affine: np.ndarray | None
    names: Sequence[str]
    files: Sequence[Path]
    subjects: Sequence


def read_volumes(
    paths: Sequence[str | Path],
    *,
    suffix: str | Sequence[str] | None = None,
    filter: Mapping[str, str | Sequence[str]] | None = None,
    voxel_size: float | Sequence[float] | None = None,
    shape: int | Sequence[int] | None = None,
    channels: bool = False,
    mask_files: Sequence[str | Path] | None = None,
    cache_dir: str | Path | None = None,
    cache_limit: float | None = None,
    verbose: bool = False,
) -> tuple[list[Finding], Material | None]:
    """Read headers and voxels of all volumes, and bring them to one grid.

    Those that can't be used, or that would spoil the grid, are told of and left out.
    Where there are none, the training finds what was made of the volumes.
    """
    files = choose_files(find_volumes(paths), suffix, filter)
    with _quietly():
        infos, complaints = read_headers(files, channels)
        if not infos:
            return [headers.check_files(list(complaints.values()), len(files))], None
        header_findings, kept = _check_headers(infos, verbose)
        masked, kept = _with_masks(files, kept, mask_files)
        if not kept:
            return [
                headers.check_files(list(complaints.values()), len(files)),
                *masked,
            ], None
        grid = choose_grid([task.info for task in kept], voxel_size, shape)
        plan = make_plan(kept, grid, listed_rows(paths), skip_bad=True, shuffle=True)
        volumes, bad = _check_voxels(plan, cache_dir, cache_limit, verbose)
    sentences = [*complaints.values(), *bad]
    findings = [headers.check_files(sentences, len(files)), *header_findings, *masked]
    if volumes is None:
        return findings, None
    return findings, _material(plan, volumes)


@contextmanager
def _quietly():
    """Leave out warnings that say what findings say."""
    logger = logging.getLogger("dipy_ldm")
    logger.addFilter(_no_warning)
    try:
        yield
    finally:
        logger.removeFilter(_no_warning)


def _no_warning(record):
    return record.levelno < logging.WARNING


def _check_headers(infos, verbose):
    """Compare headers, and leave out what would spoil the grid."""
    heads = headers.describe_headers(infos, verbose)
    units, bad = headers.check_units(heads)
    infos, heads = _without(infos, bad), _without(heads, bad)
    places, bad = headers.check_places(heads)
    infos, heads = _without(infos, bad), _without(heads, bad)
    return [units, places, headers.check_sizes(heads), headers.check_axes(heads)], infos


def _without(items, bad):
    return [item for i, item in enumerate(items) if i not in bad]


def _with_masks(files, infos, mask_files):
    """Give volumes their masks, if there shall be any."""
    tasks = [Task(info) for info in infos]
    if not mask_files:
        return [], tasks
    mask_of = pair_masks(files, expand(mask_files))
    try:
        masked = with_masks(tasks, mask_of, skip_bad=False)
        sentence = f"{len(mask_of)} masks, on the grids of their volumes."
        return [green("masks", sentence)], masked
    except InputError as error:
        message, _, _ = str(error).partition("\nAdd ")
    finding = red(
        "masks", message, "Mend these masks, or resample them to their volumes."
    )
    try:
        return [finding], with_masks(tasks, mask_of, skip_bad=True)
    except InputError:
        return [finding], []


def _check_voxels(plan, cache_dir, cache_limit, verbose):
    """Read all voxels; a sentence on each volume that is bad."""
    try:
        volumes = conform_volumes(plan, cache_dir, cache_limit, verbose=verbose)
    except InputError as error:
        return None, str(error).split("\n")
    good = set(volumes.files)
    missing = [task for task in plan.tasks if task.info.file not in good]
    return volumes, [_complaint(task, plan) for task in missing]


def _complaint(task, plan):
    """Read a bad volume once more, for what is said of it."""
    try:
        conform_task(task, plan.grid)
    except InputError as error:
        return str(error)
    return (
        f"{task.info.file} could not be read before; it can now, so give the command "
        "anew."
    )


def _material(plan, volumes):
    whose: dict[Any, Any] = {
        info.file: subject for info, subject in zip(plan.infos, plan.subjects)
    }
    return Material(
        volumes.images,
        volumes.affine,
        _short(volumes.files),
        volumes.files,
        [whose[file] for file in volumes.files],
    )


def _short(files):
    """Name files by their last names, or by their paths where these are equal."""
    names = [file.name for file in files]
    return names if len(set(names)) == len(names) else list(map(str, files))
