"""Checks of what the user gave, and the one error they raise."""


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
