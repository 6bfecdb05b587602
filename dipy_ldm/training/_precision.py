"""Choose the fastest precision that all machines support."""

from functools import cache
import logging
import time
from typing import NamedTuple

from keras import ops
import numpy as np

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm._utils.types import Strategy, Tensor
from dipy_ldm.nn._building import PRECISIONS

logger = logging.getLogger(__name__)

# Minimum compute capability of NVIDIA GPUs. Older ones lack algorithms for some
# convolutions.
_MIN_CAPABILITY = {"bfloat16": (8, 0), "float16": (7, 0)}

# Maximum time of a bfloat16 convolution relative to float32: networks also have
# operations that bfloat16 does not speed up.
_MAX_TIME_RATIO = 0.9
_TRIES = 7


class Precision(NamedTuple):
    """Compute precision of a training, and the reason for it."""

    name: str
    reason: str


def choose_precision(
    name: str, rank: int, strategy: Strategy = None, saved: str | None = None
) -> Precision:
    """Choose the precision of a training; a resumed one keeps its precision."""
    choose("precision", name, {"auto": None, **PRECISIONS})
    reason = "as requested"
    if saved is not None:
        name, reason = saved, "as in the checkpoint"
    if name == "float32":
        return Precision(name, reason)
    supported, fastest = _machine_precisions(rank, strategy)
    if name == "auto":
        return fastest
    if name in supported:
        return Precision(name, reason)
    if saved is not None:
        raise InputError(
            f"the training began in {name}, which this machine does not support",
            "resume it on a machine that does, or start again without the checkpoint "
            "and with `precision` float32",
        )
    raise InputError(
        f"this machine does not support {name}",
        f"choose one of {', '.join(['auto', *supported])}",
    )


@cache
def log_precision(precision: Precision) -> Precision:
    """Log the chosen precision once, with the reason."""
    logger.info("precision %s: %s.", *precision)
    return precision


def _machine_precisions(rank: int, strategy: Strategy):
    """Return the precisions that all workers support, and the fastest."""
    gpus = _backend.gpu_capabilities(strategy)
    names, fastest = _gpu_precisions(gpus) if gpus else _cpu_precisions(rank)
    with _backend.distributed(strategy):
        machines = _backend.gather_from_workers([names, fastest.name])
    supported = [p for p in PRECISIONS if all(p in names for names, _ in machines)]
    if any(name != fastest.name for _, name in machines):
        fastest = Precision("float32", "the fastest of these machines together")
    return supported, fastest


def _gpu_precisions(capabilities: list[tuple[int, ...]]):
    """Return the precisions that the least capable GPU supports, and the fastest."""
    least = min(capabilities)
    supported = [p for p in PRECISIONS if least >= _MIN_CAPABILITY.get(p, least)]
    fastest = next((p for p in _MIN_CAPABILITY if p in supported), "float32")
    version = ".".join(map(str, least))
    return supported, Precision(fastest, f"for a compute capability of {version}")


@cache
def _cpu_precisions(rank: int):
    """Return the precisions that this CPU supports, and the faster, by timing both."""
    full, half = (_convolution_timer(p, rank) for p in ("float32", "bfloat16"))
    # Compile before timing.
    full()
    try:
        half()
    except Exception:  # the type depends on the back-end
        reason = "this processor does not support convolutions in bfloat16"
        return ["float32"], Precision("float32", reason)
    # The minimum of several trials, since other processes may slow some down.
    times = np.array([(full(), half()) for _ in range(_TRIES)])
    in_full, in_half = times.min(0)
    ratio = in_half / in_full
    fastest = "bfloat16" if ratio < _MAX_TIME_RATIO else "float32"
    reason = f"a convolution in bfloat16 takes {ratio:.1f} times as long as in float32"
    return ["float32", "bfloat16"], Precision(fastest, reason)


def _convolution_timer(precision: str, rank: int):
    """Return a function that times a convolution, forward and backward, in seconds."""
    # A few milliseconds in float32; up to 30 times as long if bfloat16 is emulated.
    shape = {2: (8, 28, 28, 32), 3: (1, 12, 12, 12, 32)}[rank]
    kernel_shape = (*(3,) * rank, 32, 32)
    x, kernel = (ops.cast(ops.ones(s), precision) for s in (shape, kernel_shape))

    @_backend.gradients
    def differentiate(x: Tensor, kernel: Tensor):
        y = ops.conv(x, kernel, padding="same")
        return ops.conv(ops.silu(y), kernel, padding="same")

    def seconds():
        start = time.perf_counter()
        for gradient in differentiate(x, kernel):
            ops.convert_to_numpy(gradient)
        return time.perf_counter() - start

    return seconds
