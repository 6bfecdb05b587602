"""Devices and machines: how networks are trained on many, to the result of one."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache
import json
import logging
import math
import os
from pathlib import Path
import platform
from queue import SimpleQueue
import time

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port
from tqdm import tqdm

from dipy_ldm import __version__, cluster, signals
from dipy_ldm.validation import InputError, choose

logger = logging.getLogger(__name__)

if os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1" and not _pywrap_util_port.IsMklEnabled():
    # It is on for whoever imports dipy_ldm before TensorFlow; only x86 has it.
    if platform.machine() in ("x86_64", "AMD64") and platform.system() != "Darwin":
        logger.warning(
            "TensorFlow was imported before dipy_ldm, and oneDNN, which makes training "
            "on this processor several times faster, is off; import dipy_ldm first, or "
            "set TF_ENABLE_ONEDNN_OPTS=1."
        )

# From how many devices of a machine on each of them has a replica.
STRATEGIES = {"auto": 2, "none": math.inf, "mirrored": 1, "multi_worker": math.inf}

# Numbers that workers exchange at once: more take more memory, fewer more time.
_AT_ONCE = 2**24

# What TensorFlow raises where a worker is gone, or the others gave up on it.
_GONE = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)

_TOO_LATE = (
    "several machines must be joined before TensorFlow is used for anything else; call "
    "dipy_ldm.distribution.make_strategy() first and give its result as strategy."
)

# What arrays are spread over; None is for the device that TensorFlow chooses.
_spread = ContextVar("spread", default=None)


def make_strategy(name="auto", devices=None, *, alone=False):
    """Choose how the work is spread over devices and machines.

    Parameters
    ----------
    name : str or tf.distribute.Strategy or None
        ``"auto"`` is for all machines that ``TF_CONFIG`` or Slurm names, or else for
        all GPUs of this one, and none for a single device. ``"multi_worker"`` is for
        several machines, ``"mirrored"`` for a replica of the network on each device
        of this one, ``"none"`` for one device. A strategy, or None, is returned as
        it is.
    devices : sequence of str, optional
        Devices of this machine such as ``"GPU:0"``, or their numbers. None is for all
        GPUs or, where there are none, for the processor.
    alone : bool
        Whether ``"auto"`` is for this machine only, whatever others there are.

    Returns
    -------
    tf.distribute.Strategy or None
        None is for the one device that TensorFlow chooses. One of several machines
        is returned once all of them are there.

    Raises
    ------
    InputError
        If there is no such strategy or device (the sentence lists those there are), if
        there is a GPU that can't be used and no device was chosen, or if a machine does
        not come, or differs from the chief.
    """
    if not isinstance(name, str):
        return name
    least = choose("strategy", name, STRATEGIES)
    if devices is None:
        _refuse_idle_gpus(alone)
        _share_gpus()
    workers = cluster.find_cluster()
    if name == "multi_worker" or (name == "auto" and workers and not alone):
        if devices is not None:
            _show_gpus(devices)
        return _multi_worker(workers)
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
def _multi_worker(workers):
    """Return the one strategy of all machines."""
    if workers is None:
        raise InputError(
            "the strategy multi_worker is for several machines, and neither TF_CONFIG "
            "nor Slurm names them; start the command with srun, set TF_CONFIG, or "
            "leave out strategy."
        )
    gpus = len(tf.config.get_visible_devices("GPU"))
    facts = {
        "dipy_ldm": __version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "Python": platform.python_version(),
        "the number of GPUs": gpus,
    }
    cluster.meet(workers, facts)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(workers.addresses)}),
        task_type="worker",
        task_id=workers.index,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except _GONE as error:
        raise ConnectionError(_gone(error)) from error
    except RuntimeError as error:
        raise InputError(_TOO_LATE) from error
    finally:
        signals.reinstall()


def _refuse_idle_gpus(alone):
    """Refuse to train on the processor beside a GPU that TensorFlow can't use.

    Where little is to be computed (``alone``) a warning does.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1", "NoDevFiles")
    if hidden or tf.config.list_physical_devices("GPU") or not _has_gpu():
        return
    sentence = (
        "this machine has an NVIDIA GPU that TensorFlow can't use, since its driver is "
        "too old or CUDA is not installed; update the driver, or install with "
        'pip install "dipy_ldm[cuda]"'
    )
    if not alone:
        raise InputError(f"{sentence}, or choose the device CPU:0.")
    logger.warning("%s. The processor is used.", sentence)


