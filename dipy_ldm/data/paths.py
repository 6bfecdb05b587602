"""Finding volumes: files, wildcards, folders and lists of NIfTI files."""

from collections.abc import Sequence
import csv
from glob import iglob
import os
from pathlib import Path

from dipy_ldm.validation import InputError

_NIFTI = (".nii", ".nii.gz")
_LISTS = (".txt", ".csv", ".tsv")


def find_volumes(paths: Sequence[str | Path]) -> list[Path]:
    """Find NIfTI files.

    Parameters
    ----------
    paths : sequence of str or Path
        NIfTI files; folders, searched with all that is in them; wildcards; or lists
        of files, ``.txt``, ``.csv`` or ``.tsv``, with or without a header. A text
        file has a path a line or columns between tabs; in a table, the column where
        most entries end as NIfTI files do is the one (the leftmost of equals).
        Paths in a list are relative to it.

    Returns
    -------
    list of Path
        Files in the order of the paths, sorted within folders and wildcards, each
        once. Whether those that a list names are there, reading will tell.

    Raises
    ------
    InputError
        If a path is not there, or has no NIfTI file.
    """
    # Not resolved: two links to the same content are two volumes.
    files = {os.path.abspath(file): file for file in expand(paths)}
    return list(files.values())


def expand(paths: Sequence[str | Path]) -> list[Path]:
    """Find NIfTI files, one that is named repeatedly as often as it is named.

    Parameters
    ----------
    paths : sequence of str or Path
        As for :func:`find_volumes`.

    Returns
    -------
    list of Path
        Files, in order.

    Raises
    ------
    InputError
        If a path is not there, or has no NIfTI file.
    """
    # One path is a sequence too, of letters.
    all_paths = [paths] if isinstance(paths, str | Path) else paths
    files = [
        file for path in all_paths for found in _match(path) for file in _files(found)
    ]
    if not files:
        raise InputError("there are no volumes; give NIfTI files or folders of them.")
    return files


def holds_volumes(paths: Sequence[str | Path]) -> bool:
    """Tell whether inputs are volumes rather than two-dimensional images.

    Only names are looked at.

    Parameters
    ----------
    paths : sequence of str or Path
        What the user gave, as for :func:`find_volumes`.

    Returns
    -------
    bool
        True if there is a NIfTI file, a folder with one, or a list.
    """
    candidates = (
        Path(name)
        for path in _sequence(paths)
        for name in _names(Path(path).expanduser())
    )
    return any(
        path.name.lower().endswith(_NIFTI + _LISTS)
        or next(_search(path), None) is not None
        for path in candidates
    )


def _sequence(paths):
    """Take one path for a sequence of one: a string is one of letters."""
    return [paths] if isinstance(paths, str | Path) else paths


def _names(path):
    """Give what stands behind a path: itself, or what a wildcard matches."""
    return [path] if path.exists() else iglob(str(path), recursive=True)


def _match(path):
    """List the files and folders behind a path."""
    path = Path(path).expanduser()
    found = sorted(map(Path, _names(path)))
    if not found:
        raise InputError(f"there is no file {path}; check the path.")
    return found


def _files(path):
    if path.is_dir():
        files = sorted(_search(path))
        if not files:
            raise InputError(
                f"the folder {path} has no NIfTI files; put .nii or .nii.gz files "
                "there."
            )
        return files
    if path.name.lower().endswith(_LISTS):
        return _listed(path)
    if not path.name.lower().endswith(_NIFTI):
        raise InputError(
            f"{path} is no NIfTI file; give .nii or .nii.gz files, folders of them, or "
            "a list of them in a .txt, .csv or .tsv file."
        )
    return [path]


def _search(folder):
    """Find the NIfTI files in a folder, at any depth."""
    for place, folders, names in os.walk(folder):
        # Hidden are copies by git-annex, and what macOS puts beside each file.
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(_NIFTI) and not name.startswith("."):
                yield Path(place, name)


def _listed(path):
    """Read the files that a list names."""
    rows = _rows(path)
    column = _column(path, rows)
    if not _looks_like_nifti(rows[0], column):
        del rows[0]
    for row in rows:
        if not _looks_like_nifti(row, column):
            raise InputError(
                f"{path} has a line without the path of a NIfTI file "
                f"({', '.join(row)}); complete or remove it."
            )
    return [path.parent / Path(row[column].strip()).expanduser() for row in rows]


def _rows(path):
    """Read the cells of a list, without empty lines and comments."""
    try:
        # Spreadsheets put a byte-order mark at the beginning.
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} can't be read as text; give a list of paths in UTF-8."
        ) from error
    lines = [
        line for line in text.splitlines() if line.strip() and not line.startswith("#")
    ]
    separator = _separator(path, lines)
    if separator is None:
        return [[line] for line in lines]
    return list(csv.reader(lines, delimiter=separator))


def _separator(path, lines):
    """Tell what stands between columns; None if each line is a path, commas and all."""
    if path.suffix.lower() == ".csv":
        return max(";,", key=lambda sign: sum(map(_occurs(sign), lines)))
    tabs = path.suffix.lower() == ".tsv" or any(map(_occurs("\t"), lines))
    return "\t" if tabs else None


def _occurs(sign):
    return lambda line: sign in line


def _column(path, rows):
    """Find the column that holds NIfTI files."""
    width = max(map(len, rows), default=0)
    hits = [sum(_looks_like_nifti(row, i) for row in rows) for i in range(width)]
    if not any(hits):
        raise InputError(
            f"{path} names no NIfTI files; give it a column of paths that end in "
            ".nii or .nii.gz."
        )
    return hits.index(max(hits))


def _looks_like_nifti(row, column):
    return column < len(row) and row[column].strip().lower().endswith(_NIFTI)
