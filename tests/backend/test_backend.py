"""Distributed training gives the result of one device."""

import ctypes
import json
import math
import os
from pathlib import Path
import platform
import subprocess
import sys
import threading
from types import SimpleNamespace
from unittest import mock

import numpy as np
import numpy.testing as npt
from processes import TIMEOUT, free_ports
import pytest

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.types import Batches

GIB = 2**30


def test_free_memory_is_positive_and_below_the_total():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1e8 < _backend.free_memory() < total


def group(path, limit, used, **statistics):
    """Return the files of a control group of version 2."""
    lines = [f"{name} {size * GIB}" for name, size in statistics.items()]
    return {
        f"sys/fs/cgroup{path}/memory.max": limit if limit == "max" else limit * GIB,
        f"sys/fs/cgroup{path}/memory.current": used * GIB,
        f"sys/fs/cgroup{path}/memory.stat": "\n".join(lines),
    }


def old_group(path, limit, used, read):
    """Return the files of a control group of version 1."""
    folder = f"sys/fs/cgroup/memory{path}"
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": used * GIB,
        f"{folder}/memory.stat": f"inactive_file 9\ntotal_inactive_file {read * GIB}",
    }


def address_space(limit):
    """Return the files of a process that has 4 GiB of an address space."""
    head = "Limit  Soft Limit  Hard Limit  Units"
    return {
        "proc/self/limits": f"{head}\nMax address space  {limit}  unlimited  bytes",
        "proc/self/status": f"VmPeak: 9 kB\nVmSize: {4 * 2**20} kB",
    }


MACHINE = {"proc/meminfo": f"MemAvailable: {64 * 2**20} kB"}
JOB = MACHINE | {"proc/self/cgroup": "0::/job"}
# After a start that read the whole cohort.
READ = {"anon": 4, "file": 12, "inactive_file": 8, "active_file": 3}
TASK = MACHINE | {"proc/self/cgroup": "0::/job_1/step_0/task_0"}
TASK |= group("/job_1/step_0/task_0", "max", 1) | group("/job_1", 8, 3, anon=3)
TASK |= group("/job_1/step_0", 16, 2)
OLD = MACHINE | {"proc/self/cgroup": "9:pids:/\n4:memory:/slurm/job_1\n0::/"}
OLD |= old_group("/slurm/job_1", 2**63 - 4096, 9, 1)  # no limit


