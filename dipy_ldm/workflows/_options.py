"""Options of the commands: how they are declared, described, parsed and checked."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import wraps
import inspect
import re
from typing import Any, get_args, get_origin, get_type_hints

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._tables import as_number

# Options with other names in Python.
_OPTION_NAMES = {"n": "n_samples", "first": "first_sample"}
_TYPES = {str: "string", int: "int", float: "float", bool: "bool"}
_TITLE = "Parameters\n----------\n"


@dataclass
class Option:
    """An option of a command, besides its name, type, default and sentence.

    Parameters
    ----------
    group : str
        Title of its group in the help; empty for the first group.
    expert : bool
        Whether the help only names it.
    changes_result : bool
        Whether other values have other results, and a run with one is not resumed.
    of_autoencoder : bool
        Whether it concerns the training of the autoencoder alone.
    choices : sequence of str
        Its values, if only these are allowed.
    check : callable, optional
        Refuses invalid values, as ``check(name=value)``.
    requires : dict of str to str
        Options without which it has no effect, and what to do; empty to add them.
    excludes : dict of str to str
        Options with which it has no effect, and why; empty if that is obvious.
    replaced_by : sequence of str
        Options of the command line because of which that of a TOML file is ignored.
    """

    group: str = ""
    expert: bool = False
    changes_result: bool = True
    of_autoencoder: bool = False
    choices: Sequence[str] = ()
    check: Callable | None = None
    requires: Mapping[str, str] = field(default_factory=dict)
    excludes: Mapping[str, str] = field(default_factory=dict)
    replaced_by: Sequence[str] = ()

    def refuse_without_effect(self, name: str, changed: Container[str]) -> None:
        """Refuse the option beside others that are changed, if it has no effect."""
        for other, cure in self.requires.items():
            if other not in changed:
                cure = cure or f"add `{other}`, or leave `{name}` out"
                raise InputError(f"`{name}` has no effect without `{other}`", cure)
        for other, reason in self.excludes.items():
            if other in changed:
                reason = f": {reason}" if reason else ""
                raise InputError(
                    f"`{name}` has no effect with `{other}`{reason}",
                    "leave one of them out",
                )


def option(default: object, group: str = "", **properties) -> Any:
    """Declare a field of a class of options, with its default."""
    declared = Option(group, **properties)
    return field(default=default, metadata={"option": declared})


@dataclass(kw_only=True)
class CommandOptions:
    """Base class of the options of a command, which are its fields."""

    @classmethod
    def declared(cls) -> dict[str, Option]:
        """Return the declarations of all options by name, in the order of the help.

        Required ones come first, those of all commands after its own, and outputs last,
        of which DIPY wants the folder first.
        """
        bases = [base for base in cls.__mro__ if issubclass(base, CommandOptions)]
        shared = {entry.name for entry in fields(bases[-2:][0])}

        def place(entry):
            is_output, is_shared = "out_" in entry.name, entry.name in shared
            return entry.default is not MISSING, is_output, is_shared != is_output

        ordered = sorted(fields(cls), key=place)
        return {f.name: f.metadata.get("option", Option()) for f in ordered}

    @property
    def changed(self) -> list[str]:
        """Names of options that are neither empty nor have their default."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        defaults = {entry.name: entry.default for entry in fields(self)}
        return [n for n, v in values.items() if v != defaults[n] and (v or defaults[n])]

    def validate(self) -> None:
        """Refuse values that are invalid for any input, and options without effect."""
        changed = self.changed
        for name, declared in self.declared().items():
            value = getattr(self, name)
            if declared.check and value is not None:
                declared.check(**{name: value})
            if name in changed:
                declared.refuse_without_effect(name, changed)


def takes_options(run: Callable) -> Callable:
    """Let a workflow's ``run(options)`` take the fields of its options as arguments.

    DIPY builds the command line from its signature and its docstring.
    """
    kind = get_type_hints(run)["options"]
    hints, defaults = get_type_hints(kind), {f.name: f.default for f in fields(kind)}
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if value is MISSING else value,
        )
        for name in ("self", *kind.declared())
        for value in [defaults.get(name, MISSING)]
    ]
    signature = inspect.Signature(parameters)

    @wraps(run)
    def run_with_arguments(*args, **kwargs):
        arguments = signature.bind(*args, **kwargs).arguments
        flow, options = arguments.pop("self"), kind(**arguments)
        options.validate()
        run(flow, options)

    sentences = _read_sentences(kind)
    entries = [
        f"{name} : {_describe_type(hints[name], defaults[name])}\n{sentences[name]}"
        for name in kind.declared()
    ]
    run_with_arguments.__doc__ = "\n".join(
        [inspect.cleandoc(run.__doc__ or ""), "", _TITLE + "\n".join(entries)]
    )
    vars(run_with_arguments).update(__signature__=signature, options=kind)
    return run_with_arguments


def _read_sentences(kind):
    """Return the sentences on options from the docstrings of a class and its bases."""
    sentences: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, text = inspect.cleandoc(base.__doc__ or "").partition(_TITLE)
        entries = re.split(r"^(?=\w)", text, flags=re.MULTILINE)
        parts = (entry.rstrip().partition("\n") for entry in entries)
        sentences |= {name: sentence for name, _, sentence in parts}
    return sentences


def _describe_type(hint, default):
    """Return the type of a parameter as DIPY reads it from a docstring."""
    kind, _ = get_args(hint | None)
    is_list = get_origin(kind) is list
    words = "variable " * is_list + _TYPES[get_args(kind)[0] if is_list else kind]
    return words if default is MISSING else f"{words}, optional"


def option_writer(options: Container[str]) -> Callable[[str], str]:
    """Return a function that writes names of parameters as options of a command."""

    def write(name):
        if _OPTION_NAMES.get(name) in options:
            name = _OPTION_NAMES[name]
        return f"--{name}" if name in options else name

    return write


def parse_names(words: str | Iterable[str] | None) -> list[str]:
    """Parse names separated by spaces or commas."""
    return list(dict.fromkeys(_parts(words)))


def parse_channels(words: bool | list[str] | None) -> bool | list[str]:
    """Parse names of channels; True if these are along a fourth axis instead."""
    if words is None or isinstance(words, bool):
        return bool(words)
    return _parts(words) or True


def parse_steps(words: str | Iterable[str] | None) -> dict[str, float]:
    """Parse the steps that conditions are rounded to."""
    steps = {}
    for part in _parts(words):
        name, _, number = part.partition("=")
        step = as_number(number.strip())
        if step is None or step <= 0 or not name.strip():
            raise InputError(
                f"must be a name and a step above 0, such as age=5, not {part!r}",
                option="coarsen",
            )
        steps[name.strip()] = step
    return steps


def _parts(words):
    """Split words at commas; a text is one word."""
    words = [words] if isinstance(words, str) else words or ()
    return list(filter(None, map(str.strip, ",".join(words).split(","))))


def parse_filter(words: Iterable[str] | None) -> dict[str, list[str]]:
    """Parse the values that entities of file names must have."""
    values: dict[str, list[str]] = {}
    for word in words or ():
        key, equals, texts = word.partition("=")
        if not (key and equals):
            raise InputError(
                f"must be entity=value, such as task=rest, not {word!r}",
                option="filter",
            )
        values.setdefault(key, []).extend(texts.split(","))
    return values


def one_or_more(numbers: list | None) -> Any:
    """Return the number in a list of one, and other lists unchanged."""
    return numbers[0] if numbers and len(numbers) == 1 else numbers
