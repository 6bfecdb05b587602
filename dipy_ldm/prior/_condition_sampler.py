"""Draw missing conditions from their distribution in the training images.

A model file identifies no subject: it has the counts of levels or the quantiles of each
condition and, for their joint distribution, cells of levels and ranges of numbers, none
of which has fewer than five subjects.
"""

from collections.abc import Sequence
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

# Minimum share of the images in large enough cells, and maximum number of cells.
_MIN_KEPT, _MAX_CELLS = 0.9, 400
# Keys of the random stream, which differ from those of any sample's noise.
_STREAM = 0, 0, 1


class Population(NamedTuple):
    """Joint distribution of conditions, as counts of cells.

    Ranks of numbers are divided into ``bins`` equal bins. A cell has the first and the
    last bin of each number, a level twice, and -1 for missing values.
    """

    bins: int
    cells: list[list[list[int]]]
    counts: list[int]

    @classmethod
    def learn(
        cls,
        numbers: np.ndarray,
        conditions: dict[str, Condition],
        subjects: np.ndarray,
    ) -> Self | None:
        """Count combinations of conditions in cells as small as privacy allows.

        Images with the same levels are split at the median of the number that varies
        most, until halves would have too few subjects.

        Shapes: numbers ``(n, conditions)``, subjects ``(n,)``.
        """
        if len(conditions) < 2:
            return None
        # No finer than the quantiles in the model file; a b-value only has limits.
        shares = [len(c.quantiles) - 1 for c in conditions.values() if c.quantiles]
        default = MAX_BINS if shares else 1
        bins = min((share for share in shares if share > 1), default=default)
        codes = _codes(numbers[:, : len(conditions)], conditions, bins)
        is_number = np.array([bool(c.quantiles) for c in conditions.values()])
        fixed = np.where(is_number, np.minimum(codes, 0), codes)
        _, group_of = np.unique(fixed, axis=0, return_inverse=True)
        min_size = max(MIN_GROUP_SIZE, math.ceil(len(np.unique(subjects)) / _MAX_CELLS))
        cells = [
            codes[rows]
            for group in range(group_of.max() + 1)
            for rows in _split_cells(
                codes, np.flatnonzero(group_of.ravel() == group), subjects, min_size
            )
        ]
        if sum(map(len, cells)) < _MIN_KEPT * len(codes):
            return None
        boxes = [np.stack([cell.min(0), cell.max(0)], 1).tolist() for cell in cells]
        return cls(bins, boxes, list(map(len, cells)))

    def choose(
        self, codes: np.ndarray, is_class: np.ndarray, chance: float
    ) -> np.ndarray:
        """Draw one of the cells that are nearest to the specified codes.

        Shapes: codes, is_class ``(conditions,)``, result ``(conditions, 2)``.
        """
        cells = np.array(self.cells)
        first, last = cells[..., 0], cells[..., 1]
        gaps = np.maximum(np.maximum(first - codes, codes - last), 0)
        # Another level is further away than any number.
        gaps = np.where(is_class, (gaps > 0) * self.bins * len(codes), gaps)
        gaps = np.where(codes < 0, 0, gaps).sum(1)
        sums = np.cumsum((gaps == gaps.min()) * np.array(self.counts))
        return cells[np.searchsorted(sums, chance * sums[-1], side="right")]


def _split_cells(
    codes: np.ndarray, rows: np.ndarray, subjects: np.ndarray, min_size: int
):
    """Yield the rows of cells with at least `min_size` subjects each."""
    if len(np.unique(subjects[rows])) < MIN_GROUP_SIZE:
        return
    cell = codes[rows]
    for column in np.argsort(-np.ptp(cell, 0), kind="stable"):
        middle = np.median(cell[:, column])
        below = cell[:, column] <= middle
        if below.all():
            below = cell[:, column] < middle
        halves = rows[below], rows[~below]
        if all(len(np.unique(subjects[half])) >= min_size for half in halves):
            for half in halves:
                yield from _split_cells(codes, half, subjects, min_size)
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
    """Draw missing conditions, given seed, sample number and requested values."""
    if not conditions or is_unconditional(requested_values):
        return requested_values
    table = {name: [None] * n for name in conditions}
    table |= requested(conditions, requested_values, n)
    rows = list(zip(*table.values(), strict=True))
    samples = range(first, first + (1 if same else n))
    # One number for each condition and, for a joint distribution, one for the cell.
    count = len(conditions) + (population is not None)
    pairs = zip(rows, _quasi_random(seed, samples, count))
    drawn = [_draw_row(row, conditions, population, chances) for row, chances in pairs]
    filled = [
        [default if value is None else value for value, default in zip(row, drawn_row)]
        for row, drawn_row in zip(rows, drawn * n if same else drawn)
    ]
    return dict(zip(table, map(list, zip(*filled))))


def _quasi_random(seed: int, numbers: Sequence[int], count: int):
    """Return quasi-random numbers from 0 to 1, ``(n, count)``.

    Consecutive samples are spread more evenly than at random: multiples of powers of
    the generalised golden ratio, from a start drawn by the seed.
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (count + 1))
    start = np.random.default_rng([seed, *_STREAM]).random(count)
    return (start + np.outer(numbers, ratio ** -np.arange(1, count + 1))) % 1


def _draw_row(
    row: Sequence,
    conditions: dict[str, Condition],
    population: Population | None,
    chances: Sequence[float],
):
    """Draw a value of each missing condition, given the others."""
    numbers = [c.encode(name, v)[0] for v, (name, c) in zip(row, conditions.items())]
    cell, bins = np.full((len(numbers), 2), -1), 1
    if population is not None:
        bins, (chance, *chances) = population.bins, chances
        codes = _codes(np.array([numbers]), conditions, bins)[0]
        is_class = np.array([bool(c.levels) for c in conditions.values()])
        cell = population.choose(codes, is_class, chance)
    parts = zip(conditions.values(), cell, chances)
    return [_value_at(condition, i, j, bins, u) for condition, (i, j), u in parts]


def _value_at(condition: Condition, first: int, last: int, bins: int, chance: float):
    """Return the level or number at a quantile, and None for a direction."""
    if condition.size == DIRECTION:
        return None
    if condition.size:
        levels = list(condition.levels)
        sums = np.cumsum(list(condition.levels.values()))
        by_chance = int(np.searchsorted(sums, chance * sums[-1], side="right"))
        # The last level, if a file has no counts.
        return levels[first if first >= 0 else min(by_chance, len(levels) - 1)]
    rank = (first + chance * (last + 1 - first)) / bins if first >= 0 else chance
    ranks = np.linspace(0, 1, len(condition.quantiles))
    number = np.interp(rank, ranks, condition.quantiles)
    low, high = condition.quantiles[0], condition.quantiles[-1]
    # Digits as in measurements, but more in a narrow range, so that values differ.
    ratio = max(abs(low), abs(high)) / ((high - low) or 1)
    digits = 4 + math.floor(math.log10(max(1, ratio)))
    return min(max(low, float(f"{number:.{digits}g}")), high)


def _codes(numbers: np.ndarray, conditions: dict[str, Condition], bins: int):
    """Return numbers of levels and bins, ``(n, conditions)``; -1 where missing."""
    shares = np.minimum(np.floor(numbers * bins), bins - 1)
    sizes = np.array([condition.size for condition in conditions.values()])
    codes = np.where(sizes > 0, numbers, shares)
    unspecified = (numbers == UNSPECIFIED) | (sizes == DIRECTION)
    return np.where(unspecified, -1, codes).astype(int)
