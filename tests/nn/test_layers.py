"""Layers: embedded times, images from channels, and sums of networks."""

import keras
from keras import ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.autoencoder.quantizers import Codebook
from dipy_ldm.nn import _building as building, _layers as layers
from dipy_ldm.nn._layers import (
    CONVOLUTIONS,
    Cut,
    DepthToSpace,
    Recomputed,
    SourceFeatures,
    Sum,
    TimeEmbedding,
)

to_numpy = ops.convert_to_numpy


def test_times_are_in_full_precision_under_a_mixed_policy():
    with building.precision("bfloat16"):
        assert TimeEmbedding(8).compute_dtype == "float32"
        assert Codebook(4).compute_dtype == "float32"


def test_time_embedding_tells_times_apart():
    features = np.asarray(TimeEmbedding(32)(ops.linspace(0.0, 1.0, 101)))
    assert features.shape == (101, 32)
    npt.assert_allclose((features**2).sum(-1), 16, rtol=1e-5)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert distances[~np.eye(101, dtype=bool)].min() > 0.1


@pytest.mark.parametrize("space", [(4096,), (64, 64), (16, 16, 16)])
def test_biases_learn_the_same_in_bfloat16(space, bfloat16):
    x = np.random.default_rng(0).standard_normal((4, *space, 2)).astype("float32")
    biases = []
    for precision in ("float32", bfloat16):
        keras.utils.set_random_seed(0)
        with building.precision(precision):
            images = keras.Input((*space, 2))
            inner = CONVOLUTIONS[len(space)](4, 3, padding="same")(images)
            outer = CONVOLUTIONS[len(space)](1, 1, dtype="float32")(inner)
            model = keras.Model(images, outer)
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
        model.fit(x, np.ones((4, *space, 1)), batch_size=4, verbose=0)
        inner, outer = (layer.get_weights()[1] for layer in model.layers[1:])
        biases.append(np.concatenate([inner, outer]))
    assert np.abs(biases[0]).min() > 0.01
    npt.assert_allclose(biases[1], biases[0], rtol=0.02, atol=1e-3)


def repeated(x):
    for axis in range(1, len(x.shape) - 1):
        x = ops.repeat(x, 2, axis)
    return x


@pytest.mark.parametrize("how", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("space", [(9,), (5, 4), (5, 4, 6), (2, 3, 5)])
def test_upsampled_is_as_if_positions_were_repeated(space, how, monkeypatch, rng):
    known, transposed = how
    monkeypatch.setattr(layers, "TRANSPOSED_UPSAMPLING", transposed)
    kind = CONVOLUTIONS[len(space)]
    x = rng.standard_normal((2, *space, 3)).astype("float32")
    sides = space if known else [None for _ in space]
    before, after = keras.Input((*sides, 3)), keras.Input((*(2 * n for n in space), 3))
    layer = kind(4, 3, padding="same", upsampled=True, bias_initializer="ones")
    fast = keras.Model(before, layer(before))
    plain = keras.Model(after, kind(4, 3, padding="same")(after))
    plain.set_weights(fast.get_weights())
    assert fast.output_shape == (None, *(n and 2 * n for n in sides), 4)
    wanted = to_numpy(plain(repeated(ops.convert_to_tensor(x))))
    npt.assert_allclose(to_numpy(fast(x)), wanted, atol=2e-6)
    # So do the weights learn: sizes that are known need not be traced.
    goal = np.zeros((2, *(2 * n for n in space), 4), "float32")
    for network, given in ((fast, x), (plain, to_numpy(repeated(x)))):
        network.compile(keras.optimizers.SGD(0.5), loss="mse", run_eagerly=known)
        network.fit(given, goal, batch_size=2, verbose=0)
    for found, other in zip(fast.get_weights(), plain.get_weights(), strict=True):
        npt.assert_allclose(found, other, atol=2e-6)


def test_few_positions_are_repeated():
    layer = CONVOLUTIONS[3](4, 3, padding="same", upsampled=True)
    many = keras.config.backend() != "jax"
    assert layer.transposed((2, 4, 4, 4, 3)) == many
    assert layer.transposed((2, None, None, None, 3)) == many
    assert not layer.transposed((2, 4, 4, 3, 3))
    assert not CONVOLUTIONS[3](4, 3).transposed((2, 4, 4, 4, 3))


@pytest.mark.parametrize("space", [(3,), (3, 2), (2, 3, 4)])
@pytest.mark.parametrize("times", [2, 3])
def test_channels_become_the_voxels_of_their_place(space, times):
    rank = len(space)
    x = np.random.default_rng(0).standard_normal((2, *space, 2 * times**rank))
    layer = DepthToSpace(times)
    found = np.asarray(layer(x))
    assert found.shape == (2, *(times * side for side in space), 2)
    assert layer.compute_output_shape(x.shape) == found.shape
    place, within = (1,) * rank, (0,) * (rank - 1) + (1,)
    channel = np.ravel_multi_index((*within, 1), (*(times,) * rank, 2))
    at = tuple(times * p + w for p, w in zip(place, within, strict=True))
    npt.assert_allclose(found[(0, *at, 1)], x[(0, *place, channel)], rtol=1e-6)
    # Nothing is lost, and each place keeps what is its own.
    first = found[(slice(None), *(slice(times) for _ in space))]
    npt.assert_allclose(first.reshape(2, -1), x[(slice(None), *(0,) * rank)], rtol=1e-6)


def test_layers_are_rebuilt_from_their_configurations():
    for layer in (DepthToSpace(2), TimeEmbedding(8), Cut((3, 4)), SourceFeatures(5)):
        again = type(layer).from_config(layer.get_config())
        assert again.get_config() == layer.get_config()


def test_a_sum_of_networks():
    x = keras.Input((4, 3))
    parts = [keras.Model(x, keras.layers.Dense(2)(x)) for _ in range(3)]
    total = Sum(parts)
    given = np.random.default_rng(0).standard_normal((5, 4, 3)).astype("float32")
    found, *each = (keras.ops.convert_to_numpy(part(given)) for part in (total, *parts))
    npt.assert_allclose(found, sum(each), rtol=1e-6)
    assert len(total.weights) == 6
    assert total.compute_output_shape((None, 4, 3)) == (None, 4, 2)


@pytest.mark.tensorflow
def test_recomputed_layers_are_called_in_training_mode():
    import tensorflow as tf

    told = []

    class Told(keras.layers.Layer):
        def call(self, x, training=False):
            told.append(training)
            return 2 * x

    x = keras.Input((3,))
    block = keras.Model([x], Told()(x))
    network = keras.Model(x, Recomputed(block)([x]))
    told.clear()

    @tf.function
    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = network(x, training=True)
        return tape.gradient(y, x)

    npt.assert_array_equal(slope(tf.ones((2, 3))), np.full((2, 3), 2))
    assert len(told) > 1
    assert all(told)
