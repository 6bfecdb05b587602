"""Distribution: the same result on any number of devices and machines."""

import json
import math
import os
from pathlib import Path
import subprocess
import sys
import threading

import numpy as np
import numpy.testing as npt
from processes import TIMEOUT, free_ports
import pytest

from dipy_ldm import distribution
from dipy_ldm.validation import InputError


def test_free_memory_is_some_and_not_more_than_there_is():
    free = distribution.free_memory()
    assert free > 1e8
    with open("/proc/meminfo") as file:
        total = 1024 * int(file.readline().split()[1])
    assert free < total


def test_limits_of_a_group_are_read(tmp_path, monkeypatch):
    real = distribution.memory.Path

    def faked(path):
        return real(str(path).replace("/sys/fs/cgroup", str(tmp_path)))

    monkeypatch.setattr(distribution.memory, "Path", faked)
    assert distribution.memory._limit_of_group() == math.inf
    group = faked(f"/sys/fs/cgroup{own_group()}")
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.current").write_text("1000\n")
    (group / "memory.max").write_text("max\n")
    assert distribution.memory._limit_of_group() == math.inf
    (group / "memory.max").write_text("5000\n")
    assert distribution.memory._limit_of_group() == 4000


def own_group():
    with open("/proc/self/cgroup") as file:
        return file.read().strip().rpartition("::")[2]


def test_a_gpu_that_can_not_be_used_is_named(monkeypatch, caplog):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(distribution.strategy, "_has_gpu", lambda: True)
    with pytest.raises(
        InputError, match="driver is too old .* choose the device CPU:0"
    ):
        distribution.make_strategy("auto")
    # Generating takes seconds.
    assert distribution.make_strategy("auto", alone=True) is None
    assert "driver is too old" in caplog.text
    assert distribution.make_strategy("auto", ["CPU:0"]) is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert distribution.make_strategy("auto") is None


def test_a_gpu_that_does_not_start_is_named(monkeypatch):
    def fail(kind):
        raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory\nand more")

    monkeypatch.setattr(distribution.strategy.tf.config, "list_logical_devices", fail)
    with pytest.raises(
        InputError, match=r"\(CUDA_ERROR_OUT_OF_MEMORY: out of memory\)"
    ):
        distribution.make_strategy("auto")


REPLICAS = Path(__file__).with_name("train_on_replicas.py")


@pytest.fixture(scope="module", params=[(2, 1), (3, 2)], ids=["2-D", "3-D accumulated"])
def outcomes(request, tmp_path_factory):
    """Train without a strategy, on one and two replicas, and on two workers."""
    folder = tmp_path_factory.mktemp("replicas")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    tasks = ({"type": "worker", "index": index} for index in range(2))
    environments = {
        f"worker {i}": {
            "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})
        }
        for i, task in enumerate(tasks)
    }
    found = {}
    for together in (["none"], ["one"], ["two"], list(environments)):
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    REPLICAS,
                    name.partition(" ")[0],
                    *map(str, request.param),
                    folder / f"{name}.npz",
                ],
                env=os.environ | environments.get(name, {}),
            )
            for name in together
        ]
        assert [process.wait(TIMEOUT) for process in processes] == [0] * len(processes)
        for name in together:
            with np.load(folder / f"{name}.npz") as file:
                found[name] = dict(file)
    return found


@pytest.mark.parametrize("kind", ["one", "two", "worker 0", "worker 1"])
def test_replicas_train_and_generate_the_same(outcomes, kind):
    alone, replicas = outcomes["none"], outcomes[kind]
    assert alone.keys() == replicas.keys()
    assert len(alone["VQVAE loss"]) * 8 > 50  # steps
    assert sum(alone["VQVAE revived"]) > 0
    for name, values in alone.items():
        # Some weights have no gradient but what is left of rounding, which Adam takes
        # for one.
        rounding = 1e-6 if "loss" in name or "mse" in name else 5e-4
        close = rounding * max(np.abs(values).max(), 0.1)
        npt.assert_allclose(replicas[name], values, atol=close, err_msg=name)


def test_strategies_are_chosen():
    assert distribution.make_strategy("none") is None
    assert distribution.make_strategy("auto") is None  # without a GPU
    one = distribution.make_strategy("auto", ["cpu:0"])
    assert distribution.count_replicas(one) == 1
    assert distribution.make_strategy(one) is one
    assert distribution.count_replicas(None) == 1
    mirrored = distribution.make_strategy("mirrored")
    assert distribution.count_replicas(mirrored) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("parallel",), "auto, none, mirrored, multi_worker"),
        (("multi_worker",), "neither TF_CONFIG nor Slurm names them"),
        (("auto", ["GPU:7"]), "no device GPU:7; this machine has CPU:0"),
        (("mirrored", [0, 1]), "no device CPU:1; this machine has CPU:0"),
        (("mirrored", []), "no device given"),
    ],
)
def test_strategies_that_cannot_be(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        distribution.make_strategy(*arguments)


@pytest.mark.parametrize(
    ("batch_size", "sentence"), [(10, "8 or 12"), (3, "at least 4")]
)
def test_batches_that_replicas_cannot_share(batch_size, sentence):
    class Four:
        num_replicas_in_sync = 4

    assert distribution.share_of(12, Four) == 3
    with pytest.raises(InputError, match=sentence):
        distribution.share_of(batch_size, Four)


@pytest.mark.parametrize("n", [1, 7, 8])
def test_pieces_are_spread_over_devices_and_keep_their_order(n):
    class Two:
        class extended:  # noqa: N801 (TensorFlow's name)
            worker_devices = ("CPU:0", "CPU:0")

    array = np.arange(n)
    threads = set()

    def work(piece):
        threads.add(threading.get_ident())
        return piece * 10

    with distribution.spread(Two):
        npt.assert_array_equal(distribution.in_batches(work, array, 2), array * 10)
    assert threading.get_ident() not in threads
    distribution.in_batches(work, array, 2)
    assert threading.get_ident() in threads


def test_what_is_spread_does_not_spread_further():
    class Two:
        class extended:  # noqa: N801
            worker_devices = ("CPU:0", "CPU:0")

    def work(piece):
        return distribution.in_batches(lambda part: part + len(part), piece, 8)

    with distribution.spread(Two):
        found = distribution.in_batches(work, np.arange(8), 4)
    npt.assert_array_equal(found, np.arange(8) + 4)


def test_what_fails_on_a_device_is_told():
    class Two:
        class extended:  # noqa: N801
            worker_devices = ("CPU:0", "CPU:0")

    with distribution.spread(Two), pytest.raises(ZeroDivisionError):
        distribution.in_batches(lambda piece: 1 // 0, np.arange(4), 1)
