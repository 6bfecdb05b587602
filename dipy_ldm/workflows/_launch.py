"""Start commands: silence TensorFlow, find workers, load models."""

from collections.abc import Iterator
from contextlib import contextmanager
import logging
from pathlib import Path
import socket
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from dipy_ldm import __version__
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.cluster import Cluster, find_cluster
from dipy_ldm._utils.files import make_folder
from dipy_ldm._utils.startup import gc_disabled, quiet
from dipy_ldm.workflows._option_table import SamplingOptions

if TYPE_CHECKING:  # they take seconds to import
    from dipy_ldm.latent_diffusion import LatentDiffusion

try:
    import resource
except ImportError:  # systems without limits
    resource = None  # type: ignore[assignment]

Items = TypeVar("Items", range, list)
# With less, TensorFlow crashes or hangs (2.2 GiB on two cores).
_MIN_ADDRESS_SPACE = 2.5 * 2**30


@contextmanager
def quiet_start() -> Iterator[None]:
    """Silence TensorFlow while it starts and first uses a device."""
    _refuse_low_limit()
    with gc_disabled(freeze=True), quiet():
        yield


def _refuse_low_limit():
    """Refuse a limit of the address space that is too low for TensorFlow."""
    if resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _MIN_ADDRESS_SPACE:
        raise InputError(
            f"the address space of a process is limited to {limit / 2**30:.1f} GiB, "
            f"and TensorFlow needs {_MIN_ADDRESS_SPACE / 2**30:.1f} GiB to start",
            f"raise the limit (ulimit -v {_MIN_ADDRESS_SPACE / 2**10:.0f}, or the "
            "memory that the job requests)",
        )


def find_workers(strategy: str) -> Cluster | None:
    """Return the workers that share this command; None if it runs alone."""
    if strategy not in ("auto", "multi_worker"):
        return None
    with quiet_start():
        return find_cluster()


def share_of_worker(cluster: Cluster | None, items: Items) -> Items:
    """Return the items that this worker processes."""
    if cluster is None:
        return items
    n, workers, i = len(items), len(cluster.addresses), cluster.index
    # Rounded up: the chief, which writes common outputs, always has one.
    return items[-(-n * i // workers) : -(-n * (i + 1) // workers)]


def is_chief(cluster: Cluster | None) -> bool:
    """Return whether this process is the chief, which writes common outputs."""
    return cluster is None or cluster.index == 0


def log_to_file(cluster: Cluster | None, path: Path) -> None:
    """Log to a file for each worker, beside the output."""
    if cluster is None:
        return
    make_folder(path.parent)
    log = path.with_name(f"{path.name}.worker-{cluster.index}.log")
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("dipy_ldm")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    # Other workers log to their files only; the console has its own level.
    logger.propagate = is_chief(cluster)
    n, addresses = len(cluster.addresses), ", ".join(cluster.addresses)
    worker = f"worker {cluster.index} of {n} ({addresses})"
    place = f"dipy_ldm {__version__} on {socket.gethostname()}"
    logger.debug("%s, %s: %s", place, worker, " ".join(sys.argv))


# The only one, except in Python and for dipy_generate_ldm.
SAMPLER = "dpm++"


def load(path: Path, devices: list[str] | None, tile: int | None) -> tuple[Any, Any]:
    """Load a model if memory suffices; return it with its device."""
    model, device = load_on(path, "none", devices)
    model.check_memory(1, tile, device)
    return model, device


def load_on(path: Path, strategy: str, devices: list[str] | None) -> tuple[Any, Any]:
    """Load a model; return it with its devices, as a strategy or None."""
    with quiet_start():
        from dipy_ldm import LatentDiffusion, _backend

        # Workers do not communicate: each uses its own devices.
        devices = _backend.make_strategy(strategy, devices, alone=True)
        return LatentDiffusion.load(path), devices


def choose_sampling(
    model: "LatentDiffusion", options: SamplingOptions, n: int = 1, **sizes
) -> dict[str, Any]:
    """Return a model's sampling options; none if there are samples already."""
    if getattr(options, "generated_files", None):
        return {}
    guidance = options.guidance
    if guidance is None:
        guidance = model.default_guidance
    sampler = getattr(options, "sampler", SAMPLER)
    sampling = model.check_sampling(
        n,
        guidance=guidance,
        sampler=sampler,
        steps=options.steps,
        seed=options.seed,
        **sizes,
    )
    return {"sampler": sampler, "steps": sampling.steps, "guidance": guidance}
