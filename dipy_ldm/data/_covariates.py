"""Covariates: what tables say of scans, as numbers and classes."""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import NamedTuple

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._cells import SEX_COLUMNS, as_number, is_missing, spelled
from dipy_ldm.data._table_rows import MatchedRows, find_rows, find_subjects
from dipy_ldm.data._tables import Description, Row, read_descriptions, refuse_rows

# Units that BIDS and people write in several ways.
_UNITS = dict.fromkeys(("year", "years", "y", "yr", "yrs"), "years")
_UNITS |= dict.fromkeys(("month", "months"), "months")


class Covariates(NamedTuple):
    """What is known of scans."""

    values: dict
    units: dict
    levels: dict
    subjects: list
    without_row: Sequence = ()
    tables: Sequence = ()
    unused: int = 0

    def take(self, kept: Sequence[int]) -> "Covariates":
        """Return those of some scans, by their numbers."""
        values = {
            name: [column[i] for i in kept] for name, column in self.values.items()
        }
        return self._replace(values=values, subjects=[self.subjects[i] for i in kept])


def read_covariates(
    names: Sequence[str],
    files: Sequence[Path],
    listed: Mapping[str, list[Row]] | None = None,
    steps: Mapping[str, float] | None = None,
) -> Covariates:
    """Look up what tables say of scans."""
    matched = find_rows(files, listed)
    _refuse_unknown(names, matched)
    described = {table: read_descriptions(table) for table in matched.tables}
    values, units, levels = {}, {}, {}
    complaints: list[str] = []
    for name in names:
        rows = [_nearest(matches, name) for matches in matched.rows]
        meant = _merged(name, rows, described)
        values[name] = _typed(name, rows, meant, complaints)
        if meant.unit is not None:
            units[name] = meant.unit
        if meant.levels:
            levels[name] = {spelled(name, k): v for k, v in meant.levels.items()}
    refuse_rows(complaints, _CURE)
    for name, step in (steps or {}).items():
        values[name] = coarsened(name, values, step)
    return Covariates(
        values,
        units,
        levels,
        find_subjects(files, listed),
        [file for file, rows in zip(files, matched.rows) if not rows],
        matched.tables,
        matched.unused,
    )


_CURE = (
    "write numbers (89 for 89+) or n/a there, or, where the column has classes, name "
    "them under Levels in the JSON beside the table"
)


def _refuse_unknown(names, matched: MatchedRows):
    if not matched.tables:
        raise InputError(
            "no table knows the files; put a participants.tsv into their folder or "
            "one above, whose participant_id is the sub- of their names, or give a "
            ".csv of their paths with further columns."
        )
    unknown = [name for name in names if name not in matched.columns]
    if unknown:
        available = ", ".join(matched.columns) or "no column of a name"
        where = ", ".join(map(str, matched.tables[:3]))
        raise InputError(
            f"there is no column {', '.join(unknown)} in the tables of the files "
            f"({where}); they have {available}."
        )


def _nearest(rows, name):
    """Choose the row that decides; the nearest may know that it is missing."""
    return next((row for row in rows if name in row.cells), None)


def _merged(name, rows, described):
    """Put together what the JSON files of all tables say of a column."""
    tables = dict.fromkeys(row.table for row in rows if row is not None)
    units: dict[str, Path] = {}
    levels: dict[str, str] = {}
    for table in tables:
        meant = described[table].get(name, Description())
        unit = _unit(name, meant.unit, table)
        if unit is not None:
            units.setdefault(unit, table)
        levels = meant.levels | levels
    if len(units) > 1:
        each = " and ".join(f"{unit} in {table}" for unit, table in units.items())
        raise InputError(f"{name} is in {each}; bring it to one unit first.")
    return Description(next(iter(units), None), levels)


def _unit(name, unit, table):
    if unit is None:
        # BIDS says so of its own tables.
        of_bids = name == "age" and table.name.endswith(
            ("participants.tsv", "sessions.tsv")
        )
        return "years" if of_bids else None
    return _UNITS.get(unit.strip().lower(), unit.strip())


def _typed(name, rows, meant, complaints):
    """Make numbers of the texts, or classes, and complain of what is neither."""
    texts = [None if row is None else row.cells[name] for row in rows]
    texts = [None if is_missing(text) else text for text in texts]
    numbers = [None if text is None else as_number(text) for text in texts]
    n_present = sum(text is not None for text in texts)
    n_numbers = sum(number is not None for number in numbers)
    if not n_present:
        raise InputError(f"{name} is missing for all images; leave it out.")
    classes = name.lower() in SEX_COLUMNS or (meant.levels and meant.unit is None)
    if classes or (meant.unit is None and 2 * n_numbers < n_present):
        return [text and spelled(name, text, meant.levels) for text in texts]
    complaints += [
        f"{row}: {name} is {text!r}, no number"
        for row, text, number in zip(rows, texts, numbers)
        if text is not None and number is None
    ]
    return numbers


def coarsened(name: str, values: Mapping[str, list], step: float) -> list:
    """Round numbers to multiples of a step."""
    if name not in values:
        raise InputError(
            f"`coarsen` names {name}, which is none of the conditions "
            f"({', '.join(values)}); name one of them."
        )
    if any(isinstance(value, str) for value in values[name]):
        raise InputError(f"{name} has classes and can't be coarsened; leave it out.")
    return [
        None if value is None else step * math.floor(value / step + 0.5)
        for value in values[name]
    ]
