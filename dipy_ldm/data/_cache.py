"""The cache of volumes: folders that are complete or absent, and their arrays.

A process locks the notes (``NOTES``) of each folder that it uses until it ends; locked
folders are never evicted.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
import errno
import hashlib
import json
import math
import os
from pathlib import Path
import shutil
import time
import uuid

import numpy as np

from dipy_ldm._utils.files import claimed, fsync, is_open, lock, replacing

# Folders that this process uses, with the descriptors of their locks.
_held: dict[Path, int] = {}
# Far longer than one volume takes: the process that wrote last has died. Its number
# would not do, as it may have run on another machine.
_STALE_SECONDS = 3600
# Hashes of files by their states, beside the folders.
_HASHES = "hashes.json"
# About 20 MB; the oldest are dropped.
_MAX_HASHES = 100_000
# A file may change again without a new time within so long, that of FAT.
_SETTLING_NS = 2 * 10**9
_MAX_THREADS = 4
# In each complete folder; locked while in use, and modified at the last use.
NOTES = "volumes.json"
# Pattern of the names of folders, and part of those that are being filled.
_KEY = "[0-9a-f]" * 32


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of the cache of volumes."""
    try:
        if cache_dir is not None:
            return Path(cache_dir).expanduser().resolve()
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(
            "there is no home folder; name a folder for the cache with `cache_dir`."
        ) from error
    return Path(home).resolve() / "dipy_ldm" / "volumes"


