"""Which devices and machines the work is spread over."""

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
from dipy_ldm._backend.workers import GONE, lost_worker_message
from dipy_ldm._utils import cluster, signals
from dipy_ldm._utils.checks import InputError, choose

logger = logging.getLogger(__name__)


def make_strategy(
    name: str | tf.distribute.Strategy | None = "auto",
    devices: Sequence[str] | None = None,
    *,
    alone: bool = False,
) -> Any:
    """Choose how the work is spread over devices and machines.

    Parameters
    ----------
    name : str or tf.distribute.Strategy or None
        ``"auto"`` is for all machines that Slurm or TF_CONFIG names, or all GPUs of
        this one; ``"mirrored"`` for a replica on each device of this machine,
        ``"multi_worker"`` for several machines, ``"none"`` for one device. A strategy,
        or None, is returned as it is.
    devices : sequence of str, optional
        Devices of this machine to use, such as ``"GPU:0"``, or their numbers. Default:
        all GPUs or, without GPUs, the processor.
    alone : bool
        Whether ``"auto"`` joins no other machines.

    Returns
    -------
    tf.distribute.Strategy or None
        For the ``strategy`` of ``fit`` and ``predict``; None is for one device.

    Raises
    ------
    InputError
        If there is no such strategy or device, or machines can't be joined any more.
    ConnectionError
        If another machine does not answer.
    """
    if not isinstance(name, str):
        return name
    least = choose("strategy", name, STRATEGIES)
    workers = cluster.find_cluster()
    if devices is None:
        _refuse_idle_gpus(alone)
        _share_gpus()
    else:
        devices = _match(devices)
        gpus = _devices("GPU")
        _show_gpus([gpus[d] for d in devices if d in gpus])
    _grow_as_needed()
    if name == "multi_worker" or (name == "auto" and workers and not alone):
        return _multi_worker(workers)
    chosen = _start(devices)
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
    except GONE as error:
        raise ConnectionError(lost_worker_message(error)) from error
    except RuntimeError as error:
        raise InputError(
            "several machines must be joined before TensorFlow is used for anything "
            "else; call dipy_ldm.make_strategy() first and give its result as strategy."
        ) from error
    finally:
        signals.reinstall()


def warn_without_onednn() -> None:
    """Warn if TensorFlow was started without oneDNN, though it is wanted.

    It is on for whoever imports dipy_ldm before TensorFlow; only x86 has it.
    """
    if _pywrap_util_port.IsMklEnabled():
        return
    requested = os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    if requested and is_x86 and platform.system() != "Darwin":
        logger.warning(
            "TensorFlow was imported before dipy_ldm, and oneDNN, which makes training "
            "on this processor several times faster, is off; import dipy_ldm first, or "
            "set TF_ENABLE_ONEDNN_OPTS=1."
        )


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
        'pip install ".[cuda]" in the folder of the repository'
    )
    if not alone:
        raise InputError(f"{sentence}, or choose the device CPU:0.")
    logger.warning("%s. The processor is used.", sentence)


def _has_gpu():
    """Return whether Linux lets this process have an NVIDIA GPU."""
    for file in Path("/dev").glob("nvidia[0-9]*"):
        with suppress(OSError), open(file, "rb"):
            return True
    return False


def _share_gpus():
    """Hide the GPUs of other workers of this machine.

    Without asking for logical devices: that would start TensorFlow, and then it is
    too late to join others.
    """
    first, step = cluster.gpu_share_of_node()
    gpus = tf.config.list_physical_devices("GPU")
    # Fewer GPUs than workers: they were shared out already.
    if step > 1 and len(gpus) >= step:
        _show_gpus(gpus[first::step])


def _devices(kind):
    """Return devices by their names; one that poses as several, as often as it does."""
    devices = [
        device
        for device in tf.config.list_physical_devices(kind)
        for _ in tf.config.get_logical_device_configuration(device) or [None]
    ]
    return {f"{kind}:{number}": device for number, device in enumerate(devices)}


