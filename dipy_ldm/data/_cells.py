"""Cells of tables: missing, a number or a class, and how each is written."""

from collections.abc import Mapping
import math
from typing import Any

# In lower case: BIDS, an empty cell, R and numpy.
_MISSING = ("n/a", "", "na", "nan")
SEX_COLUMNS = ("sex", "gender")
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}


def is_missing(text: str | None) -> bool:
    """Say whether a cell says that nothing is known."""
    return text is None or text.strip().lower() in _MISSING


def as_number(text: str) -> float | None:
    """Read a number."""
    try:
        # Python takes 1_000 for a number.
        number = math.nan if "_" in text else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def spelled(name: str, level: str, levels: Mapping[str, str] | None = None) -> str:
    """Spell a class in one way."""
    if name.lower() not in SEX_COLUMNS:
        return level
    meaning = (levels or {}).get(level, level)
    return _SEXES.get(level.lower()) or _SEXES.get(meaning.strip().lower(), level)


def as_text(value: Any) -> str:
    """Write a value as BIDS has it in tables."""
    if value is None:
        return "n/a"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
