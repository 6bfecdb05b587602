"""Choose the devices and machines over which work is distributed."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
import logging
import os
from pathlib import Path
import platform
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port

from dipy_ldm import __version__
from dipy_ldm._backend import memory
from dipy_ldm._backend.sharing import STRATEGIES
from dipy_ldm._backend.workers import LOST_WORKER_ERRORS, lost_worker_message
from dipy_ldm._utils import cluster, signals
from dipy_ldm._utils.checks import InputError, choose

logger = logging.getLogger(__name__)


def make_strategy(
    name: str | tf.distribute.Strategy | None = "auto",
    devices: Sequence[str] | None = None,
    *,
    alone: bool = False,
) -> Any:
    """Choose how work is distributed over devices and machines.

    Parameters
    ----------
    name : str or tf.distribute.Strategy or None
        ``"auto"`` uses all machines that Slurm or TF_CONFIG names, or all GPUs of this
        one; ``"mirrored"`` puts a replica on each device of this machine,
        ``"multi_worker"`` uses several machines, ``"none"`` one device. A strategy or
        None is returned unchanged.
    devices : sequence of str, optional
        Devices of this machine to use, such as ``"GPU:0"``, or their numbers. Default:
        all GPUs or, without GPUs, the CPU.
    alone : bool
        Whether ``"auto"`` uses this machine only.

    Returns
    -------
    tf.distribute.Strategy or None
        The ``strategy`` for ``fit`` and ``predict``; None means one device.

    Raises
    ------
    InputError
        If the strategy or device does not exist, or it is too late to join machines.
    ConnectionError
        If another machine does not answer.
    """
    if not isinstance(name, str):
        return name
    min_devices = choose("strategy", name, STRATEGIES)
    workers = cluster.find_cluster()
    if devices is None:
        _refuse_idle_gpus(alone)
        _hide_gpus_of_other_workers()
    else:
        devices = _match_devices(devices)
        gpus = _devices("GPU")
        _set_visible_gpus([gpus[d] for d in devices if d in gpus])
    _enable_memory_growth()
    if name == "multi_worker" or (name == "auto" and workers and not alone):
        return _multi_worker(workers)
    names = _start_tensorflow(devices)
    if name == "none" and len(names) > 1 and devices is not None:
        raise InputError(
            f"the strategy none is for one device, not {len(names)}",
            "leave out strategy or all devices but one",
        )
    if len(names) >= min_devices:
        return _mirrored(tuple(names))
    return None if devices is None else tf.distribute.OneDeviceStrategy(names[0])


@cache
def _multi_worker(workers: cluster.Cluster | None):
    """Return the only strategy for all machines, created once."""
    if workers is None:
        raise InputError(
            "the strategy multi_worker is for several machines, but neither "
            "TF_CONFIG nor Slurm names them",
            "start the command with srun, set TF_CONFIG, or leave out strategy",
        )
    gpus = len(tf.config.get_visible_devices("GPU"))
    settings = {
        "dipy_ldm": __version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "Python": platform.python_version(),
        "the number of GPUs": gpus,
    }
    cluster.wait_for_workers(workers, settings)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(workers.addresses)}),
        task_type="worker",
        task_id=workers.index,
        num_accelerators={"GPU": gpus},
        rpc_layer="grpc",
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except LOST_WORKER_ERRORS as error:
        raise ConnectionError(lost_worker_message(error)) from error
    except RuntimeError as error:
        raise InputError(
            "machines must be joined before TensorFlow is used for anything else",
            "call dipy_ldm.make_strategy() first and pass its result as strategy",
        ) from error
    finally:
        signals.reinstall_sigterm()


def warn_without_onednn() -> None:
    """Warn if TensorFlow was imported before dipy_ldm enabled oneDNN (x86 only)."""
    if _pywrap_util_port.IsMklEnabled():
        return
    requested = os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    if requested and is_x86 and platform.system() != "Darwin":
        logger.warning(
            "TensorFlow was imported before dipy_ldm, so oneDNN, which makes training "
            "on this CPU several times faster, is off; import dipy_ldm first, or set "
            "TF_ENABLE_ONEDNN_OPTS=1."
        )


def _refuse_idle_gpus(alone: bool):
    """Refuse to train on the CPU if TensorFlow can't use a GPU; with `alone`, warn."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1", "NoDevFiles")
    if hidden or tf.config.list_physical_devices("GPU") or not _has_gpu():
        return
    sentence = (
        "this machine has an NVIDIA GPU that TensorFlow can't use, since its driver is "
        "too old or CUDA is not installed; update the driver, or run "
        'pip install ".[cuda]" in the folder of the repository'
    )
    if not alone:
        raise InputError(f"{sentence}, or choose the device CPU:0")
    logger.warning("%s. Using the CPU.", sentence)


