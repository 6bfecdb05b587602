"""Repeat runs: write the options of a command to a TOML file, and read them."""

import argparse
from importlib.metadata import version
from itertools import chain, count
import json
import math
from pathlib import Path
import platform
import re
import shlex
import sys
import tomllib

from dipy.workflows import base
from dipy.workflows.base import IntrospectiveArgumentParser
from dipy.workflows.workflow import Workflow

from dipy_ldm import __version__, _serialization
from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm._utils.files import claimed, make_folder
from dipy_ldm.workflows._options import CommandOptions, Option
from dipy_ldm.workflows._outputs import write_text

# Options that are not written, since a repeated run need not have them.
_NOT_WRITTEN = ("check", "resume")
# Groups of the help besides that of all other options and that of outputs, in order.
_GROUPS = "input", "model", "training", "machine"


def write_config(flow: Workflow, output: Path, options: CommandOptions, **used) -> Path:
    """Write the options of a run to a TOML file for ``--config``, and return the file.

    ``used`` has the defaults that the run chose. The file of another run is replaced
    only with ``--force``.
    """
    written = {name: v for name, v in vars(options).items() if name not in _NOT_WRITTEN}
    written |= {name: v for name, v in used.items() if name in written}
    written |= {"out_strat": flow._output_strategy, "mix_names": flow._mix_names}
    command = f"dipy_{flow.get_short_name()}"
    stem = re.sub(r"\.(safetensors|json)$", "", output.name)
    path = output.with_name(f"{stem}.toml")
    again = "dipy_check_ldm" if getattr(options, "check", False) else command
    lines = [*_table(command, written), "", *_table("versions", _versions()), ""]

    def text_of(file):
        # Relative to the working directory, as paths among the options are.
        head = f"# To repeat this run: {again} --config {shlex.quote(str(file))}"
        return "\n".join([head, *lines])

    make_folder(path.parent)
    with claimed(path, wait=True):  # other jobs of an array choose names, too
        unused = path if flow._force_overwrite else _unused_path(path, text_of)
        write_text(unused, text_of(unused))
    return unused


def _table(title, values):
    """Return a TOML table of values as lines, without None, which TOML lacks."""
    lines = (f"{n} = {_toml_value(v)}" for n, v in values.items() if v is not None)
    return [f"[{title}]", *lines]


def _toml_value(value):
    """Return a value as TOML, which JSON is, too, except inf and nan."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    indent = 4 if isinstance(value, list | tuple) and len(value) > 8 else None
    return json.dumps(value, ensure_ascii=False, default=str, indent=indent)


def _versions():
    import keras

    modules = ("keras", keras.backend.backend())
    versions = {name: sys.modules[name].__version__ for name in modules}
    versions |= {name: version(name) for name in ("dipy", "nibabel", "numpy")}
    python = platform.python_version()
    return {"dipy_ldm": __version__, **versions, "python": python}


def _unused_path(path, text_of):
    """Return the path, or the first numbered one that has no options of another run."""
    numbered = (path.with_name(f"{path.stem}-{i}.toml") for i in count(2))
    return next(
        file
        for file in chain([path], numbered)
        if not file.exists() or file.read_text("utf-8", "replace") == text_of(file)
    )


def plain_options(options: dict) -> dict:
    """Return options as files have them, with lists of one replaced by their item."""
    plain = json.loads(json.dumps(options, default=str))
    lists = {n: v for n, v in plain.items() if isinstance(v, list) and len(v) == 1}
    return plain | {name: value[0] for name, value in lists.items()}


class _StoreOnce(argparse.Action):
    """Store values; refuse a list of texts given twice, of which the last would win."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Store the values of an option or a positional argument."""
        earlier = getattr(namespace, self.dest, self.default)
        is_texts = option_string and self.type is str and isinstance(earlier, list)
        if is_texts and earlier is not self.default:
            name = self.option_strings[0]
            raise InputError(f"{name} is given twice", "put all its values after one")
        setattr(namespace, self.dest, values)


