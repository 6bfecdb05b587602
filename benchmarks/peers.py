"""Compare training and sampling with diffusers and MONAI, at the same sizes.

It prints one line of JSON for the machine, then one for each network and peer. All
sides have the same widths, blocks, batches, precision and cores; they are measured in
separate processes, in turn, for several rounds. With ``--backends`` dipy_ldm is
compared on TensorFlow, JAX and PyTorch instead, without the peers.
"""

import json
import os
from pathlib import Path
import platform
import subprocess
import sys

from common import Parser, log, print_scores
import numpy as np
from peers_common import NETWORKS, cores

from dipy_ldm._utils.checks import InputError, at_least

HERE = Path(__file__).resolve().parent
OURS = "dipy_ldm"
# Flags of the CPU that decide which kernels are available.
FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni")
# Environment variables that limit the kernels.
LIMITS = (
    "ONEDNN_MAX_CPU_ISA",
    "TF_ENABLE_ONEDNN_OPTS",
    "XLA_FLAGS",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
)
# Figures whose ratio, ours to the peer's, is printed.
COMPARED = ("step", "first_step", "peak_gib", "own_gib", "sample_step", "decode")
BACKENDS = ("tensorflow", "jax", "torch")
BACKEND_FIGURES = ("step", "first_step", "sample_step", "decode", "peak_gib")
# Figures that are the same in each round: they follow from the layers' shapes.
FIXED = ("weights", "gflop")


def make_parser():
    """Describe the command line."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--steps", type=int, default=8, help="steps that are measured in each round"
    )
    parser.add_argument("--batch_size", type=int, help="default: that of each network")
    parser.add_argument(
        "--python_peers",
        default=HERE.parent / ".venv-peers" / "bin" / "python",
        help="Python that has diffusers and MONAI",
    )
    parser.add_argument(
        "--backends",
        nargs="*",
        choices=BACKENDS,
        help="compare back-ends of Keras instead of libraries; all if none is named",
    )
    parser.set_defaults(measure=measure)
    return parser


def main(arguments=None):
    """Print the figures as lines of JSON."""
    print_scores(make_parser(), arguments)


def measure(options):
    """Compare with peers, or back-ends with each other."""
    for name in ("rounds", "steps"):
        at_least(name, getattr(options, name), 1)
    if options.batch_size is not None:
        at_least("batch_size", options.batch_size, 1)
    compare = compare_peers if options.backends is None else compare_backends
    return compare(options)


def compare_peers(options):
    """Measure the machine, then each network of dipy_ldm and of its peers."""
    if not Path(options.python_peers).exists():
        raise InputError(f"there is no {options.python_peers}", "run make peers")
    machine = describe_machine(options)
    yield machine
    peak = max(machine["gflop_a_second"].values())
    for name in options.networks:
        peers = NETWORKS[name].peers
        figures = measure_rounds((OURS, *peers), name, options)
        for peer in peers:
            comparison = summarise(figures[OURS], figures[peer], peer, peak)
            yield {"network": name, **comparison}


def compare_backends(options):
    """Measure each network of dipy_ldm on each back-end of Keras."""
    yield {**describe_processor(), "precision": options.precision}
    for name in options.networks:
        line = {"network": name}
        rounds = measure_rounds(options.backends or BACKENDS, name, options)
        for side, figures in rounds.items():
            spreads = collect(figures)
            line[side] = {
                key: spreads[key] for key in BACKEND_FIGURES if key in spreads
            }
        yield line


def measure_rounds(sides, name, options):
    """Measure a network on each side in turn, for several rounds."""
    figures: dict[str, list] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in sides:
            log(f"{name}, round {number + 1} of {options.rounds}: {side}")
            result = measure_side(side, name, options)
            figures[side].append(result)
            log(f"  {np.median(result['step']):.3f} seconds a step")
    return figures


def measure_side(side, name, options):
    """Measure a network, or the machine, in a separate process.

    A side is a library, which may have another environment, or a back-end of Keras.
    """
    task = {"network": name, "precision": options.precision}
    if name:
        task["batch_size"] = options.batch_size or NETWORKS[name].batch_size
        task["steps"] = options.steps
    command, environment = [sys.executable, HERE / "peers_ours.py"], dict(os.environ)
    if side in BACKENDS:
        environment["KERAS_BACKEND"] = side
    elif side != OURS:
        command = [options.python_peers, HERE / "peers_torch.py"]
        task["library"] = side
    done = subprocess.run(
        [*map(str, command), json.dumps(task)],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        log(done.stderr)
        raise InputError(f"{side} failed with {name or 'a matrix product'}")
    return json.loads(done.stdout)


def describe_machine(options):
    """Describe processor, speed and versions."""
    log("measuring matrix products")
    sides = {"tensorflow": OURS, "torch": "diffusers"}
    facts = {name: measure_side(side, None, options) for name, side in sides.items()}
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for side in facts.values():
        versions |= side["versions"]
    speed = {name: round_to(side["gflop_a_second"]) for name, side in facts.items()}
    return {
        **describe_processor(),
        "threads": {name: side["threads"] for name, side in facts.items()},
        "precision": options.precision,
        "gflop_a_second": speed,
        "versions": versions,
    }


def describe_processor():
    """Describe the CPU, and the settings that limit its use."""
    return {
        **read_processor(Path("/proc/cpuinfo").read_text()),
        "cores": cores(),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
    }


def read_processor(text):
    """Return the name and the vector units of a CPU from ``/proc/cpuinfo``."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts: dict[str, str] = {}
    for name, value in pairs:
        facts.setdefault(name.strip(), value.strip())
    # On ARM they are called features.
    flags = (facts.get("flags") or facts.get("Features", "")).split()
    chosen = [f for f in flags if f in FLAGS or f.startswith(("amx_", "asimd", "sve"))]
    name = facts.get("model name", platform.machine())
    return {"processor": name, "flags": sorted(chosen)}


def summarise(ours, theirs, peer, peak):
    """Compare the figures of two sides over all rounds."""
    line = {"peer": peer, "ratios": {}}
    for name in COMPARED:
        if name in ours[0]:
            line["ratios"][name] = spread(ratios(ours, theirs, name))
    for library, rounds in ((OURS, ours), (peer, theirs)):
        line[library] = collect(rounds) | {"share_of_peak": share(rounds, peak)}
    return line


def ratios(ours, theirs, name):
    """Divide a figure of each round by that of the peer in the same round."""
    return [
        float(np.median(a[name]) / np.median(b[name])) for a, b in zip(ours, theirs)
    ]


def collect(rounds):
    """Collect the figures of a side over all rounds."""
    figures = {}
    for name in rounds[0]:
        if name in FIXED:
            figures[name] = rounds[0][name]
        else:
            figures[name] = spread(np.concatenate([np.ravel(r[name]) for r in rounds]))
    return figures


def share(rounds, peak):
    """Return the share of the machine's peak speed that a median step reaches."""
    step = np.median([np.median(r["step"]) for r in rounds])
    return round_to(rounds[0]["gflop"] / step / peak)


def spread(values):
    """Return minimum, median and maximum, rounded."""
    return [round_to(f(values)) for f in (np.min, np.median, np.max)]


def round_to(value, digits=4):
    """Round to a number of significant digits."""
    return float(f"{value:.{digits}g}")


if __name__ == "__main__":
    main()
