"""Arrays, piece by piece on devices and machines, by compiled functions."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
import math
from queue import SimpleQueue
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dipy_ldm._backend.workers import (
    all_reduce,
    distributed,
    spread_over,
    worker_and_count,
)
from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.types import Tensor


def compiled(function: Callable, inputs: list[Any], networks: list[Any]) -> Callable:
    """Compile a function of tensors."""
    signature = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    # Nothing branches by what is in tensors: there is nothing to transform.
    traced = tf.function(function, signature, autograph=False)

    def call(*arrays):
        return traced(*(tf.cast(a, x.dtype) for a, x in zip(arrays, inputs)))

    return call


# Whether a compiled function begins no more than two of its tasks at once.
TWO_AT_A_TIME = True


def run_two_at_a_time(tasks: Iterable[Callable]) -> None:
    """Run tasks two at a time: the memory of the first is there for the next.

    Within a compiled function all would be begun at once; one alone does not keep all
    cores busy.
    """
    done: list = [[], []]
    for task in tasks:
        with tf.control_dependencies(done[-2] if TWO_AT_A_TIME else []):
            done.append(task())


def add_to(variable: keras.Variable, change: Tensor) -> None:
    """Add to a variable, in the memory that it has."""
    variable.value.assign_add(change)


def in_batches(
    function: Callable, array: np.ndarray, batch_size: int, title: str | None = None
) -> np.ndarray:
    """Apply a function to an array ``(n, ...)`` in batches, so that memory suffices.

    Several devices and machines (see :func:`distributed`) work on pieces of their own
    at once; each machine is given all results.
    """
    worker, workers = worker_and_count()
    n = len(array)
    if n < workers:
        return _in_batches(function, array, batch_size, title)
    own = slice(n * worker // workers, n * (worker + 1) // workers)
    part = _in_batches(function, array[own], batch_size, title)
    if workers == 1:
        return part
    whole = np.zeros((n, *part.shape[1:]), part.dtype)
    whole[own] = part
    return all_reduce(whole)


def _in_batches(function, array, batch_size, title):
    """Apply it on the devices of this machine."""
    strategy = spread_over.get()
    devices = (None,) if strategy is None else strategy.extended.worker_devices
    # Work for all of them, even if there is little.
    batch_size = min(batch_size, math.ceil(len(array) / len(devices)))
    free: SimpleQueue = SimpleQueue()
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
                with distributed(None), tf.device(device) if device else nullcontext():
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


def gradients(function: Callable) -> Callable:
    """Compile the gradients of a function's sum."""

    @tf.function(autograph=False)
    def compute(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        return tape.gradient(value, tensors)

    return compute


def conditionally(
    condition: Tensor, change: Callable, otherwise: Callable, variables: list
) -> None:
    """Change variables in one way or in another, within a step of training."""
    tf.cond(condition, change, otherwise)
