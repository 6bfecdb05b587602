"""Checks of what the user gave, and the one error they raise."""

import numpy as np


class InputError(ValueError):
    """What the user gave can't be used; the message is one sentence naming the cure."""


def choose(what, name, table):
    """Look a named choice up.

    Parameters
    ----------
    what : str
        What is being chosen, in the user's words.
    name : str
        The user's choice.
    table : dict
        The choices there are, by name.

    Returns
    -------
    object
        The entry of `table` under `name`.

    Raises
    ------
    InputError
        If `table` has no such entry.
    """
    # Only a string is looked up: a list, say, is unhashable and would raise TypeError.
    if isinstance(name, str) and name in table:
        return table[name]
    raise InputError(f"unknown {what} {name!r}; choose one of {', '.join(table)}.")


def at_least(what, value, minimum):
    """Check that a number is not too small.

    Parameters
    ----------
    what : str
        The parameter's name.
    value : int or float
        The user's number.
    minimum : int or float
        The smallest number allowed.

    Returns
    -------
    int or float
        `value` itself.

    Raises
    ------
    InputError
        If `value` is smaller than `minimum`, or not a number.
    """
    # Written so that NaN, which is neither smaller nor larger, is refused too.
    if not value >= minimum:
        raise InputError(f"{what} must be at least {minimum}, not {value}.")
    return value


def check_sizes(seed, **sizes):
    """Refuse hyper-parameters of which no network can be built.

    Parameters
    ----------
    seed : int
        Seed.
    **sizes : int or sequence of int
        Numbers that must be at least 1, by their names.

    Raises
    ------
    InputError
        If a number is too small, or a sequence is empty.
    """
    at_least("seed", seed, 0)
    for name, size in sizes.items():
        numbers = np.atleast_1d(size)
        at_least(f"the length of {name}", len(numbers), 1)
        for number in numbers:
            at_least(name, number, 1)
