"""Fused normalisation and activation equal the layers of Keras."""

from functools import partial

import keras
from keras import layers, ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._backend import fusion
from dipy_ldm.nn._normalization import Activated, GroupScale, PositionActivated

SPACES = [(4, 5), (3, 4, 5)]


def normalised(kind, *arguments):
    """Return what normalises and activates by two layers of Keras."""
    normalisation = partial(kind, *arguments, epsilon=1e-5)
    return lambda x: layers.Activation("swish")(normalisation()(x))


# Ours, and Keras'.
WAYS = {
    "groups": (
        lambda x: Activated()([x, *GroupScale(4)(x)]),
        normalised(layers.GroupNormalization, 4),
    ),
    "position": (lambda x: PositionActivated()(x), normalised(layers.RMSNormalization)),
}


def both(name, space):
    """Build a network of our layers and one of Keras' with the same weights."""
    x = keras.Input((*space, 8))
    ours, theirs = (keras.Model(x, way(x)) for way in WAYS[name])
    rng = np.random.default_rng(0)
    values = [rng.normal(1, 0.3, weight.shape) for weight in ours.weights]
    for network in (ours, theirs):
        network.set_weights(values)
    return ours, theirs


def example(space, dtype="float32"):
    """Draw what is far from normal: another mean and size in each channel."""
    rng = np.random.default_rng(1)
    x = rng.normal(rng.normal(0, 2, 8), rng.uniform(0.1, 3, 8), (2, *space, 8))
    return ops.convert_to_tensor(x.astype("float32"), dtype=dtype)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", WAYS)
def test_normalised_and_activated_as_by_keras(name, space, training):
    ours, theirs = both(name, space)
    x = example(space)
    outputs = (network(x, training=training) for network in (ours, theirs))
    npt.assert_allclose(*map(ops.convert_to_numpy, outputs), atol=2e-6)


@pytest.mark.parametrize("offset", [30, 1_000, 30_000])
def test_digits_are_kept_where_the_mean_is_large(offset):
    # Each group has a mean of its own.
    means = offset * np.repeat([1, -1, 0.1, 3], 2)
    x = (np.random.default_rng(3).normal(means, 1, (2, 9, 8, 8))).astype("float32")
    exact = x.astype("float64").reshape(2, 72, 4, 2)
    exact = exact - exact.mean((1, 3), keepdims=True)
    exact = (exact / exact.std((1, 3), keepdims=True)).reshape(x.shape)
    gain, shift = map(ops.convert_to_numpy, GroupScale(4)(x))
    normalised = x * gain + shift
    # What scaling and shifting in float32 makes of it.
    npt.assert_allclose(normalised, exact, atol=1e-5 + 1e-6 * offset)


def gradients(network, x, upstream, shape=None):
    """Differentiate a network by what it is given, and by its weights."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec(shape or x.shape, x.dtype)])
    def differentiate(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = network(x, training=True)
        return tape.gradient(y, [x, *network.trainable_variables], upstream)

    return [ops.convert_to_numpy(ops.cast(g, "float32")) for g in differentiate(x)]


def upstream(x):
    """Draw what gradients come from."""
    return ops.cast(np.random.default_rng(2).normal(size=x.shape), x.dtype)


@pytest.mark.tensorflow
def test_gradients_keep_digits_where_the_mean_is_large():
    ours, theirs = both("groups", (9, 8))
    x = np.random.default_rng(3).normal(3_000, 1, (2, 9, 8, 8)).astype("float32")
    x = ops.convert_to_tensor(x)
    gradient, exact = (
        gradients(network, of, upstream(x))[0]
        for network, of in ((ours, x), (theirs, x - 3_000))
    )
    npt.assert_allclose(gradient, exact, atol=0.01 * np.abs(exact).max())


HACKS = "FUSED_LOOPS", "CACHED_TRACES", "CUSTOM_GRADIENTS"


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("space", "hack", "shape"),
    [
        *((space, None, None) for space in SPACES),
        *(((4, 5), hack, None) for hack in HACKS),
        ((None, None), None, (None, None, None, 8)),
    ],
)
@pytest.mark.parametrize("name", WAYS)
def test_gradients_are_those_that_tensorflow_finds(
    name, space, hack, shape, monkeypatch
):
    if hack:
        monkeypatch.setattr(fusion, hack, False)
    x = example((4, 5) if shape else space)
    ours, theirs = both(name, space)
    result = gradients(ours, x, upstream(x), shape)
    for own, other in zip(result, gradients(theirs, x, upstream(x)), strict=True):
        npt.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", WAYS)
def test_gradients_in_bfloat16_are_as_good_as_its_digits(name):
    ours, _ = both(name, (4, 5))
    x = example((4, 5), "bfloat16")
    exact = gradients(ours, *(ops.cast(part, "float32") for part in (x, upstream(x))))
    inputs = keras.Input((4, 5, 8), dtype="bfloat16")
    rounded = keras.Model(inputs, WAYS[name][0](inputs))
    rounded.set_weights(ours.get_weights())
    assert keras.backend.standardize_dtype(rounded(x).dtype) == "bfloat16"
    for one, other in zip(gradients(rounded, x, upstream(x)), exact, strict=True):
        npt.assert_allclose(one, other, atol=0.02 * np.abs(other).max())
