"""Compiled functions on arrays, in batches, on several devices and machines."""

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
    current_strategy,
    distributed,
    worker_and_count,
)
from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.types import Tensor


def compiled(function: Callable, inputs: list[Any], networks: list[Any]) -> Callable:
    """Compile a function of tensors."""
    signature = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    # No control flow depends on tensor values, so autograph is not needed.
    traced = tf.function(function, signature, autograph=False)

    def call(*arrays):
        return traced(*(tf.cast(a, x.dtype) for a, x in zip(arrays, inputs)))

    return call


# Whether compiled functions run at most two tasks at once.
TWO_AT_A_TIME = True


def run_two_at_a_time(tasks: Iterable[Callable]) -> None:
    """Run tasks at most two at a time, so that later ones reuse the memory of earlier.

    A compiled function would start all at once; one alone leaves cores idle.
    """
    done: list = [[], []]
    for task in tasks:
        with tf.control_dependencies(done[-2] if TWO_AT_A_TIME else []):
            done.append(task())


def add_to(variable: keras.Variable, change: Tensor) -> None:
    """Add to a variable in place."""
    variable.value.assign_add(change)


def in_batches(
    function: Callable, array: np.ndarray, batch_size: int, title: str | None = None
) -> np.ndarray:
    """Apply a function to an array ``(n, ...)`` in batches of limited size.

    Within :func:`distributed`, devices and machines work on parts in parallel, and each
    machine gets all results.
    """
    worker, workers = worker_and_count()
    n = len(array)
    if n < workers:
        return _in_batches(function, array, batch_size, title)
    share = slice(n * worker // workers, n * (worker + 1) // workers)
    part = _in_batches(function, array[share], batch_size, title)
    if workers == 1:
        return part
    whole = np.zeros((n, *part.shape[1:]), part.dtype)
    whole[share] = part
    return all_reduce(whole)


def _in_batches(
    function: Callable, array: np.ndarray, batch_size: int, title: str | None
):
    """Apply a function in batches on the devices of this machine."""
    strategy = current_strategy.get()
    devices = (None,) if strategy is None else strategy.extended.worker_devices
    # At least one batch per device.
    batch_size = min(batch_size, math.ceil(len(array) / len(devices)))
    free_devices: SimpleQueue = SimpleQueue()
    for device in devices:
        free_devices.put(device)
    pool = ThreadPoolExecutor(len(devices))
    with tqdm(total=len(array), desc=title, disable=title is None) as bar:

        def work(start: int):
            piece = array[start : start + batch_size]
            device = free_devices.get()
            try:
                # Nested calls stay on this device. Not tf.device(None), which would
                # leave it.
                with distributed(None), tf.device(device) if device else nullcontext():
                    return np.asarray(function(piece))
            finally:
                free_devices.put(device)
                bar.update(len(piece))

        starts = range(0, len(array), batch_size)
        try:
            results = list((pool.map if len(devices) > 1 else map)(work, starts))
        finally:
            # On an interrupt, don't wait for tasks that have not started.
            pool.shutdown(cancel_futures=True)
    return np.concatenate(results)


def gradients(function: Callable) -> Callable:
    """Return a compiled function of the gradients of a function's sum."""

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
    """Apply one of two updates to variables, within a training step."""
    tf.cond(condition, change, otherwise)
