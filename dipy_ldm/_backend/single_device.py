"""The functions of this package for the one device that JAX or PyTorch chooses."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from itertools import count
from typing import Any

import keras
import numpy as np

from dipy_ldm._backend import memory
from dipy_ldm._backend.sharing import PARALLEL_DRAWS, STRATEGIES, StoppableModel
from dipy_ldm._utils import cluster
from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.types import Batches, Tensor

backend: Any = import_module(f"{__package__}.on_{keras.config.backend()}")

ReplicatedModel = StoppableModel
compiled = backend.compiled
conditionally = backend.conditionally
gpu_capabilities = backend.gpu_capabilities
gradients = backend.gradients


def make_strategy(
    name: object = "auto", devices: object = None, *, alone: bool = False
) -> None:
    """Refuse distribution; see ``dipy_ldm._backend.strategy``."""
    if isinstance(name, str):
        choose("strategy", name, STRATEGIES)
    if name not in ("auto", "none", None):
        raise InputError(
            f"the strategy {name} needs TensorFlow, but Keras uses "
            f"{keras.config.backend()}",
            "set KERAS_BACKEND=tensorflow, or leave it out",
        )
    if devices is not None:
        raise InputError(
            "devices can only be chosen with TensorFlow, but Keras uses "
            f"{keras.config.backend()}",
            "leave out devices, and hide those that should not be used "
            "(CUDA_VISIBLE_DEVICES)",
        )
    if name == "auto" and not alone and cluster.has_several_tasks():
        raise InputError(
            f"several tasks were started, but with {keras.config.backend()} each "
            "would train a model of its own",
            "start one, or set KERAS_BACKEND=tensorflow",
        )


def distributed(strategy: None) -> AbstractContextManager:
    """Return a null context: there is one device."""
    return nullcontext()


scope = chief_first = distributed


def is_chief() -> bool:
    """Return True: there are no other workers."""
    return True


is_first_replica = is_chief


def broadcast_from_chief(array: np.ndarray) -> np.ndarray:
    """Return the array unchanged."""
    return np.asarray(array)


def gather_from_workers(value: object) -> list:
    """Return the value of the only worker."""
    return [value]


def require_agreement(settings: dict) -> None:
    """Do nothing: there are no other workers."""


def sum_of_replicas(tensors: list) -> list:
    """Return the tensors of the only replica."""
    return tensors


def free_memory(strategy: None = None) -> float:
    """Return the free bytes of the GPU, or of this machine if there is none."""
    free = backend.gpu_memory()
    return memory.host_memory() if free is None else free


def run_two_at_a_time(tasks: Iterable[Callable]) -> None:
    """Run one task after the other."""
    for task in tasks:
        task()


def add_to(variable: keras.Variable, change: Tensor) -> None:
    """Add to a variable."""
    variable.assign_add(change)


def in_batches(
    function: Callable, array: np.ndarray, batch_size: int, title: str | None = None
) -> np.ndarray:
    """Apply a function to an array in batches of limited size."""
    results = []
    with tqdm(total=len(array), desc=title, disable=title is None) as bar:
        for start in range(0, len(array), batch_size):
            piece = array[start : start + batch_size]
            results.append(keras.ops.convert_to_numpy(function(piece)))
            bar.update(len(piece))
    return np.concatenate(results)


def distribute_batches(batches: Batches, first_step: int, strategy: None) -> Iterator:
    """Draw batches ahead of time in threads."""
    pool = ThreadPoolExecutor(PARALLEL_DRAWS)
    try:
        steps = count(first_step)
        due = deque(pool.submit(batches.of, next(steps)) for _ in range(PARALLEL_DRAWS))
        while True:
            batch = due.popleft()
            due.append(pool.submit(batches.of, next(steps)))
            yield batch.result()
    finally:
        pool.shutdown(cancel_futures=True)
