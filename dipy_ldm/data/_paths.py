"""Find volumes in files, wildcards, folders and lists, and parse their BIDS names.

BIDS names have entities and a suffix: ``sub-01_ses-02_T1w.nii.gz``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from glob import iglob
import json
import logging
import os
from pathlib import Path
import re
from typing import TypeAlias

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import listed
from dipy_ldm.data._tables import Row, name_cells, read_cells

logger = logging.getLogger("dipy_ldm")

# Allowed values by entity, and allowed suffixes; None for all.
Filter: TypeAlias = Mapping[str, str | Sequence[str]] | None
Suffixes: TypeAlias = str | Sequence[str] | None

_NIFTI = (".nii", ".nii.gz")
_LISTS = (".txt", ".csv", ".tsv")
# Folders of BIDS datasets with other files than raw scans.
_SKIPPED = ("derivatives", "sourcedata")
# Data types of BIDS; scans in any other folder count as anatomical.
DATA_TYPES = "anat", "dwi", "perf", "pet", "func", "fmap"
# Entities by which files of one scan differ.
_VARIANTS = ("space", "res", "desc", "part", "echo", "inv")
# Values of space- for a subject's scans as they were acquired, as without it.
_NATIVE = {"", "t1w", "t2w", "flair", "dwi", "b0", "bold", "boldref", "pet", "asl"}
_NATIVE |= {"native", "orig", "individual", "scanner", "subject", "anat", "func"}
# Outputs that are left out: their description, and a test of their sidecars.
_NO_MASKS = {"that are no masks": lambda facts: facts.get("Role") != "mask"}
_BY_PRODUCTS = {
    "that are masks, maps, differences or deviations": lambda facts: (
        facts.keys() & {"Role", "Difference", "Deviation"}
    )
}
_OUTPUTS = _BY_PRODUCTS | {"made by dipy_ldm": bool}


def find_volumes(paths: Sequence[str | Path], generated: bool = False) -> list[Path]:
    """Return the NIfTI files behind paths, each once."""
    # Not resolved: two links to the same content are two volumes.
    files = {os.path.abspath(file): file for file in expand(paths, generated)}
    return list(files.values())


def refuse_twins(files: Iterable[Path]) -> None:
    """Refuse two files of a folder that differ only in .nii and .nii.gz."""
    first: dict[str, Path] = {}
    for file in files:
        uncompressed = os.path.abspath(file.with_name(f"{stem(file)}.nii"))
        twin = first.setdefault(uncompressed, file)
        if twin is not file:
            raise InputError(
                f"{twin} and {file} differ only in their extensions",
                "remove one, or give only the other",
            )


def expand(
    paths: Sequence[str | Path], generated: bool = False, masks: bool = False
) -> list[Path]:
    """Return the NIfTI files behind paths, repeated ones too."""
    reason_of = [
        (os.path.abspath(file), file, reason)
        for path in _as_paths(paths)
        for file, reason in _exclusion_reasons(path, generated, masks).items()
    ]
    files = [file for _, file, reason in reason_of if not reason]
    # Another path may have named what one leaves out.
    taken = {place for place, _, reason in reason_of if not reason}
    excluded = {place: reason for place, _, reason in reason_of if place not in taken}
    n_of = Counter(excluded.values())
    counts = listed(f"{reason} ({n})" for reason, n in n_of.items())
    if not files and counts:
        raise InputError(f"there are no volumes but those {counts}", "name that folder")
    if not files:
        raise InputError("there are no volumes", "give NIfTI files or folders of them")
    if excluded:
        logger.info("left out: files %s; name a file or folder to include it", counts)
    return files


def _exclusion_reasons(path, generated, masks):
    """Return why each file behind a path is left out, or None."""
    reasons: dict[Path, str | None] = {}
    for match in _match_path(path):
        if match.is_file() and match.name.lower().endswith(_LISTS):
            files, lines, _ = _read_list(match)
            _warn_of_columns(match, [cells for _, cells in lines])
            reasons |= dict.fromkeys(files)
        else:
            reasons |= {file: _reason(file, path.parts) for file in _nifti_files(match)}
    if path.is_file():
        return reasons
    facts_of = {file: generated_sidecar(file) for file in reasons if not reasons[file]}
    excluded = _NO_MASKS if masks else _BY_PRODUCTS if generated else _OUTPUTS
    for about, is_of in excluded.items():
        files = [
            file for file, sidecar in facts_of.items() if sidecar and is_of(sidecar)
        ]
        if len(files) < len(facts_of):  # else the path has nothing else
            reasons |= dict.fromkeys(files, about)
    return reasons


def _reason(file, named):
    skipped = [name for name in file.parts if name in _SKIPPED and name not in named]
    return f"in {skipped[0]}" if skipped else None


def generated_sidecar(file: Path) -> dict:
    """Return the sidecar of a generated volume; empty for any other."""
    try:
        sidecar = json.loads(file.with_name(f"{stem(file)}.json").read_text("utf-8"))
        return sidecar if sidecar["GeneratedBy"]["Name"] == "dipy_ldm" else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def holds_volumes(paths: Sequence[str | Path]) -> bool:
    """Return whether paths are, by their names, of volumes rather than images."""
    candidates = (Path(name) for path in _as_paths(paths) for name in _glob(path))
    return any(
        path.name.lower().endswith(_NIFTI + _LISTS)
        or next(_walk_nifti(path), None) is not None
        for path in candidates
    )


def _as_paths(paths):
    """Return one path or several as a list."""
    alone = isinstance(paths, str | Path) or not isinstance(paths, Iterable)
    paths = [paths] if alone else list(paths)
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise InputError(
                f"a path must be text or a Path, not a {type(path).__name__}",
                "give files or folders of them",
            )
    if not all(str(path).strip() for path in paths):
        # It would be the current folder.
        raise InputError("a path is empty", "give files or folders of them")
    # Not Path.expanduser, which fails for names such as ~1.npy.
    return [Path(os.path.expanduser(path)) for path in paths]


def _glob(path):
    """Return a path, or the matches of a wildcard."""
    return [path] if path.exists() else iglob(str(path), recursive=True)


def match_paths(paths: Sequence[str | Path]) -> list[Path]:
    """List the files and folders behind paths."""
    return [match for path in _as_paths(paths) for match in _match_path(path)]


def _match_path(path):
    matches = sorted(map(Path, _glob(path)))
    if not matches:
        raise InputError(f"there is no file {path}", "check the path")
    return matches


def _nifti_files(path):
    if path.is_dir():
        files = sorted(_walk_nifti(path))
        if not files:
            raise InputError(f"the folder {path} has no NIfTI files (.nii or .nii.gz)")
        return files
    if not path.name.lower().endswith(_NIFTI):
        raise InputError(
            f"{path} is no NIfTI file",
            "give .nii or .nii.gz files, folders of them, or a .txt, .csv or .tsv "
            "file that lists them",
        )
    return [path]


def _walk_nifti(folder):
    """Yield the NIfTI files in a folder, at any depth, through links, each once."""
    visited = set()
    for place, folders, names in os.walk(
        folder, onerror=_refuse_folder, followlinks=True
    ):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        # Hidden are copies by git-annex, and files that macOS adds. Links come last, so
        # that a file is reported by its own path.
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".")),
            key=lambda name: (os.path.islink(os.path.join(place, name)), name),
        )
        for name in names:
            if name.lower().endswith(_NIFTI) and not name.startswith("."):
                yield Path(place, name)


def _refuse_folder(error):
    """Refuse a folder that can't be read: volumes in it would be missed silently."""
    if Path(error.filename).is_dir():
        raise InputError(
            f"the folder {error.filename} can't be read ({error.strerror})",
            "ask for permission, or name the files one by one",
        )


