"""Reference of a command, made from the docstring of its workflow.

``.. workflow:: dipy_ldm.workflows.train.TrainLDMFlow`` says what the command does, how
it is called, and what its options mean, in the words that ``--help`` prints. Options
are named so that ``:option:`dipy_train_ldm --seed``` refers to them.
"""

import argparse
from importlib import import_module
import inspect
from unittest import mock

from dipy.workflows import flow_runner
from docutils import nodes
from docutils.statemachine import StringList
from numpydoc.docscrape import FunctionDoc
from sphinx.util.docutils import SphinxDirective

from dipy_ldm.workflows._config import ConfigParser

# Words of dipy.workflows.docstring_parser for the type of a value.
TYPES = ("float", "int", "string")
# What argparse and DIPY call two groups of options.
TITLES = {"positional arguments": "files", "output arguments(optional)": "output"}


class Workflow(SphinxDirective):
    """Describe the command of a workflow."""

    required_arguments = 1
    option_spec = {}

    def run(self):
        module, name = self.arguments[0].rsplit(".", 1)
        flow = getattr(import_module(module), name)()
        self.env.note_dependency(inspect.getfile(type(flow)))
        lines = StringList(describe(flow), source=self.arguments[0])
        section = nodes.section(document=self.state.document)
        self.state.nested_parse(lines, self.content_offset, section, match_titles=True)
        return section.children


def describe(flow):
    """Describe a command, by its workflow, in lines of reStructuredText."""
    command = f"dipy_{flow.get_short_name()}"
    doc = FunctionDoc(flow.run)
    given = inspect.signature(flow.run).parameters
    inputs = [p for p in doc["Parameters"] if given[p.name].default is inspect._empty]
    lines = [*doc["Summary"], "", *doc["Extended Summary"], ""]
    lines += [*synopsis(command, inputs, flow.example), f".. program:: {command}", ""]
    parser = parser_of(flow)
    for group in parser._action_groups:
        names = [a.dest for a in group._group_actions if a.help != argparse.SUPPRESS]
        parameters = [p for p in doc["Parameters"] if p.name in names]
        lines += heading(TITLES.get(group.title, group.title)) if parameters else []
        for parameter in parameters:
            lines += option(parameter, given[parameter.name].default)
    experts = [a.dest for a in parser._actions if a.help == argparse.SUPPRESS]
    lines += heading("further options") if experts else []
    for parameter in doc["Parameters"]:
        if parameter.name in experts:
            lines += option(parameter, given[parameter.name].default)
    return lines + common_options(parser, given)


def heading(text):
    """Return a heading of a section."""
    text = text.capitalize()
    return [text, "-" * len(text), ""]


def synopsis(command, inputs, example):
    """Say how a command is called, and give an example."""
    words = [
        f"{p.name} [{p.name} ...]" if "variable" in p.type else p.name for p in inputs
    ]
    return [
        ".. code-block:: text",
        "",
        f"   {command} {' '.join(words)} [options]",
        "",
        ".. code-block:: bash",
        "",
        f"   {command} {example}",
        "",
    ]


def option(parameter, default):
    """Describe an input or an option; its default, where it is not said in words."""
    required = default is inspect._empty
    name = parameter.name if required else f"--{parameter.name}"
    value = "" if required else value_of(parameter.type)
    text = list(parameter.desc)
    if not required and is_said(default):
        text.append(f"Default: ``{default}``.")
    if parameter.name == "out_dir":
        text.append("Default: the current folder.")
    return [f".. option:: {name}{value}", "", *indented(text), ""]


def is_said(default):
    """Tell the value of an option that is not given from there being none."""
    # 0 equals False, and is a value.
    return default is not False and default not in (None, "", argparse.SUPPRESS)


def value_of(kind):
    """Say what follows an option: nothing, a value, or several."""
    if "bool" in kind:
        return ""
    word = next(word for word in TYPES if word in kind)
    return f" <{word}> ..." if "variable" in kind else f" <{word}>"


def common_options(parser, own):
    """Describe the options that all commands have."""
    lines = heading("options of all commands")
    for action in parser._actions:
        if action.dest in own:
            continue
        value = f" <{action.metavar}>" if action.metavar else ""
        names = ", ".join(f"{name}{value}" for name in action.option_strings)
        text = action.help[0].upper() + action.help[1:].rstrip(".") + "."
        if is_said(action.default):
            text += f" Default: ``{action.default}``."
        lines += [f".. option:: {names}", "", *indented([text]), ""]
    return lines


def parser_of(flow):
    """Return the parser that DIPY makes for a workflow, and keeps to itself."""

    class CaughtError(Exception):
        pass

    def catch(parser):
        raise CaughtError(parser)

    flow_runner.IntrospectiveArgumentParser = ConfigParser
    with mock.patch.object(ConfigParser, "get_flow_args", catch):
        try:
            flow_runner.run_flow(flow)
        except CaughtError as caught:
            return caught.args[0]


def indented(lines):
    """Move lines into the body of a directive."""
    return [f"   {line}" for line in lines]


def setup(app):
    """Add the directive."""
    app.add_directive("workflow", Workflow)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
