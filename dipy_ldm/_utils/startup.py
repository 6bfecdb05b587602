"""Importing Keras: its messages, Python's collector, and a backend that is absent."""

from collections.abc import Iterator
from contextlib import contextmanager
import gc
import os
import sys

from dipy_ldm._utils.checks import InputError

# What Keras may be told to compute with, and need not be there.
_BACKENDS = ("tensorflow", "jax", "torch", "openvino")
# Whether the collector waits.
DISABLES_GC = True


@contextmanager
def gc_disabled(freeze: bool = False) -> Iterator[None]:
    """Disable the garbage collector within this context.

    Keras and TensorFlow are half a million objects that stay, and the collector would
    go through all that are there again and again as they come: a quarter of the time.
    """
    if not DISABLES_GC or "keras" in sys.modules or not gc.isenabled():
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


@contextmanager
def backend_required() -> Iterator[None]:
    """Say what to do if Keras' backend, imported in this context, is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _BACKENDS:
            raise
        # Keras' own words would have us install it.
        raise InputError(
            f"Keras is set to a backend of {error.name}, which is not installed; "
            "install it, or choose another in ~/.keras/keras.json or by the "
            "variable KERAS_BACKEND, and start Python again."
        ) from error
