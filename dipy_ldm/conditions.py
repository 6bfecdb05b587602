"""Conditions: what is known of each image beside its voxels, in the user's own words.

A condition has a name and is of one of two kinds: a class, with levels, or continuous,
in its own units. A network is told of all conditions by one row of numbers for each
example: of a class the number of the level, of a continuous one its rank from 0 to 1
among those that were learnt from, and ``UNSPECIFIED`` where nothing is said.
"""

from collections import Counter
import math
import re
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._utils.checks import InputError, is_label
from dipy_ldm._utils.values import (
    IDENTIFIERS,
    are_codes,
    as_table,
    columns_of,
    in_order,
    is_none,
    level_of,
    listed,
    number_of,
    values_of,
)

UNSPECIFIED = -1.0
# More levels than these that are numbers written as text are a mistake.
_TEXT_NUMBERS = 100
# More levels than these, and than half of the subjects, are names rather than classes.
_FEW_LEVELS = 10
_NAME = re.compile("sub-.")
# Equal shares of the examples between which ranks are told, at most.
_SHARES = 32
# With fewer examples, a level may be one person's.
FEW = 5


class Condition(NamedTuple):
    """What is known of a condition.

    Parameters
    ----------
    kind : {"class", "continuous"}
        Whether there are levels, or numbers.
    levels : dict of str to int
        How many examples each level of a class has.
    quantiles : list of float
        Numbers between which equal shares of the examples lie: the first is the lowest,
        the one in the middle the median, the last the highest.
    missing : float
        Share of the examples of which it is not known.
    units : str, optional
        Of the numbers.
    meanings : dict of str to str, optional
        What levels mean.
    """

    kind: str
    levels: dict[str, int]
    quantiles: list[float]
    missing: float = 0.0
    units: str | None = None
    meanings: dict[str, str] | None = None

    @property
    def size(self):
        """Number of levels; 0 of a continuous one."""
        return len(self.levels)

    def __str__(self):
        """Say it in some words."""
        if self.kind == "class":
            said = ", ".join(f"{level} ({n})" for level, n in self.levels.items())
        else:
            half = len(self.quantiles) // 2
            low, median, high = (self.quantiles[i] for i in (0, half, -1))
            units = f" {self.units}" if self.units else ""
            said = f"{low:g} to {high:g}{units}, median {median:g}"
        return said + (f"; missing {self.missing:.1%}" if self.missing else "")

    def leaves_out(self, value: Any) -> bool:
        """Return whether a value is for what is not specified."""
        return value is None or (is_none(value) and value not in self.levels)

    def number(self, name: str, value: Any, lenient: bool = False) -> float:
        """Turn a value into what a network is told.

        Parameters
        ----------
        name : str
            Name of the condition.
        value : object
            A level, or a number; None and ``"none"``, where that is no level, are for
            what is not specified.
        lenient : bool
            Whether an unknown level is taken for unspecified.

        Returns
        -------
        float
            Number of the level, rank, or ``UNSPECIFIED``.

        Raises
        ------
        InputError
            If there is no such level, or it is no number.
        """
        if self.leaves_out(value):
            return UNSPECIFIED
        if self.kind == "class":
            levels = list(self.levels)
            if (level := level_of(value)) in levels:
                return float(levels.index(level))
            if lenient:
                return UNSPECIFIED
            raise InputError(
                f"{name} has no level {level!r}; choose one of {listed(levels)}."
            )
        # Where several quantiles are the same, the mean of their ranks.
        knots, place = np.unique(self.quantiles, return_inverse=True)
        ranks = np.linspace(0, 1, len(self.quantiles))
        means = np.bincount(place, ranks) / np.bincount(place)
        return float(np.interp(number_of(name, value), knots, means))

    def surprise(self, name: str, value: Any) -> str | None:
        """Say what is surprising about a value that can be used.

        Parameters
        ----------
        name : str
            Name of the condition.
        value : object
            As of :meth:`number`.

        Returns
        -------
        str or None
            A sentence if the level was not learnt from, or the number lies outside of
            those that were.
        """
        if self.leaves_out(value):
            return None
        if self.kind == "class":
            level = level_of(value)
            known = level in self.levels
            return None if known else f"{name} {level} is not known, and left out."
        low, high = self.quantiles[0], self.quantiles[-1]
        number = number_of(name, value)
        if low <= number <= high:
            return None
        nearest = low if number < low else high
        return (
            f"{name} {number:g} lies outside of the {low:g} to {high:g} that the model "
            f"has learnt from, and is taken for {nearest:g}."
        )


