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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextmanager
def deferred(ask: Callable) -> Iterator[None]:
    """Within this context, let SIGTERM only ask for an end.

    Parameters
    ----------
    ask : callable
        Called without arguments when the signal comes.
    """
    # Python lets no other thread have a say in signals.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: ask())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
