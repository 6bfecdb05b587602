"""Tables of Python's: rows brought into the order of images."""

from collections.abc import Sequence
import logging
import os
from pathlib import Path
from typing import Any

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import SUBJECT_COLUMNS, Table, columns_of, listed

logger = logging.getLogger("dipy_ldm")


def align_tables(*tables: tuple[Any, Any]) -> list:
    """Join each table with names of rows to the subjects beside it; others stay."""
    joined = [join_rows(table, subjects) for table, subjects in tables]
    return [
        table if rows is None else _with_units(table, rows)
        for (table, _), rows in zip(tables, joined)
    ]


def _with_units(table, rows):
    if isinstance(table, Table):
        return Table(rows, table.units, table.meanings)
    return rows


def join_rows(
    table: Any,
    subjects: Sequence | None,
    sessions: Sequence | None = None,
    files: Sequence | None = None,
) -> Any:
    """Bring the rows of a table into the order of images, by what they are about."""
    columns = dict(columns_of(table) or {})
    keys = _keys_of_paths(columns, files)
    keys = keys or _keys_of_subjects(table, columns, subjects, sessions)
    if keys is None:
        return None
    numbers = _rows_of(*keys)
    if not columns:
        values = list(table)
        return [values[number] for number in numbers]
    lists = {name: list(values) for name, values in columns.items()}
    return {name: [column[i] for i in numbers] for name, column in lists.items()}


def _keys_of_paths(columns, files):
    """Take a column of paths away; return keys of rows, and those of each image."""
    for name, values in columns.items() if files is not None else ():
        texts = [str(value) for value in values]
        if all(text.lower().endswith((".nii", ".nii.gz")) for text in texts):
            del columns[name]
            parts = [Path(os.path.abspath(file)).parts for file in files]
            # From the whole path to the name of the file.
            ends = [[own[i:] for i in range(len(own))] for own in parts]
            return [Path(text).parts for text in texts], ends
    return None


def _keys_of_subjects(table, columns, subjects, sessions):
    """Take columns of subjects and sessions away; return keys as for paths."""
    name = next((name for name in columns if name.lower() in SUBJECT_COLUMNS), None)
    names = _index_of(table) if name is None else list(columns.pop(name))
    if names is None:
        return None
    if subjects is None:
        raise InputError(
            f"rows of the conditions have names ({name or 'the index'}: {names[0]}); "
            "give `subjects`, whose each image is, to join them, or drop the names if "
            "the rows are in the order of the images."
        )
    rows: list[tuple] = [(_without_prefix("sub", label),) for label in names]
    images: list[tuple] = [(_without_prefix("sub", label),) for label in subjects]
    if sessions is not None and "session_id" in columns:
        own = columns.pop("session_id")
        rows = [(*key, _without_prefix("ses", label)) for key, label in zip(rows, own)]
        images = [
            (*key, _without_prefix("ses", label))
            for key, label in zip(images, sessions)
        ]
    return rows, [[key] for key in images]


def _index_of(table):
    """Return names of rows that are an index of pandas; None if it only counts them."""
    if not hasattr(table, "iloc"):
        return None
    names = list(table.index)
    if any(isinstance(name, tuple) for name in names):
        raise InputError("the conditions have an index of tuples; reset_index() first.")
    named = str(table.index.name).lower() in SUBJECT_COLUMNS
    return names if named or all(isinstance(name, str) for name in names) else None


def _without_prefix(prefix, name):
    return str(name).strip().removeprefix(f"{prefix}-")


def _rows_of(rows, images):
    """Return the number of each image's row."""
    places: dict[tuple, list[int]] = {}
    for number, key in enumerate(rows):
        places.setdefault(key, []).append(number)
    matches = [
        next((places[key] for key in keys if key in places), []) for keys in images
    ]
    if missing := ["/".join(keys[0]) for keys, own in zip(images, matches) if not own]:
        examples = listed("/".join(map(str, key)) for key in [*places][:3])
        raise InputError(
            f"{len(missing)} of {len(images)} images have no row in the conditions "
            f"({missing[0]} first; rows are of {examples} ...); add rows with missing "
            "values, or leave these images out."
        )
    for own in matches:
        if len(own) > 1:
            raise InputError(
                f"{'/'.join(rows[own[0]])} has {len(own)} rows in the conditions; "
                "leave one for each image."
            )
    numbers = [own[0] for own in matches]
    unused = len(rows) - len(set(numbers))
    logger.info("%d images have rows, and %d rows no image.", len(images), unused)
    return numbers
