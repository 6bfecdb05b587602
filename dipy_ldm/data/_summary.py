"""What is known of scans, in some lines to be read before a training."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dipy_ldm._utils.values import as_table, level_of
from dipy_ldm.conditions import FEW, Condition
from dipy_ldm.data._cells import as_text
from dipy_ldm.data._covariates import Covariates

# More classes than these are not shown one by one.
_MAX_CLASSES_SHOWN = 20
# Whole numbers, so few of them: they may be codes of classes.
_MAX_CODES = 10


def as_covariates(
    table: Any, conditions: Mapping[str, Condition], subjects: Iterable
) -> Covariates:
    """Bring what ``fit`` is given of images into the form of covariates."""
    values = {
        name: [_as_learnt(value, conditions[name]) for value in entry]
        for name, entry in as_table(table).items()
    }
    units = {name: entry.units for name, entry in conditions.items() if entry.units}
    meanings = {name: entry.meanings or {} for name, entry in conditions.items()}
    return Covariates(values, units, meanings, list(subjects))


def _as_learnt(value, condition):
    return level_of(value) if condition.levels and value is not None else value


def summarise(covariates: Covariates) -> str:
    """Say what is known of scans."""
    subjects = covariates.subjects
    images = _count(len(subjects), "image")
    people = _count(len(set(subjects)), "subject")
    tables = covariates.tables
    source = f", from {_name_or_count(tables, 'table')}" if tables else ""
    lines = [f"conditions of {images} of {people}{source}:"]
    lines += [f"  {_line(name, covariates)}" for name in covariates.values]
    if covariates.without_row:
        lines.append(
            f"no table has a row for {_name_or_count(covariates.without_row, 'image')}"
        )
    if covariates.unused:
        lines.append(
            f"{_count(covariates.unused, 'row')} of participants have no image"
        )
    return "\n".join(lines + _hints(covariates) + _warnings(covariates))


def _line(name, covariates):
    values = covariates.values[name]
    present = [value for value in values if value is not None]
    unit = covariates.units.get(name)
    missing = len(values) - len(present)
    content = (
        _classes(present, covariates.levels.get(name, {}))
        if isinstance(present[0], str)
        else f"{as_text(min(present))} to {as_text(max(present))}, mean "
        f"{sum(present) / len(present):.4g}"
    )
    title = f"{name} ({unit})" if unit else name
    return f"{title}: {content}" + (f"; {missing} missing" if missing else "")


def _classes(values, meanings):
    counts = Counter(values).most_common()
    shown = [
        f"{level} {count}" + (f" ({meanings[level]})" if meanings.get(level) else "")
        for level, count in counts[:_MAX_CLASSES_SHOWN]
    ]
    more = len(counts) - len(shown)
    return ", ".join(shown + ([f"and {more} further classes"] if more else []))


def _hints(covariates):
    """Say what may be a mistake."""
    lines = []
    for name, values in covariates.values.items():
        kinds = set(values) - {None}
        if len(kinds) == 1:
            lines.append(f"{name} is the same for all, so that nothing is learnt of it")
        elif all(isinstance(value, str) for value in kinds):
            folded = Counter(value.casefold() for value in kinds)
            twins = sorted(v for v in kinds if folded[v.casefold()] > 1)
            if twins:
                lines.append(f"{name} has classes that differ in case: {_list(twins)}")
        elif _may_be_codes(name, kinds, covariates):
            lines.append(
                f"{name} is taken for a number; if its {len(kinds)} values are codes "
                "of classes, name these under Levels in the JSON beside the table, or "
                "write them as text"
            )
    return lines


def _may_be_codes(name, kinds, covariates):
    few = len(kinds) <= min(_MAX_CODES, len(covariates.subjects) // 3)
    return few and name not in covariates.units and all(v % 1 == 0 for v in kinds)


def _warnings(covariates):
    """Say what could point to a person."""
    lines = []
    for name, values in covariates.values.items():
        whose: dict[str, set] = {}
        for value, subject in zip(values, covariates.subjects):
            if isinstance(value, str):
                whose.setdefault(value, set()).add(subject)
        rare = sorted(level for level, owners in whose.items() if len(owners) < FEW)
        if rare:
            lines.append(
                f"{name} has classes of fewer than {FEW} subjects, which can point to "
                f"persons: {_list(rare)}"
            )
    alone = count_alone(covariates)
    if alone:
        lines.append(
            f"{_count(alone, 'subject')} can be told from all others by these "
            "conditions; fewer or coarser ones (see coarsen) give less away"
        )
    return lines


def count_alone(covariates: Covariates) -> int:
    """Count the subjects who share what is known of them with nobody."""
    whose: dict[tuple, set] = {}
    for subject, *values in zip(covariates.subjects, *covariates.values.values()):
        whose.setdefault(tuple(values), set()).add(subject)
    return len({next(iter(owners)) for owners in whose.values() if len(owners) == 1})


def _count(number, noun):
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _name_or_count(items: Sequence, noun: str) -> str:
    """Count items, and name the first."""
    if len(items) == 1:
        return str(items[0])
    return f"{_count(len(items), noun)} ({items[0]} first)"


def _list(names):
    shown = ", ".join(names[:_MAX_CLASSES_SHOWN])
    more = len(names) - _MAX_CLASSES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
