"""Clusters: read from the environment; workers meet, or report why not."""

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


@pytest.mark.parametrize(
    "variables",
    [
        {},
        # In a batch script, before srun.
        {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 2, "SLURM_PROCID": 0},
        {"TF_CONFIG": config({"worker": ["a:1"]})},
        # An empty one counts, as for TensorFlow.
        {"TF_CONFIG": " ", "SLURM_STEP_NUM_TASKS": 2},
        {"TF_CONFIG": "{}", "SLURM_STEP_NUM_TASKS": 2},
    ],
)
def test_find_cluster_of_a_single_process(environment, variables):
    environment(**variables)
    assert find_cluster() is None


def test_find_cluster_by_tf_config(environment):
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
def test_find_cluster_refuses_malformed_tf_config(environment, text):
    environment(TF_CONFIG=text)
    with pytest.raises(InputError, match="TF_CONFIG must list"):
        find_cluster()


STEP = {"SLURM_STEP_NUM_TASKS": 3, "SLURM_STEP_NODELIST": "n[9-10]"}
STEP |= {"SLURM_STEP_TASKS_PER_NODE": "2,1"}


@pytest.mark.tensorflow
def test_find_cluster_by_slurm(environment):
    environment(**STEP, SLURM_JOB_ID=20, SLURM_PROCID=2)
    # In Slurm's order, which is not that of text.
    assert find_cluster() == Cluster(("n9:11220", "n9:11221", "n10:11220"), 2)


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_PROCID": 2, "SLURMD_NODENAME": "n9"}, "distribution=block"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, "Slurm's variables .* srun"),
        ({"SLURM_STEP_NODELIST": ""}, "Slurm's variables .* srun"),
        ({"SLURM_PROCID": 3}, "SLURM_PROCID must be from 0 to 2.* not 3; .* srun"),
        ({"SLURM_PROCID": -1}, "SLURM_PROCID must .* srun"),
        ({"SLURM_PROCID": ""}, "(SLURM_PROCID must|Slurm's var).* srun"),
        ({"SLURM_PROCID": "x"}, "(SLURM_PROCID must|Slurm's var).* srun"),
    ],
)
def test_find_cluster_refuses_variables_of_slurm(environment, variables, message):
    environment(**STEP | {"SLURM_JOB_ID": ""} | variables)
    with pytest.raises(InputError, match=message):
        find_cluster()


def test_find_cluster_names_malformed_numbers_and_takes_empty_ones(environment):
    environment(SLURM_STEP_NUM_TASKS="", SLURM_LOCALID="", SLURM_STEP_TASKS_PER_NODE="")
    assert find_cluster() is None
    assert clusters.gpu_share_of_node() == (0, 1)
    environment(SLURM_LOCALID=1)
    assert clusters.gpu_share_of_node() == (1, 1)
    environment(SLURM_STEP_NUM_TASKS="two")
    with pytest.raises(InputError, match="SLURM_STEP_NUM_TASKS must be .* not 'two'"):
        find_cluster()


def test_find_cluster_by_slurm_needs_tensorflow(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    environment(**STEP)
    with pytest.raises(InputError, match="which is not installed; start one task, or"):
        find_cluster()


def test_gpu_share_of_node(environment):
    assert clusters.gpu_share_of_node() == (0, 1)
    environment(SLURM_LOCALID=1, SLURM_STEP_TASKS_PER_NODE="2(x12),1")
    assert clusters.gpu_share_of_node() == (1, 2)
    environment(SLURM_GPUS_PER_TASK=2)
    assert clusters.gpu_share_of_node() == (0, 1)


def meet_all(facts, limit=10, only=None):
    """Let workers meet in threads, and return what each of them is told."""
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(len(facts)))
    messages = {}

    def meet(index):
        try:
            cluster = Cluster(addresses, index)
            messages[index] = wait_for_workers(cluster, facts[index], limit)
        except InputError as error:
            messages[index] = str(error)

    with ThreadPoolExecutor() as threads:
        for i in only or range(len(facts)):
            threads.submit(meet, i)
            time.sleep(0.1)  # the chief need not be the last, nor the first
    return messages, addresses


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_wait_for_workers_in_any_order(order):
    facts = {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 2}
    messages, _ = meet_all(facts, only=order)
    assert messages == {0: None, 1: None, 2: None}


def test_wait_for_workers_refuses_ones_that_differ():
    messages, _ = meet_all([{"a": 1}, {"a": 1}, {"b": 2}])
    assert len(set(messages.values())) == 1
    assert "worker 2" in messages[0]
    assert "a is None there and 1 for the chief; b is 2 there" in messages[0]


@pytest.mark.parametrize(
    ("present", "absent", "message"),
    [
        ([0, 1], 2, "no answer within 1 s from worker 2 at {}"),
        ([1], 0, "the chief at {} could not be reached (within 1 s)"),
    ],
)
def test_wait_for_workers_names_who_does_not_come(present, absent, message):
    start = time.monotonic()
    messages, addresses = meet_all([{}] * 3, limit=1, only=present)
    assert time.monotonic() - start < 60
    assert set(messages) == set(present)
    for text in messages.values():
        assert message.format(addresses[absent]) in text


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
    # Three times, since each would be waited for.
    **dict.fromkeys(("silent", "silent, too", "as silent"), b""),
    "a hello without its end": b'{"job": ["7", "0"], "worker": 1, "facts": {"a": 2}}',
}


def test_wait_for_workers_ignores_strangers(chief):
    port, cluster = chief
    with ExitStack() as stack:
        for message in STRANGERS.values():
            link = socket.create_connection(("127.0.0.1", port))
            stack.enter_context(link)
            with suppress(ConnectionError):
                # In pieces, as it may come.
                link.sendall(message[:9])
                time.sleep(0.05)
                link.sendall(message[9:])
        link.close()
        wait_for_workers(cluster, {"a": 1}, 20)


def test_wait_for_workers_ignores_a_chief_of_another_job():
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


def test_wait_for_workers_refuses_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        cluster = Cluster((f"127.0.0.1:{port}", "127.0.0.1:1"), 0)
        with pytest.raises(InputError, match=f"port {port} of this machine"):
            wait_for_workers(cluster, {}, 1)
