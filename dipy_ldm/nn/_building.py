"""How networks are built: their blocks, precision, first weights, and sketches.

The number of spatial dimensions is that of the tensor they are given; nothing else
tells two from three.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
import math
import random
from typing import Any

import keras
from keras import layers, ops
import numpy as np

from dipy_ldm._backend.fusion import canonical_variable_names
from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm.nn._layers import CONVOLUTIONS, Cut, Recomputed
from dipy_ldm.nn._normalization import Activated, GroupScale, PositionActivated, swish

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


def conv(x, width, size=3, strides=1, upsampled=False, **kwargs):
    """Convolve a tensor of any rank; the result is as large, divided by the strides.

    Or twice as large: what is convolved has each side doubled first.
    """
    space = x.shape[1:-1]
    kwargs = {"kernel_initializer": SeededInitializer(), "padding": "same"} | kwargs
    # In bfloat16, TensorFlow's gradients for so few voxels are wrong on processors, up
    # to NaN: tests/denoiser/test_unet.py tells when this is no longer needed.
    least = 2 if upsampled else 3
    if len(space) == 3 and any(n is not None and n < least for n in space):
        kwargs["dtype"] = "float32"
    convolution = CONVOLUTIONS[len(space)]
    return convolution(width, size, strides=strides, upsampled=upsampled, **kwargs)(x)


def small_random_bias():
    """Return the initializer of biases where positions are normalised alone.

    With biases of zero, all that is left of a position is in which proportion its
    channels are: how bright it is would be lost until the biases are learnt.
    """
    return SeededInitializer("RandomUniform", minval=-0.1, maxval=0.1)


def norm_groups(x, time=None):
    """Normalise over groups of channels and all positions, and activate.

    Between, channels are scaled and shifted by the time.
    """
    gain, offset = group_scale(x)
    if time is not None:
        gain, offset = _modulate(gain, offset, time)
    return Activated()([x, gain, offset])


def group_scale(x):
    """Return by how much normalisation over groups scales and shifts each channel."""
    # The largest number of groups up to 8 that divides the channels, and leaves at
    # least two of them in each: alone, a channel would lose its mean.
    channels = x.shape[-1]
    most = max(1, min(8, channels // 2))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return GroupScale(groups)(x)


def norm_position(x):
    """Normalise over the channels of each position alone, and activate."""
    return PositionActivated()(x)


def to_output(x, channels, norm, **kwargs):
    """Normalise if there is a way to, activate and project, in full precision."""
    x = layers.Activation(swish)(x) if norm is None else norm(x)
    return conv(x, channels, dtype="float32", **kwargs)


def residual(x, width, norm, remat, *time):
    """Add two convolutions, scaled and shifted by the time, if any, between them."""

    def build(x, *time):
        shortcut = x if x.shape[-1] == width else conv(x, width, size=1)
        x = norm(conv(norm(x), width), *time)
        x = conv(x, width, kernel_initializer="zeros")
        return layers.Add()([shortcut, x])

    return as_submodel(build, [x, *time], remat)


def as_submodel(build, inputs, remat):
    """Build a block as a network of its own, which can be computed again."""
    # Always of its own, so that the order of the weights is the same.
    stand_ins = [keras.Input(x.shape[1:], dtype=x.dtype) for x in inputs]
    block = keras.Model(stand_ins, build(*stand_ins))
    return (Recomputed(block) if remat else block)(inputs)


def _modulate(gain, offset, time):
    shape = gain.shape[1:]

    def project():
        features = layers.Dense(shape[-1], kernel_initializer="zeros")(time)
        return layers.Reshape(shape)(features)

    def add(*tensors):
        return layers.Add(dtype="float32")(tensors)

    scale = project()
    more = [layers.Multiply(dtype="float32")([x, scale]) for x in (gain, offset)]
    return add(gain, more[0]), add(offset, more[1], project())


def upsample_to(x, like, width):
    """Double each side, cut to the size of another tensor, and convolve."""
    space = like.shape[1:-1]
    if space == tuple(2 * n for n in x.shape[1:-1]):
        return conv(x, width, upsampled=True)
    x = getattr(layers, f"UpSampling{len(space)}D")(2)(x)
    return conv(Cut(space)(x), width)
