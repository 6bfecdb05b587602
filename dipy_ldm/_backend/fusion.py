"""Optimisations for TensorFlow on CPUs, each with a constant that switches it off.

Without them, Keras and TensorFlow compute the same by their own operations.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import keras
from keras import ops

from dipy_ldm._utils.types import Tensor

_ON_TENSORFLOW = keras.config.backend() == "tensorflow"
if _ON_TENSORFLOW:
    import tensorflow as tf

# Fuse elementwise operations by XLA; trace graphs once for all tensors of the same
# shapes; use custom gradients; give all variables one name.
FUSED_LOOPS = True
CACHED_TRACES = True
CUSTOM_GRADIENTS = True
CANONICAL_NAMES = True


@cache
def _on_cpu():
    """Return whether TensorFlow runs on CPUs only, where these optimisations help.

    JAX fuses by itself, PyTorch has no graph, and on GPUs Keras compiles whole steps by
    XLA where it can.
    """
    return _ON_TENSORFLOW and not tf.config.list_physical_devices("GPU")


@cache
def _traced(function: Callable, loop: bool):
    return tf.function(function, autograph=False, jit_compile=loop)


def _call(function: Callable, tensors: tuple, traced: bool, loop: bool):
    """Call a function, traced once for all tensors of the same shapes if `traced`."""
    if not (traced and _on_cpu()):
        return function(*tensors)
    # Pass the values of variables: the trace would keep the variables themselves alive.
    return _traced(function, loop)(*map(tf.convert_to_tensor, tensors))


def fused(function: Callable) -> Callable:
    """Compile an elementwise function by XLA, if that is faster.

    TensorFlow reads and writes whole tensors for each operation. XLA fuses them, but is
    slow at sums over positions, which should be taken outside.
    """
    return lambda *tensors: _call(function, tensors, FUSED_LOOPS, loop=True)


def cached_trace(function: Callable) -> Callable:
    """Trace a function once for all tensors of the same shapes.

    Tracing takes TensorFlow a third of a millisecond per operation, and networks repeat
    the same operations. The results are the same.
    """
    return lambda *tensors: _call(function, tensors, CACHED_TRACES, loop=False)


def sum_of_squares(x: Tensor):
    """Return the sum of squares of a tensor, without storing the squares."""
    return 2 * tf.nn.l2_loss(x) if _ON_TENSORFLOW else ops.sum(ops.square(x))


def with_gradient(function: Callable, gradient: Callable, kept: int = 0) -> Callable:
    """Replace TensorFlow's gradient of a function, if that is faster.

    The last ``kept`` of its results are only passed to the gradient.
    """

    def split(results: tuple):
        return (results[:-kept], results[-kept:]) if kept else (results, ())

    # In a separate graph: TensorFlow never frees graphs with custom gradients. That of
    # a training would keep its network and weights in memory.
    @cached_trace
    @ops.custom_gradient
    def differentiable(*tensors):
        results, kept_results = split(function(*tensors))
        return results, lambda *upstream: gradient((*tensors, *kept_results), *upstream)

    def apply(*tensors):
        if CUSTOM_GRADIENTS and _on_cpu():
            return differentiable(*tensors)
        return split(function(*tensors))[0]

    return apply


@contextmanager
def canonical_variable_names() -> Iterator[None]:
    """Let TensorFlow give all variables the same name.

    Each name and shape takes a millisecond, and 35 KiB until the process ends. Names
    and paths in Keras stay.
    """
    if not (CANONICAL_NAMES and _ON_TENSORFLOW):
        yield
        return

    def create(creator: Callable, **options):
        with tf.name_scope("weights/"):
            return creator(**options)

    with tf.variable_creator_scope(create):
        yield
