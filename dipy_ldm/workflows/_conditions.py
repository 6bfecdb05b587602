"""Requested conditions: from options, from tables, and from files of outputs."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
import json
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._conditions import Condition, from_saved, requested
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import (
    NONE,
    is_unconditional,
    level_of,
    listed,
    read_number,
    values_of,
)
from dipy_ldm.data import _tables as tables
from dipy_ldm.data._sidecars import sidecar
from dipy_ldm.prior._condition_sampler import Population, draw_conditions

logger = logging.getLogger(__name__)


class RequestedConditions(NamedTuple):
    """Conditions of the samples in their own units: requested, or drawn at random.

    ``range_warnings`` are sentences on unusual values of each sample; ``drawn`` says
    which values were drawn.
    """

    table: dict[str, list]
    range_warnings: list[list[str]]
    numbers: range
    drawn: dict[str, list[bool]] | None = None

    @classmethod
    def of(
        cls,
        document: dict,
        request: dict | str | None,
        numbers: range,
        seed: int | None = None,
        same_noise: bool = False,
    ) -> Self:
        """Check the requested conditions and, with a seed, draw the others."""
        conditions = from_saved(document["conditions"])
        n = len(numbers)
        request = as_levels(conditions, request) or None
        explicit = values = requested(conditions, request, n)
        range_warnings = [
            [
                warning
                for name, value in zip(explicit, row)
                if (warning := conditions[name].encode(name, value)[1])
            ]
            for row in zip(*explicit.values())
        ]
        drawn = None
        if seed is not None:
            saved = document["population"]
            population = saved and Population(**saved)
            first, same = numbers.start, same_noise
            completed = draw_conditions(
                conditions, population, request, n, seed=seed, first=first, same=same
            )
            values = requested(conditions, completed, n)
            drawn = {
                name: [value is None for value in explicit.get(name, [None] * n)]
                for name in values
            }
        table = {
            name: [_as_plain(name, condition, v) for v in values.get(name, [None] * n)]
            for name, condition in conditions.items()
        }
        return cls(table, range_warnings, numbers, drawn)

    @property
    def specified(self) -> bool:
        """Whether any condition of any sample is specified."""
        return any(v is not None for values in self.table.values() for v in values)

    def subset(self, numbers: range) -> dict[str, list] | str | None:
        """Return the conditions of some samples, as models take them."""
        columns = self._take(self.table, numbers)
        if self.drawn is None or not columns:
            return columns or None
        # Omitted conditions would be drawn.
        if not self.specified:
            return NONE
        return {
            name: [NONE if value is None else value for value in values]
            for name, values in columns.items()
        }

    def _rows(self, numbers):
        first = self.numbers.start
        return slice(numbers.start - first, numbers.stop - first)

    def _take(self, columns, numbers):
        return {name: values[self._rows(numbers)] for name, values in columns.items()}

    def facts(self, numbers: range) -> dict[str, Any]:
        """Return the conditions of some samples as entries of their sidecar."""
        conditions: dict[str, Any] = {}
        for name, values in self._take(self.table, numbers).items():
            texts = ["n/a" if value is None else value for value in values]
            conditions[name] = texts[0] if len(texts) == 1 else texts
        drawn = self._take(self.drawn or {}, numbers)
        range_warnings = chain(*self.range_warnings[self._rows(numbers)])
        entries = {
            "Conditions": conditions,
            "DrawnConditions": [name for name, cells in drawn.items() if any(cells)],
            "Warnings": list(dict.fromkeys(range_warnings)),
        }
        return {name: entry for name, entry in entries.items() if entry}

    def captions(self, numbers: range) -> list[str]:
        """Return the requested conditions of each sample; nothing if all are drawn."""
        drawn, columns = self._take(self.drawn or {}, numbers), []
        for name, values in self._take(self.table, numbers).items():
            cells = [*zip(values, drawn.get(name, [False] * len(values)))]
            if any(v is not None and not is_drawn for v, is_drawn in cells):
                columns.append(
                    [
                        "" if is_drawn else f"{name}={tables.as_text(v)}"
                        for v, is_drawn in cells
                    ]
                )
        return [", ".join(filter(None, row)) for row in zip(*columns)]

    def arrays(self, numbers: range) -> dict[str, np.ndarray]:
        """Return the conditions of some samples as arrays."""
        columns = {}
        for name, values in self._take(self.table, numbers).items():
            missing = "n/a" if any(isinstance(v, str) for v in values) else math.nan
            complete = [missing if value is None else value for value in values]
            columns[f"condition_{name}"] = np.array(complete)
        return columns


def parse_conditions(
    words: Iterable[str] | None, document: dict
) -> dict[str, Any] | str:
    """Parse conditions of the command line."""
    conditions = from_saved(document["conditions"])
    table: dict[str, Any] = {}
    words = list(words or [])
    if len(words) == 1 and is_unconditional(words[0]):
        return NONE
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals) or name in table:
            raise InputError(
                "must be name=value, each name once, such as age=70",
                f"{word!r} is not",
                option="conditions",
            )
        # A level may have a comma of its own.
        is_level = name in conditions and value in conditions[name].levels
        values = [value] if is_level else value.split(",")
        starts = [value.partition("=")[0].strip() for value in values[1:]]
        if any(start in ("", *conditions) for start in starts):
            raise InputError(
                f"{word!r} has no value after a comma",
                "commas separate values of one condition, and spaces separate "
                "conditions: age=70 sex=F",
            )
        table[name] = values if len(values) > 1 else value
    return table


def count_requested(request: dict | str) -> int | None:
    """Return how many values conditions list, one for each sample; None without."""
    if isinstance(request, str):
        return None
    return max((len(v) for v in request.values() if isinstance(v, list)), default=None)


def _as_plain(name, condition, value):
    if condition.is_unspecified(value):
        return None
    if condition.kind == "class":
        return level_of(value)
    return value if condition.kind == "direction" else read_number(name, value)


def read_requested_table(
    path: str | Path, conditions: Mapping[str, Condition]
) -> dict[str, list[str | float | None]]:
    """Read a table of conditions, with a row for each sample."""
    rows = tables.read_table(path)
    columns = [name for name in rows[0].cells if name]
    names = [name for name in columns if name in conditions]
    if not names:
        cure = f"it has {listed(conditions)}" if conditions else "train one with some"
        raise InputError(
            f"{path} has no column that is a condition of the model ({cure})",
            f"its columns are {listed(columns)}",
        )
    ignored = [name for name in columns if name not in (*conditions, "participant_id")]
    if ignored:
        text = "the columns %s of %s are ignored: the model has the conditions %s."
        logger.warning(text, listed(ignored), path, listed(conditions))
    complaints: list[str] = []
    table = {
        name: [_read_cell(name, row, conditions[name], complaints) for row in rows]
        for name in names
    }
    tables.refuse_rows(complaints, "correct these cells, or leave them empty")
    return table


def _read_cell(name, row, condition, complaints):
    """Read a cell, and add a complaint if it is invalid."""
    text = row.cells[name]
    if tables.is_missing(text):
        return None
    if condition.kind == "class":
        level = _as_level(name, text, condition)
        if level not in condition.levels:
            levels = listed(condition.levels)
            complaints.append(f"{row}: {name} is {text!r}, not one of {levels}")
        return level
    number = tables.as_number(text)
    if number is None:
        complaints.append(f"{row}: {name} is {text!r}, no number")
    return number


def as_levels(conditions: Mapping[str, Condition], table: Any) -> Any:
    """Spell the classes of a table as the model does; return other values unchanged."""
    if not isinstance(table, dict):
        return table
    classes = {n: c for n, c in conditions.items() if n in table and c.kind == "class"}
    return table | {n: _as_level(n, table[n], classes[n]) for n in classes}


def _as_level(name, value, condition):
    """Spell a class, or each of a list, as the model does."""
    if isinstance(value, list):
        return [_as_level(name, entry, condition) for entry in value]
    if not isinstance(value, str) or value in condition.levels:
        return value
    levels = {tables.as_level(name, level): level for level in condition.levels}
    level = tables.as_level(name, tables.as_code(value, condition.levels))
    return levels.get(level, level)


def read_requested_conditions(
    names: Sequence[str], positions: Sequence[tuple[Path, int]]
) -> dict[str, list] | None:
    """Return the conditions with which images were generated, if their files do."""
    by_file = {file: read_facts(file).get("Conditions", {}) for file, _ in positions}
    columns = {}
    for name in names:
        pairs = [(by_file[file].get(name), number) for file, number in positions]
        values = [v[i] if isinstance(v, list) else v for v, i in pairs]
        columns[name] = values_of(name, values)
    has_values = any(v is not None for values in columns.values() for v in values)
    return columns if has_values else None


def read_facts(file: Path) -> dict[str, Any]:
    """Return the description in a file, or in its sidecar; empty if there is none."""
    try:
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                text = str(arrays["description"])
        else:
            text = sidecar(file).read_text("utf-8")
        facts = json.loads(text)
    except (OSError, ValueError, KeyError):
        return {}
    return facts if isinstance(facts, dict) else {}
