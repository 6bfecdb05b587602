"""TensorFlow's start, without its greetings."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
import sys


@contextmanager
def quiet_start() -> Iterator[None]:
    """Start what uses TensorFlow without what it then writes to standard error.

    Lines about processor features and missing GPU drivers that no setting of
    TensorFlow's silences, and that hide the one line a user should read. They come
    with the import and with the first use of a device. Whoever looks for a GPU sees
    them by setting ``TF_CPP_MIN_LOG_LEVEL=0``.
    """
    # A command comes here more than once.
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3":
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
