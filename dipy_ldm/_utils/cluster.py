"""Clusters of machines that train together.

The workers are read from ``TF_CONFIG`` or Slurm. They wait for each other and compare
their settings here, since TensorFlow waits without a limit and can't be interrupted.
"""

from contextlib import ExitStack, suppress
import json
import os
import re
import selectors
import socket
import time
from typing import NamedTuple, cast

from dipy_ldm._utils.checks import InputError

# Seconds to wait for all workers.
TIMEOUT = 300
# Maximum length of a message in bytes.
_MAX_MESSAGE = 2**20

_EXAMPLE = (
    '{"cluster": {"worker": ["host1:8888", "host2:8888"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


class Cluster(NamedTuple):
    """The workers that train together."""

    addresses: tuple
    index: int  # type: ignore[assignment]  # tuples have a method of this name


def find_cluster() -> Cluster | None:
    """Return the cluster that TF_CONFIG or Slurm defines; None for a single process."""
    if (config := os.environ.get("TF_CONFIG")) is not None:
        if config.strip() in ("", "{}"):
            return None  # as in TensorFlow
        cluster = _from_tf_config(config)
    elif _number("SLURM_STEP_NUM_TASKS", 1) > 1:  # set by srun
        cluster = _from_slurm()
    else:  # including a batch script itself
        return None
    return cluster if len(cluster.addresses) > 1 else None


def has_several_tasks() -> bool:
    """Return whether this process is one of several that were started together."""
    if "TF_CONFIG" in os.environ:
        return find_cluster() is not None
    return _number("SLURM_STEP_NUM_TASKS", 1) > 1


def _number(name: str, default: int):
    """Read a whole number from the environment; empty means the default."""
    text = os.environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            f"{name} must be a whole number, not {text!r}",
            "start the command with srun, or unset it",
        ) from error


