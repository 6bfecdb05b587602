"""``dipy_ldm_bids``: the commands for scans, called as a BIDS App."""

import argparse
from contextlib import suppress
import re
import sys

from dipy_ldm import __version__, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows import cli

_TASKS = "denoise", "inpaint", "check"


def main() -> None:
    """Run one of the commands on the scans of a BIDS dataset."""
    options, further = _parser().parse_known_args()
    sys.argv = command_line(options, further)
    getattr(cli, options.task)()


def _parser():
    parser = argparse.ArgumentParser(
        "dipy_ldm_bids",
        description="Denoise, inpaint or check the scans of a BIDS dataset. Further "
        "options are those of dipy_denoise_ldm, dipy_inpaint_ldm or dipy_check_ldm.",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", help="the dataset")
    parser.add_argument("output_dir", help="where results go, as a derived dataset")
    parser.add_argument("analysis_level", choices=["participant"])
    parser.add_argument(
        "--participant_label", nargs="+", help="subjects, with or without sub-"
    )
    parser.add_argument("--task", choices=_TASKS, default="denoise")
    parser.add_argument("--model_file", help="model of dipy_train_ldm, or brains")
    parser.add_argument("--filter", nargs="+", default=[], help="such as ses=01")
    usual = "scans to use (default: T1w, unless the channels have names)"
    parser.add_argument("--suffix", help=usual)
    version = f"dipy_ldm {__version__}"
    parser.add_argument("--version", action="version", version=version)
    return parser


def _has_named_channels(model_file, further):
    """Return whether channels have suffixes of their own; no weights are read."""
    if re.search("--channels[ =][^-]", " ".join(further)):
        return True
    with suppress(InputError):  # which the command says in a sentence
        document = _serialization.read_document(model_file or "")
        return bool(document.get("channels"))
    return False


def command_line(options: argparse.Namespace, further: list[str]) -> list[str]:
    """Return the command line that does the same."""
    words = [f"dipy_{options.task}_ldm"]
    if options.task == "check":
        if options.model_file is not None:
            _parser().error(
                "--model_file has no effect with --task check; leave it out"
            )
    elif options.model_file is None:
        _parser().error(f"--task {options.task} needs a --model_file")
    else:
        words += [options.model_file]
    words += [options.bids_dir]
    if options.suffix or not _has_named_channels(options.model_file, further):
        words += ["--suffix", options.suffix or "T1w"]
    chosen = options.filter
    if options.participant_label:
        labels = (label.removeprefix("sub-") for label in options.participant_label)
        chosen = [f"sub={','.join(labels)}", *chosen]
    words += ["--filter", *chosen] if chosen else []
    words += ["--bids"] if options.task != "check" else []
    return [*words, "--out_dir", options.output_dir, *further]
