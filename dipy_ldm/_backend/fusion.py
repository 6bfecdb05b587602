"""What spares TensorFlow work: loops in one, traced once, and weights named alike."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import keras
from keras import ops


@cache
def _on_processors():
    """Say whether TensorFlow computes on processors alone.

    JAX fuses by itself, and PyTorch has no graph. With GPUs Keras compiles whole steps
    itself, where it can.
    """
    if keras.config.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


@cache
def _traced(function, loop):
    import tensorflow as tf

    return tf.function(function, autograph=False, jit_compile=loop)


def _called(function, loop):
    """Let TensorFlow call a function that is traced once for all of the same shapes."""

    def apply(*tensors):
        if not _on_processors():
            return function(*tensors)
        import tensorflow as tf

        # What variables are now: as such they would be kept with what is traced.
        return _traced(function, loop)(*map(tf.convert_to_tensor, tensors))

    return apply


def fused(function: Callable) -> Callable:
    """Compile a function that works on elements as one loop, if that is faster.

    TensorFlow reads and writes whole tensors for each operation. XLA makes one loop of
    all, but is slow at sums over positions, which are to be taken outside.
    """
    return _called(function, True)


def cached_trace(function: Callable) -> Callable:
    """Trace a function once for all tensors of the same shapes.

    In TensorFlow a graph takes Python a third of a millisecond for each operation, and
    networks do the same again and again. When it runs, it is as if each had been traced
    by itself.
    """
    return _called(function, False)


def sum_of_squares(x):
    """Sum the squares of a tensor, where TensorFlow would write them first."""
    if keras.config.backend() != "tensorflow":
        return ops.sum(ops.square(x))
    import tensorflow as tf

    return 2 * tf.nn.l2_loss(x)


def with_gradient(function: Callable, gradient: Callable, kept: int = 0) -> Callable:
    """Give a function another gradient than TensorFlow's own, if that is faster."""

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
        return (
            differentiable(*tensors)
            if _on_processors()
            else split(function(*tensors))[0]
        )

    return apply


@contextmanager
def canonical_variable_names() -> Iterator[None]:
    """Let TensorFlow name all variables that are made alike, whatever they are for.

    For each name and shape it takes a millisecond, and 35 KiB until the process ends.
    The names that Keras has for them, with that of their layer, stay.
    """
    if keras.config.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    def create(following, **options):
        with tf.name_scope("weights/"):
            return following(**options)

    with tf.variable_creator_scope(create):
        yield