def _has_gpu():
    """Say whether Linux lets this process have an NVIDIA GPU."""
    for file in Path("/dev").glob("nvidia[0-9]*"):
        with suppress(OSError), open(file, "rb"):
            return True
    return False


def _share_gpus():
    """Hide the GPUs of other workers of this machine.

    Without asking for logical devices: that would start TensorFlow, and then it is
    too late to join others.
    """
    first, step = cluster.share_of_node()
    gpus = tf.config.list_physical_devices("GPU")
    # Fewer GPUs than workers: they were shared out already.
    if step > 1 and len(gpus) >= step:
        # What is started already keeps what it has.
        with suppress(RuntimeError):
            tf.config.set_visible_devices(gpus[first::step], "GPU")


def _show_gpus(devices):
    """Hide all GPUs but those that were asked for."""
    gpus = tf.config.list_physical_devices("GPU")
    known = [f"GPU:{i}" for i in range(len(gpus))]
    chosen = _match(devices, known or ["CPU:0"])
    wanted = [gpu for gpu, name in zip(gpus, known) if name in chosen]
    try:
        tf.config.set_visible_devices(wanted, "GPU")
    except RuntimeError as error:
        raise InputError(_TOO_LATE) from error


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
    if names and all(str(name).upper().startswith("CPU") for name in names):
        # GPUs that nobody asked for are not started, and need not work.
        with suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    try:
        devices = [d for k in ("GPU", "CPU") for d in tf.config.list_logical_devices(k)]
    except (tf.errors.OpError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"TensorFlow can't start the GPU ({reason}); end what else uses it, update "
            "its driver, or choose the device CPU:0."
        ) from error
    # Where machines are joined, those of all are listed, under the same names.
    known = list(dict.fromkeys(d.name.rpartition("device:")[2] for d in devices))
    gpus = [name for name in known if name.startswith("GPU")]
    return (gpus or known[:1]) if names is None else _match(names, known)


def _match(names, known):
    """Return those of the known devices that were asked for."""
    kind = known[0].partition(":")[0]  # GPUs come first
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
    """Within this context, spread the pieces of arrays over devices and machines.

    All machines must go through it alike.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
        As of :func:`make_strategy`.

    Raises
    ------
    ConnectionError
        If another machine stopped.
    """
    token = _spread.set(strategy)
    try:
        yield
    except _GONE as error:
        if _place()[1] == 1:
            raise
        raise ConnectionError(_gone(error)) from error
    finally:
        _spread.reset(token)


def _gone(error):
    reason = str(error.message).partition("\n")[0][:200]
    return (
        "another worker stopped, or can't be reached any more; its own last lines say "
        f"why ({reason}). Start the same command on all machines again, with --resume."
    )


def _place():
    """Return the number of this worker, and how many there are."""
    strategy = _spread.get()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return strategy.extended._id_in_cluster, strategy.extended._num_workers
    return 0, 1


def is_chief():
    """Say whether this machine is the one that writes and shows things.

    Returns
    -------
    bool
        True for the first of those that work is spread over, and for a single one.
    """
    return _place()[0] == 0


@contextmanager
def chief_first(strategy):
    """Let the others wait until the chief is through with what is in this context.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
        As of :func:`make_strategy`.
    """
    with spread(strategy):
        if not is_chief():
            _summed(np.zeros(1))
        yield
        if is_chief():
            _summed(np.zeros(1))


