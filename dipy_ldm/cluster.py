"""Clusters: which machines train together, and whether they agree to.

What ``TF_CONFIG`` or Slurm says of the workers is read here, and the workers meet
before TensorFlow makes them wait for each other: it does so without a limit, and can't
be interrupted.
"""

from contextlib import ExitStack, suppress
import json
import os
import re
import socket
import time
from typing import NamedTuple

from dipy_ldm.validation import InputError

# Seconds within which all workers must be there.
LIMIT = 300

_EXAMPLE = (
    '{"cluster": {"worker": ["host1:8888", "host2:8888"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


class Cluster(NamedTuple):
    """The workers that train together.

    Parameters
    ----------
    addresses : tuple of str
        ``host:port`` of each worker, the chief first.
    index : int
        Which of them this process is.
    """

    addresses: tuple
    index: int  # type: ignore[assignment]  # tuples have a method of this name


def find_cluster() -> Cluster | None:
    """Read from the environment who works together.

    Returns
    -------
    Cluster or None
        None is for this machine alone.

    Raises
    ------
    InputError
        If ``TF_CONFIG`` can't be understood.
    """
    if (config := os.environ.get("TF_CONFIG")) is not None:
        return _of_several(_from_tf_config(config))
    # Of the step that srun started; a batch script itself is alone.
    return _of_several(_from_slurm()) if _slurm_tasks() > 1 else None


def in_company() -> bool:
    """Say whether this process was started together with others.

    Returns
    -------
    bool
        Whether :func:`find_cluster` would find some; TensorFlow need not be there.
    """
    if "TF_CONFIG" in os.environ:
        return find_cluster() is not None
    return _slurm_tasks() > 1


def _slurm_tasks():
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def _of_several(cluster):
    return cluster if len(cluster.addresses) > 1 else None


def _from_tf_config(text):
    """Read the cluster from TensorFlow's own variable."""
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        unknown = set(jobs) - {"chief", "worker"}
        # The chief, if it has a name of its own, comes first.
        addresses = {
            (job, index): address
            for job in ("chief", "worker")
            for index, address in enumerate(jobs.get(job, ()))
        }
        index = list(addresses).index((task["type"], int(task["index"])))
        good = all(map(_is_address, addresses.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        unknown, good = set(), False
    if not good or unknown:
        raise InputError(
            f"TF_CONFIG must list chief and worker addresses and name this task's "
            f"among them, like {_EXAMPLE}; it is {text}"
        )
    return Cluster(tuple(addresses.values()), index)


def _is_address(text):
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 2**16


def _from_slurm():
    """Let TensorFlow read the cluster from Slurm's variables.

    Only the nodes: its addresses are sorted as text, so that n10 comes before n9, and
    for nodes without a GPU it fails.
    """
    import tensorflow as tf

    resolve = tf.distribute.cluster_resolver.SlurmClusterResolver
    try:
        resolver = resolve(gpus_per_node=1, gpus_per_task=0)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"Slurm's variables can't be understood ({error}); start the command with "
            "srun, or name the machines in TF_CONFIG."
        ) from error
    # Jobs and steps that share a node must not share ports; below 30000 no system
    # gives them to others.
    job, step = (int(os.environ.get(f"SLURM_{x}_ID", 0)) for x in ("JOB", "STEP"))
    port = 10_000 + (61 * job + 17 * step) % 19_000
    addresses = (
        f"{node}:{port + task}"
        for node, tasks in resolver._task_configuration.items()
        for task in range(tasks)
    )
    cluster = Cluster(tuple(addresses), int(os.environ["SLURM_PROCID"]))
    here = os.environ.get("SLURMD_NODENAME")
    if here and cluster.addresses[cluster.index].rpartition(":")[0] != here:
        raise InputError(
            "Slurm's tasks must fill one node after the other; start the command with "
            "srun --distribution=block."
        )
    return cluster


def share_of_node() -> tuple[int, int]:
    """Say which GPUs of a node are for this worker, where Slurm leaves that open.

    Returns
    -------
    first, step : int
        Of all GPUs that are seen, ``[first::step]``.
    """
    # Where Slurm gives a task GPUs of its own, no others are seen.
    if "SLURM_GPUS_PER_TASK" in os.environ or "SLURM_LOCALID" not in os.environ:
        return 0, 1
    counts = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    most = max(int(count) for count in re.findall(r"(\d+)(?:\(x\d+\))?", counts))
    return int(os.environ["SLURM_LOCALID"]), most


def meet(cluster: Cluster, facts: dict, limit: float = LIMIT) -> None:
    """Wait until all workers are there, and agree.

    Parameters
    ----------
    cluster : Cluster
        The workers.
    facts : dict
        What must be the same for all, as JSON can say it.
    limit : float
        Seconds to wait.

    Raises
    ------
    InputError
        If a worker does not come within the limit, or was started with other facts;
        the sentence names its address.
    """
    end = time.monotonic() + limit
    with _listen(cluster.addresses[cluster.index]) as server:
        if cluster.index > 0:
            refusal = _report(cluster, facts, end, limit)
        else:
            refusal = _receive(cluster, facts, server, end, limit)
    if refusal:
        raise InputError(refusal)


def _listen(address):
    """Open the port that TensorFlow will use."""
    port = int(address.rpartition(":")[2])
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise InputError(
            f"port {port} of this machine can't be used ({error.strerror}); end what "
            "uses it, or choose another in TF_CONFIG."
        ) from error


def _report(cluster, facts, end, limit):
    """Tell the chief that this worker is there, and take its answer."""
    host, _, port = cluster.addresses[0].rpartition(":")
    message = json.dumps({"worker": cluster.index, "facts": facts}) + "\n"
    reason = "could not be reached"
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, int(port)), timeout=left) as link:
                reason = "did not answer, since others are missing or it is not one"
                link.sendall(message.encode())
                return json.loads(link.makefile().readline())["refusal"]
        except (OSError, ValueError, KeyError, TypeError):
            # Not started yet, restarted, or not this program.
            time.sleep(max(0, min(0.2, left)))
    return (
        f"the chief at {cluster.addresses[0]} {reason} (within {limit} s); see that "
        "all workers were started, and that the port is open."
    )


