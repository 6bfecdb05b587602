"""Clusters: read from the environment; workers meet, or hear why not."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
import json
import socket
import sys
import time

from processes import free_ports
import pytest

from dipy_ldm._utils import cluster as clusters
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.cluster import (
    Cluster,
    difference_message,
    find_cluster,
    wait_for_workers,
)


@pytest.fixture
def environment(monkeypatch):
    """Return what sets the variables of TensorFlow and Slurm."""

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return change


def config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_alone(environment):
    assert find_cluster() is None
    # In a batch script, before srun.
    environment(SLURM_JOB_ID=7, SLURM_NTASKS=2, SLURM_PROCID=0)
    assert find_cluster() is None
    environment(TF_CONFIG=config({"worker": ["a:1"]}))
    assert find_cluster() is None


@pytest.mark.parametrize("text", ["", " ", "{}"])
def test_an_empty_tf_config_is_that_of_who_is_alone(environment, text):
    environment(TF_CONFIG=text, SLURM_STEP_NUM_TASKS=2)
    assert find_cluster() is None


def test_tf_config(environment):
    environment(TF_CONFIG=config({"worker": ["a:1", "b:2"]}, index=1))
    assert find_cluster() == Cluster(("a:1", "b:2"), 1)
    environment(TF_CONFIG=config({"worker": ["a:1", "b:2"], "chief": ["c:3"]}))
    assert find_cluster() == Cluster(("c:3", "a:1", "b:2"), 1)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"cluster": ["a:1"], "task": {"type": "worker", "index": 0}}',
        config({"worker": ["a:1", "b:2"]}, index=2),
        config({"worker": ["a:1", "b"]}),
        config({"worker": ["a:1", "b:99999"]}),
        config({"worker": ["a:1", "b:2"]}, kind="evaluator"),
        config({"worker": ["a:1", "b:2"], "ps": ["c:3"]}),
    ],
)
def test_malformed_tf_config(environment, text):
    environment(TF_CONFIG=text)
    with pytest.raises(InputError, match="TF_CONFIG must list"):
        find_cluster()


STEP = {"SLURM_STEP_NUM_TASKS": 3, "SLURM_STEP_NODELIST": "n[9-10]"}
STEP |= {"SLURM_STEP_TASKS_PER_NODE": "2,1"}


@pytest.mark.tensorflow
def test_slurm(environment):
    environment(**STEP, SLURM_JOB_ID=20, SLURM_PROCID=2)
    # In Slurm's order, which is not that of text.
    assert find_cluster() == Cluster(("n9:11220", "n9:11221", "n10:11220"), 2)
    environment(SLURMD_NODENAME="n9")
    with pytest.raises(InputError, match="distribution=block"):
        find_cluster()
    environment(SLURM_STEP_TASKS_PER_NODE="1(x2)")
    with pytest.raises(InputError, match="Slurm's variables"):
        find_cluster()


@pytest.mark.tensorflow
@pytest.mark.parametrize("number", [3, -1, "", "x"])
def test_a_task_that_is_none_is_refused(environment, number):
    environment(**STEP, SLURM_JOB_ID="", SLURM_PROCID=number)
    with pytest.raises(InputError, match="(SLURM_PROCID must|Slurm's var).* srun"):
        find_cluster()


def test_variables_of_slurm_may_be_empty_and_malformed_ones_are_named(environment):
    environment(SLURM_STEP_NUM_TASKS="", SLURM_LOCALID="", SLURM_STEP_TASKS_PER_NODE="")
    assert find_cluster() is None
    assert clusters.gpu_share_of_node() == (0, 1)
    environment(SLURM_LOCALID=1)
    assert clusters.gpu_share_of_node() == (1, 1)
    environment(SLURM_STEP_NUM_TASKS="two")
    with pytest.raises(InputError, match="SLURM_STEP_NUM_TASKS must be .* not 'two'"):
        find_cluster()


def test_several_tasks_of_slurm_need_tensorflow(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    environment(**STEP)
    with pytest.raises(InputError, match="which is not installed; start one task, or"):
        find_cluster()


@pytest.mark.tensorflow
def test_half_of_slurms_variables_is_one_sentence(environment):
    environment(SLURM_STEP_NUM_TASKS=2, SLURM_PROCID=0)
    with pytest.raises(InputError, match="Slurm's variables"):
        find_cluster()


def test_gpus_of_a_node_are_shared(environment):
    assert clusters.gpu_share_of_node() == (0, 1)
    environment(SLURM_LOCALID=1, SLURM_STEP_TASKS_PER_NODE="2(x12),1")
    assert clusters.gpu_share_of_node() == (1, 2)
    environment(SLURM_GPUS_PER_TASK=2)
    assert clusters.gpu_share_of_node() == (0, 1)


def meet_all(facts, limit=10, only=None):
    """Let workers meet in threads, and return what each of them is told."""
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(len(facts)))
    told = {}

    def one(index):
        try:
            told[index] = wait_for_workers(
                Cluster(addresses, index), facts[index], limit
            )
        except InputError as error:
            told[index] = str(error)

    with ThreadPoolExecutor() as threads:
        for i in only or range(len(facts)):
            threads.submit(one, i)
            time.sleep(0.1)  # the chief need not be the last, nor the first
    return told, addresses


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_workers_meet(order):
    told, _ = meet_all([{"version": 1}] * 3, only=order)
    assert told == {0: None, 1: None, 2: None}


def test_workers_that_differ_are_refused():
    told, _ = meet_all([{"version": 1}, {"version": 1}, {"version": 2}])
    assert len(set(told.values())) == 1
    assert "worker 2" in told[0]
    assert "version is 2 there and 1 for the chief" in told[0]


def test_a_worker_that_does_not_come():
    start = time.monotonic()
    told, addresses = meet_all([{}] * 3, limit=1, only=[0, 1])
    assert time.monotonic() - start < 60
    for sentence in told.values():
        assert f"no answer within 1 s from worker 2 at {addresses[2]}" in sentence


def test_a_chief_that_does_not_come():
    told, addresses = meet_all([{}] * 2, limit=1, only=[1])
    assert f"the chief at {addresses[0]} could not be reached (within 1 s)" in told[1]


@pytest.fixture
def chief(environment):
    """Return a port where a chief waits for a worker, and that worker's cluster."""
    environment(SLURM_JOB_ID=7, SLURM_STEP_ID=0)
    (port, other) = free_ports(2)
    cluster = Cluster((f"127.0.0.1:{port}", f"127.0.0.1:{other}"), 0)
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(wait_for_workers, cluster, {"a": 1}, 20)
        time.sleep(0.2)
        yield port, cluster._replace(index=1)
        waiting.result()


