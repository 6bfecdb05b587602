"""Findings: what is told of data and training, and how bad it is."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

# From the worst; grey is for what could not be looked at.
STATES = ("red", "amber", "green", "grey")
# A standard deviation, by the median of absolute deviations of normal numbers.
_DEVIATION = 1.4826
# Of so many values also by the width in which 95 % of normal numbers lie.
_MANY, _WIDTH = 1000, 3.92


class Picture(NamedTuple):
    """A picture, ``(height, width, channels)`` in [0, 1], and what it shows."""

    image: np.ndarray
    caption: str


class Finding(NamedTuple):
    """What was found in one respect."""

    title: str
    state: str
    message: str
    cure: str = ""
    pictures: Sequence[Picture] = ()
    table: Sequence[Sequence] = ()

    def reworded(self, say: Callable[[str], str]) -> Self:
        """Say it in other words."""
        table = [
            tuple(say(cell) if isinstance(cell, str) else cell for cell in row)
            for row in self.table
        ]
        return self._replace(
            message=say(self.message), cure=say(self.cure), table=table
        )

    def to_saved(self) -> dict:
        """Say it as JSON can, without the pictures."""
        record: dict[str, Any] = {"title": self.title, "state": self.state}
        record["what"] = self.message
        if self.cure:
            record["cure"] = self.cure
        if self.table:
            names, *rows = self.table
            record["table"] = [dict(zip(names, row, strict=True)) for row in rows]
        return record


def green(title: str, message: str, **further) -> Finding:
    """Find nothing wrong."""
    return Finding(title, "green", message, **further)


def amber(title: str, message: str, cure: str, **further) -> Finding:
    """Find what is to be looked at."""
    return Finding(title, "amber", message, cure, **further)


def red(title: str, message: str, cure: str, **further) -> Finding:
    """Find what must be mended."""
    return Finding(title, "red", message, cure, **further)


def grey(title: str, why: str) -> Finding:
    """Say that something could not be looked at, and why."""
    return Finding(title, "grey", why)


def worst(findings: Iterable[Finding]) -> str:
    """Return the worst state of some findings."""
    return min((finding.state for finding in findings), key=STATES.index)


def listed(names: Sequence, most: int = 5) -> str:
    """Name the first of some things, and count the others."""
    shown = ", ".join(map(str, names[:most]))
    more = len(names) - most
    return f"{shown} and {more} more" if more > 0 else shown


def counted(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def robust_scores(values: npt.ArrayLike, least: npt.ArrayLike) -> np.ndarray:
    """Say how far values lie from most, in standard deviations.

    By the median and the median of absolute deviations, on which a few outliers have no
    influence :footcite:p:`Iglewicz1993`.

    Shapes: values ``(n, figures)``, least ``(figures,)``, result ``(n, figures)``.
    """
    values = np.asarray(values, "float64")
    away = values - np.median(values, axis=0)
    spread = _DEVIATION * np.median(np.abs(away), axis=0)
    if len(values) >= _MANY:
        # What is the same for most and not for some, as the strokes of digits.
        low, high = np.percentile(values, (2.5, 97.5), axis=0)
        spread = np.maximum(spread, (high - low) / _WIDTH)
    return away / np.maximum(spread, least)
