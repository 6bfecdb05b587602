"""Checks of user input, and the error that they raise."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
import math
from numbers import Integral, Real
from pathlib import Path
import re
from typing import Any
import unicodedata

import numpy as np
import numpy.typing as npt

# The limit of NumPy and Keras.
_MAX_SEED = 2**32 - 1
# Sums and differences of smaller numbers are finite in float32.
MAX_ABSOLUTE_VALUE = 1e38
# Maximum number of lines of a report.
_MAX_COMPLAINTS = 50
# The name of an option in a text.
_OPTION = re.compile(r"`(\w+)`")


class InputError(ValueError):
    """Invalid user input: a problem and its cure.

    Texts mark names of options by backticks; :meth:`describe` writes them as Python or
    a command does.

    Parameters
    ----------
    problem : str
        What is wrong.
    cure : str
        What to do about it.
    option : str, optional
        The parameter with the problem, with which the message begins.
    files : sequence of Path
        The files with the problem.
    complaints : sequence of InputError
        Several problems, such as one of each file, which come first.
    """

    def __init__(
        self,
        problem: str = "",
        cure: str = "",
        *,
        option: str | None = None,
        files: Iterable[Path] = (),
        complaints: Iterable["InputError"] = (),
    ) -> None:
        self.problem, self.cure = problem.removesuffix("."), cure.removesuffix(".")
        self.option, self.files = option, tuple(files)
        self.complaints = tuple(chain(*(error._parts for error in complaints)))
        super().__init__(self.problem, self.cure)

    @property
    def _parts(self):
        """Complaints that stand for the error, if it has no text of its own."""
        return (self,) if self.problem or self.cure else self.complaints

    def __str__(self) -> str:
        return self.describe()

    def describe(self, write_option: Callable[[str], str] | None = None) -> str:
        """Return problem and cure as a sentence, after complaints on lines before.

        ``write_option`` writes the name of an option; by default, as in Python.
        """
        lines = [error.describe(write_option) for error in self.complaints]
        lines = list(dict.fromkeys(lines))
        if n_more := len(lines[_MAX_COMPLAINTS:]):
            lines[_MAX_COMPLAINTS:] = [f"and {n_more} more"]
        subject = self.option
        if subject and write_option:
            subject = write_option(subject)
        problem = " ".join(filter(None, [subject, self.problem]))
        if sentence := "; ".join(filter(None, [problem, self.cure])):
            sentence = capitalized(sentence) if lines else sentence
            lines.append(f"{sentence}.")
        return write_options("\n".join(lines), write_option)

    @property
    def options(self) -> set[str]:
        """Names of all options that the message mentions."""
        names = _OPTION.findall(self.describe())
        return {*names, *filter(None, [self.option])}

    def renamed(self, names: Mapping[str, str]) -> "InputError":
        """Return the error with other names of files."""
        pattern = re.compile("|".join(map(re.escape, sorted(names, reverse=True))))

        def rename(text):
            return pattern.sub(lambda match: names.get(match[0], ""), str(text))

        return InputError(
            rename(self.problem),
            rename(self.cure),
            option=self.option,
            files=[Path(rename(file)) for file in self.files],
            complaints=[error.renamed(names) for error in self.complaints],
        )

    def to_saved(self) -> dict[str, Any]:
        """Return the error as JSON data."""
        return {
            "problem": self.problem,
            "cure": self.cure,
            "option": self.option,
            "files": list(map(str, self.files)),
            "complaints": [error.to_saved() for error in self.complaints],
        }

    @classmethod
    def from_saved(cls, saved: dict[str, Any]) -> "InputError":
        """Return the error of the data of :meth:`to_saved`."""
        files = map(Path, saved["files"])
        complaints = map(cls.from_saved, saved["complaints"])
        return cls(**saved | {"files": files, "complaints": complaints})


def capitalized(text: str) -> str:
    """Return a text that begins with a capital letter."""
    return text[:1].upper() + text[1:]


def write_options(text: str, write_option: Callable[[str], str] | None) -> str:
    """Write names of options, which a text has in backticks."""
    if write_option is None:
        return text
    return _OPTION.sub(lambda match: write_option(match[1]), text)


@contextmanager
def naming_files(*files: Path) -> Iterator[None]:
    """Record files in errors that are raised in this context, unless they name any."""
    try:
        yield
    except InputError as error:
        error.files = error.files or files
        raise


def check_each(check: Callable, items: Iterable) -> None:
    """Check each item, and report all errors at once; a system error is the cause."""
    errors: list[InputError] = []
    for item in items:
        try:
            check(item)
        except InputError as error:
            errors.append(error)
    if errors:
        causes = (error.__cause__ for error in errors)
        cause = next((c for c in causes if isinstance(c, OSError) and c.errno), None)
        files = dict.fromkeys(file for error in errors for file in error.files)
        raise InputError(complaints=errors, files=files) from cause


def choose(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """Return a choice by its name; refuse unknown ones."""
    # Checked for a string first, since a list is unhashable and would raise TypeError.
    if isinstance(name, str) and name in table:
        return table[name]
    raise InputError(f"unknown {kind} {name!r}", f"choose one of {', '.join(table)}")


def is_label(text: str) -> bool:
    """Return whether a text is neither a formula nor has control characters."""
    kinds = set(map(unicodedata.category, text))
    return not text.startswith("=") and not kinds & {"Cc", "Cs"}


def at_least(name: str, value: int | float, minimum: int | float) -> int | float:
    """Return a number; refuse it if it is too small."""
    if not isinstance(value, Real):
        raise InputError(f"must be a number, not {value!r}", option=name)
    # Not `value < minimum`, which NaN would pass.
    if not value >= minimum:
        raise InputError(f"must be at least {minimum}, not {value}", option=name)
    return value


def whole(name: str, value: int, minimum: int) -> int:
    """Return a whole number; refuse fractions and too small numbers."""
    at_least(name, value, minimum)
    if not isinstance(value, Integral):
        raise InputError(f"must be a whole number, not {value!r}", option=name)
    return value


def check_seed(seed: int) -> None:
    """Refuse invalid seeds."""
    if not isinstance(seed, Integral) or not 0 <= seed <= _MAX_SEED:
        raise InputError(
            f"must be a whole number from 0 to {_MAX_SEED}, not {seed}", option="seed"
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
            f"must be one number or {rank}, one for each side, not {patch}",
            option="patch",
        )


def check_space(space: tuple[int, ...], rank: int) -> None:
    """Refuse invalid image sizes."""
    if len(space) != rank:
        raise InputError(f"must have {rank} numbers, not {len(space)}", option="space")
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
            raise InputError(
                f"must lie between 0 and 1, not {plain(share)!r}", option=name
            )


def check_rate(rate: float | None) -> None:
    """Refuse invalid learning rates."""
    if not isinstance(rate, Real) or not 0 < rate < math.inf:
        raise InputError(
            f"must be above 0 and finite, not {rate!r}", option="learning_rate"
        )


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
            "must be a finite, invertible 4 x 4 matrix with last row 0 0 0 1",
            "use that of the image files",
            option="affine",
        )
    return array
