"""Cells of tables: missing, a number or a class, and how each is written."""

from collections.abc import Mapping
import math
from typing import Any

# In lower case: BIDS, an empty cell, R and numpy.
_MISSING = ("n/a", "", "na", "nan")
SEX_COLUMNS = ("sex", "gender")
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}


def is_missing(text: str | None) -> bool:
    """Say whether a cell says that nothing is known.

    Parameters
    ----------
    text : str or None
        The cell; None is for no cell.

    Returns
    -------
    bool
        True for an empty one, n/a, and what R and numpy write.
    """
    return text is None or text.strip().lower() in _MISSING


def as_number(text: str) -> float | None:
    """Read a number.

    Parameters
    ----------
    text : str
        A cell.

    Returns
    -------
    float or None
        None if it is none, or not finite.
    """
    try:
        # Python takes 1_000 for a number.
        number = math.nan if "_" in text else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def spelled(name: str, level: str, levels: Mapping[str, str] | None = None) -> str:
    """Spell a class in one way.

    Parameters
    ----------
    name : str
        The covariate.
    level : str
        The class, as someone wrote it.
    levels : dict of str to str, optional
        What the classes mean.

    Returns
    -------
    str
        M, F or O for a sex, also for a code that means one; other classes stay.
    """
    if name.lower() not in SEX_COLUMNS:
        return level
    meaning = (levels or {}).get(level, level)
    return _SEXES.get(level.lower()) or _SEXES.get(meaning.strip().lower(), level)


def as_text(value: Any) -> str:
    """Write a value as BIDS has it in tables.

    Parameters
    ----------
    value : object
        Number, class or None.

    Returns
    -------
    str
        Numbers without needless digits; ``n/a`` for None.
    """
    if value is None:
        return "n/a"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
