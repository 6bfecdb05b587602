"""Shared by both sides of ``peers.py``: sizes and measurements.

It needs numpy only, since each side has its own environment.
"""

import contextlib
import json
import os
from pathlib import Path
import sys
import time
from typing import NamedTuple

import numpy as np

# Steps of a training that are not measured, while memory is allocated and kernels are
# chosen.
WARM_UP = 3
# Of the autoencoder, on both sides.
N_CODES = 1024
CODE_DIM = 3
# Channels of an attention head, and groups of a normalisation, as in dipy_ldm.
HEAD = 32
GROUPS = 8
# Steps of the peers' sampler, as in their examples. Since all take the same time, fewer
# are measured.
DDIM_STEPS = 50
SAMPLED_STEPS = 10
# Packages that tests install but users may lack, and that Keras and TensorFlow import
# if present.
ABSENT = ("jax", "pandas", "sklearn")
# Side of the matrices whose product measures the speed of the machine.
SIDE = 2048


class Network(NamedTuple):
    """A network that is built by both sides."""

    kind: str
    space: tuple
    channels: int
    widths: tuple
    batch_size: int
    peers: tuple


NETWORKS = {
    "autoencoder2d": Network("autoencoder", (28, 28), 1, (32, 64), 64, ("monai",)),
    # Not 7 x 7, as the digits' latents are: the peers can halve even sizes alone.
    "unet2d": Network("unet", (8, 8), 3, (128, 128), 64, ("diffusers", "monai")),
    "autoencoder3d": Network("autoencoder", (64, 64, 64), 1, (32, 64), 1, ("monai",)),
    "unet3d": Network("unet", (16, 16, 12), 3, (64, 128, 256), 4, ("monai",)),
}


def answer(**measures):
    """Run the task of the command line, and print its figures as a line of JSON.

    Arguments are the functions that measure each kind of network, and the machine.
    """
    task = json.loads(sys.argv[1])
    network = NETWORKS.get(task.pop("network"))
    kind = network.kind if network else "machine"
    # Keep the output of libraries out of standard output.
    with contextlib.redirect_stdout(sys.stderr):
        figures = measures[kind](network, **task)
    print(json.dumps(figures))


def draw_images(n, space, channels):
    """Draw images of blocky noise.

    Shapes: result ``(n, *space, channels)``.
    """
    rng = np.random.default_rng(0)
    coarse = rng.random((n, *(-(-size // 4) for size in space), channels), "float32")
    for axis in range(1, 1 + len(space)):
        coarse = np.repeat(coarse, 4, axis)
    cut = tuple(map(slice, space))
    return coarse[(slice(None), *cut)]


def cores():
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def peak_gib():
    """Return the peak memory of this process so far, in GiB."""
    # Not getrusage, which may count the parent process.
    return status_gib("VmHWM")


def memory_since(start):
    """Return memory at the start, peak, and peak without mapped files, in GiB."""
    peak = peak_gib()
    return {
        "start_gib": start,
        "peak_gib": peak,
        "own_gib": peak - status_gib("RssFile"),
    }


def status_gib(name):
    """Read a memory figure of this process, such as ``VmRSS``, in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(name)) / 2**20


def time_calls(function, n):
    """Time calls of a function, after one that is not measured."""
    seconds = []
    for _ in range(n + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def speed_of_product(function):
    """Return the speed of a product of two matrices, in GFLOP per second."""
    return 2 * SIDE**3 / min(time_calls(function, 10)) / 1e9
