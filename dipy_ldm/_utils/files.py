"""Atomic file writes, folders and file locks."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
import functools
import hashlib
import os
from pathlib import Path
import secrets
import socket
import stat
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows: files are not locked
    fcntl = None  # type: ignore[assignment]

# Longer names, in bytes, leave no room for the additions of partial files.
_MAX_NAME_BYTES = 200


def make_folder(path: str | Path) -> None:
    """Create a folder and its parents if they do not exist."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"can't create the folder {path} ({error.strerror}); name another place."
        ) from error


@contextmanager
def replacing(path: str | Path, previous: str | Path | None = None) -> Iterator[Path]:
    """Write a file atomically: to a partial file, which replaces it once on the disk.

    If the process is killed, the disk is full or power fails, the old file stays. With
    several writers at once, the last wins. Links stay links, and a file that is
    replaced keeps its mode.
    """
    place = Path(os.path.realpath(path))
    try:
        mode = _permissions(place)
        # Private from the beginning, but writable until complete.
        partial, stream = _open_partial(place, 0o666 if mode is None else mode | 0o600)
        with closing(stream):
            try:
                yield partial
                fsync(partial)
                if mode not in (None, _permissions(partial)):
                    partial.chmod(mode)
                if previous is not None:
                    _keep_previous(place, Path(previous))
                os.replace(partial, place)
            except BaseException:
                # Only before os.replace: later, the name may be another writer's.
                partial.unlink(missing_ok=True)
                raise
        _flush_folder(place.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"can't write {path} ({reason}); free some space there or name another "
            "place."
        ) from error


def _permissions(path: Path):
    """Return the permissions of a file; None if it does not exist."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(path.stat().st_mode)


def _open_partial(place: Path, mode: int):
    """Create and lock a partial file of this writer, beside the file."""
    name = place.name
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    partial = place.with_name(f".{name}.partial")
    _remove_leftover(partial)
    while True:
        try:
            stream = open(partial, "xb", opener=functools.partial(os.open, mode=mode))
        except FileExistsError:
            # Another process is writing the same file.
            partial = place.with_name(f".{name}.{secrets.token_hex(8)}.partial")
            continue
        locked = lock(stream.fileno(), exclusively=True)
        if locked and not is_open(partial, stream.fileno()):
            # Another process removed it as a leftover before it was locked.
            stream.close()
            continue
        if not locked or _is_mandatory(partial):
            # Systems without such locks can't rename open files.
            stream.close()
        return partial, stream


def _remove_leftover(partial: Path):
    """Remove the partial file of a killed process."""
    with suppress(OSError), open(partial, "rb+") as stream:
        locked = lock(stream.fileno(), exclusively=True, wait=False)
        if locked and is_open(partial, stream.fileno()) and not _is_mandatory(partial):
            partial.unlink()


def _is_mandatory(path: Path):
    """Return whether the lock of a file is mandatory, as on SMB."""
    try:
        with open(path, "rb+", buffering=0) as stream:
            if not stream.read(1):
                stream.write(b"0")
                stream.truncate(0)
    except OSError as error:  # the next write raises if the disk is full
        return isinstance(error, PermissionError)
    return False


def is_open(path: Path, descriptor: int) -> bool:
    """Return whether a path still refers to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _keep_previous(place: Path, previous: Path):
    """Keep a file that will be replaced under a second name."""
    previous.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(place, previous)


def fsync(path: Path) -> None:
    """Flush a file to the disk, which must come before renaming it."""
    with open(path, "rb+") as stream:
        os.fsync(stream.fileno())


def _flush_folder(folder: Path):
    """Flush a folder's entries to the disk, if the system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def claimed(path: str | Path, wait: bool = False) -> Iterator[None]:
    """Lock a file name for this process within this context."""
    if fcntl is None:
        yield
        return
    place = _lock_path(path)
    with closing(_open_lock(place, path, wait)) as stream:
        with suppress(OSError):  # a full disk; the next write raises
            stream.truncate(0)
            holder = f"process {os.getpid()} on {socket.gethostname()}"
            os.write(stream.fileno(), holder.encode())
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def refuse_claimed(path: str | Path) -> None:
    """Refuse a file that another process has claimed."""
    place = _lock_path(path)
    with suppress(FileNotFoundError), open(place, errors="replace") as stream:
        _acquire_lock(stream, place, path, exclusively=False, wait=False)


def _lock_path(path: str | Path):
    """Return the path of the lock file."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.lock")


def _open_lock(place: Path, path: str | Path, wait: bool):
    """Open and lock a lock file, which another process may be removing."""
    while True:
        stream = open(place, "a+", errors="replace", opener=_open_no_link)
        try:
            locked = _acquire_lock(stream, place, path, exclusively=True, wait=wait)
        except OSError:
            stream.close()
            raise
        if not locked or is_open(place, stream.fileno()):
            return stream
        stream.close()


def _open_no_link(path: str, flags: int):
    """Open a file but refuse links, which others may have placed to redirect writes."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _acquire_lock(
    stream: TextIO, place: Path, path: str | Path, exclusively: bool, wait: bool
) -> bool:
    """Lock a lock file; raise with the holder's name if another process holds it."""
    try:
        return lock(stream.fileno(), exclusively, wait)
    except BlockingIOError as error:
        stream.seek(0)
        holder = "".join(filter(str.isprintable, stream.read(_MAX_NAME_BYTES)))
        raise BlockingIOError(
            f"{path} is being written by {holder or 'another process'}; wait until it "
            f"ends, or name another place. If it is dead, remove {place}."
        ) from error


def lock(descriptor: int, exclusively: bool = False, wait: bool = True) -> bool:
    """Lock an open file until it is closed; return False where locks don't exist."""
    if fcntl is None:
        return False
    mode = fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
