"""Devices: how networks are run; beside ``data`` the only user of TensorFlow."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from itertools import product
import math
from pathlib import Path
from queue import SimpleQueue

import keras
from keras.src.optimizers.base_optimizer import BaseOptimizer
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dipy_ldm.validation import InputError, choose

# From how many devices on each of them has a replica.
STRATEGIES = {"auto": 2, "none": math.inf, "mirrored": 1}

# Voxels that are encoded or decoded at once: a gibibyte or two with the widths of the
# defaults.
SAFE_VOXELS = 4_000_000
# Of a tile and what it overlaps: three gibibytes. Half of it would be most of the time
# spent on overlaps.
TILE_VOXELS = 8_000_000


# Those that pieces of arrays are spread over; None is for TensorFlow's own choice.
_devices = ContextVar("devices", default=(None,))


def make_strategy(name="auto", devices=None):
    """Choose how the work is spread over devices.

    Parameters
    ----------
    name : str or tf.distribute.Strategy or None
        ``"auto"`` is for all GPUs of this machine, and none for a single device;
        ``"mirrored"`` for a replica of the network on each device, ``"none"`` for
        one device. A strategy, or None, is returned as it is.
    devices : sequence of str, optional
        Devices such as ``"GPU:0"``, or their numbers. None is for all GPUs or, where
        there are none, for the processor.

    Returns
    -------
    tf.distribute.Strategy or None
        None is for the one device that TensorFlow chooses.

    Raises
    ------
    InputError
        If there is no such strategy or device; the sentence lists those there are.
    """
    if not isinstance(name, str):
        return name
    least = choose("strategy", name, STRATEGIES)
    chosen = _find_devices(devices)
    if name == "none" and len(chosen) > 1 and devices is not None:
        raise InputError(
            f"the strategy none is for one device, not {len(chosen)}; leave out "
            "strategy or all devices but one."
        )
    if len(chosen) >= least:
        return _mirrored(tuple(chosen))
    return None if devices is None else tf.distribute.OneDeviceStrategy(chosen[0])


@cache
def _mirrored(devices):
    """Return the one strategy of some devices.

    What TensorFlow sums with mistakes two mirrored strategies in a process for one,
    except for that which does it on one device, which is slow between GPUs.
    """
    on_gpu = all("GPU" in device for device in devices)
    reduction = None if on_gpu else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def _find_devices(names):
    """Return the names of the devices that were asked for, as TensorFlow has them."""
    known = [
        device.name.rpartition("device:")[2]
        for kind in ("GPU", "CPU")
        for device in tf.config.list_logical_devices(kind)
    ]
    gpus = [name for name in known if name.startswith("GPU")]
    if names is None:
        return gpus or known[:1]
    kind = "GPU" if gpus else "CPU"
    asked = [f"{kind}:{n}" if str(n).isdigit() else str(n).upper() for n in names]
    missing = [name for name in asked if name not in known]
    if missing or not asked:
        raise InputError(
            f"there is no device {', '.join(missing) or 'given'}; this machine has "
            f"{', '.join(known)}."
        )
    return list(dict.fromkeys(asked))


def count_replicas(strategy):
    """Count the replicas of a strategy.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
        As of :func:`make_strategy`.

    Returns
    -------
    int
        At least 1.
    """
    return 1 if strategy is None else strategy.num_replicas_in_sync


def share_of(batch_size, strategy):
    """Share a batch evenly among the replicas.

    Parameters
    ----------
    batch_size : int
        Examples in a batch of all replicas.
    strategy : tf.distribute.Strategy or None
        As of :func:`make_strategy`.

    Returns
    -------
    int
        Examples for each replica.

    Raises
    ------
    InputError
        If the replicas don't divide the batch.
    """
    n = count_replicas(strategy)
    each, left = divmod(batch_size, n)
    if left:
        near = f"{each * n} or {(each + 1) * n}" if each else f"at least {n}"
        raise InputError(
            f"a batch of {batch_size} can't be shared evenly by {n} replicas; give a "
            f"batch_size of {near}."
        )
    return each


def scope(strategy):
    """Make networks for the replicas of a strategy.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
        As of :func:`make_strategy`.

    Returns
    -------
    context manager
        Within it, weights are created for all replicas.
    """
    return nullcontext() if strategy is None else strategy.scope()


@contextmanager
def spread(strategy):
    """Within this context, spread the pieces of arrays over the devices.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
        As of :func:`make_strategy`.
    """
    here = (None,) if strategy is None else strategy.extended.worker_devices
    token = _devices.set(here)
    try:
        yield
    finally:
        _devices.reset(token)


def shared(make, strategy):
    """Let the replicas share each batch.

    Parameters
    ----------
    make : callable
        ``make(machine, machines, replicas)`` gives a dataset of what one of the
        machines needs of each batch, a piece for each of its replicas.
    strategy : tf.distribute.Strategy or None
        As of :func:`make_strategy`.

    Returns
    -------
    tf.data.Dataset or tf.distribute.DistributedDataset
        Batches for ``keras.Model.fit``.
    """
    if strategy is None:
        return make(0, 1, 1)

    def make_part(context):
        return make(
            context.input_pipeline_id,
            context.num_input_pipelines,
            context.num_replicas_in_sync,
        )

    return strategy.distribute_datasets_from_function(make_part)


class ReplicatedModel(keras.Model):
    """A model that ``fit`` trains alike on any number of replicas."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Give back the batch from which Keras learns the shapes of the metrics.

        Under a strategy it takes one from the data, which is never trained on then,
        and the result would not be that without a strategy.
        """
        super()._maybe_symbolic_build(iterator, data_batch)
        if iterator is not None:
            iterator._current_iterator = None


class _Summed:
    """Sum the gradients of all replicas before anything is done with them.

    Keras sums them last, after it has clipped each replica's own, and accumulates
    them in a branch in which replicas can't meet. With the sum at hand the replicas
    go on as if each of them were alone, and come to the same.
    """

    def build(self, variables):
        """Make what is kept of each variable, wherever this is called."""
        with self._distribution_strategy.scope():
            super().build(variables)

    def _backend_apply_gradients(self, grads, trainable_variables):
        if self._distribution_strategy.num_replicas_in_sync > 1:
            replica = tf.distribute.get_replica_context()
            grads = replica.all_reduce(tf.distribute.ReduceOp.SUM, list(grads))
        super()._backend_apply_gradients(grads, trainable_variables)

    # Keras' own methods for TensorFlow would sum again, and make replicas meet.
    _backend_update_step = BaseOptimizer._backend_update_step
    _backend_increment_gradient_accumulators = (
        BaseOptimizer._backend_increment_gradient_accumulators
    )
    _apply_weight_decay = BaseOptimizer._apply_weight_decay


class Adam(_Summed, keras.optimizers.Adam):
    """Adam for any number of replicas."""


class AdamW(_Summed, keras.optimizers.AdamW):
    """AdamW for any number of replicas."""


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

    Several devices (see :func:`spread`) work on pieces of their own at once.

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
    devices = _devices.get()
    # Work for all of them, even if there is little.
    batch_size = min(batch_size, math.ceil(len(array) / len(devices)))
    free = SimpleQueue()
    for device in devices:
        free.put(device)
    pool = ThreadPoolExecutor(len(devices))
    with tqdm(total=len(array), desc=title, disable=title is None) as bar:

        def work(start):
            piece = array[start : start + batch_size]
            device = free.get()
            try:
                with tf.device(device):
                    return function(piece)
            finally:
                free.put(device)
                bar.update(len(piece))

        starts = range(0, len(array), batch_size)
        try:
            results = list((pool.map if len(devices) > 1 else map)(work, starts))
        finally:
            # An interrupt must not wait for what has not begun.
            pool.shutdown(cancel_futures=True)
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
