"""Conditions: labels and numbers that an image is generated from.

A condition has a name and one of three kinds: a class with levels, a continuous number
with units, or a direction. A network gets one row of numbers per example: for a class
the number of the level, for a continuous condition the rank from 0 to 1 among the
training images, for a direction its place on a half sphere, and ``UNSPECIFIED`` for
missing values.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import logging
import math
import re
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._utils.checks import InputError, is_label
from dipy_ldm._utils.directions import direction_index
from dipy_ldm._utils.values import (
    IDENTIFIERS,
    ConditionsLike,
    Value,
    are_codes,
    as_table,
    columns_of,
    grouped,
    is_unconditional,
    is_vector,
    level_of,
    listed,
    read_number,
    sort_levels,
    values_of,
)

logger = logging.getLogger("dipy_ldm")

UNSPECIFIED = -1.0
# More levels that are numbers written as text are a mistake.
_MAX_NUMBERS_AS_TEXT = 100
# More levels, if there are more than half as many as subjects, identify subjects.
_FEW_LEVELS = 10
_SUBJECT_NAME = re.compile("sub-.")
# Quantiles divide the examples into at most so many equal bins.
MAX_BINS = 32
# Subjects; statistics of smaller groups could identify a person.
MIN_GROUP_SIZE = 5
# The b-value in s/mm^2 has few shells: instead of its rank, the number itself is scaled
# to the range of the training images, extended by this share.
BVAL = "bval"
_MARGIN = 0.05
# Sizes of conditions without levels.
CONTINUOUS, DIRECTION = 0, -1


class Condition(NamedTuple):
    """Kind, levels or quantiles, and units of a condition.

    ``levels`` are the counts of the levels of a class; ``quantiles`` divide the values
    of a continuous condition into equal shares, from the lowest number by the median to
    the highest; ``missing`` is the share of examples without a value.
    """

    kind: str
    levels: dict[str, int]
    quantiles: list[float]
    missing: float = 0.0
    units: str | None = None
    meanings: dict[str, str] | None = None

    @property
    def size(self):
        """Number of levels, or ``CONTINUOUS`` or ``DIRECTION``."""
        return DIRECTION if self.kind == "direction" else len(self.levels)

    def __str__(self):
        """Return a short description."""
        if self.kind == "class":
            levels = (f"{level} ({n})" for level, n in self.levels.items())
            text = listed(levels, _FEW_LEVELS)
        elif self.kind == "direction":
            text = "any direction, same as its opposite"
        else:
            low, *between, high = self.quantiles
            text = f"{low:g} to {high:g}" + (f" {self.units}" if self.units else "")
            if between:
                text += f", median {between[len(between) // 2]:g}"
        return text + (f"; missing {self.missing:.1%}" if self.missing else "")

    def is_unspecified(self, value: Value) -> bool:
        """Return whether a value leaves the condition unspecified."""
        return value is None or (is_unconditional(value) and value not in self.levels)

    def encode(
        self, name: str, value: Value, lenient: bool = False
    ) -> tuple[float, str | None]:
        """Return the number of a level, a rank, or ``UNSPECIFIED``; and a warning.

        None, ``"none"`` unless it is a level and, if `lenient`, unknown levels are
        unspecified. A warning is about an unusual but valid value.
        """
        if self.is_unspecified(value):
            return UNSPECIFIED, None
        if self.kind == "direction":
            return direction_index(_validated_direction(name, value)), None
        if self.kind == "class":
            levels, level = list(self.levels), level_of(value)
            if level in levels:
                return float(levels.index(level)), None
            if lenient:
                return UNSPECIFIED, f"{name} {level} is an unknown level, and ignored."
            choices = listed(map(repr, levels))
            raise InputError(
                f"{name} has no level {level!r}", f"choose one of {choices}"
            )
        number, warning = read_number(name, value), None
        low, high = self.quantiles[0], self.quantiles[-1]
        if not low <= number <= high:
            nearest = low if number < low else high
            warning = (
                f"{name} {number:g} is outside the model's range of {low:g} to "
                f"{high:g}, and replaced by {nearest:g}."
            )
        # Equal quantiles have the mean of their ranks.
        knots, place = np.unique(self.quantiles, return_inverse=True)
        ranks = np.linspace(0, 1, len(self.quantiles))
        means = np.bincount(place, ranks) / np.bincount(place)
        return float(np.interp(number, knots, means)), warning


class ConditionBatch(NamedTuple):
    """Encoded conditions ``(n, conditions)``, and warnings about unusual values."""

    numbers: np.ndarray
    range_warnings: list[str]

    @classmethod
    def of(
        cls,
        conditions: dict[str, Condition],
        request: ConditionsLike = None,
        n: int | None = None,
        *,
        lenient: bool = False,
    ) -> Self:
        """Encode requested conditions for `n` examples."""
        table = requested(conditions, request, n)
        n = len(next(iter(table.values()), [None])) if n is None else n
        numbers = np.full((n, len(conditions)), UNSPECIFIED, "float32")
        range_warnings: list[str] = []
        for name, values in table.items():
            condition, column = conditions[name], list(conditions).index(name)
            different = dict.fromkeys(values)
            encoded = {v: condition.encode(name, v, lenient) for v in different}
            numbers[:, column] = [encoded[value][0] for value in values]
            sentences = dict.fromkeys(warning for _, warning in encoded.values())
            range_warnings += filter(None, sentences)
        return cls(numbers, range_warnings)


def requested(
    conditions: dict[str, Condition], request: ConditionsLike, n: int | None = None
) -> dict[str, list]:
    """Return the requested values of each condition, one for each example.

    A single value is repeated; values without a name suffice for a single condition.
    None and ``"none"`` specify nothing.
    """
    table = {}
    for name, values in requested_columns(conditions, request).items():
        is_single = conditions[name].kind == "direction" and is_vector(values)
        table[name] = values_of(name, [values] if is_single else values)
    if n is None:
        n = max(map(len, table.values()), default=1)
    for name, values in table.items():
        if len(values) not in (1, n):
            raise InputError(
                f"{name} must have one value or {n}, one for each image, not "
                f"{len(values)}"
            )
    return {name: v * n if len(v) == 1 else v for name, v in table.items()}


def without_unknown_levels(
    conditions: Mapping[str, Condition], table: Mapping[str, list] | None
) -> dict[str, list]:
    """Return values of images with unknown levels set to None, after a warning."""
    columns = dict(table or {})
    for name, condition in conditions.items():
        if condition.kind != "class" or name not in columns:
            continue
        warnings = [condition.encode(name, v, lenient=True)[1] for v in columns[name]]
        columns[name] = [None if w else v for v, w in zip(columns[name], warnings)]
        if unknown := list(filter(None, warnings)):
            text = " ".join(list(dict.fromkeys(unknown))[:9])
            logger.warning("%d real images: %s", len(unknown), text)
    return columns


def learn(
    conditions: ConditionsLike,
    n: int,
    units: dict[str, str] | None = None,
    meanings: dict[str, dict[str, str]] | None = None,
    subjects: Sequence | None = None,
) -> dict[str, Condition]:
    """Learn the conditions of `n` images; without `subjects`, each has its own.

    Text and booleans are classes, and so are integers without gaps from 0 or 1 on (of
    integer type up to 32, or as floats because of missing values); other numbers are
    continuous, and vectors of three are directions.
    """
    if conditions is None:
        return {}
    table = as_table(conditions)
    for name, values in table.items():
        if len(values) != n:
            raise InputError(
                f"{name} must have {n} values, one for each image, not {len(values)}",
                "use None for missing values",
            )
    units, meanings = units or {}, meanings or {}
    subjects = range(n) if subjects is None else subjects
    _check_descriptions(table, units, meanings)
    learnt = {
        name: Condition(*_summarise(name, values, subjects))._replace(
            units=units.get(name), meanings=meanings.get(name)
        )
        for name, values in table.items()
    }
    for name, condition in learnt.items():
        _refuse_identifiers(name, condition, len(set(subjects)))
        _refuse_unsafe_text(name, condition)
    return learnt


def _check_descriptions(table: dict[str, list], units: dict, meanings: dict):
    """Refuse units and meanings of unknown conditions, or that are not text."""
    if unknown := [name for name in (*units, *meanings) if name not in table]:
        raise InputError(
            f"`units` or `meanings` have {unknown[0]!r}, which is no condition",
            f"choose one of {listed(table)}",
        )
    for name, unit in units.items():
        if not isinstance(unit, str | None):
            raise InputError(f"the unit of {name} must be text, not {unit!r}")
    for name, levels in meanings.items():
        pairs = levels.items() if isinstance(levels, dict) else [(None, levels)]
        if not all(isinstance(text, str) for pair in pairs for text in pair):
            raise InputError(
                f"the meanings of {name} must map its levels to texts, such as {{'1': "
                f"'patient'}}, not {levels!r}"
            )


def _refuse_unsafe_text(name: str, condition: Condition):
    """Refuse names that terminals or tables would interpret."""
    for text in (name, *condition.levels, condition.units or ""):
        if not is_label(text):
            raise InputError(
                f"the condition {name!r} has the name, level or unit {text!r}",
                "rename it, without control characters or a leading =",
            )


def to_saved(conditions: dict[str, Condition]) -> dict[str, dict]:
    """Convert conditions to JSON types."""
    return {name: condition._asdict() for name, condition in conditions.items()}


def from_saved(saved: dict[str, dict]) -> dict[str, Condition]:
    """Read conditions from a document."""
    return {name: Condition(**entry) for name, entry in saved.items()}


def requested_columns(
    conditions: Mapping[str, Condition], request: ConditionsLike
) -> dict[str, Any]:
    """Return the requested conditions, after checking their names."""
    if request is None or is_unconditional(request):
        return {}
    if not conditions:
        raise InputError(
            "this model was trained without conditions: remove `conditions`, or "
            "train a conditional model"
        )
    table = columns_of(request)
    if table is None:
        if len(conditions) > 1:
            raise InputError(f"pass conditions by name: {listed(conditions)}")
        table = {next(iter(conditions)): request}
    if unknown := [name for name in table if name not in conditions]:
        raise InputError(
            f"unknown condition {unknown[0]!r}", f"choose one of {listed(conditions)}"
        )
    return table


def _summarise(name: str, values: list, subjects: Sequence):
    """Return the kind of a condition, and a summary of its values."""
    present = present_values(name, values)
    missing = 1 - len(present) / len(values)
    if any(isinstance(value, tuple) for value in present):
        for value in present:
            _validated_direction(name, value)
        return "direction", {}, [], missing
    if name == BVAL:
        bvals = [read_number(name, value) for value in present]
        limits = [(1 - _MARGIN) * min(bvals), (1 + _MARGIN) * max(bvals)]
        return "continuous", {}, limits, missing
    if len(set(present)) < 2:
        raise InputError(f"{name} is {present[0]!r} for all images", "leave it out")
    if not is_class(name, present):
        subjects_of = [s for s, v in zip(subjects, values) if v is not None]
        return "continuous", {}, _quantiles(present, subjects_of), missing
    counts = Counter(map(level_of, present))
    _refuse_numbers_as_text(name, counts)
    levels = {level: counts[level] for level in sort_levels(counts)}
    return "class", levels, [], missing


def present_values(name: str, values: Iterable) -> list:
    """Return values that are not missing; refuse none, or numbers mixed with text."""
    present = [value for value in values if value is not None]
    if not present:
        raise InputError(f"{name} is missing for all images", "leave it out")
    texts = [value for value in present if isinstance(value, str | bool)]
    if 0 < len(texts) < len(present):
        raise InputError(
            f"{name} mixes numbers with {texts[0]!r}",
            "use only numbers or only text, and None for missing values",
        )
    return present


def is_class(name: str, present: list) -> bool:
    """Return whether values are of a class: text, booleans or codes."""
    return name != BVAL and (isinstance(present[0], str | bool) or are_codes(present))


def _validated_direction(name: str, value: Value):
    """Return a direction, or refuse another value."""
    if isinstance(value, tuple):
        return value
    raise InputError(
        f"{name} must be a vector of three numbers, such as (0, 0, 1), not {value!r}"
    )


def _quantiles(numbers: list, subjects: list):
    """Return quantiles as means of neighbours, so that only the ends are single values.

    They are computed from one value of each subject: each is the mean of the two or
    three nearest, with 5 subjects at least between two quantiles. With fewer than 20
    subjects there is only the median, and with one subject it is a single value.
    """
    values_by_subject = grouped(zip(subjects, numbers))
    # Steps of the golden ratio choose scans evenly, however few subjects there are: the
    # first scans of all subjects may have the lowest values.
    values = [
        sorted(scans)[int(len(scans) * ((0.5 + 0.618034 * i) % 1))]
        for i, scans in enumerate(values_by_subject.values())
    ]
    ordered = np.sort(np.array(values, float))
    shares = min(MAX_BINS, 2 * max(1, len(ordered) // (2 * MIN_GROUP_SIZE)))
    inner = np.arange(1, shares) / shares * (len(ordered) - 1)
    neighbours = (
        ordered[math.floor(place - 0.5) : math.ceil(place + 0.5) + 1] for place in inner
    )
    # For equal values, this mean is bitwise the same.
    means = [near[0] + np.mean(near - near[0]) for near in neighbours]
    return np.sort([min(numbers), *means, max(numbers)]).tolist()


def _refuse_identifiers(name: str, condition: Condition, n: int):
    """Refuse identifiers of subjects, which the model would store."""
    levels = condition.levels
    many = len(levels) > _FEW_LEVELS and len(levels) > n / 2
    n_names = sum(bool(_SUBJECT_NAME.match(level)) for level in levels)
    # Not already if any level matches: it may be sub-acute.
    named = name.lower() in IDENTIFIERS or 2 * n_names > len(levels)
    if named or many:
        reason = (
            f"has {len(levels)} levels for {n} subjects" if many else "names subjects"
        )
        raise InputError(
            f"{name} {reason}, which would identify them in the model",
            "leave it out, or merge levels",
        )


def _refuse_numbers_as_text(name: str, counts: Counter):
    """Refuse numbers that were probably read from a file as text."""
    if len(counts) <= _MAX_NUMBERS_AS_TEXT:
        return
    try:
        list(map(float, counts))
    except ValueError:
        return
    n = len(counts)
    raise InputError(f"{name} has {n} levels that are numbers as text", "convert them")
