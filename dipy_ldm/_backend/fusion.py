"""What spares TensorFlow work on processors, each with a constant that switches it off.

Without it the same is computed by what Keras and TensorFlow have for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import keras
from keras import ops

_ON_TENSORFLOW = keras.config.backend() == "tensorflow"
if _ON_TENSORFLOW:
    import tensorflow as tf

# Loops over elements that XLA makes one of; graphs that are traced once for all tensors
# of the same shapes; gradients that are not TensorFlow's own; one name for all weights.
FUSED_LOOPS = True
CACHED_TRACES = True
OWN_GRADIENTS = True
CANONICAL_NAMES = True


@cache
def _on_cpu():
    """Return whether TensorFlow computes on processors alone.

    JAX fuses by itself, and PyTorch has no graph. With GPUs Keras compiles whole steps
    itself, where it can.
    """
    return _ON_TENSORFLOW and not tf.config.list_physical_devices("GPU")


@cache
def _traced(function, loop):
    return tf.function(function, autograph=False, jit_compile=loop)


def _call(function, tensors, traced, loop):
    """Call a function, traced once for all tensors of the same shapes if asked to."""
    if not (traced and _on_cpu()):
        return function(*tensors)
    # What variables are now: as such they would be kept with what is traced.
    return _traced(function, loop)(*map(tf.convert_to_tensor, tensors))


def fused(function: Callable) -> Callable:
    """Compile a function that works on elements as one loop, if that is faster.

    TensorFlow reads and writes whole tensors for each operation. XLA makes one loop of
    all, but is slow at sums over positions, which are to be taken outside.
    """
    return lambda *tensors: _call(function, tensors, FUSED_LOOPS, loop=True)


def cached_trace(function: Callable) -> Callable:
    """Trace a function once for all tensors of the same shapes.

    In TensorFlow a graph takes Python a third of a millisecond for each operation, and
    networks do the same again and again. When it runs, it is as if each had been traced
    by itself.
    """
    return lambda *tensors: _call(function, tensors, CACHED_TRACES, loop=False)


def sum_of_squares(x):
    """Sum the squares of a tensor, where TensorFlow would write them first."""
    return 2 * tf.nn.l2_loss(x) if _ON_TENSORFLOW else ops.sum(ops.square(x))


def with_gradient(function: Callable, gradient: Callable, kept: int = 0) -> Callable:
    """Replace TensorFlow's gradient of a function, if that is faster.

    The last ``kept`` of its results are kept for the gradient alone.
    """

    def split(results):
        return (results[:-kept], results[-kept:]) if kept else (results, ())

    # In a graph of their own: TensorFlow keeps each that has such gradients for ever,
    # and with that of a training all of its network, and what was learnt.
    @cached_trace
    @ops.custom_gradient
    def differentiable(*tensors):
        results, more = split(function(*tensors))
        return results, lambda *upstream: gradient((*tensors, *more), *upstream)

    def apply(*tensors):
        if OWN_GRADIENTS and _on_cpu():
            return differentiable(*tensors)
        return split(function(*tensors))[0]

    return apply


@contextmanager
def canonical_variable_names() -> Iterator[None]:
    """Let TensorFlow give all variables one name, whatever they are for.

    For each name and shape it takes a millisecond, and 35 KiB until the process ends.
    The names that Keras has for them, with that of their layer, stay.
    """
    if not (CANONICAL_NAMES and _ON_TENSORFLOW):
        yield
        return

    def create(following, **options):
        with tf.name_scope("weights/"):
            return following(**options)

    with tf.variable_creator_scope(create):
        yield
