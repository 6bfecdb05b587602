"""Handle signals that ask a process to end, so that it can write a checkpoint first.

Schedulers send SIGTERM; terminals send SIGHUP when their connection is lost.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
import signal
import threading
from types import FrameType

# Windows has no SIGHUP.
_SIGNALS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Terminated(SystemExit):
    """Raised to exit on a signal, after the checkpoint was written."""

    def __init__(self, sentence: str, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)
        self.sentence = sentence

    def __str__(self):
        """Return the sentence, not the status."""
        return self.sentence


def reinstall_sigterm() -> None:
    """Reinstall the SIGTERM handler, which TensorFlow replaces on joining machines."""
    before = signal.getsignal(signal.SIGTERM)
    if _may_set() and before is not None:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_deferred(stop: Callable) -> Iterator[None]:
    """Within this context, call `stop` on SIGTERM and SIGHUP instead of exiting."""
    with _handled(filter(_can_handle, _SIGNALS), lambda number, frame: stop(number)):
        yield


@contextmanager
def _handled(numbers: Iterable[int], handler: Callable) -> Iterator[None]:
    """Install a handler of signals within this context."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _can_handle(number: int):
    """Return whether a signal's handler may be replaced.

    None is the handler of a program that embeds Python, such as MATLAB, and could not
    be restored; with ``nohup``, SIGHUP stays ignored.
    """
    handler = signal.getsignal(number)
    ignored = number != signal.SIGTERM and handler == signal.SIG_IGN
    return _may_set() and handler is not None and not ignored


@contextmanager
def interrupts_noted(note: Callable) -> Iterator[None]:
    """Within this context, also call `note` on Ctrl-C.

    Python drops exceptions in finalizers, a KeyboardInterrupt included; the caller can
    then raise it a little later.
    """
    before = signal.getsignal(signal.SIGINT)
    # Background jobs of shells ignore SIGINT.
    if not (_may_set() and callable(before)):
        yield
        return

    def handle(number: int, frame: FrameType | None):
        note()
        before(number, frame)

    with _handled([signal.SIGINT], handle):
        yield


def _may_set():
    """Return whether this thread may set signal handlers."""
    return threading.current_thread() is threading.main_thread()
