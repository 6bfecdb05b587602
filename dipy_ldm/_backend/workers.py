"""Training on several machines: chief, communication and distribution of batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
import json
from typing import Any

import numpy as np
import tensorflow as tf

from dipy_ldm._backend import memory
from dipy_ldm._backend.sharing import PARALLEL_DRAWS, StoppableModel, batch_specs
from dipy_ldm._utils import cluster
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.types import Batches, Tensor

# Values that workers exchange at once: more take more memory, fewer more time.
MAX_REDUCED_VALUES = 2**24

# Errors of TensorFlow if a worker has stopped or can't be reached.
LOST_WORKER_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)

# The strategy for arrays; None means the device that TensorFlow chooses.
current_strategy: ContextVar[Any] = ContextVar("current_strategy", default=None)


@contextmanager
def distributed(strategy: tf.distribute.Strategy | None) -> Iterator[None]:
    """Distribute arrays over devices and machines within this context.

    All machines must enter it and make the same calls in it.
    """
    token = current_strategy.set(strategy)
    try:
        yield
    except LOST_WORKER_ERRORS as error:
        if worker_and_count()[1] == 1:
            raise
        raise ConnectionError(lost_worker_message(error)) from error
    finally:
        current_strategy.reset(token)


def lost_worker_message(error: tf.errors.OpError) -> str:
    """Return the message for a worker that can't be reached."""
    reason = str(error.message).partition("\n")[0][:200]
    return (
        "another worker stopped, or can't be reached any more; see the end of its log "
        f"({reason}). Start the same command on all machines again to resume from the "
        "checkpoint."
    )


def worker_and_count() -> tuple[int, int]:
    """Return the index of this machine and the number of machines."""
    strategy = current_strategy.get()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        resolver = strategy.cluster_resolver
        return resolver.task_id, resolver.cluster_spec().num_tasks("worker")
    return 0, 1


def is_chief() -> bool:
    """Return whether this machine is the chief, which writes files and logs."""
    return worker_and_count()[0] == 0


@contextmanager
def chief_first(strategy: tf.distribute.Strategy | None) -> Iterator[None]:
    """Within this context, let the chief finish before other workers begin."""
    with distributed(strategy):
        if not is_chief():
            all_reduce(np.zeros(1))
        yield
        if is_chief():
            all_reduce(np.zeros(1))


def broadcast_from_chief(array: np.ndarray) -> np.ndarray:
    """Return the chief's array on all machines, bit by bit."""
    array = np.asarray(array)
    return all_reduce(array if is_chief() else np.zeros_like(array))


def require_agreement(settings: dict) -> None:
    """Refuse to train unless all machines have the same settings."""
    chief, *workers = gather_from_workers(settings)
    for worker, of_worker in enumerate(workers, 1):
        if refusal := cluster.difference_message(chief, of_worker, worker):
            raise InputError(refusal)


def gather_from_workers(value: object) -> list:
    """Return the values of all machines, on each of them."""
    worker, workers = worker_and_count()
    text = np.frombuffer(json.dumps(value).encode(), "uint8")
    lengths = np.zeros(workers, "int32")
    lengths[worker] = len(text)
    lengths = all_reduce(lengths)
    table = np.zeros((workers, lengths.max()), "int32")
    table[worker, : len(text)] = text
    return [
        json.loads(row[:length].astype("uint8").tobytes())
        for row, length in zip(all_reduce(table), lengths)
    ]


def all_reduce(array: np.ndarray) -> np.ndarray:
    """Return the sum of the arrays of all machines, on each of them."""
    if worker_and_count()[1] == 1:
        return array
    strategy = current_strategy.get()
    result = np.empty_like(array)
    rows = max(1, MAX_REDUCED_VALUES // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        piece = array[start : start + rows]

        def contribution(
            context: tf.distribute.ReplicaContext, piece: np.ndarray = piece
        ):
            # The first replica of each machine contributes; the others add zeros.
            first = _is_first(context, strategy)
            return tf.constant(piece if first else np.zeros_like(piece))

        values = strategy.experimental_distribute_values_from_function(contribution)
        total = strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)
        result[start : start + rows] = total
    return result


def _is_first(context: tf.distribute.ReplicaContext, strategy: tf.distribute.Strategy):
    """Return whether a replica is the first of its machine."""
    # The replica's number is static when a graph is traced.
    number = tf.get_static_value(context.replica_id_in_sync_group)
    return number % len(strategy.extended.worker_devices) == 0


