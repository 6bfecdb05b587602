"""``dipy_ldm_bids``: denoise, inpaint or check a BIDS dataset, as a BIDS App."""

import argparse
from contextlib import suppress
import re
import sys

from dipy_ldm import __version__, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows import cli

_TASKS = "denoise", "inpaint", "check"


def main() -> None:
    """Run a command on the scans of a BIDS dataset."""
    parser = _parser()
    options, further = parser.parse_known_args()
    if options.task == "check" and options.model_file is not None:
        parser.error("--model_file has no effect with --task check; leave it out")
    if options.task != "check" and options.model_file is None:
        parser.error(f"--task {options.task} needs a --model_file")
    sys.argv = command_line(options, further)
    getattr(cli, options.task)()


def _parser():
    parser = argparse.ArgumentParser(
        "dipy_ldm_bids",
        description="Denoise, inpaint or check the scans of a BIDS dataset. Other "
        "options are those of dipy_denoise_ldm, dipy_inpaint_ldm or dipy_check_ldm.",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", help="BIDS dataset")
    parser.add_argument("output_dir", help="output folder (BIDS derivatives dataset)")
    parser.add_argument("analysis_level", choices=["participant"])
    multiple: dict = {"nargs": "+", "action": "extend", "default": []}
    subjects = "subjects to process, with or without sub- (default: all)"
    parser.add_argument("--participant_label", help=subjects, **multiple)
    task = "what to do (default: denoise)"
    parser.add_argument("--task", choices=_TASKS, default="denoise", help=task)
    parser.add_argument("--model_file", help="model file or the packaged brains")
    parser.add_argument("--filter", help="BIDS entities, such as ses=01", **multiple)
    suffix = "suffix of scans (default: the model's or T1w; none for named channels)"
    parser.add_argument("--suffix", help=suffix)
    version = f"dipy_ldm {__version__}"
    parser.add_argument("--version", action="version", version=version)
    return parser


def _find_suffix(model_file, further):
    """Return the suffix of the scans; None if channels have their own."""
    if re.search("--channels[ =][^-]", " ".join(further)):
        return None
    document: dict = {}
    with suppress(InputError):  # which the command reports
        document = _serialization.read_document(_serialization.find(model_file or ""))
    return None if document.get("channels") else document.get("suffix") or "T1w"


def command_line(options: argparse.Namespace, further: list[str]) -> list[str]:
    """Return the equivalent command line of dipy_ldm."""
    words = [f"dipy_{options.task}_ldm", options.model_file, options.bids_dir]
    suffix = options.suffix or _find_suffix(options.model_file, further)
    words += ["--suffix", suffix] if suffix else []
    filters = options.filter
    if options.participant_label:
        labels = (label.removeprefix("sub-") for label in options.participant_label)
        filters = [f"sub={','.join(labels)}", *filters]
    words += ["--filter", *filters] if filters else []
    words += ["--bids"] if options.task != "check" else []
    # The check takes no model file.
    return [*filter(None, words), "--out_dir", options.output_dir, *further]
