"""The command line: messages of the library name the options of the command."""

import inspect
import logging
import re
import sys

from dipy.workflows.workflow import Workflow
import pytest
from tqdm import tqdm

from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows import cli
from dipy_ldm.workflows._config import ConfigParser
from dipy_ldm.workflows._options import option_writer
from dipy_ldm.workflows.audit import AuditLDMFlow
from dipy_ldm.workflows.cli import _log_level, run
from dipy_ldm.workflows.denoise import DenoiseLDMFlow
from dipy_ldm.workflows.evaluate import EvaluateLDMFlow
from dipy_ldm.workflows.generate import GenerateLDMFlow
from dipy_ldm.workflows.inpaint import InpaintLDMFlow
from dipy_ldm.workflows.train import TrainLDMFlow

COMMANDS = (
    TrainLDMFlow,
    GenerateLDMFlow,
    DenoiseLDMFlow,
    InpaintLDMFlow,
    EvaluateLDMFlow,
    AuditLDMFlow,
)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("give a smaller `batch_size`.", "give a smaller --batch_size."),
        ("`a` must have the shape `b`.", "a must have the shape b."),  # no options
        ("give a larger `n`.", "give a larger --n_samples."),
        ("give a larger `first`.", "give a larger --first_sample."),
        ("add --skip_bad.", "add --skip_bad."),
        ("no file a/batch_size.nii", "no file a/batch_size.nii."),
    ],
)
def test_names_in_backticks_are_written_as_options(sentence, expected):
    options = ["batch_size", "skip_bad", "n_samples", "first_sample"]
    assert InputError(sentence).describe(option_writer(options)) == expected


@pytest.mark.parametrize(
    ("option", "written"), [("n", "--n_samples"), ("images", "images")]
)
def test_messages_begin_with_an_option_as_the_command_writes_it(option, written):
    error = InputError("must be at least 20", option=option)
    assert (
        error.describe(option_writer(["n_samples"]))
        == f"{written} must be at least 20."
    )


def test_help_has_defaults_that_say_something_and_groups(capsys):
    text = read_help(capsys)
    assert "Random seed. (default: 0)" in text
    assert "Output directory. (default: current directory)" in text
    assert "Default: 5 epochs (images) or 4,000 steps (volumes). " in text
    assert not re.search(r"default: (None|False|\))", text)
    titles = re.findall(r"^([a-z ]+.*):$", text, re.MULTILINE)
    groups = ["positional arguments", "options", "input", "model", "training"]
    assert titles == [*groups, "machine", "output arguments(optional)"]


@pytest.mark.parametrize("flow", COMMANDS)
def test_help_begins_with_an_example_that_works(flow):
    parser = ConfigParser()
    parser.add_workflow(flow())
    name, command, *words = parser.description.splitlines()[0].split()
    assert (name, command) == ("Example:", f"dipy_{flow.get_short_name()}")
    parser.parse_args(words)


def test_help_of_the_check_is_about_the_check(capsys):
    text = read_help(capsys, "check")
    assert "\nExample: dipy_check_ldm bids/ --suffix T1w" in text
    assert "\n\nCheck inputs, options and machine before a training.\n\nWith " in text
    assert "Train a latent diffusion model" not in text


def read_help(capsys, command="train"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "1000")
        patch.setattr(sys, "argv", [f"dipy_{command}_ldm", "--help"])
        with pytest.raises(SystemExit, match="0"):
            getattr(cli, command)()
    return capsys.readouterr().out


def test_docstrings_describe_options_in_the_order_of_the_signature():
    text = EvaluateLDMFlow.run.__doc__
    names = re.findall(r"^(\w+) : ", text, re.MULTILINE)
    assert names == [*inspect.signature(EvaluateLDMFlow().run).parameters]
    assert "\n    Network evaluations per sample. Default: 10.\n" in text
    # Its own comes before the one that is shared.
    assert "\n    Random seed of the noise and of all choices.\n" in text


def test_log_levels_are_found_by_name():
    assert _log_level("debug") == logging.DEBUG
    with pytest.raises(InputError, match="unknown log_level 'LOUD'; choose .* DEBUG"):
        _log_level("loud")


class Failing(Workflow):
    """A command that shows a bar, and fails."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def run(self, out_dir=""):
        """Begin, and fail.

        Parameters
        ----------
        out_dir : str, optional
            Where nothing is written.

        """
        next(iter(tqdm(range(3), "rows")))
        logging.getLogger("dipy_ldm").warning("there is no `%s`", "out_dir")
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected", "last"),
    [
        (ZeroDivisionError("a bug"), 2, "\nZeroDivisionError: a bug\n"),
        (InputError("give another `out_dir`."), 2, "command: give another --out_dir."),
        (KeyboardInterrupt(), 130, "\ncommand: interrupted."),
    ],
    ids=["bug", "wrong input", "Ctrl-C"],
)
def test_failures_end_with_their_message(error, expected, last, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as end:
        run(Failing(error))
    assert end.value.code == expected
    out, err = capsys.readouterr()
    assert "there is no --out_dir" in out
    # Below it, no bar is drawn.
    assert err.removesuffix("\n").endswith(last.removesuffix("\n"))