def make_key(files: Sequence[Path], settings: dict, root: Path) -> str:
    """Return the cache key of the content of files and of settings.

    Names do not count, so that a folder may be moved.
    """
    digests = _hash_files(files, root / _HASHES)
    text = json.dumps([[digests[file] for file in files], settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _hash_files(files, memory):
    """Return the hash of each file, from the memory if the file has not changed."""
    now = time.time_ns()
    status_of = {file: os.stat(file) for file in files}
    state_of = {file: _describe_state(file, s) for file, s in status_of.items()}
    remembered = _read_hashes(memory)
    unhashed = [file for file in status_of if not remembered.get(state_of[file])]
    with ThreadPoolExecutor(_MAX_THREADS) as threads:
        hashes = dict(zip(unhashed, threads.map(_hash_file, unhashed)))
    lasting = {
        state_of[file]: digest
        for file, digest in hashes.items()
        if digest and now - status_of[file].st_ctime_ns > _SETTLING_NS
    }
    if lasting:
        _add_hashes(memory, lasting)
    # The reader of the volumes reports files that can't be read.
    return {
        file: remembered.get(state) or hashes[file] or state
        for file, state in state_of.items()
    }


def _describe_state(file, status):
    """Return a text that changes when the content of a file does."""
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{os.path.realpath(file)} {status.st_size} {times} {status.st_ino}"


def _hash_file(file):
    """Return the hash of the content of a file; None if it can't be read."""
    with suppress(OSError), open(file, "rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()[:32]


def _read_hashes(memory):
    """Return the hashes of files by their states; none if the file is damaged."""
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads(memory.read_text("utf-8")))
    return {}


def _add_hashes(memory, hashes):
    """Add hashes to those that processes have written, the latest last."""
    # A cache of another user may be read-only: files are hashed each time.
    with suppress(OSError):
        _make_root(memory.parent)
        with claimed(memory, wait=True), replacing(memory) as partial:
            latest = [*(_read_hashes(memory) | hashes).items()][-_MAX_HASHES:]
            partial.write_text(json.dumps(dict(latest)), "utf-8")


def hold(folder: Path) -> None:
    """Lock a folder until this process ends, and set the time of its last use."""
    descriptor = os.open(folder / NOTES, os.O_RDONLY)
    lock(descriptor)
    if not is_open(folder / NOTES, descriptor):
        # Removed by another process before it was locked.
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    release(folder)
    _held[folder] = descriptor
    # A folder of another user may be read-only.
    with suppress(OSError):
        os.utime(folder / NOTES)


def release(folder: Path) -> None:
    """Unlock a folder."""
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


def path_beside(array: np.ndarray, name: str) -> Path | None:
    """Return a path beside a cached array, or part of it; None if it is not cached."""
    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    file = Path(getattr(whole, "filename", None) or "")
    if file.parent not in _held or not array.flags.c_contiguous:
        return None
    first = array.ctypes.data - whole.ctypes.data
    return file.parent / f"{file.stem}.{name}-{first}-{array.nbytes}.json"


def list_folders(root: Path) -> dict[Path, int]:
    """Return the bytes of all complete folders, the least recently used first."""
    folders = []
    for folder in root.glob(_KEY):
        # Another process may be removing it.
        with suppress(OSError):
            size = sum(file.stat().st_size for file in folder.iterdir())
            folders.append(((folder / NOTES).stat().st_mtime, folder, size))
    return {folder: size for _, folder, size in sorted(folders)}


def make_room(root: Path, limit: float) -> list[Path]:
    """Remove the least recently used folders until the cache is within ``limit``."""
    sizes = list_folders(root)
    total, removed = sum(sizes.values()), []
    for folder, size in sizes.items():
        if total > limit and _remove(folder):
            total -= size
            removed.append(folder)
    return removed


def _remove(folder):
    """Remove a folder, unless it is in use or may not be changed."""
    try:
        with open(folder / NOTES, "rb+") as stream:
            # Where files can't be locked, no folder is known to be unused.
            free = lock(stream.fileno(), exclusively=True, wait=False)
            return free and discard(folder)
    except OSError:
        return False


def _partial_name(folder):
    return f".{folder.name}.{uuid.uuid4().hex}.partial"


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a folder that is renamed when complete; the first of several stays."""
    partial = folder.with_name(_partial_name(folder))
    try:
        _make_root(folder.parent)
        _remove_stale(folder.parent)
        partial.mkdir()
        yield partial
        _move_into_place(partial, folder)
    except OSError as error:
        raise OSError(
            f"can't write the cache of volumes in {folder.parent} "
            f"({error.strerror or error}); free some space there or name another place "
            "with `cache_dir`."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_root(root):
    """Create the folder of the cache; the default one is private to the user."""
    root.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        if root == cache_root():
            root.chmod(0o700)


def _move_into_place(partial, folder):
    """Move a folder to its final name, unless another process was faster."""
    for file in partial.iterdir():
        fsync(file)
    try:
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():
            raise


def discard(folder: Path) -> bool:
    """Remove a folder, atomically for other processes; return whether it worked."""
    release(folder)
    removed = folder.with_name(_partial_name(folder))
    try:
        os.rename(folder, removed)
    except OSError:
        return False
    shutil.rmtree(removed, ignore_errors=True)
    return True


def _remove_stale(root):
    for partial in root.glob(f".{_KEY}.{_KEY}.partial"):
        if partial.is_dir() and time.time() - _last_change(partial) > _STALE_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


def _last_change(folder):
    """Return the last change of a folder or its files; now if it was just removed."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:
        return time.time()


@contextmanager
def writing_rows(
    path: Path, length: int, shape: tuple[int, ...], dtype: str
) -> Iterator[Callable]:
    """Yield a function that appends rows to a ``.npy`` file, at most ``length``.

    Not through a memory map, where a full disk kills the process instead of raising.
    """
    kind = np.dtype(dtype)
    row_size = math.prod(shape) * kind.itemsize
    with open(path, "wb") as file:
        _write_header(file, (length, *shape), kind)
        start = file.tell()
        if start + length * row_size > shutil.disk_usage(path.absolute().parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield lambda row: file.write(np.ascontiguousarray(row, kind).data)
        rows = (file.tell() - start) // row_size
        file.seek(0)
        # Of the same size, as NumPy leaves room for any number of rows.
        _write_header(file, (rows, *shape), kind)


def _write_header(file, shape, dtype):
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
