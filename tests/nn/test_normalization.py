"""Normalisation and activation in one go are what Keras' layers are one by one."""

from functools import partial

import keras
from keras import layers, ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._backend import fusion
from dipy_ldm.nn._layers import Cut
from dipy_ldm.nn._normalization import Activated, GroupScale, PositionActivated

SPACES = [(5,), (4, 5), (3, 4, 5)]


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
    gain, shift = GroupScale(4)(x)
    made = ops.convert_to_numpy(x * gain + shift)
    # What scaling and shifting in float32 makes of it.
    npt.assert_allclose(made, exact, atol=1e-5 + 1e-6 * offset)


@pytest.mark.tensorflow
def test_gradients_keep_digits_where_the_mean_is_large():
    ours, theirs = both("groups", (9, 8))
    x = np.random.default_rng(3).normal(3_000, 1, (2, 9, 8, 8)).astype("float32")
    upstream = np.random.default_rng(4).normal(size=x.shape).astype("float32")
    made, exact = (
        gradients(network, ops.convert_to_tensor(of), upstream)[0]
        for network, of in ((ours, x), (theirs, x - np.float32(3_000)))
    )
    npt.assert_allclose(made, exact, atol=0.01 * np.abs(exact).max())


def gradients(network, x, upstream):
    """Differentiate a network by what it is given, and by its weights."""
    import tensorflow as tf

    @tf.function
    def differentiate(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = network(x, training=True)
        return tape.gradient(y, [x, *network.trainable_variables], upstream)

    return [ops.convert_to_numpy(ops.cast(g, "float32")) for g in differentiate(x)]


@pytest.mark.tensorflow
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", WAYS)
def test_gradients_are_those_that_tensorflow_finds(name, space):
    ours, theirs = both(name, space)
    x = example(space)
    upstream = ops.convert_to_tensor(np.random.default_rng(2).normal(size=x.shape))
    upstream = ops.cast(upstream, "float32")
    found, expected = (gradients(network, x, upstream) for network in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        npt.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("hack", ["FUSED_LOOPS", "CACHED_TRACES", "OWN_GRADIENTS"])
def test_gradients_without_a_hack_are_equal(hack, name, monkeypatch):
    x = example((4, 5))
    upstream = ops.cast(np.random.default_rng(2).normal(size=x.shape), "float32")
    results = []
    for on in (True, False):
        monkeypatch.setattr(fusion, hack, on)
        results.append(gradients(both(name, (4, 5))[0], x, upstream))
    for one, other in zip(*results, strict=True):
        npt.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", WAYS)
def test_sizes_may_be_dynamic(name):
    import tensorflow as tf

    ours, _ = both(name, (None, None))
    x = example((4, 5))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 8))])
    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = ours(x, training=True)
        return tape.gradient(y, x)

    expected, *_ = gradients(ours, x, ops.ones_like(x))
    npt.assert_allclose(ops.convert_to_numpy(slope(x)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", WAYS)
def test_gradients_in_bfloat16_are_as_good_as_its_digits(name):
    ours, _ = both(name, (4, 5))
    x = example((4, 5), "bfloat16")
    upstream = ops.cast(np.random.default_rng(2).normal(size=x.shape), "bfloat16")
    exact = gradients(ours, *(ops.cast(part, "float32") for part in (x, upstream)))
    inputs = keras.Input((4, 5, 8), dtype="bfloat16")
    rounded = keras.Model(inputs, WAYS[name][0](inputs))
    rounded.set_weights(ours.get_weights())
    assert keras.backend.standardize_dtype(rounded(x).dtype) == "bfloat16"
    for one, other in zip(gradients(rounded, x, upstream), exact, strict=True):
        npt.assert_allclose(one, other, atol=0.02 * np.abs(other).max())


@pytest.mark.tensorflow
def test_with_a_gpu_the_back_end_finds_gradients_itself(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    fusion._on_cpu.cache_clear()
    try:
        called = []
        fusion.with_gradient(called.append, None)("what it is given")
        fusion.fused(called.append)("and once more")
        fusion.cached_trace(called.append)("and again")
    finally:
        fusion._on_cpu.cache_clear()
    assert called == ["what it is given", "and once more", "and again"]


@pytest.mark.tensorflow
def test_traced_function_is_shared_by_tensors_of_one_shape():
    import tensorflow as tf

    traced = []

    @fusion.cached_trace
    def doubled(x):
        traced.append(x.shape.as_list())
        return 2 * x

    @tf.function
    def four_times(x, y):
        return doubled(x), doubled(doubled(x)), doubled(y)

    found = four_times(tf.ones(3), tf.ones((2, 2)))
    assert [ops.convert_to_numpy(of).flat[0] for of in found] == [2, 4, 2]
    assert traced == [[3], [2, 2]]


@pytest.mark.parametrize("space", SPACES)
def test_cut_at_the_end_of_each_axis(space):
    x = example(space)
    smaller = (space[0] - 1, *space[1:])
    found = Cut(smaller)(x)
    npt.assert_array_equal(ops.convert_to_numpy(found), ops.convert_to_numpy(x)[:, :-1])
