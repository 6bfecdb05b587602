"""Values of conditions, as users give them: text, numbers, and what is missing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import logging
import math
from numbers import Integral, Real
import reprlib
from typing import Any

import numpy as np

from dipy_ldm._utils.checks import InputError, plain

logger = logging.getLogger(__name__)

# Name of the one condition whose values are given alone.
ALONE = "label"
# The user's word for conditions that are not specified.
NONE = "none"
# Whole numbers without gaps up to this one are taken for codes of classes.
_LARGEST_CODE = 32
# Columns that tell whose a row is, and all that tell rows apart: no conditions.
SUBJECT_COLUMNS = ("participant_id", "subject_id", "participant", "subject")
KEYS = (*SUBJECT_COLUMNS, "session_id", "filename")
# How columns are called that are of one person each.
IDENTIFIERS = (*KEYS, "id", "sub_id", "record_id", "eid", "rid", "ptid")
# Sentences of a report.
_MAX_COMPLAINTS = 50
# Text that says that there is nothing to say.
MISSING = ("", "n/a", "nan")


class Table(dict):
    """Values of conditions by their names, ``units``, and ``meanings`` of levels."""

    def __init__(
        self,
        values: Mapping[str, list],
        units: dict[str, str] | None = None,
        meanings: dict[str, dict[str, str]] | None = None,
    ) -> None:
        super().__init__(values)
        self.units, self.meanings = units, meanings


def as_table(conditions: Any) -> dict[str, list]:
    """Convert the user's conditions to a table."""
    if columns := columns_of(conditions):
        return {name: with_codes(name, values) for name, values in columns.items()}
    alone = columns is None and is_many(conditions)
    values = with_codes(ALONE, conditions) if alone else []
    if not values:
        raise InputError(
            "conditions must be values by the names of the conditions, such as "
            "{'age': ages}, or one label for each image."
        )
    if any(isinstance(value, tuple) for value in values):
        raise InputError(
            "the columns of conditions need names; give a dictionary, such as "
            "{'age': ages}, or a DataFrame."
        )
    if all(value is None or is_whole(value) for value in values):
        values = [value if value is None else level_of(value) for value in values]
    return {ALONE: values}


def columns_of(conditions: Any) -> dict[str, Any] | None:
    """Return columns by name; None if there are no names."""
    # A Series; arrays of h5py have names, too, which are places in a file.
    name = getattr(conditions, "name", None)
    if hasattr(conditions, "to_frame") and isinstance(name, str) and name:
        return {name: conditions}
    if not isinstance(conditions, dict) and not hasattr(conditions, "columns"):
        return None
    names = list(conditions if isinstance(conditions, dict) else conditions.columns)
    if not all(isinstance(name, str) and name for name in names):
        raise InputError("names of conditions must be text; name them all.")
    columns = {name: conditions[name] for name in names}
    for name, values in columns.items():
        _refuse_unordered(name, values)
    return columns


def _refuse_unordered(name, values):
    """Refuse values by keys, which would be taken for them, and sets."""
    if isinstance(values, Mapping | set | frozenset):
        raise InputError(
            f"{name} must have a list of values, not a {type(values).__name__}; give a "
            "DataFrame, or df.to_dict('list')."
        )


def is_unconditional(conditions: Any) -> bool:
    """Return whether conditions are the word none: unconditional."""
    return isinstance(conditions, str) and conditions.strip().casefold() == NONE


def is_many(values: Any) -> bool:
    """Return whether there is one value for each image, not one for all."""
    if hasattr(values, "dtype"):
        return np.ndim(values) > 0
    return hasattr(values, "__len__") and not isinstance(values, str)


def values_of(name: str, values: Any) -> list:
    """Convert values to Python's, categories to text, and what is missing to None."""
    _refuse_unordered(name, values)
    if getattr(getattr(values, "dtype", None), "kind", None) in ("m", "M"):
        raise InputError(f"{name} has dates or times; give numbers, such as years.")
    if str(getattr(values, "dtype", None)) == "category":
        values = [v if _is_missing(v) else level_of(v) for v in values.tolist()]
    values = values.tolist() if hasattr(values, "tolist") else values
    values = list(values) if is_many(values) else [values]
    return [_plain(name, value) for value in values]


