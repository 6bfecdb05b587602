"""Bottlenecks: what lies between encoder and decoder, and its whole life.

A bottleneck is a layer that quantises. In training it counts what it uses; before
training, and between rounds, it says where its codes should be:

- ``initial(draw, rng)`` before the first step,
- ``figures()`` after each round, with the numbers of the codes that are dead,
- ``revived(dead, draw, rng)`` for these.

``draw(n)`` gives so many encoded vectors, ``(n, channels)``. Draw as many whatever is
dead: by rounding, a code may be dead on one device and in use on two.
"""

import keras
from keras import ops
import numpy as np

# A code used less than this share of the average is as good as dead.
_RARE = 0.01

# Encoded vectors for each code, for k-means.
_VECTORS = 20
# Rounds of k-means; distances that it computes at once; and channels with which there
# are better ways than all distances.
_ITERATIONS = 10
_DISTANCES = 2**25
_TREE_CHANNELS = 8


@keras.saving.register_keras_serializable("dipy_ldm")
class Codebook(keras.layers.Layer):
    """Codes, of which the nearest takes the place of each vector.

    With several codebooks, each has codes for what those before it leave, and the sum
    of a code from each takes the place of the vector :footcite:p:`Zeghidour2022`: ten
    bits more for each book of 1024 codes.

    Codes start where k-means finds encoded images, and those that are no longer used
    are revived. The gradient goes straight through to the encoder. Two losses are
    added: one pulls the codes to what they stand for, one (``commitment``) the vectors
    to the sums of their codes :footcite:p:`vandenOord2017`. How often each code was
    used in training, since the last :meth:`figures`, is counted in ``counts``.

    Parameters
    ----------
    n_codes : int
        Number of codes in a codebook.
    commitment : float
        Weight of the pull on the vectors.
    n_codebooks : int
        Number of codebooks.
    **kwargs
        Arguments of :class:`keras.layers.Layer`.

    References
    ----------
    .. footbibliography::
    """

    def __init__(self, n_codes, commitment=0.25, n_codebooks=1, **kwargs):
        # Distances between codes are small: bfloat16 would mistake neighbours.
        super().__init__(dtype="float32", **kwargs)
        self.n_codes = n_codes
        self.commitment = commitment
        self.n_codebooks = n_codebooks

    def build(self, input_shape):
        """Create the codes, ``(n_codebooks * n_codes, channels)``, and the counts."""
        self.codebook = self.add_weight(
            shape=(self.n_codebooks * self.n_codes, input_shape[-1]),
            # Until there are better ones. Without a seed, Python's own would be used.
            initializer=keras.initializers.RandomNormal(seed=0),
            name="codebook",
        )
        # Each replica counts its own, and they are summed when read: to meet in the
        # middle of a step would mix up the replicas' losses.
        self.counts = keras.Variable(
            "zeros",
            shape=(self.n_codebooks * self.n_codes,),
            dtype="float32",
            trainable=False,
            aggregation="sum",
            synchronization="on_read",
            name="counts",
        )

    def nearest(self, vectors):
        """Find the nearest code of each codebook.

        Parameters
        ----------
        vectors : tensor
            Shape ``(batch, *space, channels)``.

        Returns
        -------
        tensor of int
            Rows of the codes, shape ``(batch, *space, n_codebooks)``.
        """
        rest, rows = ops.convert_to_tensor(vectors), []
        for first in range(0, self.n_codebooks * self.n_codes, self.n_codes):
            codes = self.codebook[first : first + self.n_codes]
            # |v - c|^2 without |v|^2, which is the same for every code.
            products = ops.matmul(rest, ops.transpose(codes))
            row = ops.argmin(ops.sum(codes**2, axis=-1) - 2 * products, axis=-1)
            rest = rest - ops.take(codes, row, axis=0)
            rows.append(row + first)
        return ops.stack(rows, axis=-1)

    def quantise(self, vectors):
        """Replace each vector by the sum of its codes, without a gradient trick.

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

    def initial(self, draw, rng):
        """Return initial codes: centres of k-means, of the residuals for later books.

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
        rest, books = draw(_VECTORS * self.n_codes), []
        for _ in range(self.n_codebooks):
            # Started from data points: "++" takes a minute for a thousand codes.
            codes = rest[rng.choice(len(rest), self.n_codes, False)]
            for _ in range(_ITERATIONS):
                codes = _to_centres(codes, rest)
            rest = rest - codes[_nearest(rest, codes)]
            books.append(codes)
        return np.concatenate(books)

    def figures(self):
        """Return how the codes were used since the last time, and reset the counts.

        Returns
        -------
        figures : dict of str to float
            ``perplexity``, the geometric mean of those of the codebooks, and
            ``usage``: the share of codes that were used.
        dead : ndarray of int
            Rows of the codes that are hardly used.
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
        return figures, np.flatnonzero(share < _RARE / self.n_codes)

    def revived(self, dead, draw, rng):
        """Move dead codes to encoded images, or to what other codes leave of them.

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
        # A vector for each code, so that it is the same whichever others are dead.
        codes, rest = before.copy(), draw(len(before))[dead]
        for first in range(0, len(codes), self.n_codes):
            # A code of the first codebook stands for the vector itself.
            later = dead >= first + self.n_codes
            codes[dead[~later]] = rest[~later]
            dead, rest = dead[later], rest[later]
            book = before[first : first + self.n_codes]
            rest = rest - book[_nearest(rest, book)] if len(rest) else rest
        return codes

    def call(self, vectors, training=False):
        """Quantise; in training also add the losses and count the codes."""
        rows = self.nearest(vectors)
        codes = ops.take(self.codebook, rows, axis=0)
        # What the codebooks before leave to each.
        rest = vectors[..., None, :] - (ops.cumsum(codes, axis=-2) - codes)
        self.add_loss(self.n_codebooks * _mean_square(codes - ops.stop_gradient(rest)))
        nearby = ops.stop_gradient(ops.sum(codes, axis=-2))
        self.add_loss(self.commitment * _mean_square(vectors - nearby))
        if training:
            rows = ops.reshape(rows, (-1,))
            # Not by bincount, which XLA refuses: its length depends on the rows.
            used = ops.segment_sum(
                ops.ones_like(rows, dtype=self.counts.dtype),
                rows,
                self.n_codebooks * self.n_codes,
            )
            self.counts.assign_add(used)
        return vectors + ops.stop_gradient(nearby - vectors)

    def compute_output_shape(self, input_shape):
        """Return the shape unchanged."""
        return input_shape

    def get_config(self):
        """Return the arguments of the constructor."""
        names = ("n_codes", "commitment", "n_codebooks")
        return super().get_config() | {name: getattr(self, name) for name in names}


