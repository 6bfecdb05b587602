"""Available memory of GPUs, this machine, its container or job."""

from collections.abc import Iterable
from contextlib import suppress
import ctypes
import math
from pathlib import Path

# In version 1 of control groups, a huge number means no limit.
_NO_LIMIT = 2**60
# Usable share of the address space: TensorFlow and threads reserve more than they use.
_ADDRESS_SHARE = 0.5
# Memory that the kernel can reclaim: page cache and slabs, as in MemAvailable of
# /proc/meminfo.
_RECLAIMABLE = {"inactive_file", "active_file", "slab_reclaimable"}
_RECLAIMABLE_V1 = {"total_inactive_file", "total_active_file"}


def host_memory(root: str | Path = "/") -> float:
    """Return the bytes of memory available to this process."""
    root = Path(root)
    # Linux' estimate of memory available without swapping, in KiB.
    available = float(_table(root / "proc/meminfo").get("MemAvailable:", math.inf))
    return min(1024 * available, _free_in_address_space(root), *_free_in_groups(root))


def _free_in_address_space(root: Path):
    """Return the available bytes of the address space."""
    for line in _lines(root / "proc/self/limits"):
        if line.startswith("Max address space"):
            soft = line.split()[3]
            if soft.isdigit():
                used = 1024 * int(_table(root / "proc/self/status").get("VmSize:", 0))
                return max((int(soft) - used) * _ADDRESS_SHARE, 0)
    return math.inf


def _free_in_groups(root: Path):
    """Yield the available bytes of each control group of this process."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for group in _group_and_parents(root / "sys/fs/cgroup", path):
                yield _free_in(group, "memory.max", "memory.current", _RECLAIMABLE)
        elif "memory" in controllers.split(","):
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
            for group in _group_and_parents(root / "sys/fs/cgroup/memory", path):
                yield _free_in(group, limit, used, _RECLAIMABLE_V1)


def _group_and_parents(mount: Path, path: str):
    """List a group and its parents.

    In a container the path may be that of the host, which does not exist there: the
    container's own group is then the root, which comes last.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _free_in(group: Path, limit: str, used: str, reclaimable: set[str]):
    """Return the available bytes of one control group."""
    most, in_use = _number(group / limit), _number(group / used)
    if most >= _NO_LIMIT or in_use == math.inf:
        return math.inf
    statistics = _table(group / "memory.stat")
    reclaimable_bytes = sum(int(statistics.get(name, 0)) for name in reclaimable)
    return float(max(most - max(in_use - reclaimable_bytes, 0), 0))


def _lines(file: Path):
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _table(file: Path):
    """Read a file with a name and a number per line."""
    pairs = (line.split()[:2] for line in _lines(file))
    return dict(pair for pair in pairs if len(pair) == 2)


def _number(file: Path):
    """Read a file with one number; return infinity if there is none."""
    text = "".join(_lines(file)).strip()
    return int(text) if text.isdigit() else math.inf


def gpu_memory(numbers: Iterable[int]) -> float:
    """Return the total bytes of the GPU with the least memory."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return math.inf
    if cuda.cuInit(0):
        return math.inf
    return min((_total_memory(cuda, number) for number in numbers), default=math.inf)


def _total_memory(cuda: ctypes.CDLL, number: int):
    """Return a GPU's total bytes from the driver, without initialising the GPU."""
    device, size = ctypes.c_int(), ctypes.c_size_t()
    if cuda.cuDeviceGet(ctypes.byref(device), number) or cuda.cuDeviceTotalMem_v2(
        ctypes.byref(size), device
    ):
        return math.inf
    return float(size.value)


# Whether freed memory is returned to the system.
RELEASES_MEMORY = True


def release_memory() -> None:
    """Return freed memory to the system, if the C library supports it.

    glibc keeps freed memory between blocks in use: tens of MiB after tracing a training
    and optimising its graph.
    """
    with suppress(AttributeError, OSError, TypeError):
        if RELEASES_MEMORY:
            ctypes.CDLL(None).malloc_trim(0)