@pytest.mark.parametrize(
    ("files", "gibibytes"),
    [
        ({}, math.inf),
        (JOB, 64),
        (JOB | group("/job", "max", 16), 64),
        (JOB | group("/job", 16, 6), 10),
        # Files that were read are not in the way.
        (JOB | group("/job", 16, 16, **READ, slab_reclaimable=1), 12),
        (JOB | group("/job", 16, 17, anon=17), 0),
        (TASK, 5),  # of the groups around it the one with least
        # In a container, the path is that of the host, and its own group is the top.
        (TASK | group("", 4, 1), 3),
        (OLD, 64),
        (OLD | old_group("/slurm", 32 * GIB, 9, 1), 24),
        (OLD | old_group("/slurm/job_1", 16 * GIB, 16, 13), 13),
        (MACHINE | address_space("unlimited"), 64),
        # Half of the rest, since more is asked for than filled.
        (MACHINE | address_space(12 * GIB), 4),
    ],
)
def test_host_memory_of_machine_groups_and_limits(files, gibibytes, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert _backend.memory.host_memory(tmp_path) == gibibytes * GIB


class FakeGPU(str):
    """A GPU that TensorFlow sees."""

    @property
    def name(self):
        return f"/physical_device:{self}"


class FakeConfig:
    """What TensorFlow's settings say of a machine of four GPUs."""

    def __init__(self):
        self.visible = self.gpus = [FakeGPU(f"GPU:{i}") for i in range(4)]
        self.growing, self.started = [], None
        self.experimental = self

    def list_physical_devices(self, kind):
        return self.gpus if kind == "GPU" else ["CPU:0"]

    def get_logical_device_configuration(self, device):
        return None

    def get_visible_devices(self, kind):
        return self.visible

    def set_visible_devices(self, devices, kind):
        self.refuse_once_started()
        self.visible = devices

    def set_memory_growth(self, device, enable):
        self.refuse_once_started()
        self.growing.append(device)

    def refuse_once_started(self):
        if self.started is not None:
            raise RuntimeError("too late")

    def list_logical_devices(self, kind):
        if self.started is None:
            self.started = [*self.visible]
        return [FakeGPU(f"device:GPU:{i}") for i in range(len(self.visible))]

    def get_device_details(self, device):
        return {"compute_capability": (int(device[-1]), 0)}


@pytest.fixture
def four_gpus(monkeypatch):
    """Stand in for a machine whose GPUs have as many bytes as their numbers say."""

    def mirrored(devices):
        names = [f"/replica:0/device:{name}" for name in devices]
        strategy = SimpleNamespace(worker_devices=names)
        strategy.extended = strategy
        return strategy

    module, fake = _backend.strategy, FakeConfig()
    monkeypatch.setattr(module.tf, "config", fake)
    monkeypatch.setattr(module, "_mirrored", mirrored)
    one_device = lambda device: mirrored([device])  # noqa: E731
    monkeypatch.setattr(module.tf.distribute, "OneDeviceStrategy", one_device)
    monkeypatch.setattr(_backend.memory, "gpu_memory", list)
    # What is free changes from one look to the next.
    monkeypatch.setattr(_backend.memory, "host_memory", lambda: 5.0)
    return fake


def test_other_gpus_than_those_chosen_are_not_started(four_gpus):
    strategy = _backend.make_strategy("auto", ["GPU:3", "1"])
    assert four_gpus.started == four_gpus.growing == ["GPU:3", "GPU:1"]
    # TensorFlow counts those that it sees, in the machine's order.
    devices = [f"/replica:0/device:GPU:{number}" for number in (1, 0)]
    assert strategy.worker_devices == devices
    assert _backend.free_memory(strategy) == [1, 3]
    assert _backend.gpu_capabilities(strategy) == [(1, 0), (3, 0)]
    (one,) = _backend.make_strategy("auto", ["GPU:3"]).worker_devices
    assert one == "/replica:0/device:GPU:1"
    with pytest.raises(InputError, match="was started without GPU:0 in this process"):
        _backend.make_strategy("auto", ["GPU:0"])
    with pytest.raises(InputError, match="no device GPU:4; this machine has GPU:0, "):
        _backend.make_strategy("auto", ["GPU:4"])


@pytest.mark.parametrize(
    ("arguments", "started", "memory"),
    [
        (("auto", ["CPU:0"]), [], 5.0),
        (("none",), [0, 1, 2, 3], [0]),
        (("auto",), [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_memory_is_that_of_the_devices_in_use(four_gpus, arguments, started, memory):
    strategy = _backend.make_strategy(*arguments)
    gpus = [f"GPU:{number}" for number in started]
    assert four_gpus.started == four_gpus.growing == gpus
    assert _backend.free_memory(strategy) == memory


class FakeDriver:
    """CUDA's driver, with GPUs of 8 and 6 GiB."""

    sizes = (8 * GIB, 6 * GIB)

    def cuInit(self, flags):  # noqa: N802 (CUDA's names)
        return 0

    def cuDeviceGet(self, device, number):  # noqa: N802
        device._obj.value = number
        return 0 if number < len(self.sizes) else 101

    def cuDeviceTotalMem_v2(self, size, device):  # noqa: N802
        size._obj.value = self.sizes[device.value]
        return 0


def test_the_driver_tells_the_memory_of_gpus(monkeypatch):
    # Without one nothing can be told.
    assert _backend.memory.gpu_memory([0]) == math.inf
    monkeypatch.setattr(_backend.memory.ctypes, "CDLL", lambda name: FakeDriver())
    assert _backend.memory.gpu_memory([0]) == 8 * GIB
    assert _backend.memory.gpu_memory([0, 1]) == 6 * GIB
    assert _backend.memory.gpu_memory([5]) == math.inf


def own_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("RssAnon"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="GNU's library alone can")
def test_release_memory_returns_unused_memory():
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    blocks = [ctypes.c_void_p(library.malloc(2**16)) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, 2**16)
    # One is left above the others.
    last = blocks.pop()
    for block in blocks:
        library.free(block)
    before = own_memory()
    _backend.release_memory()
    assert own_memory() < before - 2**25
    library.free(last)


# As of systems without such a library, or function.
@pytest.mark.parametrize("load", [OSError, TypeError, [None]])
def test_release_memory_without_support_of_the_system(monkeypatch, load):
    library = mock.Mock(side_effect=load)
    monkeypatch.setattr(_backend.memory.ctypes, "CDLL", library)
    _backend.release_memory()
    library.assert_called_once()


def test_a_gpu_that_can_not_be_used_is_named(monkeypatch, caplog):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(_backend.strategy, "_has_gpu", lambda: True)
    sentence = "driver is too old .* choose the device CPU:0"
    with pytest.raises(InputError, match=sentence):
        _backend.make_strategy("auto")
    # Generating takes seconds.
    assert _backend.make_strategy("auto", alone=True) is None
    assert "driver is too old" in caplog.text
    assert _backend.make_strategy("auto", ["CPU:0"]) is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _backend.make_strategy("auto") is None


def test_a_gpu_that_does_not_start_is_named(monkeypatch):
    error = RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory\nand more")
    fail = mock.Mock(side_effect=error)
    monkeypatch.setattr(_backend.strategy.tf.config, "list_logical_devices", fail)
    sentence = r"\(CUDA_ERROR_OUT_OF_MEMORY: out of memory\)"
    with pytest.raises(InputError, match=sentence):
        _backend.make_strategy("auto")


REPLICAS = Path(__file__).with_name("train_on_replicas.py")
# What trains after each other, and then together, for each number of dimensions: two
# workers train in 2-D as commands, in tests/workflows/test_workflows_workers.py.
KINDS = {2: (["none", "two"], []), 3: (["none"], ["worker 0", "worker 1"])}


@pytest.fixture(scope="module", params=[2, 3], ids=["2-D", "3-D"])
def outcomes(request, tmp_path_factory):
    """Train without a strategy, and in 2-D on two replicas, in 3-D on two workers."""
    folder = tmp_path_factory.mktemp("replicas")
    alone, workers = KINDS[request.param]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    environments = {}
    for index, worker in enumerate(workers):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": cluster, "task": task})
        environments[worker] = {"TF_CONFIG": config}
    sizes = request.param, 2  # batches of a step
    for together in ({"alone": alone}, {name: [name] for name in environments}):
        processes = [
            subprocess.Popen(
                [sys.executable, REPLICAS, *map(str, sizes), folder, *kinds],
                # Sums are split over threads: with another number of cores another
                # rounding, by which now and then a latent gets another code.
                env=os.environ
                | {"TF_NUM_INTRAOP_THREADS": "2"}
                | environments.get(name, {}),
            )
            for name, kinds in together.items()
        ]
        assert [process.wait(TIMEOUT) for process in processes] == [0] * len(processes)
    return {kind: dict(np.load(folder / f"{kind}.npz")) for kind in alone + workers}


def test_replicas_train_and_generate_the_same(outcomes):
    alone = outcomes["none"]
    assert min(v[-1] for name, v in alone.items() if name.endswith(" step")) > 50
    assert sum(alone["VQVAE revived"]) > 0
    for kind, replicas in outcomes.items():
        assert replicas.keys() == alone.keys()
        for name, values in alone.items():
            most = 1e-4 if "loss" in name or "mse" in name else 1e-3
            if name.endswith("perplexity"):
                most = 1e-2  # a latent between two codes gets either, by rounding
            # Biases that are still near 0 are measured by what a step or two changes.
            scale = max(np.abs(values).max(), 1e-3)
            difference = np.abs(values - replicas[name]).max() / scale
            assert difference < most, f"{name}, {kind}"


def test_datasets_are_not_autotuned():
    # What tunes tf.data sleeps for up to a minute, and the iterator's end waits for it.
    drawn = Batches(4, lambda step, places: (np.zeros((len(places), 2), "float32"),))
    data = _backend.distribute_batches(drawn, 0, None)
    assert data.options().autotune.enabled is False
    assert next(iter(data))[0].shape == (4, 2)


def test_make_strategy():
    assert _backend.make_strategy("none") is None
    assert _backend.make_strategy("auto") is None  # without a GPU
    one = _backend.make_strategy("auto", ["cpu:0"])
    assert _backend.count_replicas(one) == 1
    assert _backend.make_strategy(one) is one
    assert _backend.count_replicas(None) == 1
    mirrored = _backend.make_strategy("mirrored")
    assert _backend.count_replicas(mirrored) == 1


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
def test_make_strategy_refuses(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        _backend.make_strategy(*arguments)


def test_share_of_refuses_batches_that_replicas_cannot_divide():
    class Four:
        num_replicas_in_sync = 4

    assert _backend.share_of(12, Four) == 3
    for batch_size, sentence in ((10, "8 or 12"), (3, "at least 4")):
        with pytest.raises(InputError, match=sentence):
            _backend.share_of(batch_size, Four)


TWO = SimpleNamespace(extended=SimpleNamespace(worker_devices=("CPU:0", "CPU:0")))


@pytest.mark.parametrize("n", [1, 7, 8])
def test_pieces_are_spread_over_devices_and_keep_their_order(n):
    array = np.arange(n)
    threads = set()

    def work(piece):
        threads.add(threading.get_ident())
        return piece * 10

    with _backend.distributed(TWO):
        npt.assert_array_equal(_backend.in_batches(work, array, 2), array * 10)
    assert threading.get_ident() not in threads
    _backend.in_batches(work, array, 2)
    assert threading.get_ident() in threads


def test_spreading_does_not_nest():
    def work(piece):
        return _backend.in_batches(lambda part: part + len(part), piece, 8)

    with _backend.distributed(TWO):
        result = _backend.in_batches(work, np.arange(8), 4)
    npt.assert_array_equal(result, np.arange(8) + 4)


def test_failures_on_a_device_are_raised():
    with _backend.distributed(TWO), pytest.raises(ZeroDivisionError):
        _backend.in_batches(lambda piece: 1 // 0, np.arange(4), 1)
