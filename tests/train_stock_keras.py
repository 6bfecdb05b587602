"""Train with Keras as it is, and tell what goes wrong; run by a test.

Usage: python train_stock_keras.py

One of several workers, as TF_CONFIG says.
"""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

X = np.float32([[1.0], [3.0], [5.0], [7.0]])


class Unbuilt(keras.Sequential):
    """A model whose metrics come with its first step, as without a strategy."""

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass


def train(strategy, kind=keras.Sequential):
    """Train for two steps of batches of two."""
    with strategy.scope():
        dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
        model = kind([keras.Input((1,)), dense])
        model.compile(keras.optimizers.SGD(0.01), loss="mean_absolute_error")

    def piece(context):
        share = 2 // context.num_replicas_in_sync
        machines = context.num_input_pipelines
        data = tf.data.Dataset.from_tensor_slices((X, 0 * X))
        return data.shard(machines, context.input_pipeline_id).batch(share).repeat()

    batches = strategy.distribute_datasets_from_function(piece)
    model.fit(batches, steps_per_epoch=2, shuffle=False, verbose=0)


def metrics_made(strategy):
    """Machines make metrics of their batches."""
    train(strategy)


def figures_averaged(strategy):
    """Machines average the figures of a step."""
    train(strategy, Unbuilt)


def summed_by_running(strategy):
    """What a machine has is summed with that of others, by public methods."""
    own = np.float32([1, 10])[strategy.cluster_resolver.task_id]
    values = strategy.run(lambda: tf.constant(own))
    assert strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None) == 11


PROMISES = (summed_by_running, metrics_made, figures_averaged)


def main():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    broken = {}
    for promise in PROMISES:
        try:
            promise(strategy)
        except Exception as error:
            broken[promise.__name__] = f"{type(error).__name__}: {error}"
    print(json.dumps(broken))


if __name__ == "__main__":
    main()