def is_first_replica() -> bool:
    """Return whether this is its machine's first replica, within a training step."""
    context = tf.distribute.get_replica_context()
    # The default strategy has no worker devices.
    return context.num_replicas_in_sync == 1 or _is_first(context, context.strategy)


def distribute_batches(
    batches: Batches, first_step: int, strategy: tf.distribute.Strategy | None
) -> Any:
    """Draw batches, divided among the replicas."""
    make_part = partial(_dataset, batches, first_step)
    if strategy is None:
        return make_part(tf.distribute.InputContext())
    return strategy.distribute_datasets_from_function(make_part)


def _dataset(batches: Batches, first_step: int, context: tf.distribute.InputContext):
    """Return a dataset of a worker's share of each batch, one part per replica."""
    worker, replicas = context.input_pipeline_id, context.num_replicas_in_sync
    replicas_of_worker = replicas // context.num_input_pipelines
    size = batches.size // replicas
    specs = batch_specs(batches, replicas)
    flat_specs = tf.nest.flatten(specs)

    def draw(number: int):
        if not number:
            # The step has just been traced and optimised, which leaves freed memory.
            memory.release_memory()
        step, replica = divmod(int(number), replicas_of_worker)
        first = (worker * replicas_of_worker + replica) * size
        piece = batches.draw(first_step + step, range(first, first + size))
        return tf.nest.flatten(piece)

    @tf.autograph.experimental.do_not_convert
    def draw_tensors(number: Tensor):
        types = [spec.dtype for spec in flat_specs]
        arrays = tf.numpy_function(draw, [number], types, stateful=False)
        shaped = [tf.ensure_shape(a, spec.shape) for a, spec in zip(arrays, flat_specs)]
        return tf.nest.pack_sequence_as(specs, shaped)

    numbers = tf.data.Dataset.range(np.iinfo("int64").max)
    data = numbers.map(draw_tensors, num_parallel_calls=PARALLEL_DRAWS)
    # Otherwise machines synchronise at each step on whether all have a batch.
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    options = tf.data.Options()
    # Nothing to tune, and the end of the training would wait for the tuning thread,
    # which sleeps for up to a minute.
    options.autotune.enabled = False
    return data.prefetch(PARALLEL_DRAWS).apply(endless).with_options(options)


def sum_of_replicas(tensors: list) -> list:
    """Sum tensors over all replicas, within a training step."""
    replica = tf.distribute.get_replica_context()
    if replica.num_replicas_in_sync == 1:
        return tensors
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


# Private parts of Keras are used below: doc/decisions/back-ends.md explains each, and
# names the test that fails when it is no longer needed.


class ReplicatedModel(StoppableModel):
    """A model that ``fit`` trains with the same result on any number of replicas.

    A stop that is requested on one machine stops all.
    """

    def prepare(self, batches: Batches, replicas: int = 1) -> None:
        """Build metrics and optimizer for the replicas of the strategy."""
        strategy = self.distribute_strategy
        with strategy.scope():
            super().prepare(batches, strategy.num_replicas_in_sync)

    def _maybe_symbolic_build(
        self, iterator: Iterator | None = None, data_batch: tuple | None = None
    ):
        """Do nothing: ``prepare`` has built the model.

        Under a strategy, Keras would take a batch from the data that is then missing
        from training, which changes the result. With several machines it fails
        ("Attempt to convert a value (PerReplica) to a Tensor").
        """

    def make_train_function(self, force: bool = False) -> None:
        """Build the training step, which may stop the training on all machines.

        With several machines, Keras averages scalar metrics along an axis that they
        don't have ("Invalid reduction dimension 0").
        """
        strategy = self.distribute_strategy
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            super().make_train_function(force)
            return
        if self.train_function is not None and not force:
            return
        names: list[str] = []

        def replica(data: tuple, stop: Tensor):
            figures = self.train_step(data)
            names[:] = figures
            return tf.stack([stop, *figures.values()])

        @tf.function(autograph=False)
        def run_all(iterator: Iterator, stop: Tensor):
            figures = strategy.run(replica, (next(iterator), stop))
            return strategy.reduce(tf.distribute.ReduceOp.MEAN, figures, axis=None)

        def train_step_on_all(iterator: Iterator):
            stop, *figures = run_all(iterator, tf.constant(float(self.stop_requested)))
            self.stopping = bool(stop > 0)
            return dict(zip(names, figures))

        self.train_function = train_step_on_all