def _receive(cluster, facts, server, end, limit):
    """Wait as the chief for all others, compare what they say, and answer."""
    others = set(range(1, len(cluster.addresses)))
    links: dict = {}
    said: dict = {}
    refusal = None
    with ExitStack() as stack:
        while missing := others - links.keys():
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                link = stack.enter_context(server.accept()[0])
            except TimeoutError:
                refusal = _say_missing(cluster, missing, limit)
                break
            hello = _read(link)
            if hello and hello["worker"] in others:
                links[hello["worker"]], said[hello["worker"]] = link, hello["facts"]
            # Those that gave up meanwhile, or ended, are missing again.
            links = {i: link for i, link in links.items() if _is_open(link)}
        for worker in sorted(links):
            refusal = refusal or difference(facts, said[worker], worker)
        for link in links.values():
            with suppress(OSError):
                link.sendall((json.dumps({"refusal": refusal}) + "\n").encode())
    return refusal


def _say_missing(cluster, missing, limit):
    named = (f"worker {i} at {cluster.addresses[i]}" for i in sorted(missing))
    return (
        f"within {limit} s there came no {', '.join(named)}; see that each was started "
        "and reaches the chief's port."
    )


def _is_open(link):
    """Say whether the other side still waits, from whom nothing more is to come."""
    link.setblocking(False)
    try:
        return link.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        link.settimeout(10)


def _read(link):
    """Take what a worker says; None if it is something else that came."""
    link.settimeout(10)
    try:
        said = json.loads(link.makefile().readline())
        return {"worker": said["worker"], "facts": said["facts"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def difference(chief: dict, other: dict, worker: int) -> str | None:
    """Say how a worker differs from the chief.

    Parameters
    ----------
    chief, other : dict
        What each of them says.
    worker : int
        Number of the other.

    Returns
    -------
    str or None
        A sentence; None if they agree.
    """
    differ = [
        f"{name} is {other.get(name)} there and {chief.get(name)} for the chief"
        for name in sorted(chief | other)
        if chief.get(name) != other.get(name)
    ]
    if not differ:
        return None
    return (
        f"worker {worker} was not started as the chief was ({'; '.join(differ)}); "
        "start the same command in the same environment on all machines."
    )
