"""Checks of what the user gave, and the one error they raise."""

import numpy as np

# What NumPy and Keras take.
_MOST_SEED = 2**32 - 1


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


def check_seed(seed):
    """Refuse what can't be the seed of a training.

    Parameters
    ----------
    seed : int
        Seed.

    Raises
    ------
    InputError
        If it is no whole number, or too small or large.
    """
    if not 0 <= seed <= _MOST_SEED or int(seed) != seed:
        raise InputError(
            f"seed must be a whole number from 0 to {_MOST_SEED}, not {seed}."
        )


def check_sizes(**sizes):
    """Refuse sizes of which nothing can be built.

    Parameters
    ----------
    **sizes : int or sequence of int
        Numbers that must be at least 1, by their names; None is for a default.

    Raises
    ------
    InputError
        If a number is too small, or a sequence is empty.
    """
    for name, size in sizes.items():
        numbers = [1] if size is None else np.atleast_1d(size)
        at_least(f"the length of {name}", len(numbers), 1)
        for number in numbers:
            at_least(name, number, 1)
