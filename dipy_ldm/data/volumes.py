"""Load NIfTI volumes as one memory-mapped array on one grid."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import groupby
import json
import logging
import math
import os
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm._conditions import present_values
from dipy_ldm._utils.checks import InputError, at_least
from dipy_ldm._utils.progress import tqdm, warning_once
from dipy_ldm._utils.values import Table, as_table, grouped
from dipy_ldm.data import _pairing as plans
from dipy_ldm.data._bvals_bvecs import describe
import dipy_ldm.data._cache as cache
from dipy_ldm.data._conforming import conform_series, conform_task
from dipy_ldm.data._covariates import (
    Covariates,
    read_covariates,
    round_to_steps,
    summarise,
)
from dipy_ldm.data._grid import Grid, choose_grid
from dipy_ldm.data._nifti import refuse_files
from dipy_ldm.data._paths import (
    choose_entities,
    choose_files,
    choose_for_channels,
    expand,
    find_volumes,
    rows_of_lists,
)
from dipy_ldm.data._table_rows import find_subjects, join_rows
from dipy_ldm.data._tables import Row
from dipy_ldm.data.channels import Channel, LabelNumbers, Unnamed, as_channels

__all__ = ["Volumes", "load_volumes"]

logger = logging.getLogger("dipy_ldm")

# Of the cache: raise it when the same files and settings give other values.
_FORMAT = 4
# Other system errors may be temporary, and no reason to fill a folder again.
_MISSING_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# Attempts to fill a folder that can't be read.
_MAX_ATTEMPTS = 2
# Each conforms one volume, which takes 0.4 GB of memory for 256 x 256 x 256.
_MAX_THREADS = 4


class _Fields(NamedTuple):
    images: np.ndarray
    masks: np.ndarray | None
    affine: np.ndarray
    files: list
    sources: np.ndarray | None = None


class Volumes(_Fields):
    """Volumes on one grid.

    ``images`` are float32 ``(n, x, y, z, channels)`` in [0, 1], ``masks`` uint8
    ``(n, x, y, z)`` of 0 and 1, or None; both are memory maps. ``affine`` maps voxel
    indices to millimetres, ``(4, 4)``; ``files`` has the file of each volume.
    ``sources`` are as the images, or int32 if they are labels, or None.
    """

    # Rows of lists that named the volumes, by absolute paths.
    listed: Mapping[str, list[Row]] = MappingProxyType({})
    # Indices of these volumes among all that were planned: the others were bad.
    kept: Sequence[int] = ()
    # A complaint about each of the others.
    complaints: Sequence[InputError] = ()
    #: Records of named channels, in the order of the last axis.
    channels: tuple[Channel, ...] = ()
    #: Records of named channels of sources.
    source_channels: tuple[Channel, ...] = ()
    #: Of volumes of diffusion series, ``bval`` in s/mm^2 and ``direction`` along the
    #: axes of the world, for ``conditions`` of :meth:`dipy_ldm.LatentDiffusion.fit`.
    gradients: Table | None = None

    @property
    def subjects(self):
        """Subject of each volume, such as ``"sub-01"``, in the order of the images."""
        return find_subjects(self.files, self.listed)

    def conditions(
        self, *names: str, table: Any = None, coarsen: Mapping[str, float] | None = None
    ) -> Table:
        """Read conditions of the volumes from tables, in the order of the images.

        ::

            volumes = load_volumes("bids", suffix="T1w", shuffle=True)
            conditions = volumes.conditions("age", "sex")
            model.fit(volumes.images, conditions, subjects=volumes.subjects)

        Parameters
        ----------
        *names : str
            Columns of the list that named the volumes, or of the ``scans.tsv``,
            ``sessions.tsv`` and ``participants.tsv`` around them. Default for a
            `table`: all columns except row names.
        table : dict or DataFrame, optional
            Table to use instead. Its rows are matched to volumes by a column of paths,
            or else by one of ``participant_id`` (and ``session_id`` and ``run``, if
            there are any) or an index of these.
        coarsen : dict of str to float, optional
            Steps that numbers are rounded to, in their unit.

        Returns
        -------
        Table
            Values by name, None where they are missing, for the ``conditions`` of
            :meth:`dipy_ldm.LatentDiffusion.fit`, with ``units`` and ``meanings`` of
            levels. A summary is logged.

        Raises
        ------
        InputError
            If a column is missing or bad, or rows can't be matched to volumes.
        """
        if table is None and not names:
            raise InputError(cure='name the columns to look up, such as "age", "sex"')
        if table is None:
            covariates = read_covariates(names, self.files, self.listed, coarsen)
        else:
            values = self._joined(names, table)
            for name, column in values.items():
                present_values(name, column)
            round_to_steps(values, coarsen or {})
            covariates = Covariates(values, {}, {}, self.subjects)
        logger.info("%s", summarise(covariates))
        return Table(covariates.values, covariates.units, covariates.levels)

    def _joined(self, names, table):
        """Join columns of a table to the volumes."""
        rows = join_rows(table, self.subjects, self.files, names)
        if rows is table or not isinstance(rows, dict):
            raise InputError(
                "rows of the table can't be matched to volumes",
                "add a column or an index of participant_id or of paths",
            )
        return as_table(rows)


def load_volumes(
    paths: Sequence[str | Path],
    *,
    suffix: str | Sequence[str] | None = None,
    filter: Mapping[str, str | Sequence[str]] | None = None,
    voxel_size: float | Sequence[float] | None = None,
    shape: int | Sequence[int] | None = None,
    grid: Grid | None = None,
    channels: bool | Sequence[str | Channel] = False,
    mask_files: Sequence[str | Path] | None = None,
    source_files: Sequence[str | Path] | None = None,
    source_labels: bool = False,
    source_channels: Sequence[str | Channel] = (),
    dwi: bool = False,
    skip_bad: bool = False,
    shuffle: bool = False,
    cache_dir: str | Path | None = None,
    cache_limit: float | None = None,
    verbose: bool = False,
) -> Volumes:
    """Load volumes, resampled to one grid and scaled to intensities from 0 to 1.

    The result is cached on disk for the same files and options, and may be far larger
    than memory.

    Parameters
    ----------
    paths : sequence of str or Path
        NIfTI files, folders of them, wildcards, or lists in ``.txt``, ``.csv`` or
        ``.tsv`` files, of any orientation, voxel size and type. Files in
        ``derivatives`` or ``sourcedata`` are left out unless a path names that folder.
    suffix : str or sequence of str, optional
        BIDS suffixes to select, such as ``"T1w"``; required if the files have several.
    filter : dict of str to str or sequence of str, optional
        BIDS entities to select, such as ``{"task": "rest", "ses": "01"}``; an empty
        text selects files without that entity.
    voxel_size : float or sequence of float, optional
        Voxel size of the grid in mm, one number or three. Default: the median of the
        volumes.
    shape : int or sequence of int, optional
        Shape of the grid, one number or three. Default: large enough for all volumes.
    grid : Grid, optional
        The grid itself, such as that of a model, instead of its voxel size and shape.
    channels : bool or sequence of str
        Whether a fourth axis of the files is one of channels; or names of channels with
        files of their own, such as ``["T1w", "T2w", "dseg"]``, as for
        :func:`dipy_ldm.data.channels.as_channels`. Those of one subject and session are
        grouped, on the grid of the first; subjects without all of them are left out.
    mask_files : sequence of str or Path, optional
        Masks, as `paths`: one for each volume, on its grid. They are paired by ``sub-``
        and ``ses-`` in their names, by names that contain those of the volumes
        (``scan1``, ``scan1_mask``), or by order.
    source_files : sequence of str or Path, optional
        Source image of each volume, as `paths`, on any grid; paired as masks.
    source_labels : bool
        Whether sources are segmentations, interpolated by nearest neighbour.
    source_channels : sequence of str, optional
        Names of the channels of sources, as for `channels`. They are matched by subject
        and session among `source_files` or, by default, beside the volumes; volumes
        without all of them are left out.
    dwi : bool
        Whether the files are diffusion series, with a ``.bval`` and a ``.bvec`` beside
        each; of files with several suffixes, those with ``dwi`` are taken. Each
        diffusion-weighted volume becomes an image, with ``gradients``, and the mean
        b = 0, which scales the whole series, becomes its source.
    skip_bad : bool
        Whether to skip bad files, with a warning.
    shuffle : bool
        Whether to draw a random order, always the same for the same files, so that any
        part of the volumes is a fair sample of all. Volumes of a subject, by ``sub-``
        in their names or a column ``participant_id`` of a list, stay together.
    cache_dir : str or Path, optional
        Folder of the cache. Default: ``dipy_ldm/volumes`` in the user's cache.
    cache_limit : float, optional
        Size limit of the whole cache in gigabytes (10^9 bytes). Beyond it, the least
        recently used results are removed, except those in use. Default: no limit.
    verbose : bool
        Show a progress bar.

    Returns
    -------
    Volumes
        Images, masks, affine, files and sources.

    Raises
    ------
    InputError
        If files are bad or an option makes no sense. Bad files are reported together.
    OSError
        If the cache can't be written.
    """
    options = dict(locals())
    cache_options = {
        name: options.pop(name) for name in ("cache_dir", "cache_limit", "verbose")
    }
    return conform_volumes(plan_volumes(**options), **cache_options)


def plan_volumes(
    paths,
    *,
    suffix=None,
    filter=None,
    generated=False,
    voxel_size=None,
    shape=None,
    grid=None,
    channels=False,
    mask_files=None,
    source_files=None,
    source_labels=False,
    source_channels=(),
    dwi=False,
    skip_bad: bool | None = False,
    shuffle=False,
    review: plans.Review | None = None,
) -> plans.Plan:
    """Read the headers of volumes, and choose their grid, as :func:`load_volumes`.

    ``review`` decides on bad files, instead of ``skip_bad``.
    """
    # Paths are read twice, which an iterator can't be.
    paths = list(paths) if isinstance(paths, Iterator) else paths
    review = review or partial(plans.refuse_bad, skip_bad=skip_bad)
    every = find_volumes(paths, generated)
    if dwi:
        refuse_beside_series(channels, source_files, source_channels)
    files, tasks = _plan_tasks(every, suffix, filter, channels, dwi, generated, review)
    if mask_files is not None:
        mask_of = plans.pair_masks(files, expand(mask_files, masks=True))
        read = partial(plans.read_masks, tasks, mask_of)
        tasks = review("masks", list(mask_of.values()), read)
    if source_labels and (source_channels or source_files is None):
        raise InputError(
            "`source_labels` is for `source_files` whose channels have no names",
            "give these, or leave out `source_labels`",
        )
    if source_channels:
        candidates = choose_entities(every, filter)
        candidates = candidates if source_files is None else find_volumes(source_files)
        cure = "" if source_files is None else "name one of them in `source_files`"
        kinds = as_channels(source_channels, candidates)
        tasks = plans.with_source_channels(tasks, candidates, kinds, review, cure)
    elif source_files is not None:
        source_of = plans.pair_sources(files, find_volumes(source_files))
        kind = LabelNumbers if source_labels else Unnamed
        tasks = plans.with_sources(tasks, source_of, bool(channels), kind, review)
    if grid is None:
        grid = choose_grid([task.info for task in tasks], voxel_size, shape)
    lists = rows_of_lists(paths)
    return plans.make_plan(tasks, grid, lists, skip_bad=skip_bad, shuffle=shuffle)


def refuse_beside_series(
    channels: bool | Sequence,
    source_files: Sequence[str | Path] | None = None,
    source_channels: Sequence = (),
) -> None:
    """Refuse options that make no sense for diffusion series."""
    refused = {
        "channels": channels,
        "source_files": source_files is not None,
        "source_channels": source_channels,
    }
    if name := next(filter(refused.get, refused), None):
        raise InputError(
            "each volume of a diffusion series is an image, and its b = 0 the source",
            f"leave out `{name}`",
        )


def _plan_tasks(files, suffix, filter, channels, dwi, generated, review):
    """Return the chosen files, and tasks for those with good headers."""
    if not isinstance(channels, bool) and channels:
        files = choose_for_channels(files, suffix, filter)
        read = partial(_read_named, files, channels, generated)
        tasks = review("volumes", files, read)
        return [task.info.file for task in tasks], tasks
    files = choose_files(files, suffix, filter, dwi=dwi)
    read = partial(plans.read_unnamed, files, bool(channels))
    tasks = review(
        "volumes", files, partial(plans.read_diffusion, files) if dwi else read
    )
    if dwi:
        logger.info("%s.", describe([task.gradients for task in tasks]))
    return files, tasks


def _read_named(files, names, generated):
    """Read the headers of channels by their names."""
    return plans.read_named(files, as_channels(names, files), generated=generated)


def conform_volumes(
    plan: plans.Plan,
    cache_dir: str | Path | None = None,
    cache_limit: float | None = None,
    *,
    verbose: bool = False,
    temporary: bool = False,
) -> Volumes:
    """Conform volumes to their grid, or load them from the cache."""
    limit = np.inf if cache_limit is None else at_least("cache_limit", cache_limit, 0)
    root = cache.cache_root(cache_dir)
    folder = root / _cache_key(plan, root)
    volumes = _open(folder, plan)
    new = 0 if volumes else _n_bytes(plan)
    removed = cache.make_room(root, limit * 1e9 - new)
    # Another process that also found damage may discard what was just filled.
    for _ in range(_MAX_ATTEMPTS):
        if volumes is None:
            cache.discard(folder)
            _fill(folder, plan, verbose)
            volumes = _open(folder, plan)
    if volumes is None:
        raise OSError(
            f"can't read the cache of volumes in {folder}; remove it, or name another "
            "place with `cache_dir`."
        )
    if temporary:  # nothing to log: it will be removed
        return volumes
    if removed:
        logger.info("removed %d folders of the cache of volumes.", len(removed))
    sizes = cache.list_folders(root)
    folder_size, total = sizes.get(folder, 0) / 1e9, sum(sizes.values()) / 1e9
    text = "the volumes are cached in %s (%.2f GB); the whole cache has %.2f GB in %d "
    logger.info(
        text + "folders (see cache_limit).", folder, folder_size, total, len(sizes)
    )
    return volumes


def _n_bytes(plan):
    """Return the bytes of the result."""
    arrays = _array_specs(plan).values()
    sizes = (math.prod(shape) * np.dtype(kind).itemsize for shape, kind in arrays)
    return len(plan.tasks) * sum(sizes)


def _cache_key(plan, root):
    """Return the cache key of the result."""
    first = plan.tasks[0]
    settings = {
        "format": _FORMAT,
        "shape": plan.grid.shape,
        "affine": plan.grid.affine.tolist(),
        "channels": [channel.to_saved() for channel, _ in first.parts],
        "masks": first.mask is not None,
        "sources": [channel.to_saved() for channel, _ in first.source_parts],
    }
    if first.gradients:
        settings["dwi"] = 2  # once, a bad volume took those after it along
    return cache.make_key(plan.files, settings, root)


def _open(folder, plan):
    """Map the arrays of a cache folder; None if missing or damaged."""
    try:
        cache.hold(folder)
        notes = json.loads((folder / cache.NOTES).read_text("utf-8"))
        kept = notes["kept"]
        complaints = _complaints(notes, plan)
        files = [plan.tasks[i].info.file for i in kept]
        arrays = {
            name: _open_array(folder / f"{name}.npy", (len(kept), *shape), dtype)
            for name, (shape, dtype) in _array_specs(plan).items()
        }
        if any(_is_good(plan.tasks[i], plan) for i in notes.get("unreadable", ())):
            return None
    except (*_MISSING_ERRORS, ValueError, EOFError, LookupError, TypeError):
        return None
    n_bad = len(plan.tasks) - len(kept) if plan.tasks[0].gradients else 0
    refuse_files(complaints, len(kept), plan.skip_bad, n_bad)
    arrays = {"masks": None, **arrays}
    volumes = Volumes(affine=plan.grid.affine, files=files, **arrays)
    volumes.listed, volumes.channels = plan.listed, plan.channels
    volumes.source_channels = plan.source_channels
    volumes.kept, volumes.complaints = kept, list(complaints.values())
    volumes.gradients = plan.gradients(kept)
    return volumes


def _complaints(notes, plan):
    """Return the complaints in notes, with the current names of the files."""
    names = dict(zip(notes["bad_files"], _bad_files(plan, notes["kept"])))
    return {
        file: InputError.from_saved(saved).renamed(names)
        for file, saved in dict(notes["complaints"]).items()
    }


def _bad_files(plan, kept):
    """List all files of volumes that are not kept."""
    bad = [plan.tasks[i] for i in sorted({*range(len(plan.tasks))} - {*kept})]
    return list(map(str, plan._replace(tasks=bad).files))


def _open_array(path, shape, dtype):
    """Map an array, if its shape and type are right."""
    array = np.lib.format.open_memmap(path, "r")
    if (array.shape, array.dtype) != (shape, dtype):
        raise ValueError(f"{path} is another array")
    return array


def _is_good(task, plan):
    """Return whether a volume that could not be read can be read now."""
    try:
        next(_jobs(plan._replace(tasks=[task])))()
    except InputError:
        return False
    return True


def _fill(folder, plan, verbose):
    """Conform all volumes into a folder of the cache.

    Bad ones are noted and left out, even without ``skip_bad``: a second run with it
    then finds the work done.
    """
    kept, bad, unreadable = [], [], []
    with cache.filling(folder) as partial:
        with warning_once("dipy_ldm"), ExitStack() as stack:
            appends = [
                stack.enter_context(
                    cache.writing_rows(partial / f"{name}.npy", len(plan.tasks), *kind)
                )
                for name, kind in _array_specs(plan).items()
            ]
            conformed = stack.enter_context(closing(_conform_all(plan)))
            bar = tqdm(conformed, "conform", len(plan.tasks), disable=not verbose)
            for i, future in enumerate(bar):
                try:
                    arrays = future.result()
                except InputError as error:
                    bad.append((str(plan.tasks[i].info.file), error))
                    if getattr(error.__cause__, "errno", None):
                        # A system error may be temporary, and the file good.
                        unreadable.append(i)
                    continue
                kept.append(i)
                for append, array in zip(appends, arrays, strict=True):
                    append(array)
        # Several volumes of a series may be bad.
        complaints = {
            file: errors[0] if len(errors) == 1 else InputError(complaints=errors)
            for file, errors in grouped(bad).items()
        }
        if not kept:
            refuse_files(complaints, 0, skip_bad=False)
        saved = {file: error.to_saved() for file, error in complaints.items()}
        notes = {"kept": kept, "complaints": saved, "unreadable": unreadable}
        notes["bad_files"] = _bad_files(plan, kept)
        (partial / cache.NOTES).write_text(json.dumps(notes), "utf-8")


def _array_specs(plan):
    """Return the shape of a volume, and the type, in each array."""
    task, space = plan.tasks[0], plan.grid.shape
    arrays: dict[str, tuple] = {"images": ((*space, plan.columns), "float32")}
    if task.mask is not None:
        arrays["masks"] = (space, "uint8")
    if task.source_parts:
        dtype = task.source_parts[0][0].column_dtype
        arrays["sources"] = ((*space, plan.source_columns), dtype)
    return arrays


def _jobs(plan):
    """Yield functions that conform each volume; series are read here, in order."""
    for _, group in groupby(plan.tasks, lambda t: t.gradients and t.info.file):
        tasks = list(group)
        if tasks[0].gradients is None:
            yield from (partial(conform_task, task, plan.grid) for task in tasks)
            continue
        done = 0
        try:
            for job in conform_series(tasks, plan.grid):
                yield job
                done += 1
        except InputError as error:
            # The rest of the series, which can't be read either.
            failed = Future[None]()
            failed.set_exception(error)
            yield from [failed.result] * (len(tasks) - done)


def _conform_all(plan):
    """Yield conformed volumes as futures, a few ahead, since results take memory."""
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    pool, waiting = ThreadPoolExecutor(threads), deque[Future]()
    try:
        for job in _jobs(plan):
            waiting.append(pool.submit(job))
            if len(waiting) > threads:
                yield waiting.popleft()
        yield from waiting
    finally:
        # After an interrupt, volumes that have not begun are dropped.
        pool.shutdown(cancel_futures=True)
