"""Read covariates of scans from tables, and summarise them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import math
from pathlib import Path
from typing import Any, NamedTuple

from dipy_ldm._conditions import MIN_GROUP_SIZE, Condition, is_class, present_values
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import as_table, counted, grouped, level_of, listed
from dipy_ldm.data._table_rows import MatchedRows, find_rows, find_subjects
from dipy_ldm.data._tables import (
    DECIMAL_COMMA,
    SEX_COLUMNS,
    Description,
    Row,
    as_level,
    as_number,
    as_text,
    is_missing,
    read_descriptions,
    refuse_rows,
)

# Spellings of units.
_UNITS = dict.fromkeys(("year", "years", "y", "yr", "yrs"), "years")
_UNITS |= dict.fromkeys(("month", "months"), "months")


class Covariates(NamedTuple):
    """Covariates of scans."""

    values: dict
    units: dict
    levels: dict
    subjects: list
    without_row: Sequence = ()
    tables: Sequence = ()
    unused: int = 0


def read_covariates(
    names: Sequence[str],
    files: Sequence[Path],
    list_rows: Mapping[str, list[Row]] | None = None,
    steps: Mapping[str, float] | None = None,
) -> Covariates:
    """Read covariates of scans from the tables around them.

    Parameters
    ----------
    names : sequence of str
        Columns of the ``scans.tsv``, ``sessions.tsv`` and ``participants.tsv`` around
        the files, or of lists.
    files : sequence of Path
        Files of the scans.
    list_rows : dict of str to list, optional
        Rows of the lists that named the files, by absolute paths, as a
        :class:`dipy_ldm.data.Volumes` has them (``listed``).
    steps : dict of str to float, optional
        Steps that numbers are rounded to, in their unit.

    Returns
    -------
    Covariates
        ``values`` of each column in the order of the files, None where they are
        missing, ``units`` and ``levels`` (what codes mean) by columns, ``subjects``,
        the files ``without_row``, the ``tables``, and how many rows are ``unused``.

    Raises
    ------
    InputError
        If no table has a column, or cells are bad; these are reported together.
    """
    matched = find_rows(files, list_rows)
    _refuse_unknown(names, matched)
    described = {table: read_descriptions(table) for table in matched.tables}
    values, units, levels = {}, {}, {}
    complaints: list[str] = []
    for name in names:
        # The nearest row decides, even if its value is missing.
        rows = [next((r for r in own if name in r.cells), None) for own in matched.rows]
        entry = _merge_descriptions(name, rows, described)
        values[name] = _convert(name, rows, entry, complaints)
        if entry.unit is not None:
            units[name] = entry.unit
        if entry.levels:
            levels[name] = {as_level(name, k): v for k, v in entry.levels.items()}
    refuse_rows(complaints, _CURE)
    # A list has a row for each file, but not necessarily these columns.
    without_row = [
        file
        for file, rows in zip(files, matched.rows)
        if not any(name in row.cells for row in rows for name in names)
    ]
    round_to_steps(values, steps or {})
    subjects = find_subjects(files, list_rows)
    return Covariates(
        values, units, levels, subjects, without_row, matched.tables, matched.unused
    )


_CURE = (
    "write numbers (89 for 89+, 1.5 for 1,5) or n/a or, if the column has classes, "
    "list them under Levels in the JSON beside the table"
)


def _refuse_unknown(names, matched: MatchedRows):
    if not matched.tables and matched.unused:
        raise InputError(
            f"participants.tsv has {counted(matched.unused, 'row')}, but none for the "
            "files",
            "write participant_id and session_id as in their names (sub-01)",
        )
    if not matched.tables:
        raise InputError(
            "neither a participants.tsv beside or above the files nor a .csv of "
            "their paths lists them",
            f"add one with {listed(names)}",
        )
    if unknown := [name for name in names if name not in matched.columns]:
        available = ", ".join(matched.columns) or "no named column"
        where = ", ".join(map(str, matched.tables[:3]))
        raise InputError(
            f"there is no column {', '.join(unknown)} in the tables of the files "
            f"({where})",
            f"they have {available}",
        )


def _merge_descriptions(name, rows, described):
    """Merge the JSON descriptions of a column from all tables."""
    tables = dict.fromkeys(row.table for row in rows if row is not None)
    units: dict[str, Path] = {}
    levels: dict[str, str] = {}
    for table in tables:
        entry = described[table].get(name, Description())
        unit = entry.unit
        # The default of BIDS.
        if name == "age" and table.name.endswith(("participants.tsv", "sessions.tsv")):
            unit = unit or "years"
        if unit is not None:
            units.setdefault(_UNITS.get(unit.strip().lower(), unit.strip()), table)
        levels = entry.levels | levels
    if len(units) > 1:
        described_units = " and ".join(
            f"{unit} in {table}" for unit, table in units.items()
        )
        raise InputError(f"{name} is in {described_units}", "convert it to one unit")
    return Description(next(iter(units), None), levels)


def _convert(name, rows, entry, complaints):
    """Convert texts to numbers or classes, and collect complaints."""
    texts = [None if row is None else row.cells[name] for row in rows]
    texts = [None if is_missing(text) else text for text in texts]
    n_present = len(present_values(name, texts))
    numbers = [None if text is None else as_number(text) for text in texts]
    not_numbers = [t for t, n in zip(texts, numbers) if t is not None and n is None]
    # A single text among numbers marks missing values, however frequent it is.
    marks_missing = len(set(not_numbers)) == 1 and len(not_numbers) < n_present
    mostly_text = 2 * len(not_numbers) > n_present and not marks_missing
    classes = name.lower() in SEX_COLUMNS or (entry.levels and entry.unit is None)
    if not classes and mostly_text and all(map(DECIMAL_COMMA.match, not_numbers)):
        complaints.append(f"{name} has decimal commas, as in {not_numbers[0]}")
        return numbers
    if classes or (entry.unit is None and mostly_text):
        return [text and as_level(name, text, entry.levels) for text in texts]
    complaints += [
        f"{row}: {name} is {text!r}, not a number"
        for row, text, number in zip(rows, texts, numbers)
        if text is not None and number is None
    ]
    return numbers


def round_to_steps(values: dict[str, list], steps: Mapping[str, float]) -> None:
    """Round columns of numbers to multiples of their steps."""
    for name, step in steps.items():
        if name not in values:
            raise InputError(
                f"`coarsen` names {name}, which is no condition ({', '.join(values)})"
            )
        if not 0 < step < math.inf:
            raise InputError(f"`coarsen` needs a step above 0 for {name}, not {step}")
        if any(isinstance(value, str) for value in values[name]):
            raise InputError(f"{name} has classes: leave it out of `coarsen`")
        values[name] = [
            None if value is None else float(step * math.floor(value / step + 0.5))
            for value in values[name]
        ]


# Up to so many different whole numbers may be codes of classes.
_MAX_CODES = 10


def as_covariates(
    table: Any, conditions: Mapping[str, Condition], subjects: Iterable
) -> Covariates:
    """Return the conditions of ``fit`` as covariates."""
    units = {name: entry.units for name, entry in conditions.items() if entry.units}
    meanings = {name: entry.meanings or {} for name, entry in conditions.items()}
    return Covariates(as_table(table), units, meanings, list(subjects))


def summarise(covariates: Covariates) -> str:
    """Summarise covariates as lines of text."""
    covariates = covariates._replace(values=_columns_to_summarise(covariates.values))
    subjects = covariates.subjects
    images = counted(len(subjects), "image")
    people = counted(len(set(subjects)), "subject")
    tables = covariates.tables
    source = f", from {_name_or_count(tables, 'table')}" if tables else ""
    lines = [f"conditions of {images} of {people}{source}:"]
    lines += [f"  {_summarise_column(name, covariates)}" for name in covariates.values]
    if covariates.without_row:
        missing = _name_or_count(covariates.without_row, "image")
        lines.append(f"no table has a row for {missing}")
    if covariates.unused:
        rows = counted(covariates.unused, "row")
        lines.append(f"{rows} of participants have no image")
    return "\n".join(lines + _hints(covariates) + _warnings(covariates))


def _columns_to_summarise(values):
    """Return the columns to summarise, with classes as text: not directions."""
    columns = {}
    for name, column in values.items():
        present = [value for value in column if value is not None]
        if is_class(name, present):
            column = [v if v is None else level_of(v) for v in column]
        if not isinstance(present[0], tuple):
            columns[name] = column
    return columns


def _summarise_column(name, covariates):
    values = covariates.values[name]
    present = [value for value in values if value is not None]
    unit = covariates.units.get(name)
    missing = len(values) - len(present)
    content = (
        _summarise_classes(present, covariates.levels.get(name, {}))
        if isinstance(present[0], str)
        else f"{as_text(min(present))} to {as_text(max(present))}, mean "
        f"{sum(present) / len(present):.4g}"
    )
    title = f"{name} ({unit})" if unit else name
    return f"{title}: {content}" + (f"; {missing} missing" if missing else "")


def _summarise_classes(values, meanings):
    """List classes with counts and meanings, the most frequent first."""
    return listed(
        f"{level} {count}" + (f" ({meanings[level]})" if meanings.get(level) else "")
        for level, count in Counter(values).most_common()
    )


def _hints(covariates):
    """Return hints about likely mistakes."""
    lines = []
    for name, values in covariates.values.items():
        kinds = set(values) - {None}
        if all(isinstance(value, str) for value in kinds):
            folded = Counter(value.casefold() for value in kinds)
            if twins := sorted(v for v in kinds if folded[v.casefold()] > 1):
                lines.append(f"{name} has classes that differ in case: {listed(twins)}")
        elif (
            len(kinds) <= min(_MAX_CODES, len(covariates.subjects) // 3)
            and name not in covariates.units
            and all(value % 1 == 0 for value in kinds)
        ):
            lines.append(
                f"{name} is treated as a number; if its {len(kinds)} values are codes "
                "of classes, list them under Levels in the JSON beside the table, or "
                "write them with a letter, such as site1"
            )
    return lines


def _warnings(covariates):
    """Return warnings about values that could identify a person."""
    lines = []
    for name, values in covariates.values.items():
        owners = grouped(zip(values, covariates.subjects))
        few = [
            value
            for value, subjects_of_value in owners.items()
            if len(set(subjects_of_value)) < MIN_GROUP_SIZE
        ]
        if rare := sorted(value for value in few if isinstance(value, str)):
            lines.append(
                f"{name} has classes of fewer than {MIN_GROUP_SIZE} subjects, who "
                f"could be re-identified: {listed(rare)}"
            )
    if alone := count_identifiable(covariates):
        lines.append(
            f"{alone} of {counted(len(set(covariates.subjects)), 'subject')} have a "
            "unique combination of these conditions and could be re-identified; use "
            "fewer or coarser ones (`coarsen`)"
        )
    return lines


def count_identifiable(covariates: Covariates) -> int:
    """Count the subjects whose combination of values is unique."""
    combinations = zip(*covariates.values.values())
    owners = map(set, grouped(zip(combinations, covariates.subjects)).values())
    return len({next(iter(sharing)) for sharing in owners if len(sharing) == 1})


def _name_or_count(items: Sequence, noun: str) -> str:
    """Return a single item, or the count and the first."""
    if len(items) == 1:
        return str(items[0])
    return f"{counted(len(items), noun)} ({items[0]} first)"
