"""Writing files, whole or not at all, the folders for them, and locks on files."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on this system: nothing is locked
    fcntl = None  # type: ignore[assignment]


def make_folder(path: str | Path) -> None:
    """Make a folder, and those that it is in, if it is not there.

    Parameters
    ----------
    path : str or Path
        The folder.

    Raises
    ------
    OSError
        If it can't be made, as one sentence.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"can't make the folder {path} ({error.strerror}); name another place."
        ) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside its place, and put it there once it is whole.

    A run that is killed, or a disk that is full, leaves what was there before.

    Parameters
    ----------
    path : str or Path
        Where the file shall be.

    Yields
    ------
    Path
        Where to write it.

    Raises
    ------
    OSError
        If it can't be written, as one sentence.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        # As any new file has them; safetensors lets nobody but the owner read.
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"can't write {path} ({reason}); free some space there or name another "
            "place."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def lock(descriptor: int, exclusively: bool = False, wait: bool = True) -> bool:
    """Lock an open file, until it is closed.

    Parameters
    ----------
    descriptor : int
        Of the file.
    exclusively : bool
        Whether nobody else may have a lock on it.
    wait : bool
        Whether to wait until others let it go.

    Returns
    -------
    bool
        Whether it is locked; some systems, and some file systems, have no locks.
    """
    if fcntl is None:
        return False
    how = fcntl.LOCK_EX if exclusively else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
