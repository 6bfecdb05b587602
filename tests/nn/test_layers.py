"""Layers: time embeddings, upsampling, sums of networks."""

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


@pytest.mark.parametrize("space", [(64, 64), (16, 16, 16)])
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


@pytest.mark.parametrize(
    ("fixed_size", "transposed"), [(True, True), (True, False), (False, True)]
)
@pytest.mark.parametrize("space", [(5, 4), (5, 4, 6), (2, 3, 5)])
def test_upsampled_is_as_if_positions_were_repeated(
    space, fixed_size, transposed, monkeypatch, rng
):
    monkeypatch.setattr(layers, "TRANSPOSED_UPSAMPLING", transposed)
    kind = CONVOLUTIONS[len(space)]
    x = rng.standard_normal((2, *space, 3)).astype("float32")
    sides = space if fixed_size else [None for _ in space]
    before, after = keras.Input((*sides, 3)), keras.Input((*(2 * n for n in space), 3))
    layer = kind(4, 3, padding="same", upsampled=True, bias_initializer="ones")
    fast = keras.Model(before, layer(before))
    plain = keras.Model(after, kind(4, 3, padding="same")(after))
    plain.set_weights(fast.get_weights())
    assert fast.output_shape == (None, *(n and 2 * n for n in sides), 4)
    repeated = np.kron(x, np.ones((1, *(2 for _ in space), 1), "float32"))
    npt.assert_allclose(to_numpy(fast(x)), to_numpy(plain(repeated)), atol=2e-6)
    # So do the weights learn: sizes that are known need not be traced.
    goal = np.zeros((2, *(2 * n for n in space), 4), "float32")
    for network, inputs in ((fast, x), (plain, repeated)):
        network.compile(keras.optimizers.SGD(0.5), loss="mse", run_eagerly=fixed_size)
        network.fit(inputs, goal, batch_size=2, verbose=0)
    for weight, other in zip(fast.get_weights(), plain.get_weights(), strict=True):
        npt.assert_allclose(weight, other, atol=2e-6)


def test_few_positions_are_repeated():
    layer = CONVOLUTIONS[3](4, 3, padding="same", upsampled=True)
    many = keras.config.backend() != "jax"
    assert layer.transposed((2, 4, 4, 4, 3)) == many
    assert layer.transposed((2, None, None, None, 3)) == many
    assert not layer.transposed((2, 4, 4, 3, 3))
    assert not CONVOLUTIONS[3](4, 3).transposed((2, 4, 4, 4, 3))


@pytest.mark.parametrize("space", [(3, 2), (2, 3, 4)])
@pytest.mark.parametrize("times", [2, 3])
def test_channels_become_the_voxels_of_their_place(space, times):
    shape = (2, *space, 2 * times ** len(space))
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    layer = DepthToSpace(times)
    images = np.asarray(layer(x))
    assert images.shape == (2, *(times * side for side in space), 2)
    assert layer.compute_output_shape(x.shape) == images.shape
    for place in np.ndindex(space):
        voxels = images[
            (slice(None), *(slice(times * i, times * (i + 1)) for i in place))
        ]
        npt.assert_array_equal(voxels.reshape(2, -1), x[(slice(None), *place)])


def test_layers_are_rebuilt_from_their_configurations():
    for layer in (DepthToSpace(2), TimeEmbedding(8), Cut((3, 4)), SourceFeatures(5)):
        again = type(layer).from_config(layer.get_config())
        assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("space", [(4, 5), (3, 4, 5)])
def test_cut_at_the_end_of_each_axis(space, rng):
    x = rng.random((2, *space, 8)).astype("float32")
    cut = Cut((space[0] - 1, *space[1:]))(x)
    npt.assert_array_equal(to_numpy(cut), x[:, :-1])


def test_a_sum_of_networks():
    x = keras.Input((4, 3))
    parts = [keras.Model(x, keras.layers.Dense(2)(x)) for _ in range(3)]
    total = Sum(parts)
    values = np.random.default_rng(0).standard_normal((5, 4, 3)).astype("float32")
    result, *each = (to_numpy(network(values)) for network in (total, *parts))
    npt.assert_allclose(result, sum(each), rtol=1e-6)
    assert len(total.weights) == 6
    assert total.compute_output_shape((None, 4, 3)) == (None, 4, 2)


@pytest.mark.tensorflow
def test_recomputed_layers_are_called_in_training_mode():
    import tensorflow as tf

    modes = []

    class Doubled(keras.layers.Layer):
        def call(self, x, training=False):
            modes.append(training)
            return 2 * x

    x = keras.Input((3,))
    block = keras.Model([x], Doubled()(x))
    network = keras.Model(x, Recomputed(block)([x]))
    modes.clear()

    @tf.function
    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = network(x, training=True)
        return tape.gradient(y, x)

    npt.assert_array_equal(slope(tf.ones((2, 3))), np.full((2, 3), 2))
    assert len(modes) > 1
    assert all(modes)