def _from_tf_config(text: str):
    """Read the cluster from ``TF_CONFIG``."""
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        unknown = set(jobs) - {"chief", "worker"}
        # A separate chief, if there is one, comes first.
        addresses = {
            (job, index): address
            for job in ("chief", "worker")
            for index, address in enumerate(jobs.get(job, ()))
        }
        index = list(addresses).index((task["type"], int(task["index"])))
        is_valid = all(map(_is_address, addresses.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        unknown, is_valid = set(), False
    if not is_valid or unknown:
        raise InputError(
            "TF_CONFIG must list chief and worker addresses and name this task's "
            f"among them, like {_EXAMPLE}",
            f"it is {text}",
        )
    return Cluster(tuple(addresses.values()), index)


def _is_address(text: str):
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 2**16


def _from_slurm():
    """Read the cluster from Slurm's variables.

    Only nodes and tasks come from TensorFlow's resolver: it sorts addresses as text, so
    that n10 comes before n9, and fails for nodes without a GPU.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise InputError(
            "several Slurm tasks need TensorFlow, which is not installed",
            "start one task, or give each different work and add `strategy` none",
        ) from error
    resolve = tf.distribute.cluster_resolver.SlurmClusterResolver
    try:
        resolver = resolve(gpus_per_node=1, gpus_per_task=0)
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"Slurm's variables are invalid ({error})",
            "start the command with srun, or name the machines in TF_CONFIG",
        ) from error
    # Jobs and steps on the same node need different ports; those below 30000 are not
    # ephemeral ports on any system.
    job, step = _number("SLURM_JOB_ID", 0), _number("SLURM_STEP_ID", 0)
    port = 10_000 + (61 * job + 17 * step) % 19_000
    addresses = (
        f"{node}:{port + task}"
        for node, tasks in resolver._task_configuration.items()
        for task in range(tasks)
    )
    cluster = Cluster(tuple(addresses), _number("SLURM_PROCID", -1))
    if not 0 <= cluster.index < len(cluster.addresses):
        raise InputError(
            f"SLURM_PROCID must be from 0 to {len(cluster.addresses) - 1}, the number "
            f"of this task among all, not {cluster.index}",
            "start the command with srun",
        )
    node_name = os.environ.get("SLURMD_NODENAME")
    if node_name and cluster.addresses[cluster.index].rpartition(":")[0] != node_name:
        raise InputError(
            "Slurm's tasks must fill one node after the other",
            "start the command with srun --distribution=block",
        )
    return cluster


def gpu_share_of_node() -> tuple[int, int]:
    """Return this worker's share of the GPUs of its node, as index and count."""
    # With GPUs per task, Slurm hides those of other tasks.
    if os.environ.get("SLURM_GPUS_PER_TASK") or not os.environ.get("SLURM_LOCALID"):
        return 0, 1
    text = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", text)
    return _number("SLURM_LOCALID", 0), max(map(int, counts), default=1)


def wait_for_workers(
    cluster: Cluster, settings: dict, timeout: float = TIMEOUT
) -> None:
    """Wait for all workers; refuse to start if their settings differ."""
    deadline = time.monotonic() + timeout
    with _listen(cluster.addresses[cluster.index]) as server:
        if cluster.index > 0:
            refusal = _register(cluster, settings, deadline, timeout)
        else:
            refusal = _answer_workers(cluster, settings, server, deadline, timeout)
    if refusal:
        raise InputError(refusal)


def _listen(address: str):
    """Open a server on the port that TensorFlow will use later."""
    port = int(address.rpartition(":")[2])
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise InputError(
            f"port {port} of this machine can't be used ({error.strerror})",
            "stop the program that uses it, or choose another port in TF_CONFIG",
        ) from error


def _register(cluster: Cluster, settings: dict, deadline: float, timeout: float):
    """Register this worker with the chief; return the chief's refusal, if any."""
    host, _, port = cluster.addresses[0].rpartition(":")
    hello = {"job": _job(), "worker": cluster.index, "facts": settings}
    message = json.dumps(hello) + "\n"
    reason = "could not be reached"
    while (remaining := deadline - time.monotonic()) > 0:
        # The chief may not have started yet, or another program may use its port.
        with (
            suppress(OSError, ValueError, KeyError, TypeError, RecursionError),
            socket.create_connection((host, int(port)), timeout=remaining) as link,
        ):
            reason = "did not answer: workers are missing, or it is another program"
            link.sendall(message.encode())
            answer = json.loads(link.makefile().readline(_MAX_MESSAGE))
            if answer["job"] == _job():
                return answer["refusal"]
        time.sleep(min(0.2, remaining))
    return (
        f"the chief at {cluster.addresses[0]} {reason} (within {timeout} s); check "
        "that all workers were started, and that the port is open."
    )


def _job():
    """Return Slurm's job and step, which identify its workers; None with TF_CONFIG."""
    if "TF_CONFIG" in os.environ:
        return None
    return [os.environ.get(f"SLURM_{name}_ID") for name in ("JOB", "STEP")]


def _answer_workers(
    cluster: Cluster,
    settings: dict,
    server: socket.socket,
    deadline: float,
    timeout: float,
):
    """As the chief, wait for all workers, compare their settings and answer."""
    expected = set(range(1, len(cluster.addresses)))
    hellos: dict = {}
    refusal = None
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        while missing := expected - {hello["worker"] for hello in hellos.values()}:
            ready = selector.select(max(0, deadline - time.monotonic()))
            if not ready:
                workers = (
                    f"worker {i} at {cluster.addresses[i]}" for i in sorted(missing)
                )
                refusal = (
                    f"no answer within {timeout} s from {', '.join(workers)}; check "
                    "that each was started and reaches the chief's port."
                )
                break
            for key, _ in ready:
                if key.fileobj is server:
                    _accept(server, selector, stack)
                else:
                    _read_hello(key, selector, hellos, expected)
        for hello in sorted(hellos.values(), key=lambda hello: hello["worker"]):
            refusal = refusal or difference_message(
                settings, hello["facts"], hello["worker"]
            )
        answer = json.dumps({"job": _job(), "refusal": refusal}) + "\n"
        for link in hellos:
            with suppress(OSError):
                link.settimeout(10)
                link.sendall(answer.encode())
    return refusal


def _accept(server: socket.socket, selector: selectors.BaseSelector, stack: ExitStack):
    """Accept a connection without blocking."""
    with suppress(OSError):
        link = stack.enter_context(server.accept()[0])
        link.setblocking(False)
        selector.register(link, selectors.EVENT_READ, bytearray())


def _read_hello(
    key: selectors.SelectorKey,
    selector: selectors.BaseSelector,
    hellos: dict,
    expected: set[int],
):
    """Read from a connection: a worker's message, its end, or something unknown."""
    link, text = cast(socket.socket, key.fileobj), key.data
    try:
        part = link.recv(2**16)
    except BlockingIOError:
        return
    except OSError:
        part = b""
    text += part
    if part and link not in hellos and len(text) < _MAX_MESSAGE:
        if b"\n" not in text:
            return
        if hello := _parse_hello(text, expected):
            hellos[link] = hello
            return
    # Workers that stopped are missing again.
    hellos.pop(link, None)
    selector.unregister(link)
    link.close()


def _parse_hello(text: bytes, expected: set[int]):
    """Return a worker's message; None if it is not from this job."""
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        hello = json.loads(text)
        of_job = hello["job"] == _job() and hello["worker"] in expected
        # Not isinstance, since True is an int.
        if of_job and type(hello["worker"]) is int and type(hello["facts"]) is dict:
            return hello
    return None


def difference_message(chief: dict, settings: dict, worker: int) -> str | None:
    """Return the message for a worker that differs from the chief, or None."""
    differences = [
        f"{name} is {settings.get(name)} there and {chief.get(name)} for the chief"
        for name in sorted(chief | settings)
        if chief.get(name) != settings.get(name)
    ]
    if not differences:
        return None
    return (
        f"worker {worker} was not started as the chief was ({'; '.join(differences)}); "
        "start the same command in the same environment on all machines."
    )