def of_chief(array):
    """Let all machines have what the chief computed, to the last bit.

    Parameters
    ----------
    array : ndarray
        What each has computed, of one shape.

    Returns
    -------
    ndarray
        That of the chief.
    """
    array = np.asarray(array)
    return _summed(array if is_chief() else np.zeros_like(array))


def agree(facts):
    """Refuse to go on unless all machines were started alike.

    Parameters
    ----------
    facts : dict
        What must be the same, as JSON can say it.

    Raises
    ------
    InputError
        If another worker differs from the chief.
    """
    said = gathered(facts)
    for other in range(1, len(said)):
        if refusal := cluster.difference(said[0], said[other], other):
            raise InputError(refusal)


def gathered(facts):
    """Let all machines know what each of them says.

    Parameters
    ----------
    facts : object
        What this one says, as JSON can.

    Returns
    -------
    list
        What each says, the chief first.
    """
    worker, workers = _place()
    text = np.frombuffer(json.dumps(facts).encode(), "uint8")
    lengths = np.zeros(workers, "int32")
    lengths[worker] = len(text)
    lengths = _summed(lengths)
    table = np.zeros((workers, lengths.max()), "int32")
    table[worker, : len(text)] = text
    return [
        json.loads(row[:length].astype("uint8").tobytes())
        for row, length in zip(_summed(table), lengths)
    ]


