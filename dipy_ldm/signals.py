"""Signals: a scheduler's wish that a process should end, heeded at a good moment."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import signal
import threading

# What a shell gives a process that SIGTERM killed; schedulers take it for a reason to
# start again, not for a failure.
STATUS = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """The end that SIGTERM asked for, after all that matters was written.

    Parameters
    ----------
    sentence : str
        What was written, and how to go on.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(STATUS)
        self.sentence = sentence

    def __str__(self):
        """Return the sentence, not the status."""
        return self.sentence


def reinstall() -> None:
    """Let Python hear of SIGTERM again, where a library took it.

    TensorFlow does when it joins other machines, and then nothing heeds it.
    """
    if _may_set():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextmanager
def deferred(ask: Callable) -> Iterator[None]:
    """Within this context, let SIGTERM only ask for an end.

    Parameters
    ----------
    ask : callable
        Called without arguments when the signal comes.
    """
    if not _may_set():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: ask())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def noted(note: Callable) -> Iterator[None]:
    """Within this context, note Ctrl-C as it is heeded.

    Python drops what is raised in a finalizer, and with it an interruption that comes
    there; who has it noted can heed it a little later.

    Parameters
    ----------
    note : callable
        Called without arguments when the signal comes.
    """
    before = signal.getsignal(signal.SIGINT)
    # In the background, shells let jobs ignore it.
    if not (_may_set() and callable(before)):
        yield
        return

    def heed(number, frame):
        note()
        before(number, frame)

    signal.signal(signal.SIGINT, heed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _may_set():
    """Say whether this is the thread that Python lets have a say in signals."""
    return threading.current_thread() is threading.main_thread()
