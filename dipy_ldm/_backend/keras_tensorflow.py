"""All that is used of Keras' and TensorFlow's private parts, but for three.

``doc/decisions/back-ends.md`` says what each is for, and which test tells when it goes.
The others are in the optimizer (``FlatAdam``), in how metrics are made on all back-ends
(``StoppableModel.sketch``) and in how Slurm's machines are found (``cluster.py``).
"""

import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port

from dipy_ldm._backend.sharing import Batches, StoppableModel


def onednn_is_on() -> bool:
    """Say whether TensorFlow uses oneDNN."""
    return _pywrap_util_port.IsMklEnabled()


class ReplicatedModel(StoppableModel):
    """A model that ``fit`` trains alike on any number of replicas and machines.

    It ends on all machines if an end is asked for on any.
    """

    def prepare(self, batches: Batches) -> None:
        """Make the metrics from what the batches look like.

        Before the first step, so that a checkpoint can be brought back; Keras does so
        in the first step.
        """
        strategy = self.distribute_strategy
        with strategy.scope():
            self.sketch(batches, strategy.num_replicas_in_sync)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Do nothing, since it is done.

        Under a strategy Keras takes a batch from the data, which is never trained on
        then, and the result would not be that without a strategy. Of several machines'
        batches it can't make one ("Attempt to convert a value (PerReplica) to a
        Tensor").
        """

    def make_train_function(self, force=False) -> None:
        """Make what trains for a step, and hear whether the training shall end.

        Keras averages the figures of several machines along an axis that single
        numbers don't have ("Invalid reduction dimension 0").
        """
        strategy = self.distribute_strategy
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            super().make_train_function(force)
            return
        if self.train_function is not None and not force:
            return
        names = []

        def replica(data, stop):
            figures = self.train_step(data)
            names[:] = figures
            return tf.stack([stop, *figures.values()])

        @tf.function(autograph=False)
        def all_replicas(iterator, stop):
            figures = strategy.run(replica, (next(iterator), stop))
            return strategy.reduce(tf.distribute.ReduceOp.MEAN, figures, axis=None)

        def step_of_all(iterator):
            stop, *figures = all_replicas(
                iterator, tf.constant(float(self.stop_requested))
            )
            self.stopping = bool(stop > 0)
            return dict(zip(names, figures))

        self.train_function = step_of_all

    def sync_weights(self) -> None:
        """Do nothing: the weights are those of the last step.

        With another back-end ``fit`` has weights of its own.
        """