class Told(NamedTuple):
    """What a network is told of some examples.

    Parameters
    ----------
    numbers : ndarray
        ``(n, conditions)``, float32.
    surprises : list of str
        A sentence on each value that was not learnt from.
    """

    numbers: np.ndarray
    surprises: list[str]

    @classmethod
    def of(
        cls,
        known: dict[str, Condition],
        given: Any = None,
        n: int | None = None,
        *,
        lenient: bool = False,
    ) -> Self:
        """Turn what the user asks for into numbers.

        Parameters
        ----------
        known : dict of str to Condition
            What is known of each condition.
        given : dict, DataFrame or object, optional
            As of :func:`requested`.
        n : int, optional
            Number of examples. None is for as many as there are values.
        lenient : bool
            Whether unknown levels are taken for unspecified.

        Returns
        -------
        Told
            Numbers of ``n`` examples.

        Raises
        ------
        InputError
            If a name or a level is unknown (the sentence lists the known ones), or
            there are more or fewer values than examples.
        """
        table = requested(known, given, n)
        n = len(next(iter(table.values()), [None])) if n is None else n
        numbers = np.full((n, len(known)), UNSPECIFIED, "float32")
        surprises: list[str] = []
        for name, values in table.items():
            condition, column = known[name], list(known).index(name)
            said = dict.fromkeys(condition.surprise(name, value) for value in values)
            surprises += filter(None, said)
            ranks = {v: condition.number(name, v, lenient) for v in set(values)}
            numbers[:, column] = [ranks[value] for value in values]
        return cls(numbers, surprises)


def requested(
    known: dict[str, Condition], given: Any, n: int | None = None
) -> dict[str, list]:
    """Read which values the user asks for.

    Parameters
    ----------
    known : dict of str to Condition
        What is known of each condition.
    given : dict, DataFrame or object
        One value for all, or one for each example, by the names of the conditions; of a
        single condition also the values alone. Nothing is specified if None or
        ``"none"``.
    n : int, optional
        Number of examples. None is for as many as there are values.

    Returns
    -------
    dict of str to list
        A value for each example, None where there is none, of the names in ``given``.

    Raises
    ------
    InputError
        If a name is unknown, or there are more or fewer values than examples.
    """
    table = {
        name: values_of(name, values) for name, values in _asked(known, given).items()
    }
    if n is None:
        n = max(map(len, table.values()), default=1)
    for name, values in table.items():
        if len(values) not in (1, n):
            raise InputError(
                f"{name} must have one value or {n}, one for each image, not "
                f"{len(values)}."
            )
    return {name: v * n if len(v) == 1 else v for name, v in table.items()}


def learn(
    given: Any,
    n: int,
    units: dict[str, str] | None = None,
    meanings: dict[str, dict[str, str]] | None = None,
    n_subjects: int | None = None,
) -> dict[str, Condition]:
    """Find out what there is to be known of the conditions of images.

    Text and truth values are classes, and so are whole numbers without gaps from 0 or 1
    on (of the type of whole numbers, up to 32; where some are missing, arrays have them
    as floats); other numbers are continuous.

    Parameters
    ----------
    given : dict, DataFrame or array_like
        As of :func:`as_table`; None is for no conditions.
    n : int
        Number of images.
    units : dict of str to str, optional
        Units of continuous conditions, by their names.
    meanings : dict of str to dict, optional
        What the levels of classes mean, by the names of the conditions.
    n_subjects : int, optional
        How many subjects the images are of. None is for as many as images.

    Returns
    -------
    dict of str to Condition
        By their names, in their order.

    Raises
    ------
    InputError
        If there are not ``n`` values of each, nothing can be learnt from them, or they
        tell subjects apart.
    """
    if given is None:
        return {}
    table = as_table(given)
    for name, values in table.items():
        if len(values) != n:
            raise InputError(
                f"{name} must have {n} values, one for each image, not {len(values)}; "
                "give None for those that are not known."
            )
    said = (units or {}).get, (meanings or {}).get
    known = {
        name: Condition(*_learn(name, values), *(of(name) for of in said))
        for name, values in table.items()
    }
    for name, condition in known.items():
        _refuse_identifiers(name, condition, n_subjects or n)
        _refuse_more_than_text(name, condition)
    return known


def _refuse_more_than_text(name, condition):
    """Refuse what terminals and tables take for more than names."""
    for text in (name, *condition.levels, condition.units or ""):
        if not is_label(text):
            raise InputError(
                f"the condition {name!r} has {text!r} for a name, level or unit; "
                "rename it, without control characters, nor = at its beginning."
            )


