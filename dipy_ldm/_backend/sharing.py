"""Replicas, their share of batches, and a model that stops between steps."""

from contextlib import nullcontext
import math
from threading import Lock
from typing import TYPE_CHECKING, Any

import keras

from dipy_ldm._backend import memory
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.types import Batches, Tensor

if TYPE_CHECKING:
    import tensorflow as tf

# Minimum number of devices of a machine for replicas on each of them.
STRATEGIES = {"auto": 2, "none": math.inf, "mirrored": 1, "multi_worker": math.inf}

# Batches that are drawn in parallel.
PARALLEL_DRAWS = 2

# Fixed MiB that each back-end takes for training and for inference: compiled functions,
# kernels, buffers.
_FIXED_MIB = {"tensorflow": (140, 20), "jax": (350, 0), "torch": (50, 40)}
TRAINING_OVERHEAD, INFERENCE_OVERHEAD = (
    2**20 * mib for mib in _FIXED_MIB.get(keras.config.backend(), (0, 0))
)


# Held while a step is traced: TensorFlow builds the gradients of cached traces on first
# use, which fails if two threads do so at once.
_TRACE_LOCK = Lock()


# Whether metrics are built from inferred shapes, without tracing the whole network.
INFERS_METRIC_SHAPES = True


class StoppableModel(keras.Model):
    """A model whose training can stop between two steps."""

    stop_requested = stopping = interrupted = False
    train_function: Any
    _infers_shapes = False

    def prepare(self, batches: Batches, replicas: int = 1) -> None:
        """Build metrics and optimizer from the specs of the batches.

        Keras does so in the first step, but a checkpoint is restored before. It would
        also trace the whole network for its output shapes, which layers can infer.
        """
        self._infers_shapes = INFERS_METRIC_SHAPES
        try:
            self._symbolic_build(data_batch=batch_specs(batches, replicas))
        finally:
            self._infers_shapes = False

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor = None):
        """Apply the network; while metrics are built, return zeros of its shape."""
        if not self._infers_shapes:
            return super().call(inputs, training=training, mask=mask)
        specs = keras.tree.map_structure(
            lambda x: keras.KerasTensor(
                x.shape, keras.backend.standardize_dtype(x.dtype)
            ),
            inputs,
        )
        # A network with one output returns a tensor, not a list.
        (result,) = keras.tree.flatten(self.compute_output_spec(specs))
        return keras.ops.zeros(result.shape, result.dtype)

    def make_train_function(self, force: bool = False) -> None:
        """Build the training step, which may stop the training."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        train = self.train_function
        begun = False

        def step(*arguments):
            nonlocal begun
            self.stopping = self.stop_requested
            if self.interrupted:
                raise KeyboardInterrupt
            with nullcontext() if begun else _TRACE_LOCK:
                figures = train(*arguments)
            if not begun:
                memory.release_memory()
            begun = True
            return figures

        self.train_function = step

    def sync_weights(self) -> None:
        """Update the model by the latest weights, which JAX keeps outside of it."""
        if keras.config.backend() == "jax":
            self.jax_state_sync()


def count_replicas(strategy: "tf.distribute.Strategy | None") -> int:
    """Count the replicas of a strategy."""
    return 1 if strategy is None else strategy.num_replicas_in_sync


def share_of(batch_size: int, strategy: "tf.distribute.Strategy | None") -> int:
    """Return the batch size of each replica."""
    n = count_replicas(strategy)
    share, remainder = divmod(batch_size, n)
    if remainder:
        valid_sizes = f"{share * n} or {(share + 1) * n}" if share else f"at least {n}"
        raise InputError(
            f"a batch of {batch_size} can't be shared evenly by {n} replicas",
            f"use a `batch_size` of {valid_sizes}",
        )
    return share


def batch_specs(batches: Batches, replicas: int) -> Any:
    """Return shapes and types of a replica's batch."""
    size = batches.size // replicas
    return keras.tree.map_structure(
        lambda array: keras.KerasTensor((size, *array.shape[1:]), str(array.dtype)),
        batches.draw(0, range(0)),
    )