# By the name that a VQVAE is given.
BOTTLENECKS = {"codebook": Codebook}


def _to_centres(codes, vectors):
    """Move each code to the middle of the vectors that it is nearest to.

    One that gets none stays where it is, and is revived later.
    """
    nearest = _nearest(vectors, codes)
    counts = np.bincount(nearest, minlength=len(codes))[:, None]
    sums = [np.bincount(nearest, axis, len(codes)) for axis in vectors.T]
    return np.where(counts > 0, np.stack(sums, 1) / np.maximum(counts, 1), codes)


def _nearest(vectors, codes):
    """Find the nearest code of each of many vectors.

    A hundred times faster by a tree than by all distances: seconds for 16,384 codes.
    With more channels, trees come to look at nearly all codes.
    """
    if codes.shape[1] <= _TREE_CHANNELS:
        # Not where there is nothing to learn: it takes a quarter of a second.
        from scipy.spatial import cKDTree

        return cKDTree(codes).query(vectors)[1]
    squares = (codes**2).sum(1)
    pieces = np.array_split(vectors, max(1, len(vectors) * len(codes) // _DISTANCES))
    return np.concatenate([(squares - 2 * v @ codes.T).argmin(1) for v in pieces])


def _mean_square(difference):
    return ops.mean(difference**2)
