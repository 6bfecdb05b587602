"""The command line: what the library says, in the words of the command."""

import logging
import sys

from dipy.workflows.workflow import Workflow
import pytest
from tqdm import tqdm

from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows.cli import as_options, level, options_of, run
from dipy_ldm.workflows.denoise import DenoiseLDMFlow

OPTIONS = ["seed", "shape", "batch_size", "skip_bad", "cache_dir"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("give a smaller `batch_size`.", "give a smaller --batch_size."),
        ("batch_size must be at least 1.", "--batch_size must be at least 1."),
        ("a batch of 3; name a cache_dir.", "a batch of 3; name a --cache_dir."),
        ("seed must be a number.", "--seed must be a number."),
        ("images must have the shape (3,).", "images must have the shape (3,)."),
        ("align them, or give a `shape`.", "align them, or give a --shape."),
        ("add `channels`.", "add channels."),  # no option of this command
        ("add --skip_bad.", "add --skip_bad."),
        ("no file a/skip_bad.nii, b_cache_dir", "no file a/skip_bad.nii, b_cache_dir"),
    ],
)
def test_parameters_are_told_as_options(said, told):
    assert as_options(said, OPTIONS) == told


def test_what_must_be_given_is_no_option():
    options = options_of(DenoiseLDMFlow())
    assert "strength" in options
    assert not {"model_file", "input_files"} & set(options)


def test_levels_of_the_log_are_known_by_name():
    assert level("debug") == logging.DEBUG
    with pytest.raises(InputError, match="unknown log_level 'LOUD'; choose .* DEBUG"):
        level("loud")


class Interrupted(Workflow):
    """A command that Ctrl-C ends while it shows a bar."""

    def run(self, out_dir=""):
        """Begin, and be interrupted.

        Parameters
        ----------
        out_dir : str, optional
            Where nothing is written.

        """
        rows = iter(tqdm(range(3), "rows"))
        next(rows)
        raise KeyboardInterrupt


class Broken(Workflow):
    """A command that has a bug."""

    def run(self, out_dir=""):
        """Do what can't be done.

        Parameters
        ----------
        out_dir : str, optional
            Where nothing is written.

        """
        raise ZeroDivisionError("a bug")


class Refused(Workflow):
    """A command that refuses what users gave."""

    def run(self, out_dir=""):
        """Refuse it.

        Parameters
        ----------
        out_dir : str, optional
            Where nothing is written.

        """
        raise InputError("give another `out_dir`.")


@pytest.mark.parametrize(
    ("flow", "last"),
    [
        (Broken(), "ZeroDivisionError: a bug\n"),
        (Refused(), "command: give another --out_dir.\n"),
    ],
)
def test_errors_are_told_from_bad_news_by_their_status(flow, last, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as end:
        run(flow)
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(last)


def test_nothing_is_drawn_below_the_last_word(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit, match="130"):
        run(Interrupted())
    assert capsys.readouterr().err.endswith("\ncommand: interrupted.\n")