def rows_of_lists(paths: Sequence[str | Path]) -> dict[str, list[Row]]:
    """Return the rows of lists, by the paths of volumes."""
    rows_of: dict[str, list[Row]] = {}
    for path in match_paths(paths):
        if path.is_file() and path.name.lower().endswith(_LISTS):
            files, lines, has_header = _read_list(path)
            rows = (
                name_cells(path, lines)
                if has_header
                else [Row(path, number, {}) for number, _ in lines]
            )
            for file, row in zip(files, rows, strict=True):
                rows_of.setdefault(os.path.abspath(file), []).append(row)
    return rows_of


def _read_list(path):
    """Return the files of a list, its lines, and whether the first is a header."""
    lines = read_cells(path)
    column = _find_file_column(path, [cells for _, cells in lines])
    has_header = not _looks_like_nifti(lines[0][1], column)
    files = []
    for _, cells in lines[has_header:]:
        if not _looks_like_nifti(cells, column):
            line = ", ".join(cells)
            raise InputError(
                f"{path} has a line without NIfTI file ({line})", "drop it"
            )
        files.append(path.parent / Path(cells[column].strip()).expanduser())
    return files, lines, has_header


def _find_file_column(path, rows):
    """Find the column that holds NIfTI files."""
    hits = [i for row in rows for i in range(len(row)) if _looks_like_nifti(row, i)]
    if hits:
        return min(hits)
    raise InputError(f"{path} names no NIfTI files", "add a column of their paths")


def _warn_of_columns(path, rows):
    """Warn of further columns of files, such as masks or other contrasts."""
    every = [{c for c in row if _looks_like_nifti([c], 0) and stem(c)} for row in rows]
    if max(map(len, every)) > 1:
        text = "%s has several columns of NIfTI files; the first one is used."
        logger.warning(text, path)


def _looks_like_nifti(row, column):
    return column < len(row) and row[column].strip().lower().endswith(_NIFTI)


