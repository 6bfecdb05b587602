"""TensorFlow's start, without its greetings."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
import os
import sys

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.startup import gc_disabled

try:
    import resource
except ImportError:  # not on this system: nothing is limited
    resource = None  # type: ignore[assignment]

# Address space without which TensorFlow crashes, or never ends: 2.2 GiB on two cores.
_LEAST = 2.5 * 2**30


@contextmanager
def quiet_start() -> Iterator[None]:
    """Start what uses TensorFlow without what it then writes to standard error.

    Lines about processor features and missing GPU drivers that no setting of
    TensorFlow's silences, and that hide the one line a user should read. They come
    with the import and with the first use of a device. Whoever looks for a GPU sees
    them by setting ``TF_CPP_MIN_LOG_LEVEL=0``.
    """
    _refuse_too_tight()
    # A command comes here more than once.
    spoken = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3"
    with gc_disabled(freeze=True), nullcontext() if spoken else _silence():
        yield


@contextmanager
def _silence():
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _refuse_too_tight():
    """Refuse a limit that would end in the middle of TensorFlow's own code."""
    if resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _LEAST:
        raise InputError(
            f"the address space of a process is limited to {limit / 2**30:.1f} GiB, "
            f"and TensorFlow needs {_LEAST / 2**30:.1f} GiB to start; raise the limit "
            f"(ulimit -v {_LEAST / 2**10:.0f}, or the memory that the job asks for)."
        )
