"""Arrays written to disk row by row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import ctypes
import errno
import math
import os
from pathlib import Path
import shutil

import numpy as np

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        _reserve(file, file.tell() + length * math.prod(shape) * kind.itemsize)
        yield append
        file.truncate()
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


def _reserve(file, size):
    """Claim space on the disk, so that it is full now or never.

    Not with ``posix_fallocate``: where a file system can't reserve, such as NFS, the C
    library writes to every block of the file instead.
    """
    file.flush()
    try:
        _fallocate(file.fileno(), size)
    except OSError as error:
        if error.errno in _FULL:
            raise
        # Not on this system, or not on this file system.
        _refuse_too_large(file, size)


def _fallocate(descriptor, size):
    """Call Linux' own ``fallocate``, which Python lacks."""
    try:
        reserve = ctypes.CDLL(None, use_errno=True).fallocate
    except (AttributeError, OSError, TypeError) as error:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    reserve.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
    if reserve(descriptor, 0, 0, size):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _refuse_too_large(file, size):
    """Refuse what is more than is free now; later, the rows will tell."""
    free = shutil.disk_usage(Path(file.name).absolute().parent).free
    if size > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
