"""What a command does where several machines run it together."""

import logging
from pathlib import Path
import socket
import sys
from typing import Any

from dipy_ldm import __version__
from dipy_ldm._utils.cluster import find_cluster
from dipy_ldm._utils.files import make_folder
from dipy_ldm.workflows._quiet_start import quiet_start


def find(strategy: str) -> Any:
    """Find those who run this command together."""
    if strategy not in ("auto", "multi_worker"):
        return None
    with quiet_start():
        return find_cluster()


def part_of(cluster: Any, items: Any) -> Any:
    """Take the part of some work that is this worker's."""
    if cluster is None:
        return items
    n, workers = len(items), len(cluster.addresses)
    return items[n * cluster.index // workers : n * (cluster.index + 1) // workers]


def is_first(cluster: Any) -> bool:
    """Say whether this process shows progress and writes what all have made."""
    return cluster is None or cluster.index == 0


def keep_log(cluster: Any, path: Path) -> None:
    """Keep what a worker has to say in a file of its own, beside the output."""
    if cluster is None:
        return
    make_folder(path.parent)
    log = path.with_name(f"{path.name}.worker-{cluster.index}.log")
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("dipy_ldm")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    # The others' is for the file alone, and so is what is more than information.
    logger.propagate = is_first(cluster)
    for console in logging.getLogger().handlers:
        console.setLevel(logging.INFO)
    logger.debug(
        "dipy_ldm %s on %s, worker %d of %d (%s): %s",
        __version__,
        socket.gethostname(),
        cluster.index,
        len(cluster.addresses),
        ", ".join(cluster.addresses),
        " ".join(sys.argv),
    )
