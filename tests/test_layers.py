"""Layers: nearest codes, gradients, embedded times."""

import keras
from keras import ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.layers import TimeEmbedding, VectorQuantizer

SHAPES = [(5, 6, 3), (5, 4, 6, 3), (2, 4, 5, 6, 3)]


def quantizer(**kwargs):
    layer = VectorQuantizer(11, **kwargs)
    layer.build((None, 3))
    layer.codebook.assign(np.random.default_rng(0).standard_normal((11, 3)))
    return layer


@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_code_against_brute_force(shape):
    vectors = np.random.default_rng(1).standard_normal(shape).astype("float32")
    layer = quantizer()
    codes = np.asarray(layer.codebook)
    distances = np.linalg.norm(vectors[..., None, :] - codes, axis=-1)
    npt.assert_array_equal(layer.nearest(vectors), distances.argmin(-1))
    npt.assert_allclose(layer.quantise(vectors), codes[distances.argmin(-1)])
    npt.assert_allclose(layer(vectors), layer.quantise(vectors), atol=1e-6)


def test_gradient_goes_straight_through():
    vectors = keras.Input((4, 3))
    model = keras.Model(vectors, quantizer(commitment=0.0)(vectors))
    probe = keras.Sequential([keras.layers.Dense(3, use_bias=False), model])
    x = np.random.default_rng(2).standard_normal((8, 4, 3)).astype("float32")
    probe(x)
    start = np.asarray(probe.layers[0].kernel)
    probe.compile(keras.optimizers.SGD(1.0), loss=_total)
    probe.fit(x, x, batch_size=8, verbose=0)
    moved = start - np.asarray(probe.layers[0].kernel)
    # The derivative of sum(x @ kernel) as if there were no quantizer.
    npt.assert_allclose(moved, np.repeat(x.sum((0, 1))[:, None], 3, 1), rtol=1e-4)


def _total(_, outputs):
    # Keras takes the mean over the batch of what a loss returns.
    return ops.sum(outputs, axis=(1, 2)) * ops.shape(outputs)[0]


def test_losses_pull_codes_and_vectors():
    layer = quantizer(commitment=0.25)
    vectors = np.random.default_rng(3).standard_normal((4, 5, 3)).astype("float32")
    layer(vectors)
    square = np.mean((np.asarray(layer.quantise(vectors)) - vectors) ** 2)
    npt.assert_allclose(layer.losses, [square, 0.25 * square], rtol=1e-5)


def test_codes_are_counted_in_training_only():
    layer = quantizer()
    vectors = np.random.default_rng(4).standard_normal((4, 5, 3)).astype("float32")
    layer(vectors)
    npt.assert_array_equal(layer.counts, 0)
    layer(vectors, training=True)
    layer(vectors, training=True)
    expected = 2 * np.bincount(np.ravel(layer.nearest(vectors)), minlength=11)
    npt.assert_array_equal(layer.counts, expected)


def test_quantizer_computes_in_full_precision_under_a_mixed_policy():
    assert VectorQuantizer(4).compute_dtype == "float32"
    assert TimeEmbedding(8).compute_dtype == "float32"


def test_time_embedding_tells_times_apart():
    features = np.asarray(TimeEmbedding(32)(ops.linspace(0.0, 1.0, 101)))
    assert features.shape == (101, 32)
    npt.assert_allclose((features**2).sum(-1), 16, rtol=1e-5)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert distances[~np.eye(101, dtype=bool)].min() > 0.1
