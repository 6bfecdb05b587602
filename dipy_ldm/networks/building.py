"""How networks are built: their precision, first weights, and sketches of them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any

import keras
import numpy as np

from dipy_ldm.validation import InputError, choose

PRECISIONS = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Build networks that compute in a precision; weights stay float32.

    In this thread alone: Keras keeps its policy for each.

    Parameters
    ----------
    name : {"float32", "bfloat16", "float16"}
        Precision of the computations.
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
    context, weights are drawn as Keras does.

    Parameters
    ----------
    seed : int
        Seed, of 32 bits.
    """
    token = _drawn_from.set((seed, count()))
    try:
        yield
    finally:
        _drawn_from.reset(token)


@keras.saving.register_keras_serializable("dipy_ldm")
class Drawn(keras.initializers.Initializer):
    """An initializer of Keras whose seed is the next one of :func:`seeded`.

    Parameters
    ----------
    name : str
        Name of the class of ``keras.initializers``.
    **options
        Its arguments but for the seed.
    """

    def __init__(self, name: str = "GlorotUniform", **options) -> None:
        self.name = name
        self.options = options
        # Taken once: on several devices, Keras may call more than once for one weight.
        self._seed: int | None = None

    def __call__(self, shape, dtype=None):
        """Draw a weight."""
        context = _drawn_from.get()
        if self._seed is None and context is not None:
            seed, numbers = context
            source = np.random.SeedSequence([seed, next(numbers)])
            self._seed = int(source.generate_state(1)[0])
        draw = getattr(keras.initializers, self.name)(**self.options, seed=self._seed)
        return draw(shape, dtype)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {"name": self.name, **self.options}


def check_keras() -> None:
    """Refuse settings of Keras that networks, or their training, can't do with.

    Raises
    ------
    InputError
        If the backend is not TensorFlow, or channels come first.
    """
    settings = {
        "backend": (keras.config.backend(), "tensorflow"),
        "image_data_format": (keras.config.image_data_format(), "channels_last"),
    }
    for name, (found, wanted) in settings.items():
        if found != wanted:
            raise InputError(
                f"Keras is set to the {name} {found!r}, and dipy_ldm needs {wanted!r}; "
                "change that in ~/.keras/keras.json, or the variable KERAS_BACKEND, "
                "and start Python again."
            )


def sketched(name: str, build: Callable) -> Any:
    """Build networks without weights, to learn of their shapes alone.

    Faster than whole ones, and in no memory, whatever their size; they can't be called.

    Parameters
    ----------
    name : str
        Precision, as of :func:`precision`.
    build : callable
        Builds them, without arguments.

    Returns
    -------
    object
        What ``build`` returns.

    Raises
    ------
    InputError
        If there is no such precision, or Keras is set up for other networks.
    """
    check_keras()

    def sketch():
        with precision(name), keras.StatelessScope(initialize_variables=False):
            return build()

    # In a thread of its own, as Keras keeps a list for each of what still has no
    # values, and would make these weights when it comes to train other networks.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(sketch).result()