def summary(known: dict[str, Condition]) -> list[str]:
    """Say what is known of conditions, and which of it may tell who somebody is.

    Parameters
    ----------
    known : dict of str to Condition
        What is known of each.

    Returns
    -------
    list of str
        A line for each.
    """
    lines = []
    for name, condition in known.items():
        few = [level for level, n in condition.levels.items() if n < FEW]
        warning = f"; fewer than {FEW} images have {listed(few)}" if few else ""
        lines.append(f"{name}, {condition.kind}: {condition}{warning}")
    return lines


def to_saved(known: dict[str, Condition]) -> dict[str, dict]:
    """Say what is known of conditions as JSON can.

    Parameters
    ----------
    known : dict of str to Condition
        What is known of each.

    Returns
    -------
    dict of str to dict
        The same.
    """
    return {name: condition._asdict() for name, condition in known.items()}


def from_saved(saved: dict[str, dict] | None) -> dict[str, Condition]:
    """Read what :func:`to_saved` said.

    Parameters
    ----------
    saved : dict of str to dict or None
        None is for no conditions: of those earlier versions did not know.

    Returns
    -------
    dict of str to Condition
        What is known of each.
    """
    return {name: Condition(**facts) for name, facts in (saved or {}).items()}


def _asked(known, given):
    """Return a new table of what is asked for, whose names are known."""
    if given is None or is_none(given):
        return {}
    if not known:
        raise InputError(
            "this model knows of no conditions; leave `conditions` out, or train one "
            "that does."
        )
    table = columns_of(given)
    if table is None:
        if len(known) > 1:
            raise InputError(
                f"conditions must be values by their names: {listed(known)}."
            )
        table = {next(iter(known)): given}
    for name in table:
        if name not in known:
            raise InputError(
                f"unknown condition {name!r}; choose one of {listed(known)}."
            )
    return table


def _learn(name, values):
    """Find out of which kind a condition is, and what is to be known of it."""
    present = [value for value in values if value is not None]
    missing = 1 - len(present) / len(values)
    numbers = [value for value in present if not isinstance(value, str | bool)]
    if numbers and len(numbers) < len(present):
        text = next(value for value in present if isinstance(value, str | bool))
        raise InputError(
            f"{name} has numbers and also {text!r}; give numbers or text alone, and "
            "None for what is missing."
        )
    if len(set(present)) < 2:
        what = repr(present[0]) if present else "missing"
        raise InputError(
            f"{name} is {what} for all images, and there is nothing to learn from it; "
            "leave it out."
        )
    if numbers and not are_codes(numbers):
        return "continuous", {}, _quantiles(numbers), missing
    counts = Counter(map(level_of, present))
    _refuse_numbers_as_text(name, counts)
    levels = {level: counts[level] for level in in_order(counts)}
    return "class", levels, [], missing


def _quantiles(numbers):
    """Return quantiles which are nobody's own values, but for those at the ends.

    Between two of them are 5 examples at least, and each is the mean of the two or
    three that are nearest to it.
    """
    ordered = np.sort(np.array(numbers, float))
    shares = min(_SHARES, 2 * max(1, len(ordered) // (2 * FEW)))
    inner = np.arange(1, shares) / shares * (len(ordered) - 1)
    around = (
        ordered[math.floor(place - 0.5) : math.ceil(place + 0.5) + 1] for place in inner
    )
    # Of equal values the mean is the same to the bit.
    means = [some[0] + np.mean(some - some[0]) for some in around]
    return np.sort([ordered[0], *means, ordered[-1]]).tolist()


def _refuse_identifiers(name, condition, n):
    """Refuse what tells subjects apart, and would bring their names into the model."""
    levels = condition.levels
    many = len(levels) > _FEW_LEVELS and len(levels) > n / 2
    named = name.lower() in IDENTIFIERS or any(map(_NAME.match, levels))
    if named or many:
        what = (
            f"has {len(levels)} levels for {n} subjects" if many else "names subjects"
        )
        raise InputError(
            f"{name} {what}, so that the model would know them by name; leave it out, "
            "or join levels."
        )


def _refuse_numbers_as_text(name, counts):
    """Refuse what is most likely a continuous condition, read from a file as text."""
    if len(counts) <= _TEXT_NUMBERS:
        return
    try:
        list(map(float, counts))
    except ValueError:
        return
    raise InputError(
        f"{name} has {len(counts)} levels that are numbers written as text; give "
        "numbers."
    )
