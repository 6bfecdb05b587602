"""Network blocks, precision, seeded initial weights and networks without weights.

Blocks work in two or three dimensions: they infer the number from their input.
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
from dipy_ldm._utils.types import Tensor
from dipy_ldm.nn._layers import CONVOLUTIONS, Cut, Recomputed
from dipy_ldm.nn._normalization import Activated, GroupScale, PositionActivated, swish

PRECISIONS = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Build networks that compute in a precision, within this thread only."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(choose("precision", name, PRECISIONS))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


# The seed, and a counter of the weights drawn from it.
_seed_and_counter: ContextVar[tuple | None] = ContextVar(
    "seed and counter", default=None
)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Build networks whose initial weights depend on a seed and their order alone.

    Unlike ``keras.utils.set_random_seed``, this neither affects nor depends on other
    random numbers. Outside of this context each weight gets a random seed, as in Keras.
    """
    token = _seed_and_counter.set((seed, count()))
    try:
        with canonical_variable_names():
            yield
    finally:
        _seed_and_counter.reset(token)


@keras.saving.register_keras_serializable("dipy_ldm")
class SeededInitializer(keras.initializers.Initializer):
    """Initialize the next weight of :func:`seeded`.

    Weights are drawn by numpy, so they are the same on every back-end of Keras.
    """

    def __init__(self, name: str = "GlorotUniform", **options) -> None:
        self.name = name
        self.options = options
        # Kept, since Keras may call this several times per weight on several devices.
        self._seed: list | None = None

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None):
        """Draw a weight."""
        if self._seed is None:
            # As Keras does, so that keras.utils.set_random_seed makes it reproducible.
            seed, counter = _seed_and_counter.get() or (random.getrandbits(32), count())
            self._seed = [seed, next(counter)]
        rng = np.random.default_rng(self._seed)
        weight = _DISTRIBUTIONS[self.name](rng, shape, **self.options)
        return ops.convert_to_tensor(weight, dtype or keras.config.floatx())

    def get_config(self):
        """Return the arguments of the constructor."""
        return {"name": self.name, **self.options}


def _glorot_uniform(rng: np.random.Generator, shape: tuple[int, ...]):
    limit = math.sqrt(6 / sum(_fans(shape)))
    return rng.uniform(-limit, limit, shape)


def _lecun_normal(rng: np.random.Generator, shape: tuple[int, ...]):
    weight = rng.standard_normal(shape)
    while (outside := np.abs(weight) > 2).any():
        weight[outside] = rng.standard_normal(outside.sum())
    # The standard deviation of the truncated normal is 0.88.
    return weight / (0.87962566103423978 * math.sqrt(_fans(shape)[0]))


def _fans(shape: tuple[int, ...]):
    """Return fan-in and fan-out of a kernel."""
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
    """Refuse unsupported settings of Keras."""
    for setting, value, supported in (
        ("image_data_format", keras.config.image_data_format(), ["channels_last"]),
        ("floatx", keras.config.floatx(), ["float32", "float64"]),
    ):
        if value not in supported:
            raise InputError(
                f"Keras is set to the {setting} {value!r}, but dipy_ldm needs "
                f"{supported[0]!r}",
                "set it in ~/.keras/keras.json and restart Python",
            )


def build_without_weights(name: str, build: Callable) -> Any:
    """Build networks without weights, for their shapes alone; they can't be called."""
    check_keras()

    def sketch():
        with precision(name), keras.StatelessScope(initialize_variables=False):
            return build()

    # In a separate thread: Keras keeps a list of uninitialised variables per thread,
    # and would allocate these weights when another network is trained.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(sketch).result()


def conv(
    x: Tensor,
    width: int,
    size: int = 3,
    strides: int = 1,
    upsampled: bool = False,
    **kwargs,
):
    """Convolve a tensor, upsampled by 2 before if asked to."""
    space = x.shape[1:-1]
    kwargs = {"kernel_initializer": SeededInitializer(), "padding": "same"} | kwargs
    # In bfloat16, TensorFlow's CPU gradients of so few voxels are wrong, up to NaN;
    # tests/denoiser/test_unet.py fails when this workaround is no longer needed.
    min_side = 2 if upsampled else 3
    if len(space) == 3 and any(n is not None and n < min_side for n in space):
        kwargs["dtype"] = "float32"
    convolution = CONVOLUTIONS[len(space)]
    return convolution(width, size, strides=strides, upsampled=upsampled, **kwargs)(x)


def small_random_bias():
    """Return the initializer of biases before per-position normalisation.

    With zero biases, normalisation would remove intensities and keep only the ratios
    of channels, until biases are learnt.
    """
    return SeededInitializer("RandomUniform", minval=-0.1, maxval=0.1)


def norm_groups(x: Tensor, time: Tensor = None):
    """Apply group normalisation, modulate by the time embedding, and activate."""
    gain, offset = group_scale(x)
    if time is not None:
        gain, offset = _modulate(gain, offset, time)
    return Activated()([x, gain, offset])


def group_scale(x: Tensor):
    """Return the scale and shift of each channel by group normalisation."""
    # At most 8 groups of at least two channels: a single channel would lose its mean.
    channels = x.shape[-1]
    max_groups = max(1, min(8, channels // 2))
    groups = next(n for n in range(max_groups, 0, -1) if channels % n == 0)
    return GroupScale(groups)(x)


def norm_position(x: Tensor):
    """Normalise each position over its channels, and activate."""
    return PositionActivated()(x)


def to_output(x: Tensor, channels: int, norm: Callable | None, **kwargs):
    """Normalise (if there is a `norm`), activate and project in float32."""
    x = layers.Activation(swish)(x) if norm is None else norm(x)
    return conv(x, channels, dtype="float32", **kwargs)


def residual(x: Tensor, width: int, norm: Callable, remat: bool, *time):
    """Apply a residual block of two convolutions, modulated by the time, if any."""

    def build(x: Tensor, *time):
        shortcut = x if x.shape[-1] == width else conv(x, width, size=1)
        x = norm(conv(norm(x), width), *time)
        x = conv(x, width, kernel_initializer="zeros")
        return layers.Add()([shortcut, x])

    return as_submodel(build, [x, *time], remat)


def as_submodel(build: Callable, inputs: list, remat: bool):
    """Apply a block as a submodel, with gradient checkpointing if `remat`."""
    # A submodel in both cases, so that the order of the weights is the same.
    arguments = [keras.Input(x.shape[1:], dtype=x.dtype) for x in inputs]
    block = keras.Model(arguments, build(*arguments))
    return (Recomputed(block) if remat else block)(inputs)


def _modulate(gain: Tensor, offset: Tensor, time: Tensor):
    shape = gain.shape[1:]

    def project():
        features = layers.Dense(shape[-1], kernel_initializer="zeros")(time)
        return layers.Reshape(shape)(features)

    def add(*tensors):
        return layers.Add(dtype="float32")(tensors)

    scale = project()
    scaled = [layers.Multiply(dtype="float32")([x, scale]) for x in (gain, offset)]
    return add(gain, scaled[0]), add(offset, scaled[1], project())


def upsample_to(x: Tensor, reference: Tensor, width: int):
    """Upsample by 2, crop to the size of another tensor, and convolve."""
    space = reference.shape[1:-1]
    if space == tuple(2 * n for n in x.shape[1:-1]):
        return conv(x, width, upsampled=True)
    x = getattr(layers, f"UpSampling{len(space)}D")(2)(x)
    return conv(Cut(space)(x), width)
