"""Missing conditions, drawn from their distribution in the training images.

What a model file remembers of the training images gives nobody away: of each condition
the counts of its levels or its quantiles, and of several together a table of counts in
coarse cells, none of which has fewer than five subjects.
"""

from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._conditions import (
    DIRECTION,
    FEW,
    UNSPECIFIED,
    Condition,
    ConditionsLike,
    requested,
)
from dipy_ldm._utils.values import is_none

# Equal shares into which numbers are split, as long as enough images are in cells that
# may be kept.
_BINS = (8, 4, 2, 1)
_MIN_KEPT = 0.9
# Further keys of the random numbers, which are not those of any sample's noise.
_STREAM = 0, 0, 1


class Population(NamedTuple):
    """How often conditions came together."""

    bins: int
    cells: list[list[int]]
    counts: list[int]

    @classmethod
    def learn(
        cls,
        numbers: np.ndarray | None,
        conditions: dict[str, Condition],
        subjects: np.ndarray | None = None,
    ) -> Self | None:
        """Count combinations of conditions, in bins as fine as privacy allows.

        Shapes: numbers ``(n, conditions)``, subjects ``(n,)``.
        """
        if numbers is None or len(conditions) < 2:
            return None
        for bins in _BINS:
            codes = _codes(numbers[:, : len(conditions)], conditions, bins)
            cells, cell_of, counts = np.unique(
                codes, axis=0, return_inverse=True, return_counts=True
            )
            whose = np.arange(len(codes)) if subjects is None else subjects
            pairs = np.unique(np.column_stack([cell_of.ravel(), whose]), axis=0)
            kept = np.bincount(pairs[:, 0], minlength=len(cells)) >= FEW
            if counts[kept].sum() >= _MIN_KEPT * len(codes):
                return cls(bins, cells[kept].tolist(), counts[kept].tolist())
        return None

    def choose(self, codes: np.ndarray, chance: float) -> np.ndarray:
        """Choose one of the cells that agree with specified codes.

        Shapes: codes ``(conditions,)``.
        """
        cells = np.array(self.cells)
        alike = ((codes < 0) | (cells == codes)).all(1)
        sums = np.cumsum(alike * np.array(self.counts))
        if sums[-1] == 0:
            return codes
        return cells[np.searchsorted(sums, chance * sums[-1], side="right")]


def draw_conditions(
    conditions: dict[str, Condition],
    population: Population | None,
    requested_values: ConditionsLike,
    n: int,
    *,
    seed: int = 0,
    first: int = 0,
    same: bool = False,
) -> Any:
    """Draw missing conditions, as a function of seed, sample and the rest."""
    if not conditions or is_none(requested_values):
        return requested_values
    table = {name: [None] * n for name in conditions}
    table |= requested(conditions, requested_values, n)
    rows = [list(row) for row in zip(*table.values(), strict=True)]
    who = rows[:1] if same else rows
    # One of each condition and, where there are cells, one for the cell.
    count = len(conditions) + (population is not None)
    chances = _chances(seed, np.arange(first, first + len(who)), count)
    drawn = [_draw_row(row, conditions, population, c) for row, c in zip(who, chances)]
    for row, drawn_values in zip(rows, drawn * n if same else drawn):
        row[:] = [other if v is None else v for v, other in zip(row, drawn_values)]
    return {name: list(values) for name, values in zip(table, zip(*rows))}


def _chances(seed, numbers, count):
    """Return numbers from 0 to 1 of each sample, ``(n, count)``.

    Any samples in a row are spread more evenly than by chance: multiples of powers of
    the generalised golden ratio, from a start that the seed draws.
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (count + 1))
    start = np.random.default_rng([seed, *_STREAM]).random(count)
    return (start + np.outer(numbers, ratio ** -np.arange(1, count + 1))) % 1


def _draw_row(row, conditions, population, chances):
    """Draw a value of each missing condition, given the others."""
    numbers = [c.number(name, v) for v, (name, c) in zip(row, conditions.items())]
    cell, bins = [-1] * len(numbers), 1
    if population is not None:
        bins, (chance, *chances) = population.bins, chances
        codes = _codes(np.array([numbers]), conditions, bins)[0]
        cell = population.choose(codes, chance)
    parts = zip(conditions.values(), cell, chances)
    return [_value(condition, code, bins, u) for condition, code, u in parts]


def _value(condition, code, bins, chance):
    """Return the level or the number at a quantile; a direction is never drawn."""
    if condition.size == DIRECTION:
        return None
    if condition.size:
        levels = list(condition.levels)
        sums = np.cumsum(list(condition.levels.values()))
        by_chance = int(np.searchsorted(sums, chance * sums[-1], side="right"))
        # Of a file without counts, the last.
        return levels[code if code >= 0 else min(by_chance, len(levels) - 1)]
    rank = (code + chance) / bins if code >= 0 else chance
    ranks = np.linspace(0, 1, len(condition.quantiles))
    # No more digits than anybody measures.
    return float(f"{np.interp(rank, ranks, condition.quantiles):.4g}")


def _codes(numbers, conditions, bins):
    """Return numbers of levels and shares, ``(n, conditions)``; -1 where missing."""
    shares = np.minimum(np.floor(numbers * bins), bins - 1)
    sizes = np.array([condition.size for condition in conditions.values()])
    codes = np.where(sizes > 0, numbers, shares)
    unspecified = (numbers == UNSPECIFIED) | (sizes == DIRECTION)
    return np.where(unspecified, -1, codes).astype(int)
