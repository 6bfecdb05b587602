"""Checks of user input, and the error that they raise."""

from collections.abc import Mapping, Sequence
import math
from numbers import Integral, Real
from typing import Any
import unicodedata

import numpy as np
import numpy.typing as npt

# The limit of NumPy and Keras.
_MAX_SEED = 2**32 - 1
# Sums and differences of smaller numbers are finite in float32.
MAX_ABSOLUTE_VALUE = 1e38


class InputError(ValueError):
    """Invalid user input; the message says what is wrong, then the cure."""


def choose(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """Return a choice by its name; refuse unknown ones."""
    # Checked for a string first, since a list is unhashable and would raise TypeError.
    if isinstance(name, str) and name in table:
        return table[name]
    raise InputError(f"unknown {kind} {name!r}; choose one of {', '.join(table)}.")


def is_label(text: str) -> bool:
    """Return whether a text is neither a formula nor has control characters."""
    kinds = set(map(unicodedata.category, text))
    return not text.startswith("=") and not kinds & {"Cc", "Cs"}


def at_least(name: str, value: int | float, minimum: int | float) -> int | float:
    """Return a number; refuse it if it is too small."""
    if not isinstance(value, Real):
        raise InputError(f"{name} must be a number, not {value!r}.")
    # Not `value < minimum`, which NaN would pass.
    if not value >= minimum:
        raise InputError(f"{name} must be at least {minimum}, not {value}.")
    return value


def whole(name: str, value: int, minimum: int) -> int:
    """Return a whole number; refuse fractions and too small numbers."""
    at_least(name, value, minimum)
    if not isinstance(value, Integral):
        raise InputError(f"{name} must be a whole number, not {value!r}.")
    return value


def check_seed(seed: int) -> None:
    """Refuse invalid seeds."""
    if not isinstance(seed, Integral) or not 0 <= seed <= _MAX_SEED:
        raise InputError(
            f"seed must be a whole number from 0 to {_MAX_SEED}, not {seed}."
        )


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Refuse sizes that are empty or not positive whole numbers."""
    for name, size in sizes.items():
        numbers = plain([1] if size is None else size)
        numbers = numbers if isinstance(numbers, list) else [numbers]
        at_least(f"the length of {name}", len(numbers), 1)
        for number in numbers:
            whole(name, number, 1)


def check_patch(patch: int | Sequence[int] | None, rank: int) -> None:
    """Refuse a patch that is not positive, or of another number of dimensions."""
    if patch is None:
        return
    check_sizes(patch=patch)
    if np.size(patch) not in (1, rank):
        raise InputError(
            f"patch must be one number or {rank}, one for each side, not {patch}."
        )


def check_space(space: tuple[int, ...], rank: int) -> None:
    """Refuse invalid image sizes."""
    if len(space) != rank:
        raise InputError(f"space must have {rank} numbers, not {len(space)}.")
    check_sizes(space=space)


def check_counts(**counts: int | None) -> None:
    """Refuse counts below 1 and non-integers."""
    for name, count in counts.items():
        if count is not None:
            whole(name, count, 1)


def check_shares(**shares: float) -> None:
    """Refuse shares outside [0, 1]."""
    for name, share in shares.items():
        if not isinstance(share, Real) or not 0 <= share <= 1:
            raise InputError(f"{name} must lie between 0 and 1, not {plain(share)!r}.")


def check_rate(rate: float | None) -> None:
    """Refuse invalid learning rates."""
    if not isinstance(rate, Real) or not 0 < rate < math.inf:
        raise InputError(f"learning_rate must be above 0 and finite, not {rate!r}.")


def plain(value: Any) -> Any:
    """Convert numpy scalars and arrays to Python types, for JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def is_affine(affine: np.ndarray) -> bool:
    """Return whether a matrix is an invertible affine."""
    return (
        affine.shape == (4, 4)
        and bool(np.isfinite(affine).all())
        and affine[3].tolist() == [0, 0, 0, 1]
        and np.linalg.matrix_rank(affine[:3, :3]) == 3
    )


def check_affine(affine: npt.ArrayLike) -> np.ndarray:
    """Return an affine as an array; refuse invalid ones."""
    try:
        array = np.array(affine, "float64")
    except (TypeError, ValueError):
        array = np.zeros(())
    if not is_affine(array):
        raise InputError(
            "affine must be a finite, invertible 4 x 4 matrix with last row 0 0 0 1; "
            "use that of the image files."
        )
    return array
