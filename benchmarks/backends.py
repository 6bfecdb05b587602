"""Measure the same training, sampling and decoding on each back-end of Keras.

Prints one line of JSON for each network: of each back-end the seconds of a step of
training, of the first step, of a step of sampling and of decoding, and the peak of
memory; the least, the middle and the most of all rounds. Each is measured in a process
of its own, in turn. The networks are those of ``peers.py``.
"""

import json
import os
from pathlib import Path
import subprocess
import sys

from common import Parser, run, tell
import numpy as np
from peers import collect, read_processor
from peers_common import NETWORKS, cores

from dipy_ldm.validation import InputError, at_least

HERE = Path(__file__).resolve().parent
BACKENDS = ("tensorflow", "jax", "torch")
FIGURES = ("step", "first_step", "sample_step", "decode", "peak_gib")


def make_parser():
    """Describe the command line.

    Returns
    -------
    Parser
        Parser of the options.
    """
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--steps", type=int, default=8, help="steps that are measured in each round"
    )
    return parser


def compare(options):
    """Measure one network after the other, and print the figures.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.

    Raises
    ------
    InputError
        If a number makes no sense, or a back-end can't be measured.
    """
    for name in ("rounds", "steps"):
        at_least(name, getattr(options, name), 1)
    processor = read_processor(Path("/proc/cpuinfo").read_text())
    machine = {**processor, "cores": cores(), "precision": options.precision}
    print(json.dumps(machine), flush=True)
    for name in options.networks:
        rounds = {backend: [] for backend in options.backends}
        for number in range(options.rounds):
            for backend, figures in rounds.items():
                tell(f"{name}, round {number + 1} of {options.rounds}: {backend}")
                figures.append(measure(backend, name, options))
                tell(f"  {np.median(figures[-1]['step']):.3f} seconds a step")
        line = {backend: collect(figures) for backend, figures in rounds.items()}
        print(json.dumps({"network": name, **line}), flush=True)


def measure(backend, name, options):
    """Measure a network in a process of its own.

    Parameters
    ----------
    backend : str
        Back-end of Keras.
    name : str
        Name of the network.
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dict
        Figures.

    Raises
    ------
    InputError
        If the process fails.
    """
    task = {
        "network": name,
        "precision": options.precision,
        "batch_size": NETWORKS[name].batch_size,
        "steps": options.steps,
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "peers_ours.py"), json.dumps(task)],
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_BACKEND": backend},
    )
    if done.returncode:
        tell(done.stderr)
        raise InputError(f"{backend} failed with {name}.")
    found = json.loads(done.stdout)
    return {figure: found[figure] for figure in FIGURES if figure in found}


if __name__ == "__main__":
    run(make_parser(), compare)
