"""What the two sides of ``peers.py`` share: the sizes, and how they are measured.

It needs numpy alone, since each side has an environment of its own.
"""

import contextlib
import json
import os
from pathlib import Path
import sys
import time
from typing import NamedTuple

import numpy as np

# Steps of a training that are not measured: memory is claimed, kernels are chosen.
WARM_UP = 3
# Of the autoencoder, on both sides.
N_CODES = 1024
CODE_DIM = 3
# Channels of an attention head, and groups of a normalisation, as dipy_ldm has them.
HEAD = 32
GROUPS = 8
# Steps of the peers' sampler, as in their examples. Since all take the same time, fewer
# are measured.
DDIM_STEPS = 50
SAMPLED_STEPS = 10
# What tests bring, an installed package does not have, and Keras and TensorFlow import
# where it is.
ABSENT = ("jax", "pandas", "sklearn")
# Side of the matrices whose product tells what the machine can do.
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
    """Do the task of the command line, and print its figures as a line of JSON.

    Arguments are what measures each kind of network, and the machine.
    """
    task = json.loads(sys.argv[1])
    network = NETWORKS.get(task.pop("network"))
    kind = network.kind if network else "machine"
    # Whatever libraries print, standard output is the JSON line alone.
    with contextlib.redirect_stdout(sys.stderr):
        figures = measures[kind](network, **task)
    print(json.dumps(figures))


def draw_images(n, space, channels):
    """Draw images that are blobs of noise.

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
    """Return the most memory that this process has had so far, in GiB."""
    # What the system counts as the process's usage can be that of the process that
    # started it.
    return status_gib("VmHWM")


def memory_since(start):
    """Return the memory that this process has had, in GiB."""
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
    """Return the speed of a product of two matrices, in GFLOP a second."""
    return 2 * SIDE**3 / min(time_calls(function, 10)) / 1e9
