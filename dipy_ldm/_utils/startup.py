"""What is held back while TensorFlow is imported: its messages, Python's collector."""

from collections.abc import Iterator
from contextlib import contextmanager
import gc
import os
import sys


@contextmanager
def gc_disabled(freeze: bool = False) -> Iterator[None]:
    """Disable the garbage collector within this context.

    Keras and TensorFlow are half a million objects that stay, and the collector would
    go through all that are there again and again as they come: a quarter of the time.
    """
    if "keras" in sys.modules or not gc.isenabled():
        # All that is large is there, or somebody else has cared for it.
        yield
        return
    frozen = gc.get_freeze_count()
    gc.disable()
    try:
        yield
    finally:
        # What is thawed is counted among what is old, and not looked at soon.
        gc.freeze()
        if not (freeze or frozen):
            gc.unfreeze()
        gc.enable()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence TensorFlow while it is imported, within this context.

    It has lines about the processor and missing drivers that no setting silences.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
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
