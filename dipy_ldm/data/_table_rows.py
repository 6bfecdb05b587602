"""Match rows of tables to images: of BIDS tables around files, and of Python's.

In the order of BIDS: ``scans.tsv``, then ``sessions.tsv``, then ``participants.tsv``.
"""

from collections.abc import Mapping, Sequence
from functools import cache
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import (
    ALONE,
    KEYS,
    SUBJECT_COLUMNS,
    Table,
    columns_of,
    grouped,
    is_many,
    level_of,
    listed,
    take_rows,
    values_of,
    with_codes,
)
from dipy_ldm.data._paths import entity
from dipy_ldm.data._tables import Row, is_missing, read_table, refuse_rows

logger = logging.getLogger("dipy_ldm")


# Rows of the lists that named files, by absolute paths; None without lists.
ListedRows: TypeAlias = Mapping[str, list[Row]] | None


class MatchedRows(NamedTuple):
    """Rows about each file, the nearest table first, and how many rows are unused."""

    rows: list[list[Row]]
    unused: int

    @property
    def tables(self):
        """Tables of these rows."""
        return list(dict.fromkeys(row.table for own in self.rows for row in own))

    @property
    def columns(self):
        """Columns of these tables, except keys such as participant_id."""
        names = (name for matches in self.rows for row in matches for name in row.cells)
        return [name for name in dict.fromkeys(names) if name and name not in KEYS]


def find_rows(files: Sequence[Path], listed: ListedRows = None) -> MatchedRows:
    """Return the rows about files.

    Tables of scans, sessions and participants may be in the folder of a file and in
    those above it, up to the first with a ``participants.tsv``.
    """
    listed_rows, complaints, rows = listed or {}, [], []
    participants: list[Row] = []

    @cache
    def rows_of(table, column):
        """Return the rows of a table by key; none if it does not exist."""
        # A link to a file that was not fetched is refused, not skipped.
        rows = read_table(table) if os.path.lexists(table) else []
        if column == "participant_id":
            participants.extend(rows)
        return grouped((_row_key(row, column), row) for row in rows)

    for file in files:
        candidates = [
            listed_rows.get(os.path.abspath(file), []),
            *_rows_about(file, rows_of),
        ]
        rows.append([matches[0] for matches in candidates if matches])
        complaints += [_describe_duplicates(file, x) for x in candidates if len(x) > 1]
    cure = "keep one row for each or, of sessions, name them in a column session_id"
    refuse_rows(complaints, cure)
    used = {(row.table, row.line) for matches in rows for row in matches}
    unused = sum((row.table, row.line) not in used for row in participants)
    return MatchedRows(rows, unused)


def _rows_about(file, rows_of):
    """Yield the rows about a file of each table around it, the nearest first."""
    subject, session = entity(file, "sub"), entity(file, "ses")
    scan = os.path.abspath(file)
    for folder in Path(scan).parents if subject else ():
        for stem in (f"{subject}_{session}", subject):
            yield rows_of(folder / f"{stem}_scans.tsv", "filename").get(scan, [])
        # Derivatives within the raw dataset have its tables of sessions, too.
        for place in (folder, folder / f"{subject}"):
            sessions = rows_of(place / f"{subject}_sessions.tsv", "session_id")
            yield sessions.get(session, [])
        if participants := rows_of(folder / "participants.tsv", "participant_id"):
            yield _choose_session(participants.get(subject, []), session)
            return


def _describe_duplicates(file, rows):
    about = entity(file, "sub") or file
    return f"there are {len(rows)} rows for {about} ({'; '.join(map(str, rows))})"


def find_subjects(files: Sequence[Path], listed: ListedRows = None) -> list[str]:
    """Return the subject of each file."""
    by_name = [entity(file, "sub") for file in files]
    # A single subject that no file name has is a folder of the whole study, such as
    # sub-cortical.
    if len(set(files)) > 1 and len({*by_name}) == 1:
        by_name = [entity(Path(file).name, "sub") for file in files]
    rows = [(listed or {}).get(os.path.abspath(file), ()) for file in files]
    return [
        _listed_subject(own_rows) or name or str(file)
        for file, name, own_rows in zip(files, by_name, rows)
    ]


def warn_of_datasets(files: Sequence[Path], subjects: Sequence[str]) -> None:
    """Warn of subjects in several BIDS datasets, since they may be different people."""
    if error := shared_names_error(files, subjects):
        logger.warning("%s", error)


