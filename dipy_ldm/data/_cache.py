"""Folders of results on disk that are there whole or not at all, and their arrays.

Whoever uses a folder holds a lock on its notes (``NOTES``) until the process ends; what
makes room lets such folders be.
"""

from collections.abc import Callable, Iterable, Iterator
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

from dipy_ldm._utils.files import fsync, is_open, lock

# What this process uses, with the descriptor of the lock that says so to others.
_held: dict[Path, int] = {}
# Much longer than the work on one volume takes: who has not written for so long is
# dead. A process number would say so at once, but not for processes of other machines.
_STALE_SECONDS = 3600
_FINGERPRINT_BYTES = 2**20
# The file that a whole folder has; it is locked, and its time is that of the last use.
NOTES = "volumes.json"
# What names of folders, and of those that are being filled, are made of.
_DIGITS = "[0-9a-f]" * 32


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of the cache of volumes."""
    try:
        if cache_dir is not None:
            return Path(cache_dir).expanduser().resolve()
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(
            "there is no home folder; name a place for volumes with `cache_dir`."
        ) from error
    return Path(home).resolve() / "dipy_ldm" / "volumes"


def make_key(files: Iterable[Path], settings: dict) -> str:
    """Return the cache key of files and settings.

    A file counts with its size, the time of its last change and its first mebibyte.
    That is read at once even for thousands of files; it holds the header and the first
    voxels, and whoever changes later ones changes the time too. Names don't count, so
    that a folder may be moved.
    """
    text = json.dumps([list(map(_fingerprint, files)), settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _fingerprint(file):
    status = os.stat(file)
    with open(file, "rb") as stream:
        start = hashlib.sha256(stream.read(_FINGERPRINT_BYTES)).hexdigest()
    return status.st_size, status.st_mtime_ns, start


def hold(folder: Path) -> None:
    """Mark a folder as in use until this process ends, and as used just now."""
    descriptor = os.open(folder / NOTES, os.O_RDONLY)
    lock(descriptor)
    if not is_open(folder / NOTES, descriptor):
        # A cleaner held it until now, and removed it.
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    release(folder)
    _held[folder] = descriptor
    # What belongs to others may be used, and not changed.
    with suppress(OSError):
        os.utime(folder / NOTES)


def release(folder: Path) -> None:
    """Use a folder no longer."""
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


def name_beside(array: np.ndarray, name: str) -> Path | None:
    """Return the path of a file beside a cached array."""
    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    file = Path(getattr(whole, "filename", None) or "")
    if file.parent not in _held or not array.flags.c_contiguous:
        return None
    first = array.ctypes.data - whole.ctypes.data
    return file.parent / f"{file.stem}.{name}-{first}-{array.nbytes}.json"


def list_folders(root: Path) -> dict[Path, int]:
    """List all folders of results with their bytes, the least recently used first."""
    folders = []
    for folder in root.glob(_DIGITS):
        # Others may be removing it.
        with suppress(OSError):
            size = sum(file.stat().st_size for file in folder.iterdir())
            folders.append(((folder / NOTES).stat().st_mtime, folder, size))
    return {folder: size for _, folder, size in sorted(folders)}


def make_room(root: Path, limit: float) -> list[Path]:
    """Remove the least recently used entries until the cache is small enough."""
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
            # Without locks, nothing is known to be free.
            free = lock(stream.fileno(), exclusively=True, wait=False)
            return free and discard(folder)
    except OSError:
        return False


def _partial_name(folder):
    return f".{folder.name}.{uuid.uuid4().hex}.partial"


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Fill a folder that appears under its name once all is in it.

    Several processes may do so at once: the first one's stays. What killed ones left
    is removed.
    """
    partial = folder.with_name(_partial_name(folder))
    try:
        _make_root(folder.parent)
        _remove_stale(folder.parent)
        partial.mkdir()
        yield partial
        _put(partial, folder)
    except OSError as error:
        raise OSError(
            f"can't write the cache of volumes in {folder.parent} "
            f"({error.strerror or error}); free some space there or name another place "
            "with `cache_dir`."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_root(root):
    """Make the folder of all results, for the user alone unless he chose the place."""
    root.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        if root == cache_root():
            root.chmod(0o700)


def _put(partial, folder):
    """Move a folder to its final name, unless another process was faster."""
    for file in partial.iterdir():
        fsync(file)
    try:
        os.rename(partial, folder)
    except OSError:
        # Or the place can't be written.
        if not folder.is_dir():
            raise


def discard(folder: Path) -> bool:
    """Remove a folder at once, for those who look for it."""
    release(folder)
    doomed = folder.with_name(_partial_name(folder))
    try:
        # Nobody must find the half of it.
        os.rename(folder, doomed)
    except OSError:
        return False
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def _remove_stale(root):
    for partial in root.glob(f".{_DIGITS}.{_DIGITS}.partial"):
        if partial.is_dir() and time.time() - _last_change(partial) > _STALE_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


def _last_change(folder):
    """Return when a folder or a file in it was written to; now, if it has just gone."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:
        return time.time()


@contextmanager
def writing_rows(
    path: Path, length: int, shape: tuple[int, ...], dtype: str
) -> Iterator[Callable]:
    """Write an array to a ``.npy`` file, row by row, its length known at the end.

    Through the file rather than a memory map: there, a disk that fills up is not an
    error that can be told but the end of the process.
    """
    kind = np.dtype(dtype)
    rows = 0

    def append(row):
        nonlocal rows
        file.write(np.ascontiguousarray(row, kind).data)
        rows += 1

    with open(path, "wb") as file:
        _write_header(file, (length, *shape), kind)
        size = file.tell() + length * math.prod(shape) * kind.itemsize
        if size > shutil.disk_usage(path.absolute().parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield append
        file.seek(0)
        # Of the same size: NumPy leaves room in it for any number of rows.
        _write_header(file, (rows, *shape), kind)


def _write_header(file, shape, dtype):
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
