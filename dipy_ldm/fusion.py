"""Computing element by element in one loop, where the back-end would take many."""

from collections.abc import Callable
from functools import cache

import keras
from keras import ops


@cache
def _gains():
    """Say whether TensorFlow computes on processors alone.

    JAX fuses by itself, and PyTorch has no graph. With GPUs Keras compiles whole steps
    itself, where it can.
    """
    if keras.config.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


@cache
def _compiled(function):
    import tensorflow as tf

    return tf.function(function, autograph=False, jit_compile=True)


def fused(function: Callable) -> Callable:
    """Compile a function that works on elements as one loop, if that is faster.

    TensorFlow reads and writes whole tensors for each operation. XLA makes one loop of
    all, but is slow at sums over positions, which are to be taken outside.

    Parameters
    ----------
    function : callable
        Maps tensors, variables and numbers to tensors.

    Returns
    -------
    callable
        Does the same.
    """

    def apply(*tensors):
        if not _gains():
            return function(*tensors)
        import tensorflow as tf

        # What variables are now: as such they would be kept with what is compiled.
        return _compiled(function)(*map(tf.convert_to_tensor, tensors))

    return apply


def sum_of_squares(x):
    """Sum the squares of a tensor, where TensorFlow would write them first.

    Parameters
    ----------
    x : tensor
        Values.

    Returns
    -------
    tensor
        One number.
    """
    if keras.config.backend() != "tensorflow":
        return ops.sum(ops.square(x))
    import tensorflow as tf

    return 2 * tf.nn.l2_loss(x)


def with_gradient(function: Callable, gradient: Callable) -> Callable:
    """Give a function another gradient than TensorFlow's own, if that is faster.

    Parameters
    ----------
    function : callable
        Maps tensors to a tensor, or to several.
    gradient : callable
        Maps the tensors in a list, and the gradient of each result, to a gradient of
        each tensor: that which the back-end would find by itself.

    Returns
    -------
    callable
        The function with its gradient.
    """

    @ops.custom_gradient
    def differentiable(*tensors):
        return function(*tensors), lambda *upstream: gradient(tensors, *upstream)

    def apply(*tensors):
        return (differentiable if _gains() else function)(*tensors)

    return apply
