"""Bottlenecks: nearest codes, gradients, initialisation and revival of codes."""

import time
from unittest import mock
import warnings

import keras
from keras import ops
import numpy as np
import numpy.testing as npt
import pytest
from scipy.cluster.vq import kmeans2

from dipy_ldm.autoencoder import quantizers as bottlenecks
from dipy_ldm.autoencoder.quantizers import Codebook

SHAPES = [(5, 6, 3), (5, 4, 6, 3), (2, 4, 5, 6, 3)]

to_numpy = ops.convert_to_numpy


def books(n_codebooks=1, n_codes=6, **kwargs):
    layer = Codebook(n_codes, n_codebooks=n_codebooks, **kwargs)
    layer.build((None, 3))
    rng = np.random.default_rng(0)
    layer.codebook.assign(rng.standard_normal((n_codebooks * n_codes, 3)))
    return layer


def test_gradient_goes_straight_through():
    vectors = keras.Input((4, 3))
    model = keras.Model(vectors, books(commitment=0.0)(vectors))
    probe = keras.Sequential([keras.layers.Dense(3, use_bias=False), model])
    x = np.random.default_rng(2).standard_normal((8, 4, 3)).astype("float32")
    probe(x)
    start = to_numpy(probe.layers[0].kernel)
    probe.compile(keras.optimizers.SGD(1.0), loss=_total)
    probe.fit(x, x, batch_size=8, verbose=0)
    moved = start - to_numpy(probe.layers[0].kernel)
    # The derivative of sum(x @ kernel) as if there were no quantizer.
    npt.assert_allclose(moved, np.repeat(x.sum((0, 1))[:, None], 3, 1), rtol=1e-4)


