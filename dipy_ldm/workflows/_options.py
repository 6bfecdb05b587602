"""Options of the commands: how they are written, and what they may be."""

from collections.abc import Iterable
from typing import Any

from dipy_ldm._utils.checks import InputError, check_rate, check_seed, check_shares
from dipy_ldm.data._tables import as_number


def steps_of(text: str | None) -> dict[str, float]:
    """Read how numbers are to be coarsened."""
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
    """Read the names of covariates."""
    names = (name.strip() for name in (text or "").split(","))
    return list(dict.fromkeys(filter(None, names)))


def values_of(words: Iterable[str] | None) -> dict[str, list[str]]:
    """Read which values names of files must have."""
    values = {}
    for word in words or ():
        key, equals, texts = word.partition("=")
        if not (key and equals):
            raise InputError(
                f"filter must be entity=value, such as task=rest, not {word!r}."
            )
        values[key] = texts.split(",")
    return values


def check(
    validation: float,
    learning_rate: float | None,
    seed: int,
    mask_files: Any = None,
    background: float = 1.0,
) -> None:
    """Refuse numbers that make no sense, whatever the inputs of a training are."""
    if mask_files and background == 1:
        raise InputError(
            "--mask_files make no difference with --background 1; give the weight of "
            "what lies outside of them, such as --background 0.1."
        )
    check_shares(background=background)
    if not 0 <= validation < 1:
        raise InputError(f"validation must lie from 0 to below 1, not {validation}.")
    if learning_rate is not None:
        check_rate(learning_rate)
    check_seed(seed)


def one_or_more(numbers: list | None) -> Any:
    """Take what was given as a list of one for the number."""
    return numbers[0] if numbers and len(numbers) == 1 else numbers
