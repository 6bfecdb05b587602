"""Measure the same training, sampling and decoding on each back-end of Keras.

Prints one line of JSON for each network: of each back-end the seconds of a step of
training, of the first step, of a step of sampling and of decoding, and the peak of
memory; the least, the middle and the most of all rounds. Each is measured in a process
of its own, in turn. The networks are those of ``peers.py``.
"""

from functools import partial
import json

from common import Parser, run
from peers import (
    OURS_COMMAND,
    add_measuring,
    check_measuring,
    collect,
    describe_processor,
    do,
    in_rounds,
)
from peers_common import NETWORKS

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
    add_measuring(parser)
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
    check_measuring(options)
    machine = {**describe_processor(), "precision": options.precision}
    print(json.dumps(machine), flush=True)
    for name in options.networks:
        measured = partial(measure, name=name, options=options)
        rounds = in_rounds(name, options.rounds, options.backends, measured)
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
    failure = f"{backend} failed with {name}"
    found = do(OURS_COMMAND, task, failure, KERAS_BACKEND=backend)
    return {figure: found[figure] for figure in FIGURES if figure in found}


if __name__ == "__main__":
    run(make_parser(), compare)
