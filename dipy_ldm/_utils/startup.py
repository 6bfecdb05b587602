"""Faster and quieter imports of TensorFlow."""

from collections.abc import Iterator
from contextlib import contextmanager
import gc
import os
import sys


@contextmanager
def gc_disabled(freeze: bool = False) -> Iterator[None]:
    """Disable the garbage collector within this context.

    Importing Keras and TensorFlow creates half a million permanent objects, which the
    collector would traverse again and again: a quarter of the time.
    """
    if "keras" in sys.modules or not gc.isenabled():
        # Imported already, or disabled by the caller.
        yield
        return
    frozen = gc.get_freeze_count()
    gc.disable()
    try:
        yield
    finally:
        # Unfrozen objects join the oldest generation, which is collected rarely.
        gc.freeze()
        if not (freeze or frozen):
            gc.unfreeze()
        gc.enable()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence TensorFlow's import within this context.

    No setting silences its messages about the CPU and missing drivers.
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
