"""Devices: how networks are run; beside ``data`` the only user of TensorFlow."""

from itertools import product
import math
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

# Voxels that are encoded or decoded at once: a gibibyte or two with the widths of the
# defaults.
SAFE_VOXELS = 4_000_000
# Of a tile and what it overlaps: three gibibytes. Half of it would be most of the time
# spent on overlaps.
TILE_VOXELS = 8_000_000


def compiled(function, inputs):
    """Compile a function of tensors into one of arrays.

    Many times faster per call than ``keras.Model.predict``, and traced once
    whatever the size of the batch.

    Parameters
    ----------
    function : callable
        Takes and returns tensors.
    inputs : list of keras.KerasTensor
        Shape and type of each argument.

    Returns
    -------
    callable
        Takes and returns ndarrays.
    """
    signature = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    traced = tf.function(function, input_signature=signature)

    def call(*arrays):
        arrays = (np.asarray(a, x.dtype) for a, x in zip(arrays, inputs))
        return traced(*map(tf.constant, arrays)).numpy()

    return call


def in_batches(function, array, batch_size, title=None):
    """Apply a function to an array piece by piece, so that memory suffices.

    Parameters
    ----------
    function : callable
        Takes and returns ndarrays of the same length.
    array : ndarray
        Argument, ``(n, ...)``.
    batch_size : int
        Largest length that the function is given.
    title : str, optional
        Name of a progress bar; None for no bar.

    Returns
    -------
    ndarray
        Results, ``(n, ...)``.
    """
    results = []
    with tqdm(total=len(array), desc=title, disable=title is None) as bar:
        for start in range(0, len(array), batch_size):
            piece = array[start : start + batch_size]
            results.append(function(piece))
            bar.update(len(piece))
    return np.concatenate(results)


def safe_batch(space):
    """Say how many images memory surely allows at once.

    Parameters
    ----------
    space : tuple of int
        Spatial size of an image.

    Returns
    -------
    int
        Number of images, from 1 to 256.
    """
    return max(1, min(256, SAFE_VOXELS // math.prod(space)))


def safe_side(rank):
    """Say how large a tile memory surely allows.

    Parameters
    ----------
    rank : int
        Number of spatial dimensions.

    Returns
    -------
    int
        Voxels along a side.
    """
    return round(TILE_VOXELS ** (1 / rank))


def in_tiles(function, array, *, tile, margin, factor):
    """Apply a function that looks only so far to an array, tile by tile.

    Parameters
    ----------
    function : callable
        Takes ``(n, *space, channels)`` and returns ``(n, *space * factor, ...)``.
    array : ndarray
        Argument, ``(n, *space, channels)``.
    tile : int
        Positions along a side of a tile.
    margin : int
        Positions around a tile on which its result depends.
    factor : int
        How much larger the result is, per side.

    Returns
    -------
    ndarray
        What the function would return for the whole array.
    """
    space = array.shape[1:-1]
    if all(size <= tile + 2 * margin for size in space):
        return function(array)
    result = None
    for corner in product(*(range(0, size, tile) for size in space)):
        inner = [slice(c, min(c + tile, size)) for c, size in zip(corner, space)]
        outer = [
            slice(max(0, i.start - margin), min(size, i.stop + margin))
            for i, size in zip(inner, space)
        ]
        piece = function(array[(slice(None), *outer)])
        if result is None:
            whole = [size * factor for size in space]
            result = np.empty((len(array), *whole, piece.shape[-1]), piece.dtype)
        target = [slice(i.start * factor, i.stop * factor) for i in inner]
        source = [
            slice((i.start - o.start) * factor, (i.stop - o.start) * factor)
            for i, o in zip(inner, outer)
        ]
        result[(slice(None), *target)] = piece[(slice(None), *source)]
    return result


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
        return _gpu_memory()
    return min(_available(), _limit_of_group())


def _gpu_memory():
    from tensorflow.python.client import device_lib

    devices = device_lib.list_local_devices()
    return min(d.memory_limit for d in devices if d.device_type == "GPU")


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
