"""Signals: the wish that a process should end, heeded at a good moment.

A scheduler says it by SIGTERM, and a terminal whose connection is lost by SIGHUP.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
import signal
import threading

# Not every system has the second one.
_ENDS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Terminated(SystemExit):
    """Raised to exit on a signal, after the checkpoint was written."""

    def __init__(self, sentence: str, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)
        self.sentence = sentence

    def __str__(self):
        """Return the sentence, not the status."""
        return self.sentence


def reinstall() -> None:
    """Install the SIGTERM handler again, where a library replaced it.

    TensorFlow does when it joins other machines, and then nothing heeds it.
    """
    before = signal.getsignal(signal.SIGTERM)
    if _may_set() and before is not None:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def deferred(ask: Callable) -> Iterator[None]:
    """Within this context, let SIGTERM and SIGHUP only ask for an end."""
    with _handled(filter(_can_handle, _ENDS), lambda number, frame: ask(number)):
        yield


@contextmanager
def _handled(numbers: Iterable[int], handler: Callable) -> Iterator[None]:
    """Handle signals so within this context, and after it as before."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _can_handle(number):
    """Return whether a signal may be handled here.

    None is the handler of a program that Python runs in, such as MATLAB, and could not
    be given back; and with ``nohup`` a process shall go on.
    """
    handler = signal.getsignal(number)
    ignored = number != signal.SIGTERM and handler == signal.SIG_IGN
    return _may_set() and handler is not None and not ignored


@contextmanager
def noted(note: Callable) -> Iterator[None]:
    """Record Ctrl-C when it is handled, within this context.

    Python drops what is raised in a finalizer, and with it an interruption that comes
    there; who has it noted can heed it a little later.
    """
    before = signal.getsignal(signal.SIGINT)
    # In the background, shells let jobs ignore it.
    if not (_may_set() and callable(before)):
        yield
        return

    def heed(number, frame):
        note()
        before(number, frame)

    with _handled([signal.SIGINT], heed):
        yield


def _may_set():
    """Return whether this is the thread that may set handlers of signals."""
    return threading.current_thread() is threading.main_thread()
