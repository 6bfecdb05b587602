"""Pair volumes with masks and sources, by names and headers alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, combinations, combinations_with_replacement
import logging
from pathlib import Path
import re
from typing import NamedTuple, Protocol, Self, TypeAlias

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import Table, grouped, listed
from dipy_ldm.data._bvals_bvecs import Gradients
from dipy_ldm.data._cohort import draw_order
from dipy_ldm.data._grid import Grid, bounding_box, same_grid
from dipy_ldm.data._nifti import (
    VolumeInfo,
    read_header,
    read_headers,
    refuse_files,
    warn_of_space,
)
from dipy_ldm.data._paths import (
    DATA_TYPES,
    choose_named,
    entity,
    expand,
    generated_sidecar,
    refuse_twins,
    stem,
    suffix,
    template_space,
)
from dipy_ldm.data._table_rows import find_subjects, warn_of_datasets
from dipy_ldm.data._tables import Row
from dipy_ldm.data.channels import Channel, Unnamed

logger = logging.getLogger("dipy_ldm")

_MAX_PAIRS_SHOWN = 3
# Entities of BIDS by which scans of one subject and session differ.
_SCANS = "task", "acq", "ce", "trc", "rec", "dir", "run", "mod", "echo", "inv", "part"

# NIfTI codes of known spaces: of the scanner, of Talairach, and of MNI152.
_SPACES = {1, 3, 4}
# Where partners can't be found.
_CURE = (
    "give one for each, in the same order, or with names that all contain a sub- or "
    "the name of the volume (scan1, scan1_mask)"
)


# Channels, each with its file.
Parts: TypeAlias = tuple[tuple[Channel, Path], ...]


class Task(NamedTuple):
    """A volume to conform, with its mask and source.

    ``info`` is the header of its first file, and ``mask`` a file on that grid.
    ``parts`` are the channels, each with its file, and ``source_parts`` those of the
    source. ``gradients`` are those of a diffusion series, of which ``volume`` is an
    index. ``further`` are the headers of all other channels and of the source.
    """

    info: VolumeInfo
    parts: Parts
    mask: Path | None = None
    source_parts: Parts = ()
    gradients: Gradients | None = None
    volume: int = 0
    further: tuple[VolumeInfo, ...] = ()

    @classmethod
    def of(cls, info: VolumeInfo, kind: type[Unnamed] = Unnamed) -> Self:
        """Return a task for a file whose channels have no names."""
        return cls(info, ((kind(n=info.channels), info.file),))

    def per_volume(self) -> list[Self]:
        """Return a task for each diffusion-weighted volume of a series."""
        if self.gradients is None:
            return [self]
        return [self._replace(volume=i) for i in self.gradients.weighted.tolist()]


class Headers(NamedTuple):
    """Tasks of good files, their headers, and a complaint about each bad file."""

    tasks: list[Task]
    infos: list[VolumeInfo]
    complaints: dict[Path, InputError]


class Review(Protocol):
    """Return the tasks that are planned, of those that ``read`` reads from ``files``.

    ``kind`` is volumes, masks or sources.
    """

    def __call__(
        self, kind: str, files: Sequence[Path], read: Callable[[], Headers]
    ) -> list[Task]:
        """Read headers, and decide on bad files."""


def refuse_bad(
    kind: str,
    files: Sequence[Path],
    read: Callable[[], Headers],
    skip_bad: bool | None = False,
) -> list[Task]:
    """Refuse bad files, or skip them with a warning: the review of a training."""
    tasks, infos, complaints = read()
    refuse_files(complaints, len(tasks), skip_bad)
    warn_of_space(infos)
    return tasks if kind == "masks" else fit_channels(tasks)


def match_masks(
    tasks: list[Task], mask_of: Mapping[Path, Path]
) -> tuple[list[Task], dict[Path, InputError]]:
    """Return volumes with good masks, and a complaint about each bad mask."""
    infos, complaints = read_headers(list(dict.fromkeys(mask_of.values())), None)
    info_of = {info.file: info for info in infos}
    pairs = []
    for task in tasks:
        mask = info_of.get(mask_of[task.info.file])
        if mask is None:
            continue
        if complaint := mask_complaint(task.info, mask):
            complaints[task.info.file] = complaint
        else:
            pairs.append(task._replace(mask=mask.file))
    return pairs, complaints


def read_masks(tasks: list[Task], mask_of: Mapping[Path, Path]) -> Headers:
    """Pair volumes with masks, of which the headers are read."""
    masked, complaints = match_masks(tasks, mask_of)
    return Headers(masked, [], complaints)


def mask_complaint(info: VolumeInfo, mask: VolumeInfo) -> InputError | None:
    """Return a complaint about a mask on another grid than its volume, if it is."""
    if same_grid(info, mask):
        return None
    return InputError(
        f"the mask {mask.file} has another grid (shape or affine) than {info.file}",
        "resample it to that of its volume",
        files=[mask.file, info.file],
    )


def with_sources(
    tasks: list[Task],
    source_of: Mapping[Path, Path],
    channels: bool,
    kind: type[Unnamed],
    review: Review,
) -> list[Task]:
    """Pair volumes with source images; those without a good one count as bad."""
    files = list(dict.fromkeys(source_of.values()))
    sources = review("sources", files, partial(read_unnamed, files, channels, kind))
    return _with_good_sources(tasks, source_of, sources)


def with_source_channels(
    tasks: list[Task],
    files: Sequence[Path],
    channels: Sequence[Channel],
    review: Review,
    cure: str = "",
) -> list[Task]:
    """Pair volumes with the named channels of their sources; drop those without."""
    # Sources that belong to no volume are not checked.
    subjects = {None, *(entity(task.info.file, "sub") for task in tasks)}
    files = [f for f in files if entity(f, "sub") in subjects] or files
    read = partial(read_named, files, channels, cure, all_spaces=True)
    sources = review("sources", files, read)
    first_files = [source.info.file for source in sources]
    volumes = [task.info.file for task in tasks]
    require_subjects(find_keys([*first_files, *volumes], len(first_files) > 1))
    matches = _candidates(volumes, first_files)
    if lacking := [file for file, candidates in matches.items() if not candidates]:
        names = listed(channel.name for channel in channels)
        text = "%d of %d volumes have no source (%s), and are left out: %s."
        logger.warning(text, len(lacking), len(tasks), names, listed(lacking))
    matches = {file: candidates for file, candidates in matches.items() if candidates}
    source_of = _require_one_each(matches, first_files, "source")
    return _with_good_sources(tasks, source_of, sources)


def _with_good_sources(tasks, source_of, sources):
    """Add their sources to tasks, and drop those without a good one."""
    by_file = {source.info.file: source for source in sources}
    paired = []
    for task in tasks:
        if source := by_file.get(source_of.get(task.info.file)):
            further = (*task.further, source.info, *source.further)
            paired.append(task._replace(source_parts=source.parts, further=further))
    if not paired:
        raise InputError("no good volume has a good source", "fix those named above")
    return paired


def read_unnamed(
    files: Sequence[Path], channels: bool, kind: type[Unnamed] = Unnamed
) -> Headers:
    """Read the headers of files whose channels have no names."""
    infos, complaints = read_headers(files, channels)
    return Headers([Task.of(info, kind) for info in infos], infos, complaints)


def read_named(
    files: Sequence[Path],
    channels: Sequence[Channel],
    cure: str = "",
    generated: bool = False,
    all_spaces: bool = False,
) -> Headers:
    """Group named channels by subject and session, and read their headers."""
    names = [channel.name for channel in channels]
    grouped_files = group_channels(files, names, cure, generated, all_spaces)
    sets, complaints = read_channel_sets(grouped_files)
    tasks = []
    for infos in sets:
        parts = tuple((c, info.file) for c, info in zip(channels, infos))
        tasks.append(Task(infos[0], parts, further=tuple(infos[1:])))
    return Headers(tasks, [*chain(*sets)], complaints)


def read_diffusion(files: Sequence[Path]) -> Headers:
    """Read the headers, b-values and directions of diffusion series."""
    tasks, complaints = read_series(files)
    return Headers(tasks, [task.info for task in tasks], complaints)


def read_series(files: Sequence[Path]) -> tuple[list[Task], dict[Path, InputError]]:
    """Return tasks of good diffusion series, and a complaint about each bad one."""
    tasks, complaints = [], {}
    for file in files:
        try:
            info = read_header(file, channels=True, dwi=True)
            gradients = Gradients.beside(file, info.channels)
        except InputError as error:
            complaints[file] = error
            continue
        task = Task.of(info._replace(channels=1))
        tasks.append(task._replace(source_parts=task.parts, gradients=gradients))
    return tasks, complaints


def read_channel_sets(
    sets: Sequence[Sequence[Path]], along_axis: bool | None = None
) -> tuple[list[list[VolumeInfo]], dict[Path, InputError]]:
    """Return the headers of good sets of channels, and complaints about bad files.

    A file of a named channel can't hold several: no option lets ``along_axis`` do so.
    """
    infos, complaints = read_headers([*chain(*sets)], along_axis)
    good = {info.file: info for info in infos}
    whole = [
        channel_set for channel_set in sets if all(file in good for file in channel_set)
    ]
    return [[good[file] for file in channel_set] for channel_set in whole], complaints


def fit_channels(tasks: Sequence[Task]) -> list[Task]:
    """Fit named channels of tasks to all of their files."""
    if not tasks or not tasks[0].parts[0][0].name:
        return [*tasks]
    files = [[file for _, file in task.parts] for task in tasks]
    channels = [channel for channel, _ in tasks[0].parts]
    learnt = [c.learn(files_of) for c, files_of in zip(channels, zip(*files))]
    return [
        task._replace(parts=tuple(zip(learnt, set_files)))
        for task, set_files in zip(tasks, files)
    ]


def group_channels(
    files: Sequence[Path],
    names: Sequence[str],
    cure: str = "",
    generated: bool = False,
    all_spaces: bool = False,
) -> list[list[Path]]:
    """Return the files of each subject and session that has all named channels.

    All channels of a set are in one space. ``cure`` replaces the hint at `filter`.
    Generated files are grouped by their sidecars. With ``all_spaces``, a subject may
    have a set in each of several spaces.
    """
    file_of = _group_files(files, names, cure, generated)
    lacking, sets = [], []
    for key, by_space in file_of.items():
        whole = [own for own in by_space.values() if len(own) == len(names)]
        if len(whole) > 1 and not all_spaces:
            first, second, *_ = (own[names[0]] for own in whole)
            raise _twins_error(first, second, names[0], cure)
        sets += [[own[name] for name in names] for own in whole]
        if not whole:
            missing = _find_missing(names, by_space.values())
            about = "_".join(filter(None, key))
            lacking.append(f"{about} (no {' and no '.join(missing)})")
    n = f"{len(file_of) - len(lacking)} of {len(file_of)}"
    sentence = f"{n} subjects (or their sessions) have all of {listed(names)}"
    if not sets:
        raise InputError(f"{sentence}: {listed(lacking)}", "add what is missing")
    if lacking:
        logger.warning("%s; left out: %s.", sentence, listed(lacking))
    else:
        logger.info("%s.", sentence)
    return sets


def _group_files(files, names, cure, generated):
    """Return files by scan, space and name of channel."""
    file_of: dict[tuple, dict[str, dict[str, Path]]] = {}
    sidecars = {file: generated_sidecar(file) for file in files} if generated else {}
    files_by_name = {
        name: [file for file, own in sidecars.items() if own.get("Channel") == name]
        or choose_named(files, name)
        for name in names
    }
    for channel_files in files_by_name.values():
        refuse_twins(channel_files)
    several = any(len(channel_files) > 1 for channel_files in files_by_name.values())
    keys = find_keys(chain.from_iterable(files_by_name.values()), several)
    for name, channel_files in files_by_name.items():
        for file in channel_files:
            key = _sample_key(sidecars.get(file, {})) or _scan_key(
                file, name, keys[file]
            )
            if sidecars.get(file):  # samples of several runs may have the same names
                key = (_folder_of_channels(file), *key)
            space = "" if sidecars.get(file) else template_space(file)
            own = file_of.setdefault(key, {}).setdefault(space, {})
            if name in own:
                raise _twins_error(own[name], file, name, cure)
            own[name] = file
    return file_of


def _twins_error(first, second, name, cure):
    return InputError(
        f"{first} and {second} are both the {name} of one subject and session",
        f"{cure or 'choose with `filter`'}, or rename those of other subjects",
        files=[first, second],
    )


def _find_missing(names, by_space):
    """Return the channels that a scan lacks; refuse those of different spaces."""
    missing = [name for name in names if not any(name in own for own in by_space)]
    if not missing:
        first, second, *_ = (next(iter(own.values())) for own in by_space)
        raise spaces_error(first, second)
    return missing


def spaces_error(file: Path, other: Path) -> InputError:
    """Return an error about two files of one scan that are in different spaces."""
    names = [template_space(path) or "that of the scan" for path in (file, other)]
    reason = f"by their names ({names[0]} and {names[1]})"
    reason = reason if names[0] != names[1] else "by their headers"
    return InputError(
        f"{file} and {other} are in different spaces, {reason}",
        "give files that are in one space, or choose with `filter`",
        files=[file, other],
    )


def refuse_spaces(infos: Sequence[VolumeInfo]) -> None:
    """Refuse files of one scan whose headers place them in different spaces."""
    for first, other in combinations(infos, 2):
        if not same_grid(first, other) and (
            _are_apart(first, other) or _have_other_spaces(first, other)
        ):
            raise spaces_error(first.file, other.file)


def _are_apart(first, other):
    """Return whether neither volume contains the centre of the other."""
    boxes = np.array([bounding_box(i.shape, i.affine) for i in (first, other)])
    distance = abs(np.diff(boxes.mean(axis=1), axis=0))
    sides = boxes[:, 1] - boxes[:, 0]
    return bool((distance > sides / 2).any(axis=1).all())


def _have_other_spaces(first, other):
    """Return whether headers name two spaces, and names of files do not."""
    codes = {info.space for info in (first, other)}
    named = template_space(first.file) and template_space(other.file)
    return not named and len(codes) == 2 and codes <= _SPACES


def _sample_key(facts):
    """Return the key of all channels of a sample; None if it has no source images."""
    sources = facts.get("Sources")
    return sources and (*sources, f"sample {facts.get('Sample', 0)}")


def _folder_of_channels(file):
    """Return the folder of a sample, above BIDS folders such as anat."""
    folder = file.parent
    return str(folder.parent if folder.name in DATA_TYPES else folder)


def _scan_key(file, name, key):
    """Return the key of all channels of a scan: subject and session, or a prefix."""
    if key[0]:
        return key
    start = stem(file).rpartition(f"_{name}")[0]
    if not start:
        raise InputError(
            f"{file} has no sub- in its name, by which channels are grouped",
            f"rename it, to sub-01_{name}.nii.gz, say",
        )
    return str(file.with_name(start)), None


def pair_sources(
    files: Sequence[Path], sources: Sequence[Path], kind: str = "source"
) -> dict[Path, Path]:
    """Pair each file with its source, by subject and session, else by name or order."""
    if not _have_subjects(files, sources):
        return _by_name_or_order(files, sources, kind)
    return _require_one_each(_candidates(files, sources), sources, kind)


def pair_masks(files: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Pair each file with its mask, by subject and session, else by name or order.

    Several scans of one session, too, are paired by order if names do not decide.
    """
    if not _have_subjects(files, masks):
        return _by_name_or_order(files, masks, "mask")
    matches = _candidates(files, dict.fromkeys(masks))
    fits = len(files) == len(masks) and not any(map(contradict, files, masks))
    if fits and sorted(chain(*matches.values())) != sorted(masks):
        return _by_name_or_order(files, masks, "mask")
    return _require_one_each(matches, masks, "mask")


