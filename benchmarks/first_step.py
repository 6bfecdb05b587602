"""Measure how soon the steps of ``dipy_train_ldm`` begin.

Prints one line of JSON: the seconds from the start of the command to the end of the
first step of the autoencoder, imports included, and from where each further stage
appears to the end of its first; the least, the middle and the most of all rounds. What
tests bring and an installed package does not have is hidden from the command.
"""

import argparse
import os
from pathlib import Path
import re
import subprocess
import sys
import tempfile
import time

from common import Parser, print_scores, tell
from peers import describe_processor, spread
from peers_common import ABSENT

from dipy_ldm._utils.checks import InputError, at_least

COMMAND = Path(sys.executable).with_name("dipy_train_ldm")
STEPS = 3
BEGUN = re.compile(r"(\w+): preparing the first step")
STEPPED = re.compile(rf"(\w+), epoch 1/\d+:[^\r]* [1-9]\d*/{STEPS} \[")


def make_parser():
    """Describe the command line.

    Returns
    -------
    Parser
        Parser of the options.
    """
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="files and options of dipy_train_ldm; the packaged digits if left out",
    )
    return parser


def measure(options):
    """Start the command again and again.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dict
        The machine, and figures of each stage.

    Raises
    ------
    InputError
        If a number makes no sense, or the command fails.
    """
    at_least("rounds", options.rounds, 1)
    arguments = options.arguments or ["mnist"]
    rounds = []
    for number in range(options.rounds):
        tell(f"round {number + 1} of {options.rounds}")
        rounds.append(time_stages(arguments))
    return {
        **describe_processor(),
        "arguments": " ".join(arguments),
        **{stage: spread([some[stage] for some in rounds]) for stage in rounds[0]},
    }


def time_stages(arguments):
    """Run the command once, and take the time of its stages.

    Parameters
    ----------
    arguments : list of str
        Files and options.

    Returns
    -------
    dict of str to float
        Seconds until the first step of each stage had ended.

    Raises
    ------
    InputError
        If the command fails, or ends without having trained.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in ABSENT:
            Path(folder, f"{name}.py").write_text("raise ImportError\n")
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        few = [f"--steps_{stage}={STEPS}" for stage in ("vqvae", "ldm")]
        begun, ended = watch(
            [COMMAND, *arguments, *few, "--out_dir", folder],
            # The bar is drawn after each step.
            os.environ
            | {"PYTHONPATH": os.pathsep.join(paths), "TQDM_MININTERVAL": "0"},
        )
    if not ended:
        raise InputError(
            "the command ended without a training; give files to train on."
        )
    # All that comes before belongs to the first.
    begun[next(iter(ended))] = 0
    return {stage: ended[stage] - begun[stage] for stage in ended}


def watch(command, environment):
    """Run a command, and note when each stage begins and has made its first step.

    Parameters
    ----------
    command : list
        The command.
    environment : dict of str to str
        Its environment.

    Returns
    -------
    begun, ended : dict of str to float
        Seconds after the start, by the names of the stages.

    Raises
    ------
    InputError
        If it fails.
    """
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}
    start, said = time.perf_counter(), ""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None
        while piece := os.read(process.stderr.fileno(), 2**16):
            now = time.perf_counter() - start
            said += piece.decode(errors="replace")
            for pattern, times in ((BEGUN, begun), (STEPPED, ended)):
                for stage in pattern.findall(said):
                    times.setdefault(stage, now)
    if process.returncode:
        raise InputError(f"the command failed: {said.strip().splitlines()[-1]}")
    return begun, ended


if __name__ == "__main__":
    print_scores(make_parser(), measure)
