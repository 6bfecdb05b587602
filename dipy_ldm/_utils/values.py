"""Parse values of conditions: text, numbers and missing values."""

from collections.abc import Iterable, Mapping, Sequence
import logging
import math
from numbers import Integral, Real
import reprlib
from typing import Any, TypeAlias, TypeGuard

import numpy as np

from dipy_ldm._utils.checks import InputError, plain

logger = logging.getLogger(__name__)

# Values by the names of conditions, as a dictionary or pandas table; or only values.
ConditionsLike: TypeAlias = Any
# Values of one condition: a sequence, array or column of a table; or a single value.
Values: TypeAlias = Any
# A level, a number, a vector of three, or None.
Value: TypeAlias = Any

# Name of a single condition that is given without a name.
ALONE = "label"
# The user's word for unconditional.
NONE = "none"
# Consecutive whole numbers up to this one are taken for class codes.
_MAX_CODE = 32
# Columns that identify the subject or the row of a table; these are not conditions.
SUBJECT_COLUMNS = ("participant_id", "subject_id", "participant", "subject")
KEYS = (*SUBJECT_COLUMNS, "session_id", "filename")
# Names of columns with identifiers of persons.
IDENTIFIERS = (*KEYS, "id", "sub_id", "record_id", "eid", "rid", "ptid")
# Text for missing values.
MISSING = ("", "n/a", "nan")


class Table(dict):
    """Values of conditions by name, with their ``units`` and ``meanings`` of levels."""

    def __init__(
        self,
        values: Mapping[str, list],
        units: dict[str, str] | None = None,
        meanings: dict[str, dict[str, str]] | None = None,
    ) -> None:
        super().__init__(values)
        self.units, self.meanings = units, meanings


def as_table(conditions: ConditionsLike) -> dict[str, list]:
    """Convert the user's conditions to a table."""
    if columns := columns_of(conditions):
        return {name: with_codes(name, values) for name, values in columns.items()}
    alone = columns is None and is_many(conditions)
    values = with_codes(ALONE, conditions) if alone else []
    if not values:
        raise InputError(
            "must be a dictionary of values by name, such as {'age': "
            "ages}, or one label for each image",
            option="conditions",
        )
    if any(isinstance(value, tuple) for value in values):
        raise InputError(
            "the columns of conditions need names",
            "use a dictionary, such as {'age': ages}, or a DataFrame",
        )
    if all(value is None or is_whole(value) for value in values):
        values = [value if value is None else level_of(value) for value in values]
    return {ALONE: values}


def columns_of(conditions: ConditionsLike) -> dict[str, Any] | None:
    """Return columns by name; None if there are no names."""
    # A pandas Series. Arrays of h5py have a name, too, which is a path.
    name = getattr(conditions, "name", None)
    if hasattr(conditions, "to_frame") and isinstance(name, str) and name:
        return {name: conditions}
    if not isinstance(conditions, dict) and not hasattr(conditions, "columns"):
        return None
    names = list(conditions if isinstance(conditions, dict) else conditions.columns)
    if not all(isinstance(name, str) and name for name in names):
        raise InputError("names of conditions must be text", "name them all")
    columns = {name: conditions[name] for name in names}
    for name, values in columns.items():
        _refuse_unordered(name, values)
    return columns


def _refuse_unordered(name: str, values: object):
    """Refuse mappings, whose keys would be taken for values, and sets."""
    if isinstance(values, Mapping | set | frozenset):
        raise InputError(
            f"{name} must have a list of values, not a {type(values).__name__}",
            "use a DataFrame, or df.to_dict('list')",
        )


def is_unconditional(conditions: ConditionsLike) -> bool:
    """Return whether conditions are the word "none": unconditional."""
    return isinstance(conditions, str) and conditions.strip().casefold() == NONE


