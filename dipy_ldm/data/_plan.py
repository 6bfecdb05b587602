"""Volumes of which only the headers were read, with their masks and sources."""

from collections.abc import Mapping, Sequence
import logging
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import listed
from dipy_ldm.data._cohort import draw_order
from dipy_ldm.data._grid import Grid, same_grid
from dipy_ldm.data._nifti import VolumeInfo, check_headers, refuse_files
from dipy_ldm.data._paths import entity
from dipy_ldm.data._table_rows import find_subjects
from dipy_ldm.data._tables import Row

logger = logging.getLogger("dipy_ldm")

# Pairs that are shown.
_MAX_PAIRS_SHOWN = 3


class Task(NamedTuple):
    """A volume to be brought to a grid, with what belongs to it.

    ``info`` and ``source`` are what headers say (:class:`VolumeInfo`), ``mask`` is a
    file on the volume's own grid; each but the first may be None.
    """

    info: VolumeInfo
    mask: Path | None = None
    source: VolumeInfo | None = None


def with_masks(
    tasks: list[Task], mask_of: Mapping[Path, Path], skip_bad: bool
) -> list[Task]:
    """Pair volumes with masks; those without a good mask are bad."""
    info_of = _good_headers(mask_of, skip_bad=skip_bad)
    pairs, complaints = [], {}
    for task in tasks:
        info, mask = task.info, info_of.get(mask_of[task.info.file])
        if mask is None:
            continue
        if same_grid(info.shape, info.affine, mask.shape, mask.affine):
            pairs.append(task._replace(mask=mask.file))
        else:
            complaints[info.file] = (
                f"the mask {mask.file} has another grid (shape or affine) than its "
                f"volume {info.file}; resample it to that of the volume."
            )
    refuse_files(complaints, len(pairs), skip_bad)
    return _refuse_none(pairs, "mask")


def with_sources(
    tasks: list[Task], source_of: Mapping[Path, Path], channels: bool, skip_bad: bool
) -> list[Task]:
    """Pair volumes with source images; those without a good one are bad."""
    info_of = _good_headers(source_of, channels, skip_bad)
    infos = [(task, info_of.get(source_of[task.info.file])) for task in tasks]
    pairs = [task._replace(source=info) for task, info in infos if info is not None]
    return _refuse_none(pairs, "source")


def _good_headers(partner_of, channels=False, skip_bad=False):
    """Check the headers of masks or sources; return those of good ones by files."""
    partners = list(dict.fromkeys(partner_of.values()))
    infos, _ = check_headers(partners, channels, skip_bad)
    return {info.file: info for info in infos}


def _refuse_none(pairs, kind):
    if not pairs:
        raise InputError(f"no good volume has a good {kind}; fix those named above.")
    return pairs


def pair_sources(files: Sequence[Path], sources: Sequence[Path]) -> dict[Path, Path]:
    """Find the source of each file, by subject and session or else by order."""
    named = all(entity(file, "sub") for file in [*files, *sources])
    return _by_name(files, sources) if named else _by_order(files, sources)


def pair_masks(files: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Pair each file with its mask, by name or by order.

    Where one does, and all names have a ``sub-``, by subject and session.
    """
    strangers = [both for both in zip(files, masks) if _contradict(*both)]
    named = all(entity(file, "sub") for file in [*files, *masks])
    if named and (strangers or len(files) != len(masks)):
        return _by_name(files, list(dict.fromkeys(masks)), "mask")
    if strangers and len(files) == len(masks):
        file, mask = strangers[0]
        raise InputError(
            f"{file} would have the mask {mask}, of another subject or session; give "
            "masks in the order of their volumes, or names with a sub- to all."
        )
    return _by_order(files, masks, "mask")


def _contradict(file, other):
    """Return whether two names contradict in subject or session."""
    keys = [(entity(file, key), entity(other, key)) for key in ("sub", "ses")]
    return any(a and b and a != b for a, b in keys)


def _log_pairs(pairs, partners, kind, how):
    shown = "; ".join(f"{a} with {b}" for a, b in [*pairs.items()][:_MAX_PAIRS_SHOWN])
    logger.info("%d pairs of volume and %s, by %s: %s", len(pairs), kind, how, shown)
    if unused := len(set(partners) - set(pairs.values())):
        logger.info("%d %ss belong to no volume, and are left out.", unused, kind)
    return pairs


def _by_order(files, partners, kind="source"):
    if len(files) != len(partners):
        raise InputError(
            f"there are {len(partners)} {kind}s for {len(files)} volumes, and not all "
            "names have a sub- to pair them by; give one for each, in the same order."
        )
    return _log_pairs(dict(zip(files, partners, strict=True)), partners, kind, "order")


def _by_name(files, partners, kind="source"):
    sessions = any(entity(other, "ses") for other in partners)
    candidates: dict[tuple, list[Path]] = {}
    for other in partners:
        candidates.setdefault(_key(other, sessions), []).append(other)
    matches = {file: candidates.get(_key(file, sessions), []) for file in files}
    if missing := [str(file) for file, matched in matches.items() if not matched]:
        raise InputError(
            f"{len(missing)} of {len(files)} volumes have no {kind} of their subject "
            f"and session: {listed(missing)}; add them, or leave these volumes out."
        )
    for file, matched in matches.items():
        if len(matched) > 1:
            raise InputError(
                f"{file} has {len(matched)} {kind}s of its subject and session: "
                f"{listed(map(str, matched))}; name one for each."
            )
    pairs = {file: matched[0] for file, matched in matches.items()}
    return _log_pairs(pairs, partners, kind, "subject and session")


def _key(file, sessions):
    return entity(file, "sub"), entity(file, "ses") if sessions else None


class Plan(NamedTuple):
    """Volumes of which only the headers were read.

    ``tasks`` tell of each volume and what belongs to it, ``subjects`` whose it is;
    ``grid`` is where they are to be brought, and ``labels`` says whether sources are
    segmentations. ``listed`` are the rows of lists that named the volumes.
    """

    tasks: list[Task]
    subjects: list
    grid: Grid
    skip_bad: bool
    labels: bool = False
    listed: Mapping[str, list[Row]] = MappingProxyType({})

    @property
    def infos(self):
        """Headers of the volumes."""
        return [task.info for task in self.tasks]

    @property
    def files(self):
        """All files that are read."""
        masks = [task.mask for task in self.tasks if task.mask]
        sources = [task.source.file for task in self.tasks if task.source]
        return [info.file for info in self.infos] + masks + sources

    @property
    def source_channels(self):
        """Channels of sources; 0 where there are none."""
        source = self.tasks[0].source
        return source.channels if source else 0

    @property
    def shape(self):
        """Shape of all images, ``(n, x, y, z, channels)``, if none turns out bad."""
        return (len(self.infos), *self.grid.shape, self.infos[0].channels)

    @property
    def affine(self):
        """From voxel indices to millimetres, ``(4, 4)``."""
        return self.grid.affine


def make_plan(tasks, grid, listed, *, skip_bad=False, shuffle=False, labels=False):
    """Plan the preprocessing of volumes whose headers were read."""
    subjects = find_subjects([task.info.file for task in tasks], listed)
    order = draw_order(subjects, seed=0) if shuffle else range(len(tasks))
    tasks, subjects = [tasks[i] for i in order], [subjects[i] for i in order]
    return Plan(tasks, subjects, grid, skip_bad, labels, listed)