def _have_subjects(files, partners):
    keys = find_keys([*files, *partners], len(set(partners)) > 1)
    return all(subject for subject, _ in keys.values())


def find_masks(
    files: Sequence[Path], mask_files: Sequence[str | Path]
) -> dict[Path, Path]:
    """Return the mask of each file; a single mask is shared by all."""
    masks = expand(mask_files, masks=True)
    return pair_masks(files, masks * len(files) if len(masks) == 1 else masks)


def contradict(file: Path, other: Path) -> bool:
    """Return whether two names have different subjects or sessions."""
    keys = [(entity(file, key), entity(other, key)) for key in ("sub", "ses")]
    return any(a and b and a != b for a, b in keys)


def _log_pairs(pairs, partners, kind, rule):
    examples = "; ".join(
        f"{a} with {b}" for a, b in [*pairs.items()][:_MAX_PAIRS_SHOWN]
    )
    logger.info(
        "%d pairs of volume and %s, by %s: %s", len(pairs), kind, rule, examples
    )
    if unused := len(set(partners) - set(pairs.values())):
        logger.info("%d %ss belong to no volume, and are left out.", unused, kind)
    return pairs


def _by_name_or_order(files, partners, kind):
    named = _partners_by_name(files, partners)
    named = {file: in_space(file, candidates) for file, candidates in named.items()}
    if all(len(candidates) == 1 for candidates in named.values()):
        pairs = {file: candidates[0] for file, candidates in named.items()}
        return _log_pairs(pairs, partners, kind, "name")
    if len(files) != len(partners):
        raise InputError(
            f"there are {len(partners)} {kind}s for {len(files)} volumes, and not all "
            "have names to pair them by",
            f"{_CURE}",
        )
    pairs = dict(zip(files, partners, strict=True))
    for file, other in pairs.items():
        in_space(file, [other])
    _check_order(pairs, named, kind)
    return _log_pairs(pairs, partners, kind, "order")