def _total(_, outputs):
    # Keras takes the mean over the batch of what a loss returns.
    return ops.sum(outputs, axis=(1, 2)) * ops.shape(outputs)[0]


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_initial_codes_are_those_of_scipys_k_means(channels, monkeypatch):
    monkeypatch.setattr(bottlenecks, "_MAX_DISTANCES", 1000)
    vectors = np.random.default_rng(4).standard_normal((220, channels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        rng = np.random.default_rng(5)
        expected, _ = kmeans2(vectors, 11, minit="points", rng=rng)
    draw = mock.Mock(return_value=vectors)
    codes = books(n_codes=11).initial(draw, np.random.default_rng(5))
    draw.assert_called_once_with(220)
    npt.assert_allclose(codes, expected, atol=1e-9)


def test_many_codes_start_within_seconds():
    vectors = np.random.default_rng(6).standard_normal((160_000, 3))
    start = time.monotonic()
    Codebook(8_000).initial(lambda n: vectors, np.random.default_rng(0))
    assert time.monotonic() - start < 60  # three, where nothing else is done


def test_codes_are_counted_in_training_only():
    layer = books()
    vectors = np.random.default_rng(4).standard_normal((4, 5, 3)).astype("float32")
    layer(vectors)
    npt.assert_array_equal(layer.counts, 0)
    layer(vectors, training=True)
    layer(vectors, training=True)
    expected = 2 * np.bincount(np.ravel(layer.nearest(vectors)), minlength=6)
    npt.assert_array_equal(layer.counts, expected)


@pytest.mark.parametrize(
    ("counts", "usage", "perplexity", "dead"),
    [
        ([[0, 100, 100, 0, 0, 0]], 2 / 6, 2, [0, 3, 4, 5]),
        # The geometric mean of 4 and 2.
        ([[100, 100, 100, 100], [200, 200, 0, 0]], 6 / 8, np.sqrt(8), [6, 7]),
    ],
)
def test_figures_name_dead_codes_and_reset_counts(counts, usage, perplexity, dead):
    layer = books(*np.shape(counts))
    layer.counts.assign(np.ravel(counts))
    figures, rows = layer.figures()
    assert figures["usage"] == pytest.approx(usage)
    assert figures["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert list(rows) == dead
    npt.assert_array_equal(layer.counts, 0)


@pytest.mark.parametrize("n_codebooks", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_codebook_quantises_the_residual(shape, n_codebooks):
    vectors = np.random.default_rng(1).standard_normal(shape).astype("float32")
    layer = books(n_codebooks)
    codes = to_numpy(layer.codebook)
    rows = to_numpy(layer.nearest(vectors))
    assert rows.shape == (*shape[:-1], n_codebooks)
    residual = vectors
    for book in range(n_codebooks):
        own = codes[6 * book : 6 * (book + 1)]
        distances = np.linalg.norm(residual[..., None, :] - own, axis=-1)
        npt.assert_array_equal(rows[..., book], 6 * book + distances.argmin(-1))
        residual = residual - codes[rows[..., book]]
    npt.assert_allclose(
        to_numpy(layer.quantise(vectors)), vectors - residual, atol=1e-6
    )
    npt.assert_allclose(to_numpy(layer(vectors)), vectors - residual, atol=1e-6)


@pytest.mark.parametrize("n_codebooks", [1, 2])
def test_losses_pull_codes_to_the_residual_and_vectors_to_their_sum(n_codebooks):
    layer = books(n_codebooks)
    vectors = np.random.default_rng(3).standard_normal((4, 5, 3)).astype("float32")
    layer(vectors)
    codes = to_numpy(layer.codebook)[to_numpy(layer.nearest(vectors))]
    rest = vectors[..., None, :] - np.cumsum(codes, axis=-2)
    squares = (rest**2).mean((0, 1, 3))
    expected = [squares.sum(), 0.25 * squares[-1]]
    npt.assert_allclose([to_numpy(x) for x in layer.losses], expected, rtol=1e-5)


def test_quantisation_error_falls_with_codebooks():
    vectors = np.random.default_rng(0).standard_normal((4000, 3)).astype("float32")
    rng, errors = np.random.default_rng(1), []

    def draw(n):
        return vectors[rng.integers(0, len(vectors), n)]

    for n_codebooks in (1, 2, 4):
        layer = books(n_codebooks, n_codes=16)
        layer.codebook.assign(layer.initial(draw, rng))
        errors.append(np.mean((to_numpy(layer.quantise(vectors)) - vectors) ** 2))
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.2 * errors[1]


def test_dead_codes_of_later_codebooks_are_revived_at_residuals():
    layer = books(2)
    before = to_numpy(layer.codebook)
    vectors = np.random.default_rng(4).standard_normal((12, 3)).astype("float32")
    after = layer.revived(np.array([1, 8]), lambda n: vectors[:n], None)
    npt.assert_allclose(after[1], vectors[1], rtol=1e-6)
    first = before[to_numpy(layer.nearest(vectors))[8, 0]]
    npt.assert_allclose(after[8], vectors[8] - first, rtol=1e-5)
    rest = np.delete(np.arange(12), [1, 8])
    npt.assert_array_equal(after[rest], before[rest])


@pytest.mark.parametrize("n_codebooks", [1, 2])
def test_revived_codes_do_not_depend_on_other_dead_codes(n_codebooks):
    # Of two replicas one more may be dead than of one: rounding decides on ties.
    def revived(*dead):
        rng = np.random.default_rng(5)
        return layer.revived(np.array(dead), lambda n: rng.standard_normal((n, 3)), rng)

    layer = books(n_codebooks)
    last = 6 * n_codebooks - 1
    one, more = revived(2, last), revived(1, 2, last - 1, last)
    npt.assert_array_equal(more[[2, last]], one[[2, last]])
    assert np.abs(one[[2, last]] - to_numpy(layer.codebook)[[2, last]]).min() > 0


@pytest.mark.parametrize("channels", [1, 12])
def test_kmeans_step_keeps_unused_codes(channels):
    def alike(*numbers):
        return np.repeat(np.array(numbers)[:, None], channels, 1)

    codes = bottlenecks._kmeans_step(alike(1.0, 100.0), alike(1.0, 2.0))
    npt.assert_allclose(codes, alike(1.5, 100.0))