def _plain(name, value):
    """Return a value as Python's, or None if it is missing."""
    if _is_missing(value):
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Real | np.bool_) and math.isfinite(value):
        return plain(value)
    if is_vector(value):
        return tuple(map(float, value))
    shown = reprlib.repr(value)
    raise InputError(f"{name} must have text or finite numbers, not {shown}.")


def take_rows(
    columns: Mapping[str, Sequence] | None, numbers: Iterable[int]
) -> dict[str, list] | None:
    """Return some rows of columns; None if there are no columns."""
    numbers = list(numbers)
    return {n: [own[i] for i in numbers] for n, own in (columns or {}).items()} or None


def is_whole(value: Any) -> bool:
    """Return whether a value has the type of whole numbers."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def are_codes(numbers: list) -> bool:
    """Return whether numbers are codes of classes: all from 0 or 1 to a small one."""
    if not all(map(is_whole, numbers)):
        return False
    levels, first, last = set(numbers), min(numbers), max(numbers)
    without_gaps = len(levels) == last - first + 1
    return first in (0, 1) and last <= _LARGEST_CODE and without_gaps


def level_of(value: Any) -> str:
    """Name a level of a class: 7 and 7.0 are the same."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def number_of(name: str, value: Any) -> float:
    """Read a number, which on a command line is text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} must be a number, not {value!r}.")
    return number


def grouped(pairs: Iterable[tuple]) -> dict[Any, list]:
    """Group values by their keys, both in the order of the pairs."""
    groups: dict[Any, list] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def in_order(levels: Iterable[str]) -> list[str]:
    """Sort levels: numbers by their size, and before text."""
    return sorted(levels, key=lambda n: (0, int(n), "") if n.isdecimal() else (1, 0, n))


def listed(names: Iterable, most: int = 20) -> str:
    """List names in a sentence, the first of many."""
    names = list(map(str, names))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def as_report(complaints: Iterable[str]) -> str:
    """Join different sentences, the first of many, one a line."""
    lines = list(dict.fromkeys(complaints))
    if more := len(lines[_MAX_COMPLAINTS:]):
        lines[_MAX_COMPLAINTS:] = [f"and {more} more"]
    return "\n".join(lines)


def check_each(check: Callable, items: Iterable) -> None:
    """Call a check of each item, and refuse all bad ones in one report."""
    complaints = []
    for item in items:
        try:
            check(item)
        except InputError as error:
            complaints.append(str(error))
    if complaints:
        raise InputError(as_report(complaints))


def counted(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def with_codes(name: str, values: Any) -> list:
    """Restore what arrays change: whole numbers beside NaN."""
    table = values_of(name, values)
    present = [value for value in table if value is not None]
    kind = getattr(getattr(values, "dtype", None), "kind", None)
    has_gaps = 0 < len(present) < len(table)
    if kind != "f" or not has_gaps or any(value % 1 for value in present):
        return table
    if are_codes(list(map(int, present))):
        logger.warning(
            "%s is taken for a class with codes, of which some are missing; if it is "
            "an amount, give a list of floats, and None for what is missing.",
            name,
        )
    return [value if value is None else int(value) for value in table]


def is_vector(value: Any) -> bool:
    """Return whether a value is a direction: three numbers that are not all 0."""
    return (
        isinstance(value, list | tuple | np.ndarray)
        and len(value) == 3
        and all(isinstance(v, Real) and math.isfinite(v) for v in value)
        and any(value)
    )


def _is_missing(value):
    if isinstance(value, str):
        return value.strip().casefold() in MISSING
    if isinstance(value, Real):
        return value != value
    # Those of pandas, which can't be compared.
    return value is None or type(value).__name__ in ("NAType", "NaTType")