def _partners_by_name(files, partners):
    """Return partners whose names contain that of each file as words (scan1_mask).

    A partner that contains several names belongs to the longest.
    """
    file_of = {stem(file): file for file in files}
    partners_of: dict[Path, list[Path]] = {file: [] for file in files}
    if len(file_of) < len(files):  # p1/T1 and p2/T1
        return partners_of
    for other in dict.fromkeys(partners):
        name, words = stem(other), re.finditer(r"[^\W_]+", stem(other))
        pairs = combinations_with_replacement(words, 2)
        parts = {name[first.start() : last.end()] for first, last in pairs}
        *_, second, longest = "", "", *sorted(parts & file_of.keys(), key=len)
        if len(longest) > len(second) and not contradict(file_of[longest], other):
            partners_of[file_of[longest]].append(other)
    return partners_of


def _check_order(pairs, named, kind):
    """Refuse pairs by order that contradict their names."""
    # A single mask may be shared by all volumes, whatever its name.
    by_names = len(set(pairs.values())) > 1 and any(named.values())
    for file, other in pairs.items():
        if contradict(file, other) or by_names and other not in named[file]:
            raise InputError(
                f"{file} would have the {kind} {other} by their order, but not by "
                "their names",
                f"{_CURE}",
            )
    file_columns, partner_columns = _name_columns(pairs), _name_columns(pairs.values())
    # If names agree in a column that identifies each file, the others do not matter.
    if any(
        len(set(column)) == len(column) for column in file_columns & partner_columns
    ):
        return
    if any(
        sorted(a) == sorted(b)
        for a in file_columns - partner_columns
        for b in partner_columns - file_columns
    ):
        raise InputError(
            f"the {kind}s are not in the order of their volumes, by the numbers or "
            "BIDS entities in their names",
            f"{_CURE}",
        )


