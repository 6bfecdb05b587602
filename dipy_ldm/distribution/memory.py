"""How much memory is free: of GPUs, of this machine, of its container or job."""

import math
from pathlib import Path

import tensorflow as tf

from dipy_ldm.distribution import keras_tensorflow


def free_memory():
    """Say how much memory there is for training.

    Returns
    -------
    float
        Bytes of the smallest GPU, or that are free on this machine; infinite where
        it can't be told.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        return keras_tensorflow.gpu_memory()
    return min(_available(), _limit_of_group())


def _available():
    """Read what Linux thinks can be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kibibytes = next(x.split()[1] for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf
    return 1024.0 * int(kibibytes)


def _limit_of_group():
    """Read what is left to the container or the job of a cluster."""
    try:
        _, _, path = Path("/proc/self/cgroup").read_text().strip().rpartition("::")
        group = Path(f"/sys/fs/cgroup{path}")
        limit = (group / "memory.max").read_text().strip()
        used = (group / "memory.current").read_text().strip()
    except OSError:
        return math.inf
    return math.inf if limit == "max" else float(limit) - float(used)