def _visible_gpus():
    """Return the GPUs that are not hidden by their names."""
    visible = tf.config.get_visible_devices("GPU")
    return {name: gpu for name, gpu in _devices("GPU").items() if gpu in visible}


def _match(names):
    """Return the names of requested devices, or refuse them."""
    available = [*_devices("GPU"), *_devices("CPU")]
    kind = available[0].partition(":")[0]  # GPUs come first
    requested = [f"{kind}:{n}" if str(n).isdigit() else str(n).upper() for n in names]
    missing = [name for name in requested if name not in available]
    if missing or not requested:
        raise InputError(
            f"there is no device {', '.join(missing) or 'given'}; this machine has "
            f"{', '.join(available)}."
        )
    return list(dict.fromkeys(requested))


def _show_gpus(gpus):
    """Hide all GPUs but these: no other is started."""
    # What is started already keeps what it has.
    with suppress(RuntimeError):
        tf.config.set_visible_devices(list(dict.fromkeys(gpus)), "GPU")


def _grow_as_needed():
    """Let memory of the GPUs grow as needed, since others may use them."""
    for gpu in tf.config.get_visible_devices("GPU"):
        # Too late, or the user divided its memory.
        with suppress(RuntimeError, ValueError):
            tf.config.experimental.set_memory_growth(gpu, True)


@cache
def _mirrored(devices):
    """Return the one strategy of some devices.

    What TensorFlow sums with mistakes two mirrored strategies in a process for one,
    except for that which does it on one device, which is slow between GPUs.
    """
    on_gpu = all("GPU" in device for device in devices)
    reduction = None if on_gpu else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=reduction)


def _start(devices):
    """Start TensorFlow; return the names of the chosen devices, as it has them."""
    visible = list(_visible_gpus())
    if hidden := [d for d in devices or () if "GPU" in d and d not in visible]:
        raise InputError(
            f"TensorFlow was started without {', '.join(hidden)} in this process; name "
            "all devices at first, or start another process."
        )
    try:
        gpus = tf.config.list_logical_devices("GPU")
    except (tf.errors.OpError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"TensorFlow can't start the GPU ({reason}); end what else uses it, update "
            "its driver, or choose the device CPU:0."
        ) from error
    if devices is not None:
        names = {name: f"GPU:{i}" for i, name in enumerate(visible)}
        return [names.get(device, device) for device in devices]
    # Where machines are joined, those of all are listed, under the same names.
    logical = dict.fromkeys(gpu.name.rpartition("device:")[2] for gpu in gpus)
    return list(logical) or ["CPU:0"]


def scope(strategy: tf.distribute.Strategy | None) -> AbstractContextManager:
    """Make networks for the replicas of a strategy."""
    return nullcontext() if strategy is None else strategy.scope()


def gpu_capabilities(strategy: tf.distribute.Strategy | None) -> list[tuple[int, ...]]:
    """Return the compute capability of each GPU that is used, such as (8, 0)."""
    details = map(tf.config.experimental.get_device_details, _gpus_of(strategy))
    return [tuple(d.get("compute_capability", (0, 0))) for d in details]


def free_memory(strategy: tf.distribute.Strategy | None = None) -> float:
    """Return how much memory there is for training."""
    gpus = _gpus_of(strategy)
    if not gpus:
        return memory.host_memory()
    return memory.gpu_memory(int(gpu.name.rpartition(":")[2]) for gpu in gpus)


def _gpus_of(strategy):
    """List the GPUs of this machine that the work is spread over."""
    shown = list(_visible_gpus().values())
    if strategy is None:
        return shown[:1]
    names = [d.rpartition("device:")[2] for d in strategy.extended.worker_devices]
    return [gpu for i, gpu in enumerate(shown) if f"GPU:{i}" in names]
