"""Measure training and sampling against diffusers and MONAI, at the same sizes.

Prints one line of JSON for the machine, then one for each network and peer. Both sides
get the same widths, blocks, batches, precision and cores; each is measured in a
process of its own, in turn, for several rounds.
"""

import json
import os
from pathlib import Path
import platform
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, run, tell
import numpy as np
from peers_common import NETWORKS, cores

from dipy_ldm._utils.checks import InputError, at_least

HERE = Path(__file__).resolve().parent
OURS = "dipy_ldm"
OURS_COMMAND = [sys.executable, HERE / "peers_ours.py"]
# Of the processor, what decides which kernels there are.
FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni")
# What limits the kernels, where it is set.
LIMITS = (
    "ONEDNN_MAX_CPU_ISA",
    "TF_ENABLE_ONEDNN_OPTS",
    "XLA_FLAGS",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
)
# Figures of which the ratio is printed, ours to the peer's.
COMPARED = ("step", "first_step", "peak_gib", "own_gib", "sample_step", "decode")
# Figures that are the same in each round: they follow from the layers' shapes.
FIXED = ("weights", "gflop")


def make_parser():
    """Describe the command line.

    Returns
    -------
    Parser
        Parser of the options.
    """
    parser = Parser(description=__doc__.partition("\n")[0])
    add_measuring(parser)
    parser.add_argument(
        "--batch_size", type=int, help="that of each network's own if left out"
    )
    parser.add_argument(
        "--python_peers",
        default=HERE.parent / ".venv-peers" / "bin" / "python",
        help="Python that has diffusers and MONAI",
    )
    return parser


def add_measuring(parser):
    """Add the options of what is measured, and how often.

    Parameters
    ----------
    parser : Parser
        Is added to.
    """
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--steps", type=int, default=8, help="steps that are measured in each round"
    )


def main(arguments=None):
    """Measure what the command line asks for."""
    run(make_parser(), compare, arguments)


def compare(options):
    """Measure the machine, then one network after the other, and print the figures.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.

    Raises
    ------
    InputError
        If a number makes no sense, or one side can't be measured.
    """
    check_measuring(options)
    if options.batch_size is not None:
        at_least("batch_size", options.batch_size, 1)
    if not Path(options.python_peers).exists():
        raise InputError(f"there is no {options.python_peers}; run make peers.")
    machine = describe_machine(options)
    print(json.dumps(machine), flush=True)
    peak = max(machine["gflop_a_second"].values())
    for name in options.networks:
        figures = measure_in_turn(name, options)
        for peer in NETWORKS[name].peers:
            line = summarise(figures[OURS], figures[peer], peer, peak)
            print(json.dumps({"network": name, **line}), flush=True)


def check_measuring(options):
    """Refuse numbers that make no sense.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`add_measuring`.

    Raises
    ------
    InputError
        If there are some.
    """
    for name in ("rounds", "steps"):
        at_least(name, getattr(options, name), 1)


def measure_in_turn(name, options):
    """Measure a network of each library in turn, for several rounds.

    Parameters
    ----------
    name : str
        Name of the network.
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dict of str to list of dict
        Figures of each library, one dict a round.
    """
    network = NETWORKS[name]
    batch_size = options.batch_size or network.batch_size
    task = {"batch_size": batch_size, "steps": options.steps}
    return in_rounds(
        name,
        options.rounds,
        (OURS, *network.peers),
        lambda library: work(library, name, options, **task),
    )


def in_rounds(name, rounds, sides, measure):
    """Measure each side in turn, for several rounds.

    Parameters
    ----------
    name : str
        Name of the network.
    rounds : int
        How often.
    sides : sequence of str
        What is compared.
    measure : callable
        ``measure(side)`` gives its figures.

    Returns
    -------
    dict of str to list of dict
        Figures of each side, one dict a round.
    """
    figures: dict[str, list] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides:
            tell(f"{name}, round {number + 1} of {rounds}: {side}")
            found = measure(side)
            figures[side].append(found)
            tell(f"  {np.median(found['step']):.3f} seconds a step")
    return figures


def work(library, name, options, **task):
    """Measure in a process of its own, in the environment of the library.

    Parameters
    ----------
    library : str
        What is measured.
    name : str or None
        Name of the network; None is for the machine.
    options : argparse.Namespace
        As of :func:`make_parser`.
    **task
        Further options.

    Returns
    -------
    dict
        Figures.

    Raises
    ------
    InputError
        If the process fails.
    """
    task |= {"network": name, "precision": options.precision}
    if library == OURS:
        command = OURS_COMMAND
    else:
        command = [options.python_peers, HERE / "peers_torch.py"]
        task["library"] = library
    return do(command, task, f"{library} failed with {name or 'a product of matrices'}")