def shared_names_error(
    files: Sequence[Path], subjects: Sequence[str]
) -> InputError | None:
    """Return an error about subjects in several BIDS datasets, if there are any."""

    @cache
    def root_of(folder):
        """Return the outermost dataset around a folder; None if there is none."""
        above = None if folder == folder.parent else root_of(folder.parent)
        names = ("dataset_description.json", "participants.tsv")
        return above or (folder if any((folder / n).exists() for n in names) else None)

    def study_of(folder):
        """Return the study of derivatives, or the outermost dataset around others."""
        if "derivatives" not in folder.parts:
            return root_of(folder)
        above = Path(*folder.parts[: folder.parts.index("derivatives")])
        return root_of(above) or above

    file_folders = [Path(os.path.abspath(file)).parent for file in files]
    folders = grouped(zip(subjects, file_folders))
    # Most subjects have one folder, for which no disk is asked.
    several = {name: set(own) for name, own in folders.items() if len(set(own)) > 1}
    roots = {name: {*map(study_of, own)} - {None} for name, own in several.items()}
    # The raw dataset of a study may be a folder beside its derivatives.
    outer = {
        n: {r for r in own if own.isdisjoint(r.parents)} for n, own in roots.items()
    }
    shared = {name: own for name, own in outer.items() if len(own) > 1}
    if not shared:
        return None
    where = sorted(set().union(*shared.values()))
    return InputError(
        f"subjects of several datasets ({listed(where, 3)}) have the same names "
        f"({listed(shared, 3)}), and count as the same people",
        "if they are not, rename them, or give a list of all files with a column "
        "participant_id",
    )


def _listed_subject(rows):
    """Return the subject in the rows of lists about a file; None without one."""
    for name, cell in (pair for row in rows for pair in row.cells.items()):
        if name.lower() in SUBJECT_COLUMNS and not is_missing(cell):
            return _with_prefix("sub", cell)
    return None


def _with_prefix(key, name):
    """Return a name with the prefix of BIDS, which many tables leave out."""
    name = level_of(name).strip().removeprefix(f"{key}-")
    # Numbers of runs may have leading zeros or not.
    return f"{key}-{name.lstrip('0') if key == 'run' else name}"


def _choose_session(rows, session):
    """Choose the rows of a session among those of a participant."""
    if not rows or "session_id" not in rows[0].cells:
        return rows
    session_rows = [row for row in rows if _row_key(row, "session_id") == session]
    if session_rows or len(rows) > 1:
        return session_rows
    # A single row is about all sessions, unless it names another.
    of_all = session is None or is_missing(rows[0].cells["session_id"])
    return rows if of_all else []


def _row_key(row, column):
    """Return the subject, session or file that a row is about."""
    if column not in row.cells:
        raise InputError(
            f"{row.table} has no column {column}", "it is needed to match rows to files"
        )
    cell = row.cells[column]
    if column == "filename":
        return os.path.abspath(row.table.parent / cell)
    return _with_prefix({"participant_id": "sub", "session_id": "ses"}[column], cell)


def find_image_subjects(files: Sequence[Path]) -> list[str]:
    """Return the subject of each image; a file may occur several times."""
    # Without a subject in the file name, each image counts as one.
    return [
        f"{file}, image {i}" if name == str(file) else name
        for i, (file, name) in enumerate(zip(files, find_subjects(files)))
    ]


def align_tables(*tables: tuple[Any, Any]) -> list:
    """Join each table with row names to its subjects; others stay."""
    return [join_rows(table, subjects) for table, subjects in tables]


def join_to_files(table: Any, files: Sequence[Path]) -> Any:
    """Join a table with row names to files; without either, it stays."""
    return join_rows(table, find_subjects(files), files) if files else table


def join_rows(
    table: Any,
    subjects: Sequence | None,
    files: Sequence[Path] | None = None,
    names: Sequence[str] = (),
) -> Any:
    """Join rows of a table to images, by path or by subject, session and run.

    A table without row names stays.
    """
    named = columns_of(table)
    columns = dict(named or {})
    keys = _keys_of_paths(columns, files)
    keys = keys or _keys_of_subjects(table, columns, subjects, files)
    if keys is None:
        return table
    _refuse_uneven(named or {}, len(keys[0]))
    columns = {n: column for n, column in columns.items() if n.lower() not in KEYS}
    columns = {ALONE: table} if named is None else _choose_columns(columns, names)
    numbers = _match_rows(keys[0], keys[1])
    lists = {name: _as_list(name, values) for name, values in columns.items()}
    rows = take_rows(lists, numbers) or {}
    if isinstance(table, Table):
        return Table(rows, table.units, table.meanings)
    return rows[ALONE] if named is None else rows


def _choose_columns(columns, names):
    """Choose columns by name; without names, all."""
    if unknown := [name for name in names if name not in columns]:
        raise InputError(
            f"the table has no column {unknown[0]}", f"it has {listed(columns)}"
        )
    return {name: columns[name] for name in names or columns}


def _refuse_uneven(columns, n):
    """Refuse a column without one value for each row."""
    for name, values in columns.items():
        if not is_many(values) or len(values) != n:
            raise InputError(
                f"{name} must have one value for each of the {n} row names",
                "give a list of that length",
            )


