"""Bottlenecks between encoder and decoder, and how their codes are kept in use.

A bottleneck is a layer that quantises. It counts the use of codes during training, and
returns new codes before the first step and between rounds:

- ``initial(draw, rng)`` returns the codes before the first step,
- ``figures()`` returns metrics and the indices of dead codes after each round,
- ``revived(dead, draw, rng)`` returns the codes with dead ones replaced.

``draw(n)`` returns ``n`` encoded vectors, ``(n, channels)``. Draw the same number
whichever codes are dead: rounding may differ between one device and two.
"""

from collections.abc import Callable

import keras
from keras import ops
import numpy as np

from dipy_ldm._utils.types import Tensor

# A code is dead if used less than this share of the average.
_DEAD_USAGE = 0.01

# Encoded vectors per code for k-means.
_VECTORS_PER_CODE = 20
# Iterations of k-means; maximum number of distances computed at once; and maximum
# number of channels for which a tree is faster than all distances.
_KMEANS_ITERATIONS = 10
_MAX_DISTANCES = 2**25
_MAX_TREE_CHANNELS = 8


class Codebook(keras.layers.Layer):
    """Vector quantisation: replace each vector by the nearest code.

    With several codebooks, each quantises the residuals of those before it, and the sum
    of their codes replaces the vector (residual vector quantisation)
    :footcite:p:`Zeghidour2022`: ten bits more for each codebook of 1024 codes.

    Codes are initialised by k-means of encoded images, and unused codes are revived.
    Gradients pass straight through to the encoder. Two losses are added: one pulls
    codes towards their vectors, one (``commitment``) vectors towards the sums of their
    codes :footcite:p:`vandenOord2017`. ``counts`` has how often each code was used in
    training since the last :meth:`figures`.

    Parameters
    ----------
    n_codes : int
        Number of codes in a codebook.
    commitment : float
        Weight of the commitment loss.
    n_codebooks : int
        Number of codebooks.
    **kwargs
        Arguments of :class:`keras.layers.Layer`.

    References
    ----------
    .. footbibliography::
    """

    def __init__(
        self, n_codes: int, commitment: float = 0.25, n_codebooks: int = 1, **kwargs
    ):
        # Codes are close to each other: bfloat16 would pick wrong ones.
        super().__init__(dtype="float32", **kwargs)
        self.n_codes = n_codes
        self.commitment = commitment
        self.n_codebooks = n_codebooks

    def build(self, input_shape: tuple):
        """Create the codes, ``(n_codebooks * n_codes, channels)``, and the counts."""
        self.codebook = self.add_weight(
            shape=(self.n_codebooks * self.n_codes, input_shape[-1]),
            # Replaced before training. The seed leaves Python's random state unchanged.
            initializer=keras.initializers.RandomNormal(seed=0),
            name="codebook",
        )
        # Counted per replica and summed when read: synchronising within a step would
        # mix up the losses of replicas.
        self.counts = keras.Variable(
            "zeros",
            shape=(self.n_codebooks * self.n_codes,),
            dtype="float32",
            trainable=False,
            aggregation="sum",
            synchronization="on_read",
            name="counts",
        )

    def nearest(self, vectors: Tensor):
        """Return the index of the nearest code of each codebook.

        Parameters
        ----------
        vectors : tensor
            Shape ``(batch, *space, channels)``.

        Returns
        -------
        tensor of int
            Rows of the codes, shape ``(batch, *space, n_codebooks)``.
        """
        residuals, rows = ops.convert_to_tensor(vectors), []
        for first in range(0, self.n_codebooks * self.n_codes, self.n_codes):
            codes = self.codebook[first : first + self.n_codes]
            # |v - c|^2 without |v|^2, which is the same for every code.
            products = ops.matmul(residuals, ops.transpose(codes))
            row = ops.argmin(ops.sum(codes**2, axis=-1) - 2 * products, axis=-1)
            residuals = residuals - ops.take(codes, row, axis=0)
            rows.append(row + first)
        return ops.stack(rows, axis=-1)

    def quantise(self, vectors: Tensor):
        """Replace each vector by the sum of its codes; it has no gradient.

        Parameters
        ----------
        vectors : tensor
            Shape ``(batch, *space, channels)``.

        Returns
        -------
        tensor
            Sums, of the shape of ``vectors``.
        """
        codes = ops.take(self.codebook, self.nearest(vectors), axis=0)
        return ops.sum(codes, axis=-2)

    def initial(self, draw: Callable, rng: np.random.Generator):
        """Return initial codes by k-means, for later codebooks of the residuals.

        Parameters
        ----------
        draw : callable
            ``draw(n)`` gives encoded vectors, ``(n, channels)``.
        rng : numpy.random.Generator
            Source of everything random.

        Returns
        -------
        ndarray
            Codes, ``(n_codebooks * n_codes, channels)``.
        """
        residuals, books = draw(_VECTORS_PER_CODE * self.n_codes), []
        for _ in range(self.n_codebooks):
            # From random vectors: k-means++ takes a minute for a thousand codes.
            codes = residuals[rng.choice(len(residuals), self.n_codes, False)]
            for _ in range(_KMEANS_ITERATIONS):
                codes = _kmeans_step(codes, residuals)
            residuals = residuals - codes[_nearest(residuals, codes)]
            books.append(codes)
        return np.concatenate(books)

    def figures(self):
        """Return how codes were used since the last call, and reset the counts.

        Returns
        -------
        figures : dict of str to float
            ``perplexity``, the geometric mean over codebooks, and ``usage``, the share
            of codes that were used.
        dead : ndarray of int
            Rows of codes that were hardly used.
        """
        counts = ops.convert_to_numpy(self.counts)
        self.counts.assign(np.zeros_like(counts))
        # All codebooks are used equally often.
        share = counts / (counts.sum() / self.n_codebooks)
        entropy = -np.sum(share * np.log(share + 1e-12)) / self.n_codebooks
        figures = {
            "perplexity": float(np.exp(entropy)),
            "usage": float(np.mean(counts > 0)),
        }
        return figures, np.flatnonzero(share < _DEAD_USAGE / self.n_codes)

    def revived(self, dead: np.ndarray, draw: Callable, rng: np.random.Generator):
        """Replace dead codes by random encoded vectors, or their residuals.

        Parameters
        ----------
        dead : ndarray of int
            Rows of the codes.
        draw, rng
            As of :meth:`initial`.

        Returns
        -------
        ndarray
            All codes, ``(n_codebooks * n_codes, channels)``.
        """
        before = ops.convert_to_numpy(self.codebook)
        # One vector per code, so that it does not depend on which others are dead.
        codes, vectors = before.copy(), draw(len(before))[dead]
        for first in range(0, len(codes), self.n_codes):
            # Codes of this codebook become vectors; for later ones, take residuals.
            later = dead >= first + self.n_codes
            codes[dead[~later]] = vectors[~later]
            dead, vectors = dead[later], vectors[later]
            book = before[first : first + self.n_codes]
            if len(vectors):
                vectors = vectors - book[_nearest(vectors, book)]
        return codes

    def call(self, vectors: Tensor, training: bool = False):
        """Quantise; in training also add the losses and count the codes."""
        rows = self.nearest(vectors)
        codes = ops.take(self.codebook, rows, axis=0)
        # Residuals of the codebooks before each one.
        residuals = vectors[..., None, :] - (ops.cumsum(codes, axis=-2) - codes)
        self.add_loss(
            self.n_codebooks * _mean_square(codes - ops.stop_gradient(residuals))
        )
        quantised = ops.stop_gradient(ops.sum(codes, axis=-2))
        self.add_loss(self.commitment * _mean_square(vectors - quantised))
        if training:
            rows = ops.reshape(rows, (-1,))
            # XLA refuses bincount, since its length depends on the rows.
            used = ops.segment_sum(
                ops.ones_like(rows, dtype=self.counts.dtype),
                rows,
                self.n_codebooks * self.n_codes,
            )
            self.counts.assign_add(used)
        return vectors + ops.stop_gradient(quantised - vectors)

    def compute_output_shape(self, input_shape: tuple):
        """Return the shape unchanged."""
        return input_shape