def entity(file: str | Path, key: str) -> str | None:
    """Return the value of a BIDS entity in the name of a file or its folders."""
    # A dot before a digit is part of a number, any other begins the extension.
    pattern = re.compile(rf"(?:^|_)({key}-[^_.]+(?:\.\d[^_.]*)*)")
    for name in reversed(Path(file).parts):
        if match := pattern.search(name):
            return match[1]
    return None


def template_space(file: str | Path) -> str:
    """Return the space in the name of a file; empty if it is that of the subject."""
    space = _entity_value(file, "space")
    return "" if space.lower() in _NATIVE else space


def stem(file: str | Path) -> str:
    """Return the name of a NIfTI file without its extension."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(file).name, flags=re.IGNORECASE)


def suffix(file: str | Path) -> str | None:
    """Return the BIDS suffix of a file."""
    entities, _, last = stem(file).rpartition("_")
    last = last.partition(".")[0]
    # Dates and numbers at the end of a name are no suffix.
    kind = last.isalnum() and last[0].isalpha()
    return last if re.search("(?:^|_)sub-", entities) and kind else None


def common_suffix(files: Iterable[str | Path]) -> str | None:
    """Return the BIDS suffix that all files share, or None."""
    kinds = {suffix(file) for file in files}
    return kinds.pop() if len(kinds) == 1 else None


def choose_files(
    files: Sequence[Path],
    suffixes: Suffixes = None,
    values: Filter = None,
    cure: str = "",
    dwi: bool = False,
) -> list[Path]:
    """Filter scans by suffix and entities, and log the choice.

    ``cure`` replaces the hints at `suffix` and `filter`. With ``dwi``, files of several
    kinds are those with the suffix dwi.
    """
    selected = choose_entities(files, values)
    if suffixes:
        selected = _choose_values(selected, "suffix", suffixes, suffix)
    refuse_twins(selected)
    kinds = Counter(filter(None, map(suffix, selected)))
    if len(kinds) > 1 and not suffixes:
        if dwi and "dwi" in kinds:
            return choose_files(files, "dwi", values, cure)
        raise InputError(
            f"the files are of several kinds, {_list_counts(kinds)}",
            f"{cure or 'choose with `suffix`'}, such as {kinds.most_common(1)[0][0]}",
        )
    if len(files) > 1:
        of = f" ({_list_counts(kinds)})" if kinds else ""
        logger.info("taken: %d files%s", len(selected), of)
    _warn_of_variants(selected, values or {}, cure)
    if excluded := Counter(map(suffix, files)) - Counter(map(suffix, selected)):
        logger.info("left out by their names: %s", _list_counts(excluded))
    return selected


def _warn_of_variants(files, values, cure):
    """Warn of images of a scan in several spaces, resolutions and so on."""
    for key in _VARIANTS:
        variants = Counter(_entity_value(file, key) for file in files)
        if len(variants) > 1 and key not in values:
            text = "the files differ in %s (%s); to use one kind only, %s"
            own_cure = cure or f"use filter ({key}= for those without it)"
            logger.warning(text, key, _list_counts(variants), own_cure)


def choose_entities(files: Sequence[Path], values: Filter) -> list[Path]:
    """Choose files by the entities of their names."""
    selected = list(files)
    for key, allowed in (values or {}).items():
        selected = _choose_values(
            selected, key, allowed, partial(_entity_value, key=key)
        )
    return selected


def choose_for_channels(
    files: Sequence[Path], suffixes: Suffixes, values: Filter
) -> list[Path]:
    """Choose the files of named channels, by entities only."""
    if suffixes:
        raise InputError("channels have suffixes of their own", "leave out `suffix`")
    return choose_entities(files, values)


def choose_named(files: Sequence[Path], name: str) -> list[Path]:
    """Choose the files of a channel, by their suffix or an entity such as desc-FA."""
    key, dash, value = name.partition("-")
    if dash:
        return choose_entities(files, {key: value})
    named_files = [file for file in files if suffix(file) == name]
    # Names may not be BIDS names: fa.nii.gz of DIPY, samples-0000_T1w.nii.gz of models.
    named_files = named_files or [
        file for file in files if stem(file).rpartition("_")[2] == name
    ]
    return named_files or _choose_values(files, "suffix", name, suffix)


def _choose_values(files, key, allowed, value_of):
    """Choose files by the allowed values of a key, and refuse values that none has."""
    allowed = [allowed] if isinstance(allowed, str | int) else allowed
    allowed = list(map(str, allowed))
    counts = Counter(value_of(file) or "" for file in files)
    if missing := [value for value in allowed if value not in counts]:
        raise InputError(
            f"no file has the {key} {missing[0] or 'none'}",
            f"there are {_list_counts(counts)}",
        )
    return [file for file in files if (value_of(file) or "") in allowed]


def _entity_value(file, key):
    return (entity(file, key) or "").partition("-")[2]


def _list_counts(kinds):
    return listed(f"{kind or 'none'} ({n})" for kind, n in kinds.most_common())