def _as_list(name, values):
    """Return a column as a list, in which codes of classes stay whole numbers."""
    kind = str(getattr(values, "dtype", "")).lower()
    has_codes = kind == "category" or kind.startswith("float")
    return with_codes(name, values) if has_codes else list(values)


def _keys_of_paths(columns, files):
    """Remove the column of paths; return the keys of rows and of images."""
    for name, values in columns.items() if files is not None else ():
        texts = [str(value) for value in values] if is_many(values) else [""]
        if all(text.lower().endswith((".nii", ".nii.gz")) for text in texts):
            del columns[name]
            rows = [Path(text).parts for text in texts]
            parts = [Path(os.path.abspath(file)).parts for file in files]
            # From the whole path to the file name.
            ends = [[own[i:] for i in range(len(own))] for own in parts]
            _refuse_ambiguous_paths(rows, ends)
            return rows, ends
    return None


def _refuse_ambiguous_paths(rows, ends):
    """Refuse a row with a relative path that is the end of several paths."""
    owners = grouped((end, own[0]) for own in ends for end in own)
    for row in rows:
        paths = [Path(*path) for path in dict.fromkeys(owners.get(row, ()))]
        if len(paths) > 1:
            raise InputError(
                f"the row of {Path(*row)} may be about {paths[0]} or {paths[1]}",
                "write longer paths in the table, which only one image has",
                files=paths,
            )


def _keys_of_subjects(table, columns, subjects, files):
    """Return the keys of rows and of images by subject, session and run."""
    name = next((name for name in columns if name.lower() in SUBJECT_COLUMNS), None)
    names = _index_names(table, columns) if name is None else list(columns[name])
    if not names:
        return None
    if subjects is None:
        raise InputError(
            f"the conditions have row names ({name or 'the index'}: {names[0]})",
            "give the subjects of the images, too, or put the rows in their order "
            "and drop the names",
        )
    parts: dict[str, tuple] = {"sub": (names, subjects)}
    for column, entity_key in _COLUMN_ENTITIES.items():
        of_images = [entity(file, entity_key) for file in files or ()]
        if column not in columns or not (files is None or any(of_images)):
            continue
        values = values_of(column, columns[column])
        if files is not None:
            parts[entity_key] = values, of_images
        elif any(value is not None for value in values):
            raise InputError(
                f"rows of the conditions have a {column}, but subjects do not tell "
                "that of their images",
                "join them with load_volumes(...).conditions(table=...) or, if each "
                f"row is about all images of its subject, leave out {column}",
            )
    rows, images = (
        [tuple(map(_with_prefix, parts, key)) for key in zip(*own)]
        for own in zip(*parts.values())
    )
    return rows, [[key] for key in images]


# Columns of tables, and the entities of file names that they are about.
_COLUMN_ENTITIES = {"session_id": "ses", "run": "run"}


def _index_names(table, columns):
    """Return the row names in the index of a table, or of all of its columns."""
    parts = [table] if hasattr(table, "iloc") else columns.values()
    indexes = [_pandas_row_names(part) for part in parts]
    if any(names != indexes[0] for names in indexes):
        raise InputError(
            "the conditions differ in their row names, or some have none",
            "give a DataFrame, whose columns share them",
        )
    return indexes[0] if indexes else None


def _pandas_row_names(table):
    """Return the row names in a pandas index; None if it only counts rows."""
    if not hasattr(table, "iloc"):
        return None
    names = list(table.index)
    if any(isinstance(name, tuple) for name in names):
        raise InputError(
            "the conditions have an index of tuples", "reset_index() first"
        )
    named = str(table.index.name).lower() in SUBJECT_COLUMNS
    return names if named or all(isinstance(name, str) for name in names) else None


def _match_rows(rows, images):
    """Return the row number of each image."""
    rows_by_key = grouped((key, number) for number, key in enumerate(rows))
    matches = [
        next((rows_by_key[k] for k in keys if k in rows_by_key), []) for keys in images
    ]
    if missing := [
        "/".join(keys[0]) for keys, matched in zip(images, matches) if not matched
    ]:
        examples = listed("/".join(map(str, key)) for key in [*rows_by_key][:3])
        raise InputError(
            f"{len(missing)} of {len(images)} images have no row in the conditions "
            f"({missing[0]} first; rows are about {examples} ...)",
            "add rows, or leave these images out",
        )
    for matched in matches:
        if len(matched) > 1:
            raise InputError(
                f"{'/'.join(rows[matched[0]])} has {len(matched)} rows in the "
                "conditions",
                "leave one for each image",
            )
    numbers = [matched[0] for matched in matches]
    unused = len(rows) - len(set(numbers))
    logger.info(
        "%d images have rows; %d rows of the tables have no image.", len(images), unused
    )
    return numbers