def do(command, task, failure, **environment):
    """Let a script do a task in a process of its own.

    Parameters
    ----------
    command : list of str or Path
        Python and the script.
    task : dict
        As of :func:`peers_common.answer`.
    failure : str
        What a failure is called.
    **environment
        Further variables of its environment.

    Returns
    -------
    dict
        Figures.

    Raises
    ------
    InputError
        If it fails.
    """
    done = subprocess.run(
        [*map(str, command), json.dumps(task)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    if done.returncode:
        tell(done.stderr)
        raise InputError(f"{failure}.")
    return json.loads(done.stdout)


def describe_machine(options):
    """Tell which processor there is, what it can do, and who is compared.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dict
        Facts.
    """
    tell("measuring products of matrices")
    sides = {"tensorflow": OURS, "torch": "diffusers"}
    found = {name: work(side, None, options) for name, side in sides.items()}
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for side in found.values():
        versions |= side["versions"]
    speed = {name: round_to(side["gflop_a_second"]) for name, side in found.items()}
    return {
        **describe_processor(),
        "threads": {name: side["threads"] for name, side in found.items()},
        "precision": options.precision,
        "gflop_a_second": speed,
        "versions": versions,
    }


def describe_processor():
    """Tell which processor there is, and what is used of it.

    Returns
    -------
    dict
        As of :func:`read_processor`; ``cores``, and ``limits``: what is set of those
        variables that limit the kernels.
    """
    return {
        **read_processor(Path("/proc/cpuinfo").read_text()),
        "cores": cores(),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
    }


def read_processor(text):
    """Find the name and the vector units of a processor.

    Parameters
    ----------
    text : str
        What Linux says of it in ``/proc/cpuinfo``.

    Returns
    -------
    dict
        ``processor``, and ``flags``: those that decide which kernels there are.
    """
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts: dict[str, str] = {}
    for name, value in pairs:
        facts.setdefault(name.strip(), value.strip())
    # ARM's processors call them features.
    flags = (facts.get("flags") or facts.get("Features", "")).split()
    chosen = [f for f in flags if f in FLAGS or f.startswith(("amx_", "asimd", "sve"))]
    name = facts.get("model name", platform.machine())
    return {"processor": name, "flags": sorted(chosen)}


def summarise(ours, theirs, peer, peak):
    """Compare the figures of all rounds.

    Parameters
    ----------
    ours, theirs : list of dict
        Figures of dipy_ldm and of the peer, one dict a round.
    peer : str
        Name of the peer.
    peak : float
        Billions of operations a second that the machine can do.

    Returns
    -------
    dict
        Ratios, and figures of either side.
    """
    line = {"peer": peer, "ratios": {}}
    for name in COMPARED:
        if name in ours[0]:
            line["ratios"][name] = spread(ratios(ours, theirs, name))
    for library, rounds in ((OURS, ours), (peer, theirs)):
        line[library] = collect(rounds) | {"share_of_peak": share(rounds, peak)}
    return line


def ratios(ours, theirs, name):
    """Divide a figure of each round by that of the peer in the same round.

    Parameters
    ----------
    ours, theirs : list of dict
        Figures, one dict a round; of a list of them the median counts.
    name : str
        Name of the figure.

    Returns
    -------
    list of float
        One a round; below 1, the smaller is ours.
    """
    return [
        float(np.median(a[name]) / np.median(b[name])) for a, b in zip(ours, theirs)
    ]


def collect(rounds):
    """Collect the figures of a side over all rounds.

    Parameters
    ----------
    rounds : list of dict
        Figures, one dict a round.

    Returns
    -------
    dict
        Of each figure the least, the median and the most of all measurements.
    """
    figures = {}
    for name in rounds[0]:
        if name in FIXED:
            figures[name] = rounds[0][name]
        else:
            figures[name] = spread(np.concatenate([np.ravel(r[name]) for r in rounds]))
    return figures


def share(rounds, peak):
    """Say what share of the machine's speed a median step reaches.

    Parameters
    ----------
    rounds : list of dict
        Figures, one dict a round: ``gflop``, billions of operations of a step, and
        ``step``, seconds.
    peak : float
        Billions of operations a second that the machine can do.

    Returns
    -------
    float
        From 0 to 1.
    """
    step = np.median([np.median(r["step"]) for r in rounds])
    return round_to(rounds[0]["gflop"] / step / peak)


def spread(values):
    """Return the least, the median and the most of some values, in short."""
    return [round_to(f(values)) for f in (np.min, np.median, np.max)]


def round_to(value, digits=4):
    """Round to some significant digits."""
    return float(f"{value:.{digits}g}")


if __name__ == "__main__":
    main()