def _has_gpu():
    """Return whether this process may open an NVIDIA device file."""
    for file in Path("/dev").glob("nvidia[0-9]*"):
        with suppress(OSError), open(file, "rb"):
            return True
    return False


def _hide_gpus_of_other_workers():
    """Hide the GPUs of other workers of this machine.

    It must not list logical devices: that would start TensorFlow, and then it is too
    late to join other machines.
    """
    first, step = cluster.gpu_share_of_node()
    gpus = tf.config.list_physical_devices("GPU")
    # With fewer GPUs than workers, they are assigned already.
    if step > 1 and len(gpus) >= step:
        _set_visible_gpus(gpus[first::step])


def _devices(kind: str):
    """Return physical devices by the names of their logical devices."""
    devices = [
        device
        for device in tf.config.list_physical_devices(kind)
        for _ in tf.config.get_logical_device_configuration(device) or [None]
    ]
    return {f"{kind}:{number}": device for number, device in enumerate(devices)}


def _visible_gpus():
    """Return the visible GPUs by their names."""
    visible = tf.config.get_visible_devices("GPU")
    return {name: gpu for name, gpu in _devices("GPU").items() if gpu in visible}


def _match_devices(names: Sequence[str]):
    """Return the normalised names of requested devices; refuse missing ones."""
    available = [*_devices("GPU"), *_devices("CPU")]
    kind = available[0].partition(":")[0]  # GPUs come first
    requested = [f"{kind}:{n}" if str(n).isdigit() else str(n).upper() for n in names]
    missing = [name for name in requested if name not in available]
    if missing or not requested:
        raise InputError(
            f"there is no device {', '.join(missing) or 'given'}",
            f"this machine has {', '.join(available)}",
        )
    return list(dict.fromkeys(requested))


def _set_visible_gpus(gpus: list):
    """Hide all GPUs but these, so that TensorFlow does not initialise the others."""
    # If TensorFlow has started, its devices can't change.
    with suppress(RuntimeError):
        tf.config.set_visible_devices(list(dict.fromkeys(gpus)), "GPU")


def _enable_memory_growth():
    """Let GPU memory grow as needed, since other processes may use the GPUs."""
    for gpu in tf.config.get_visible_devices("GPU"):
        # TensorFlow has started, or the user has divided the memory.
        with suppress(RuntimeError, ValueError):
            tf.config.experimental.set_memory_growth(gpu, True)


@cache
def _mirrored(devices: tuple[str, ...]):
    """Return the only strategy for these devices, created once.

    TensorFlow's default reductions confuse two mirrored strategies in one process;
    reduction to one device does not, but is slow between GPUs.
    """
    on_gpu = all("GPU" in device for device in devices)
    reduction = None if on_gpu else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def _start_tensorflow(devices: Sequence[str] | None):
    """Start TensorFlow and return its names of the chosen devices."""
    visible = list(_visible_gpus())
    if hidden := [d for d in devices or () if "GPU" in d and d not in visible]:
        raise InputError(
            f"TensorFlow was started without {', '.join(hidden)} in this process",
            "name all devices in the first call, or restart Python",
        )
    try:
        gpus = tf.config.list_logical_devices("GPU")
    except (tf.errors.OpError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"TensorFlow can't start the GPU ({reason})",
            "stop other programs that use it, update its driver, or choose the "
            "device CPU:0",
        ) from error
    if devices is not None:
        names = {name: f"GPU:{i}" for i, name in enumerate(visible)}
        return [names.get(device, device) for device in devices]
    # Joined machines list the devices of all, under the same names.
    logical = dict.fromkeys(gpu.name.rpartition("device:")[2] for gpu in gpus)
    return list(logical) or ["CPU:0"]


def scope(strategy: tf.distribute.Strategy | None) -> AbstractContextManager:
    """Return the context in which networks are built for the replicas of a strategy."""
    return nullcontext() if strategy is None else strategy.scope()


def gpu_capabilities(strategy: tf.distribute.Strategy | None) -> list[tuple[int, ...]]:
    """Return the compute capability, such as (8, 0), of each GPU in use."""
    details = map(tf.config.experimental.get_device_details, _gpus_of(strategy))
    return [tuple(d.get("compute_capability", (0, 0))) for d in details]


def free_memory(strategy: tf.distribute.Strategy | None = None) -> float:
    """Return the bytes of memory available for training."""
    gpus = _gpus_of(strategy)
    if not gpus:
        return memory.host_memory()
    return memory.gpu_memory(int(gpu.name.rpartition(":")[2]) for gpu in gpus)


def _gpus_of(strategy: tf.distribute.Strategy | None):
    """Return the GPUs of this machine that a strategy uses."""
    visible = list(_visible_gpus().values())
    if strategy is None:
        return visible[:1]
    names = [d.rpartition("device:")[2] for d in strategy.extended.worker_devices]
    return [gpu for i, gpu in enumerate(visible) if f"GPU:{i}" in names]