def _summed(array):
    """Sum the arrays of all machines; with zeros elsewhere, copy one's own to all."""
    if _place()[1] == 1:
        return array
    strategy = _spread.get()
    result = np.empty_like(array)
    rows = max(1, _AT_ONCE // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        piece = array[start : start + rows]

        def own(context, piece=piece):
            # Once per machine, not once per replica.
            local = len(strategy.extended.worker_devices)
            first = context.replica_id_in_sync_group % local == 0
            return tf.constant(piece if first else np.zeros_like(piece))

        values = strategy.experimental_distribute_values_from_function(own)
        total = strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)
        result[start : start + rows] = total
    return result


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
    """A model that ``fit`` trains alike on any number of replicas and machines.

    Attributes
    ----------
    asked : bool
        Set it to ask for an end of the training.
    ends : bool
        Whether an end was asked for before the last step, on any of the machines.
    """

    asked = ends = False

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Make the metrics from what the dataset says of its batches.

        Before the first step, so that a checkpoint can be brought back; and under a
        strategy Keras takes a batch from the data, which is never trained on then, and
        the result would not be that without a strategy. Of several machines' batches
        it can't make one ("Attempt to convert a value (PerReplica) to a Tensor").
        """
        pieces = tf.nest.map_structure(
            lambda spec: getattr(spec, "_value_specs", [spec])[0],
            iterator._distributed_dataset.element_spec,
        )
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=pieces)

    def make_train_function(self, force=False):
        """Make what trains for a step, and hear whether the training shall end.

        Keras averages the figures of several machines along an axis that single
        numbers don't have ("Invalid reduction dimension 0").
        """
        if self.train_function is not None and not force:
            return
        strategy = self.distribute_strategy
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            super().make_train_function(force)
            train = self.train_function

            def step(iterator):
                self.ends = self.asked
                return train(iterator)

            self.train_function = step
            return
        names = []

        def replica(data, asked):
            figures = self.train_step(data)
            names[:] = figures
            return tf.stack([asked, *figures.values()])

        @tf.function
        def all_replicas(iterator, asked):
            figures = strategy.run(replica, (next(iterator), asked))
            return strategy.reduce(tf.distribute.ReduceOp.MEAN, figures, axis=None)

        def step_of_all(iterator):
            asked, *figures = all_replicas(iterator, tf.constant(float(self.asked)))
            self.ends = bool(asked > 0)
            return dict(zip(names, figures))

        self.train_function = step_of_all


def sum_of_replicas(tensor):
    """Sum what the replicas have, within a step of training.

    Parameters
    ----------
    tensor : tensor
        That of this replica.

    Returns
    -------
    tensor
        The sum, the same for all.
    """
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return tensor
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, tensor)


def compiled(function, inputs):
    """Compile a function of tensors.

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
        Takes tensors or ndarrays, and returns tensors, which stay on their device.
    """
    signature = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    traced = tf.function(function, input_signature=signature)

    def call(*arrays):
        return traced(*(tf.cast(a, x.dtype) for a, x in zip(arrays, inputs)))

    return call


def in_batches(function, array, batch_size, title=None):
    """Apply a function to an array piece by piece, so that memory suffices.

    Several devices and machines (see :func:`spread`) work on pieces of their own at
    once; each machine is given all results.

    Parameters
    ----------
    function : callable
        Takes an ndarray, and returns an array or a tensor of the same length.
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
    worker, workers = _place()
    n = len(array)
    if n < workers:
        return _in_batches(function, array, batch_size, title)
    own = slice(n * worker // workers, n * (worker + 1) // workers)
    part = _in_batches(function, array[own], batch_size, title)
    if workers == 1:
        return part
    whole = np.zeros((n, *part.shape[1:]), part.dtype)
    whole[own] = part
    return _summed(whole)


def _in_batches(function, array, batch_size, title):
    """Do so on the devices of this machine."""
    strategy = _spread.get()
    devices = (None,) if strategy is None else strategy.extended.worker_devices
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
                # What the function itself would spread stays on its device, which
                # tf.device(None) would leave.
                with spread(None), tf.device(device) if device else nullcontext():
                    return np.asarray(function(piece))
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


def gpu_capabilities(strategy):
    """Say what the GPUs can do that the work is spread over.

    Parameters
    ----------
    strategy : tf.distribute.Strategy or None
        As of :func:`make_strategy`.

    Returns
    -------
    list of tuple of int
        Compute capability of each, such as ``(8, 0)``; empty for a processor.
    """
    gpus = tf.config.get_visible_devices("GPU")
    if strategy is not None:
        names = [d.rpartition("device:")[2] for d in strategy.extended.worker_devices]
        gpus = [gpu for i, gpu in enumerate(gpus) if f"GPU:{i}" in names]
    else:
        gpus = gpus[:1]
    details = map(tf.config.experimental.get_device_details, gpus)
    return [tuple(d.get("compute_capability", (0, 0))) for d in details]


class Convolution:
    """A convolution, forward and backward, of which a machine shows how fast it is.

    Parameters
    ----------
    precision : str
        Type of its numbers.
    rank : int
        Number of spatial dimensions.

    Attributes
    ----------
    works : bool
        Whether this machine can compute it at all.
    """

    def __init__(self, precision, rank):
        # Some milliseconds in float32; up to thirty times that where it is emulated.
        shape = {2: (8, 28, 28, 32), 3: (1, 12, 12, 12, 32)}[rank]
        kernel = (*(3,) * rank, 32, 32)
        self._inputs = [tf.cast(tf.ones(s), precision) for s in (shape, kernel)]
        self._strides = [1] * len(shape)
        try:
            # Which compiles it, too.
            self.time()
        except tf.errors.OpError:
            self.works = False
        else:
            self.works = True

    def time(self):
        """Compute it.

        Returns
        -------
        float
            Seconds.
        """
        start = time.perf_counter()
        for gradient in self._gradients(*self._inputs):
            gradient.numpy()
        return time.perf_counter() - start

    @tf.function
    def _gradients(self, x, kernel):
        convolve = tf.nn.conv2d if len(x.shape) == 4 else tf.nn.conv3d
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = convolve(x, kernel, self._strides, "SAME")
            y = convolve(tf.nn.swish(y), kernel, self._strides, "SAME")
        return tape.gradient(y, [x, kernel])


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
