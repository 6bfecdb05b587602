"""Keras and TensorFlow: what they lack, for which their private parts are used.

A test that is expected to fail and passes says that upstream was mended;
``doc/decisions/back-ends.md`` says what may go then.
"""

import json
import logging
import os
from pathlib import Path
import subprocess
import sys

from dipy.workflows.flow_runner import get_level
import keras
import numpy as np
from processes import TIMEOUT, free_ports
import pytest
import tensorflow as tf

from dipy_ldm._utils.cluster import find_cluster

# With the versions of `make test-lowest` and `make test-newest`.
pytestmark = pytest.mark.upstream
STOCK = Path(__file__).with_name("train_stock_keras.py")


def train_with_stock_keras(environments):
    """Return what each process says of the promises that Keras breaks."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    processes = [
        subprocess.Popen([sys.executable, STOCK], env=os.environ | environment, **how)
        for environment in environments
    ]
    answers = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


@pytest.fixture(scope="module")
def on_machines():
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    tasks = ({"type": "worker", "index": index} for index in range(2))
    configs = (json.dumps({"cluster": cluster, "task": task}) for task in tasks)
    return train_with_stock_keras([{"TF_CONFIG": config} for config in configs])


@pytest.mark.xfail(reason="Keras makes no metrics of several machines' batches")
def test_keras_makes_metrics_on_machines(on_machines):
    assert not any("metrics_made" in broken for broken in on_machines)


@pytest.mark.xfail(reason="Keras averages single numbers along an axis")
def test_keras_averages_figures_of_machines(on_machines):
    assert not any("figures_averaged" in broken for broken in on_machines)


def test_machines_add_up_by_public_methods(on_machines):
    """While this passes, ``all_reduce`` needs no experimental method."""
    assert not any("summed_by_running" in broken for broken in on_machines)


@pytest.mark.xfail(reason="Keras makes metrics during the first step")
def test_keras_makes_metrics_before_the_first_step():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse", metrics=["mae"])
    variables = []
    begun = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: variables.extend(model.metrics_variables)
    )
    x = np.ones((4, 1), "float32")
    model.fit(x, x, callbacks=[begun], verbose=0)
    assert len(variables) == len(model.metrics_variables)


@pytest.mark.xfail(reason="TensorFlow sorts nodes as text, and fails without GPUs")
def test_tensorflow_lists_the_machines_of_slurm(monkeypatch):
    step = {"STEP_NUM_TASKS": "3", "STEP_NODELIST": "n[9-10]"}
    step |= {"STEP_TASKS_PER_NODE": "2,1", "JOB_ID": "20", "PROCID": "2"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    resolve = tf.distribute.cluster_resolver.SlurmClusterResolver
    machines = resolve(gpus_per_node=1, gpus_per_task=0).cluster_spec()
    ours = [address.partition(":")[0] for address in find_cluster().addresses]
    listed = machines.as_dict()["worker"]
    assert [address.partition(":")[0] for address in listed] == ours


def test_tensorflow_knows_infinite_datasets():
    """While this passes, ``_dataset`` need not promise it."""
    numbers = tf.data.Dataset.range(16, np.iinfo("int64").max).map(tf.abs).batch(2)
    assert numbers.prefetch(1).cardinality() == tf.data.INFINITE_CARDINALITY


def test_keras_lets_an_optimizer_keep_a_list_of_weights():
    """If this fails, ``FlatAdam.build`` need not hide its list from Keras."""
    optimizer = keras.optimizers.SGD()
    optimizer.weights_of_mine = [keras.Variable([1.0])]
    # They are taken for the optimizer's own, and would be in every checkpoint twice.
    assert len(optimizer.variables) == 3


def test_tensorflow_says_in_private_whether_onednn_is_on():
    public = [name for name in dir(tf.config) if "onednn" in name.lower()]
    assert not public, "there is a public way now"


@pytest.mark.xfail(reason="DIPY looks for names of levels where Python 2 had them")
def test_dipy_knows_the_levels_of_logs():
    assert get_level("DEBUG") == logging.DEBUG


@pytest.mark.xfail(reason="TensorFlow sums gradients of biases in bfloat16")
def test_tensorflow_sums_gradients_of_biases():
    ones = tf.ones((4, 16, 16, 16, 1), "bfloat16")
    assert tf.raw_ops.BiasAddGrad(out_backprop=ones) == 4 * 16**3
