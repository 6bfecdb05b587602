"""Options that are one word: names, and names with numbers; or one number or more."""

from collections.abc import Sequence

from dipy_ldm.data.cells import as_number
from dipy_ldm.validation import InputError


def steps_of(text: str | None) -> dict[str, float]:
    """Read how numbers are to be coarsened.

    Parameters
    ----------
    text : str or None
        Such as ``"age=5,weight=10"``; None is for not at all.

    Returns
    -------
    dict of str to float
        Step of each.

    Raises
    ------
    InputError
        If it is written otherwise, or a step is not above 0.
    """
    steps = {}
    for part in filter(None, (text or "").split(",")):
        name, _, number = part.partition("=")
        step = as_number(number.strip())
        if step is None or step <= 0 or not name.strip():
            raise InputError(
                f"coarsen must be a name and a step above 0, as age=5 is, not {part!r}."
            )
        steps[name.strip()] = step
    return steps


def names_of(text: str | None) -> list[str]:
    """Read the names of covariates.

    Parameters
    ----------
    text : str or None
        Such as ``"age,sex"``; None is for none.

    Returns
    -------
    list of str
        Each once.
    """
    names = (name.strip() for name in (text or "").split(","))
    return list(dict.fromkeys(filter(None, names)))


def one_or_more(numbers: Sequence | None) -> Sequence | float | None:
    """Take what was given as a list of one for the number.

    Parameters
    ----------
    numbers : sequence or None
        What was given.

    Returns
    -------
    sequence or float or None
        The number, if there is one.
    """
    return numbers[0] if numbers and len(numbers) == 1 else numbers
