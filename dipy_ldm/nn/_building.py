"""How networks are built: their precision, first weights, and sketches of them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
import math
import random
from typing import Any

import keras
from keras import ops
import numpy as np

from dipy_ldm._backend.fusion import canonical_variable_names
from dipy_ldm._utils.checks import InputError, choose

PRECISIONS = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Build networks that compute in a precision; weights stay float32.

    In this thread alone: Keras keeps its policy for each.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(choose("precision", name, PRECISIONS))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


# A seed, and the count of the weights that were drawn from it.
_drawn_from: ContextVar[tuple | None] = ContextVar("drawn from", default=None)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Build networks whose first weights follow from a seed and their places alone.

    What is drawn elsewhere, in this thread or in others, makes no difference and is not
    disturbed, as it would be by ``keras.utils.set_random_seed``. Outside of such a
    context, a seed is drawn for each, as Keras does.
    """
    token = _drawn_from.set((seed, count()))
    try:
        with canonical_variable_names():
            yield
    finally:
        _drawn_from.reset(token)


@keras.saving.register_keras_serializable("dipy_ldm")
class SeededInitializer(keras.initializers.Initializer):
    """An initializer that draws the next weight of :func:`seeded`.

    By numpy: the same on every back-end of Keras, and whatever its version.
    """

    def __init__(self, name: str = "GlorotUniform", **options) -> None:
        self.name = name
        self.options = options
        # Taken once: on several devices, Keras may call more than once for one weight.
        self._seed: list | None = None

    def __call__(self, shape, dtype=None):
        """Draw a weight."""
        if self._seed is None:
            # Otherwise as Keras does: keras.utils.set_random_seed makes it the same.
            seed, numbers = _drawn_from.get() or (random.getrandbits(32), count())
            self._seed = [seed, next(numbers)]
        rng = np.random.default_rng(self._seed)
        weight = _DISTRIBUTIONS[self.name](rng, shape, **self.options)
        return ops.convert_to_tensor(weight, dtype or keras.config.floatx())

    def get_config(self):
        """Return the arguments of the constructor."""
        return {"name": self.name, **self.options}


def _glorot_uniform(rng, shape):
    limit = math.sqrt(6 / sum(_fans(shape)))
    return rng.uniform(-limit, limit, shape)


def _lecun_normal(rng, shape):
    weight = rng.standard_normal(shape)
    while (far := np.abs(weight) > 2).any():
        weight[far] = rng.standard_normal(far.sum())
    # 0.88 is the standard deviation of what is left.
    return weight / (0.87962566103423978 * math.sqrt(_fans(shape)[0]))


def _fans(shape):
    """Count the inputs of each output of a kernel, and the outputs of each input."""
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


_DISTRIBUTIONS: dict[str, Callable] = {
    "GlorotUniform": _glorot_uniform,
    "LecunNormal": _lecun_normal,
    "RandomNormal": lambda rng, shape, stddev: rng.normal(0, stddev, shape),
    "RandomUniform": lambda rng, shape, minval, maxval: rng.uniform(
        minval, maxval, shape
    ),
}


def check_keras() -> None:
    """Refuse a setting of Keras that networks can't do with."""
    for setting, value, good in (
        ("image_data_format", keras.config.image_data_format(), ["channels_last"]),
        ("floatx", keras.config.floatx(), ["float32", "float64"]),
    ):
        if value not in good:
            raise InputError(
                f"Keras is set to the {setting} {value!r}, and dipy_ldm needs "
                f"{good[0]!r}; change that in ~/.keras/keras.json, and start Python "
                "again."
            )


def build_without_weights(name: str, build: Callable) -> Any:
    """Build networks without weights, for their shapes alone.

    Faster than whole ones, and in no memory, whatever their size; they can't be called.
    """
    check_keras()

    def sketch():
        with precision(name), keras.StatelessScope(initialize_variables=False):
            return build()

    # In a thread of its own, as Keras keeps a list for each of what still has no
    # values, and would make these weights when it comes to train other networks.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(sketch).result()