def is_many(values: Values) -> bool:
    """Return whether values are a sequence, rather than one value for all images."""
    if hasattr(values, "dtype"):
        return np.ndim(values) > 0
    return hasattr(values, "__len__") and not isinstance(values, str)


def values_of(name: str, values: Values) -> list:
    """Convert values to Python types, categories to text and missing ones to None."""
    _refuse_unordered(name, values)
    if getattr(getattr(values, "dtype", None), "kind", None) in ("m", "M"):
        raise InputError(f"{name} has dates or times", "use numbers, such as years")
    if str(getattr(values, "dtype", None)) == "category":
        values = [v if _is_missing(v) else level_of(v) for v in values.tolist()]
    values = values.tolist() if hasattr(values, "tolist") else values
    values = list(values) if is_many(values) else [values]
    return [_plain(name, value) for value in values]


def _plain(name: str, value: object):
    """Return a value as a Python type, or None if it is missing."""
    if _is_missing(value):
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Real | np.bool_) and math.isfinite(value):
        return plain(value)
    if is_vector(value):
        return tuple(map(float, value))
    raise InputError(
        f"{name} must have text or finite numbers, not {reprlib.repr(value)}"
    )


def take_rows(
    columns: Mapping[str, Sequence] | None, numbers: Iterable[int]
) -> dict[str, list] | None:
    """Return columns at the given rows; None if there are no columns."""
    rows = list(numbers)
    taken = {n: [values[i] for i in rows] for n, values in (columns or {}).items()}
    return taken or None


def is_whole(value: object) -> bool:
    """Return whether a value is an integer, but not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def are_codes(numbers: list) -> bool:
    """Return whether numbers are class codes: all from 0 or 1 to a small number."""
    if not all(map(is_whole, numbers)):
        return False
    levels, first, last = set(numbers), min(numbers), max(numbers)
    without_gaps = len(levels) == last - first + 1
    return first in (0, 1) and last <= _MAX_CODE and without_gaps


def level_of(value: object) -> str:
    """Return a level of a class as text: 7 and 7.0 are the same."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def read_number(name: str, value: Value) -> float:
    """Return a finite number, which may be given as text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} must be a number, not {value!r}")
    return number


def grouped(pairs: Iterable[tuple]) -> dict[Any, list]:
    """Group values by key, in the order of the pairs."""
    groups: dict[Any, list] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def sort_levels(levels: Iterable[str]) -> list[str]:
    """Sort levels: numbers by value, before text."""
    return sorted(levels, key=lambda n: (0, int(n), "") if n.isdecimal() else (1, 0, n))


def listed(names: Iterable, most: int = 20) -> str:
    """Join names by commas; count those beyond the first `most`."""
    names = list(map(str, names))
    ending = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + ending


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural if it is not 1."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def with_codes(name: str, values: Values) -> list:
    """Return Python values; restore whole numbers that NaN turned into floats."""
    table = values_of(name, values)
    present = [value for value in table if value is not None]
    kind = getattr(getattr(values, "dtype", None), "kind", None)
    has_gaps = 0 < len(present) < len(table)
    if kind != "f" or not has_gaps or any(value % 1 for value in present):
        return table
    if are_codes(list(map(int, present))):
        logger.warning(
            "%s is taken for a class with missing values; if it is continuous, use a "
            "list of floats, with None for missing values.",
            name,
        )
    return [value if value is None else int(value) for value in table]


def is_vector(value: object) -> TypeGuard[Sequence[float]]:
    """Return whether a value is a direction: three finite numbers, not all 0."""
    return (
        isinstance(value, list | tuple | np.ndarray)
        and len(value) == 3
        and all(isinstance(v, Real) and math.isfinite(v) for v in value)
        and any(value)
    )


def _is_missing(value: object):
    if isinstance(value, str):
        return value.strip().casefold() in MISSING
    if isinstance(value, Real):
        return value != value
    # Missing values of pandas can't be compared.
    return value is None or type(value).__name__ in ("NAType", "NaTType")