class ConfigParser(IntrospectiveArgumentParser):
    """DIPY's parser of a workflow's options, which can also read them from a file."""

    description: str | None

    def add_workflow(self, workflow: Workflow) -> dict:
        """Add the options of a workflow, and ``--config``."""
        self.command = f"dipy_{workflow.get_short_name()}"
        # DIPY reads the word none as None, but here it is a strategy.
        base.none_or_dtype = lambda kind: kind
        self.register("action", "store", _StoreOnce)
        subflows = super().add_workflow(workflow)
        takes = getattr(workflow.run, "options", CommandOptions)
        self._declared: dict[str, Option] = takes.declared()
        experts = [name for name, o in self._declared.items() if o.expert]
        text = str(self.description)
        if example := getattr(workflow, "example", ""):
            command = self.command
            _, start, rest = text.partition("With --check")
            if start and "--check" in sys.argv:
                command = "dipy_check_ldm"
                text = "Check inputs, options and machine before a training.\n\n"
                text += start + rest
            text = f"Example: {command} {example}\n\n{text}"
        if experts:
            names = ", --".join(experts)
            text += f"\n\nFurther options, see the documentation: --{names}."
        self.description = text
        self.add_argument(
            "--config",
            metavar="string",
            help="TOML file of an earlier run, from which to read options. Options on "
            "the command line take precedence.",
        )
        self._group_options()
        for action in self._actions:
            declared = self._declared.get(action.dest, Option())
            if declared.choices:
                action.metavar = f"{{{','.join(declared.choices)}}}"
            if declared.expert:
                action.help = argparse.SUPPRESS
        return subflows

    def _group_options(self):
        """Group the options in the help by subject."""
        *_, output = (g for g in self._action_groups if g.title.startswith("output"))
        self._action_groups.remove(output)
        groups = {title: self.add_argument_group(title) for title in _GROUPS}
        self._action_groups.append(output)
        groups["output"] = output
        for action in list(self._optionals._group_actions):
            declared = self._declared.get(action.dest, Option())
            if declared.group:
                self._optionals._group_actions.remove(action)
                groups[declared.group]._group_actions.append(action)

    def parse_args(self, args=None, namespace=None):
        """Parse the command line, with defaults from the file of ``--config``."""
        words = sys.argv[1:] if args is None else args
        finder = argparse.ArgumentParser(add_help=False)
        finder.add_argument("--config")
        finder.add_argument("--init")
        typed, _ = finder.parse_known_args(words)
        if typed.config is None:
            parsed = super().parse_args(words, namespace)
        else:
            self._take_defaults(typed.config, words, typed.init)
            parsed = self.parse_intermixed_args(words, namespace)
        del parsed.config
        for name, declared in self._declared.items():
            if declared.choices and (word := getattr(parsed, name)) is not None:
                choose(name, word, dict.fromkeys(declared.choices))
        return parsed

    def _take_defaults(self, file, words, init):
        """Use the options of a file as defaults."""
        typed = [word.partition("=")[0] for word in words if word.startswith("--")]
        not_taken = "help", "version", "config"
        actions = {a.dest: a for a in self._actions if a.dest not in not_taken}
        for name, value in _read(file, self.command).items():
            if name not in actions:
                raise InputError(
                    f"{file} has the option {name}, which {self.command} does not have",
                    "correct or remove it",
                )
            declared = self._declared.get(name, Option())
            required = [other for other in declared.requires if other in _NOT_WRITTEN]
            if required and not _is_typed(typed, required):
                continue  # a training has no use for the seconds of a check
            if not _is_typed(typed, _overriding_options(name, declared, typed, init)):
                _take_default(actions[name], value, file)


def _overriding_options(name, declared, typed, init):
    """Return the options of the command line that override one of a file."""
    is_trained = _is_typed(typed, ["steps_vqvae", "epochs_vqvae"])
    if declared.of_autoencoder and not is_trained:
        return ["init"]
    if name == "widths_ldm" and init is not None:
        document = _serialization.read_document(_serialization.find(init))
        return ["init"] if "latent_diffusion" in document else []
    return declared.replaced_by


def _is_typed(words, names):
    """Return whether one of these options is typed, perhaps abbreviated."""
    return any(f"--{name}".startswith(word) for name in names for word in words)


def _take_default(action, value, file):
    """Set the default of an option or a positional argument."""
    try:
        action.default = _convert(action, value)
    except ValueError as error:
        raise InputError(
            f"{action.dest} can't be {value!r} as in {file}", "correct it there"
        ) from error
    if not action.option_strings:
        action.nargs = "*" if action.nargs else "?"


def _convert(action, value):
    """Convert a value as the command line would, or raise a ValueError."""
    is_list, is_flag = action.nargs in ("*", "+"), isinstance(action.const, bool)
    values = value if isinstance(value, list) and is_list else [value]
    kinds = bool if is_flag else (str, int, float)
    if not all(isinstance(v, kinds) for v in values):
        raise ValueError(value)
    if is_flag:
        return value
    converted = [(action.type or str)(str(v)) for v in values]
    return converted if is_list else converted[0]


def _read(file, command):
    """Read the options of a command from a file."""
    cure = f"give a file that {command} wrote."
    try:
        document = tomllib.loads(Path(file).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{file} can't be read ({error.strerror})", cure) from error
    except ValueError as error:
        raise InputError(f"{file} is not valid TOML ({error})", cure) from error
    if not isinstance(document.get(command), dict):
        commands = [name for name in document if name.startswith("dipy_")]
        content = (
            f"options of {', '.join(commands)}, but none" if commands else "no options"
        )
        raise InputError(f"{file} has {content} of {command}", cure)
    return document[command]