def _name_columns(files):
    """Return columns of numbers (the first of each path, ...) and of BIDS entities."""
    # Folders of images in memory (image-0, ...) are no part of their names.
    paths = [re.sub(r"\bimage-\d+[\\/]", "", str(file)) for file in files]
    numbers = zip(*(map(int, re.findall(r"\d+", path)) for path in paths))
    entities = zip(*([entity(file, key) or "" for key in _SCANS] for file in files))
    return {*numbers, *entities}


def _require_one_each(matches, partners, kind):
    """Return the only candidate of each file, or refuse none and several."""
    if missing := [file for file, matched in matches.items() if not matched]:
        raise InputError(
            f"{len(missing)} of {len(matches)} volumes have no {kind} of their "
            f"subject and session: {listed(missing)}",
            "add them, or leave these volumes out",
        )
    for file, matched in matches.items():
        if len(matched) > 1:
            raise InputError(
                f"{file} has {len(matched)} {kind}s of its subject and session: "
                f"{listed(matched)}",
                "give one for each",
            )
    pairs = {file: matched[0] for file, matched in matches.items()}
    return _log_pairs(pairs, partners, kind, "subject and session")


def _candidates(files, partners):
    """Return the partners of each file's session, or else those of its subject."""
    by_key = grouped((_subject_and_session(other), other) for other in partners)
    matches = {}
    for file in files:
        subject, session = _subject_and_session(file)
        matched = by_key.get((subject, session)) or by_key.get((subject, None), [])
        matched = in_space(file, matched)
        if len(matched) > 1:
            ranks = [_rank(file, other) for other in matched]
            matched = [x for x, rank in zip(matched, ranks) if rank == min(ranks)]
        matches[file] = matched
    return matches


