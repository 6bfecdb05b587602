"""Missing conditions, drawn from their distribution in the training images.

What a model file remembers of the training images gives nobody away: of each condition
the counts of its levels or its quantiles, and of several together boxes of numbers that
go with the same levels, none of which has fewer than five subjects.
"""

import math
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._conditions import (
    DIRECTION,
    MAX_BINS,
    MIN_GROUP_SIZE,
    UNSPECIFIED,
    Condition,
    ConditionsLike,
    requested,
)
from dipy_ldm._utils.values import is_unconditional

# Share of the images that must be in cells that may be kept, and cells at most.
_MIN_KEPT, _MAX_CELLS = 0.9, 400
# Further keys of the random numbers, which are not those of any sample's noise.
_STREAM = 0, 0, 1


class Population(NamedTuple):
    """How often conditions came together.

    Ranks of numbers are in ``bins`` equal shares. A cell has the first and the last
    share of each number, a level twice, and -1 where nothing is specified.
    """

    bins: int
    cells: list[list[list[int]]]
    counts: list[int]

    @classmethod
    def learn(
        cls,
        numbers: np.ndarray | None,
        conditions: dict[str, Condition],
        subjects: np.ndarray | None = None,
    ) -> Self | None:
        """Count combinations of conditions, in cells as small as privacy allows.

        Images with the same levels are halved, at the median of the number that varies
        most, until halves would have too few subjects.

        Shapes: numbers ``(n, conditions)``, subjects ``(n,)``.
        """
        if numbers is None or len(conditions) < 2:
            return None
        # No finer than the quantiles of each number, which a model file has, too; of a
        # b-value it has the limits alone.
        shares = [len(c.quantiles) - 1 for c in conditions.values() if c.quantiles]
        most = MAX_BINS if shares else 1
        bins = min((share for share in shares if share > 1), default=most)
        codes = _codes(numbers[:, : len(conditions)], conditions, bins)
        whose = np.arange(len(codes)) if subjects is None else subjects
        is_number = np.array([bool(c.quantiles) for c in conditions.values()])
        fixed = np.where(is_number, np.minimum(codes, 0), codes)
        _, group_of = np.unique(fixed, axis=0, return_inverse=True)
        fewest = max(MIN_GROUP_SIZE, math.ceil(len(np.unique(whose)) / _MAX_CELLS))
        cells = [
            codes[rows]
            for group in range(group_of.max() + 1)
            for rows in _split_cells(
                codes, np.flatnonzero(group_of.ravel() == group), whose, fewest
            )
        ]
        if sum(map(len, cells)) < _MIN_KEPT * len(codes):
            return None
        boxes = [np.stack([own.min(0), own.max(0)], 1).tolist() for own in cells]
        return cls(bins, boxes, list(map(len, cells)))

    def choose(
        self, codes: np.ndarray, is_class: np.ndarray, chance: float
    ) -> np.ndarray:
        """Choose one of the cells that agree best with specified codes.

        Shapes: codes, is_class ``(conditions,)``, result ``(conditions, 2)``.
        """
        cells = np.array(self.cells)
        first, last = cells[..., 0], cells[..., 1]
        off = np.maximum(np.maximum(first - codes, codes - last), 0)
        # Another level is further away than any number.
        off = np.where(is_class, (off > 0) * self.bins * len(codes), off)
        off = np.where(codes < 0, 0, off).sum(1)
        sums = np.cumsum((off == off.min()) * np.array(self.counts))
        return cells[np.searchsorted(sums, chance * sums[-1], side="right")]


def _split_cells(codes, rows, subjects, fewest):
    """Yield the rows of cells, none of which has fewer subjects than that."""
    if len(np.unique(subjects[rows])) < MIN_GROUP_SIZE:
        return
    own = codes[rows]
    for column in np.argsort(-np.ptp(own, 0), kind="stable"):
        below = own[:, column] <= np.median(own[:, column])
        if below.all():
            below = own[:, column] < np.median(own[:, column])
        halves = rows[below], rows[~below]
        if all(len(np.unique(subjects[half])) >= fewest for half in halves):
            for half in halves:
                yield from _split_cells(codes, half, subjects, fewest)
            return
    yield rows


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
    if not conditions or is_unconditional(requested_values):
        return requested_values
    table = {name: [None] * n for name in conditions}
    table |= requested(conditions, requested_values, n)
    rows = list(zip(*table.values(), strict=True))
    samples = range(first, first + (1 if same else n))
    # One of each condition and, where there are cells, one for the cell.
    count = len(conditions) + (population is not None)
    pairs = zip(rows, _quasi_random(seed, samples, count))
    drawn = [_draw_row(row, conditions, population, chances) for row, chances in pairs]
    filled = [
        [own if value is None else value for value, own in zip(row, drawn_row)]
        for row, drawn_row in zip(rows, drawn * n if same else drawn)
    ]
    return {name: list(values) for name, values in zip(table, zip(*filled))}


def _quasi_random(seed, numbers, count):
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
    numbers = [c.encode(name, v)[0] for v, (name, c) in zip(row, conditions.items())]
    cell, bins = [(-1, -1)] * len(numbers), 1
    if population is not None:
        bins, (chance, *chances) = population.bins, chances
        codes = _codes(np.array([numbers]), conditions, bins)[0]
        is_class = np.array([bool(c.levels) for c in conditions.values()])
        cell = population.choose(codes, is_class, chance)
    parts = zip(conditions.values(), cell, chances)
    return [_value(condition, *box, bins, u) for condition, box, u in parts]


def _value(condition, first, last, bins, chance):
    """Return the level or the number at a quantile; a direction is never drawn."""
    if condition.size == DIRECTION:
        return None
    if condition.size:
        levels = list(condition.levels)
        sums = np.cumsum(list(condition.levels.values()))
        by_chance = int(np.searchsorted(sums, chance * sums[-1], side="right"))
        # Of a file without counts, the last.
        return levels[first if first >= 0 else min(by_chance, len(levels) - 1)]
    rank = (first + chance * (last + 1 - first)) / bins if first >= 0 else chance
    ranks = np.linspace(0, 1, len(condition.quantiles))
    number = np.interp(rank, ranks, condition.quantiles)
    low, high = condition.quantiles[0], condition.quantiles[-1]
    # No more digits than anybody measures, but of a narrow range enough to differ.
    ratio = max(abs(low), abs(high)) / ((high - low) or 1)
    digits = 4 + math.floor(math.log10(max(1, ratio)))
    return min(max(low, float(f"{number:.{digits}g}")), high)


def _codes(numbers, conditions, bins):
    """Return numbers of levels and shares, ``(n, conditions)``; -1 where missing."""
    shares = np.minimum(np.floor(numbers * bins), bins - 1)
    sizes = np.array([condition.size for condition in conditions.values()])
    codes = np.where(sizes > 0, numbers, shares)
    unspecified = (numbers == UNSPECIFIED) | (sizes == DIRECTION)
    return np.where(unspecified, -1, codes).astype(int)