# By the `bottleneck` of VQVAE.
BOTTLENECKS = {"codebook": Codebook}


def _kmeans_step(codes: np.ndarray, vectors: np.ndarray):
    """Return the mean of the vectors nearest to each code; codes without any stay."""
    nearest = _nearest(vectors, codes)
    counts = np.bincount(nearest, minlength=len(codes))[:, None]
    sums = [np.bincount(nearest, axis, len(codes)) for axis in vectors.T]
    return np.where(counts > 0, np.stack(sums, 1) / np.maximum(counts, 1), codes)


def _nearest(vectors: np.ndarray, codes: np.ndarray):
    """Return the index of the nearest code of each vector.

    With few channels a tree is a hundred times faster than all distances (seconds for
    16,384 codes); with more it would compare nearly all codes.
    """
    if codes.shape[1] <= _MAX_TREE_CHANNELS:
        # Imported here, since it takes a quarter of a second.
        from scipy.spatial import cKDTree

        return cKDTree(codes).query(vectors)[1]
    squares = (codes**2).sum(1)
    parts = np.array_split(vectors, max(1, len(vectors) * len(codes) // _MAX_DISTANCES))
    return np.concatenate([(squares - 2 * v @ codes.T).argmin(1) for v in parts])


def _mean_square(difference: Tensor):
    return ops.mean(difference**2)