def in_space(file: Path, partners: Sequence[Path]) -> list[Path]:
    """Return the partners in the space of a file; refuse those of other spaces alone.

    Spaces are those of names.
    """
    space = template_space(file)
    near = [other for other in partners if template_space(other) == space]
    if partners and not near:
        raise spaces_error(file, partners[0])
    return near


def _rank(file, other):
    """Rank a partner by the entities of scans that agree, then by those that differ."""
    pairs = [(entity(file, key), entity(other, key)) for key in _SCANS]
    return -sum(a == b for a, b in pairs if a), sum(a != b for a, b in pairs)


def find_keys(
    files: Iterable[Path], several: bool
) -> dict[Path, tuple[str | None, str | None]]:
    """Return subject and session of files, but not from a folder of the whole study."""
    keys = {file: _subject_and_session(file) for file in files}
    # As in find_subjects; several of a kind can't be of one subject and session.
    if several and len(set(keys.values())) == 1:
        keys = {file: _subject_and_session(file.name) for file in keys}
    return keys


def require_subjects(keys: Mapping[Path, tuple[str | None, str | None]]) -> None:
    """Refuse a file without a subject among the keys of :func:`find_keys`."""
    for file, (subject, _) in keys.items():
        if not subject:
            raise InputError(
                f"{file} has no sub- in its name, which identifies its subject",
                f"rename it, to sub-01_{suffix(file) or 'T1w'}.nii.gz, say",
            )