STRANGERS = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "a list for a worker": b'{"job": ["7", "0"], "worker": [], "facts": {}}\n',
    "a number for facts": b'{"job": ["7", "0"], "worker": 1, "facts": 1}\n',
    "true": b'{"job": ["7", "0"], "worker": true, "facts": {}}\n',
    "another job": b'{"job": ["8", "0"], "worker": 1, "facts": {"a": 1}}\n',
    "no job": b'{"worker": 1, "facts": {"a": 1}}\n',
    "depth": b"[" * 100_000 + b"\n",
    "no text": b"\xff\xfe\n",
    "no end": b"x" * 2_000_000,
}


@pytest.mark.parametrize("word", STRANGERS.values(), ids=STRANGERS)
def test_strangers_at_the_port_are_ignored(chief, word):
    port, cluster = chief
    with socket.create_connection(("127.0.0.1", port)) as link:
        with suppress(ConnectionError):
            link.sendall(word)
        wait_for_workers(cluster, {"a": 1}, 20)


def test_the_silent_hold_nobody_up(chief):
    port, cluster = chief
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        # Less than any of them would be waited for.
        wait_for_workers(cluster, {"a": 1}, 20)


def test_a_hello_may_come_in_pieces_and_a_worker_again(chief):
    port, cluster = chief
    hello = b'{"job": ["7", "0"], "worker": 1, "facts": {"a": 2}}\n'
    with socket.create_connection(("127.0.0.1", port)) as link:
        for piece in (hello[:9], hello[9:-1]):
            link.sendall(piece)
            time.sleep(0.05)
    wait_for_workers(cluster, {"a": 1}, 20)


def test_a_chief_of_another_job_is_not_listened_to():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with server.accept()[0] as link:
                link.recv(1000)
                link.sendall(b'{"job": ["8", "0"], "refusal": null}\n')

        port, own = server.getsockname()[1], free_ports(1)[0]
        cluster = Cluster((f"127.0.0.1:{port}", f"127.0.0.1:{own}"), 1)
        with ThreadPoolExecutor() as threads:
            threads.submit(answer)
            with pytest.raises(InputError, match="did not answer"):
                wait_for_workers(cluster, {}, 1)


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        cluster = Cluster((f"127.0.0.1:{port}", "127.0.0.1:1"), 0)
        with pytest.raises(InputError, match=f"port {port} of this machine"):
            wait_for_workers(cluster, {}, 1)


def test_differences_are_named():
    assert difference_message({"a": 1, "b": 2}, {"b": 2, "a": 1}, 1) is None
    sentence = difference_message({"a": 1}, {"b": 2}, 3)
    assert "worker 3" in sentence
    assert "a is None there and 1 for the chief" in sentence