def _subject_and_session(file):
    return entity(file, "sub"), entity(file, "ses")


class Plan(NamedTuple):
    """Volumes to conform to a grid, of which only the headers were read.

    ``tasks`` and ``subjects`` are in the order of the volumes. ``listed`` are the rows
    of lists that named the volumes.
    """

    tasks: list[Task]
    subjects: list
    grid: Grid
    skip_bad: bool | None
    listed: Mapping[str, list[Row]]

    @property
    def infos(self):
        """Headers of the volumes."""
        return [task.info for task in self.tasks]

    @property
    def files(self):
        """All files that are read."""
        masks = [task.mask for task in self.tasks if task.mask]
        sources = [t.source_parts[0][1] for t in self.tasks if t.source_parts]
        further = chain(*(t.parts[1:] + t.source_parts[1:] for t in self.tasks))
        parts = [file for _, file in further]
        tables = [file for t in self.tasks if t.gradients for file in t.gradients.files]
        files = [info.file for info in self.infos] + masks + sources + parts + tables
        # Volumes of a series share a file.
        return list(dict.fromkeys(files)) if tables else files

    def gradients(self, indices: Iterable[int]) -> Table | None:
        """Return b-values and directions of volumes of diffusion series, if any."""
        tasks = [self.tasks[i] for i in indices]
        columns = [
            task.gradients.conditions(task.info.affine, [task.volume])
            for task in tasks
            if task.gradients
        ]
        if not columns:
            return None
        values = {name: [c[name][0] for c in columns] for name in columns[0]}
        return Table(values, columns[0].units)

    @property
    def channels(self):
        """Records of the channels; none if they have no names."""
        return _named(self.tasks[0].parts)

    @property
    def columns(self):
        """Number of columns of the images."""
        return _count_columns(self.tasks[0].parts)

    @property
    def source_channels(self):
        """Records of the channels of sources; none if they have no names."""
        return _named(self.tasks[0].source_parts)

    @property
    def source_columns(self):
        """Number of columns of the sources; 0 without any."""
        return _count_columns(self.tasks[0].source_parts)

    @property
    def shape(self):
        """Shape of all images, ``(n, x, y, z, channels)``, unless some prove bad."""
        return (len(self.infos), *self.grid.shape, self.columns)

    @property
    def affine(self):
        """From voxel indices to millimetres, ``(4, 4)``."""
        return self.grid.affine


def _named(parts):
    return tuple(channel for channel, _ in parts if channel.name)


def _count_columns(parts):
    return sum(channel.width for channel, _ in parts)


def make_plan(tasks, grid, listed, *, skip_bad=False, shuffle=False):
    """Plan the preprocessing of volumes whose headers were read."""
    for task in tasks:
        refuse_spaces([task.info, *task.further])
    files = [task.info.file for task in tasks]
    subjects = find_subjects(files, listed)
    warn_of_datasets(files, subjects)
    order = draw_order(subjects, seed=0) if shuffle else range(len(tasks))
    pairs = [
        (volume_task, subjects[i])
        for i in order
        for volume_task in tasks[i].per_volume()
    ]
    tasks, subjects = map(list, zip(*pairs))
    return Plan(tasks, subjects, grid, skip_bad, listed)
