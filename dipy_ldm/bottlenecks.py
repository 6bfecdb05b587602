"""Bottlenecks: what lies between encoder and decoder, and its whole life.

A bottleneck is a layer that quantises. In training it counts what it uses; before
training, and between rounds, it says where its codes should be:

- ``initial(draw, rng)`` before the first step,
- ``figures()`` after each round, with the numbers of the codes that are dead,
- ``revived(dead, draw, rng)`` for these.

``draw(n)`` gives so many encoded vectors, ``(n, channels)``.
"""

import keras
from keras import ops
import numpy as np
from scipy.spatial import cKDTree

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

    They start where k-means finds encoded images, and those that are no longer used
    are revived. The gradient goes straight through to the encoder. Two losses are
    added: one pulls the codes to the vectors, one (``commitment``) the vectors to the
    codes :footcite:p:`vandenOord2017`. How often each code was used in training, since
    :meth:`figures` told of it, is counted in ``counts``.

    Parameters
    ----------
    n_codes : int
        Number of codes.
    commitment : float
        Weight of the pull on the vectors.
    **kwargs
        Arguments of :class:`keras.layers.Layer`.

    References
    ----------
    .. footbibliography::
    """

    def __init__(self, n_codes, commitment=0.25, **kwargs):
        # Distances between codes are small: bfloat16 would mistake neighbours.
        super().__init__(dtype="float32", **kwargs)
        self.n_codes = n_codes
        self.commitment = commitment

    def build(self, input_shape):
        """Create the codebook ``(n_codes, channels)`` and the counts."""
        self.codebook = self.add_weight(
            shape=(self.n_codes, input_shape[-1]),
            # Until there are better ones. Without a seed, Python's own would be used.
            initializer=keras.initializers.RandomNormal(seed=0),
            name="codebook",
        )
        # Each replica counts its own, and they are summed when read: to meet in the
        # middle of a step would mix up the replicas' losses.
        self.counts = keras.Variable(
            "zeros",
            shape=(self.n_codes,),
            dtype="float32",
            trainable=False,
            aggregation="sum",
            synchronization="on_read",
            name="counts",
        )

    def nearest(self, vectors):
        """Find the nearest code of each vector.

        Parameters
        ----------
        vectors : tensor
            Shape ``(batch, *space, channels)``.

        Returns
        -------
        tensor of int
            Indices of codes, shape ``(batch, *space)``.
        """
        codes = ops.transpose(self.codebook)
        # |v - c|^2 without |v|^2, which is the same for every code.
        distance = ops.sum(codes**2, axis=0) - 2 * ops.matmul(vectors, codes)
        return ops.argmin(distance, axis=-1)

    def quantise(self, vectors):
        """Replace each vector by its nearest code, without a gradient trick.

        Parameters
        ----------
        vectors : tensor
            Shape ``(batch, *space, channels)``.

        Returns
        -------
        tensor
            Codes, of the shape of ``vectors``.
        """
        return ops.take(self.codebook, self.nearest(vectors), axis=0)

    def initial(self, draw, rng):
        """Find codes to start with: the centres of k-means.

        Parameters
        ----------
        draw : callable
            ``draw(n)`` gives encoded vectors, ``(n, channels)``.
        rng : numpy.random.Generator
            Source of everything random.

        Returns
        -------
        ndarray
            Codes, ``(n_codes, channels)``.
        """
        vectors = draw(_VECTORS * self.n_codes)
        # Started from data points: "++" takes a minute for a thousand codes.
        codes = vectors[rng.choice(len(vectors), self.n_codes, False)]
        for _ in range(_ITERATIONS):
            codes = _to_centres(codes, vectors)
        return codes

    def figures(self):
        """Say how the codes were used since the last time, and begin to count anew.

        Returns
        -------
        figures : dict of str to float
            ``perplexity``, and ``usage``: the share of codes that were used.
        dead : ndarray of int
            Numbers of the codes that are hardly used.
        """
        counts = ops.convert_to_numpy(self.counts)
        self.counts.assign(ops.zeros_like(counts))
        share = counts / counts.sum()
        perplexity = float(np.exp(-np.sum(share * np.log(share + 1e-12))))
        figures = {"perplexity": perplexity, "usage": float(np.mean(counts > 0))}
        return figures, np.flatnonzero(share < _RARE / self.n_codes)

    def revived(self, dead, draw, rng):
        """Put dead codes where encoded images are.

        Parameters
        ----------
        dead : ndarray of int
            Numbers of the codes.
        draw, rng
            As of :meth:`initial`.

        Returns
        -------
        ndarray
            All codes, ``(n_codes, channels)``.
        """
        codes = ops.convert_to_numpy(self.codebook).copy()
        codes[dead] = draw(len(dead))
        return codes

    def call(self, vectors, training=False):
        """Quantise; in training also add the losses and count the codes."""
        indices = self.nearest(vectors)
        codes = ops.take(self.codebook, indices, axis=0)
        self.add_loss(_mean_square(codes - ops.stop_gradient(vectors)))
        self.add_loss(
            self.commitment * _mean_square(vectors - ops.stop_gradient(codes))
        )
        if training:
            indices = ops.reshape(indices, (-1,))
            # Not by bincount, which XLA refuses: its length depends on the indices.
            used = ops.segment_sum(
                ops.ones_like(indices, dtype=self.counts.dtype), indices, self.n_codes
            )
            self.counts.assign_add(used)
        return vectors + ops.stop_gradient(codes - vectors)

    def compute_output_shape(self, input_shape):
        """Return the shape unchanged."""
        return input_shape

    def get_config(self):
        """Return the arguments of the constructor."""
        config = super().get_config()
        return config | {"n_codes": self.n_codes, "commitment": self.commitment}


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
        return cKDTree(codes).query(vectors)[1]
    squares = (codes**2).sum(1)
    pieces = np.array_split(vectors, max(1, len(vectors) * len(codes) // _DISTANCES))
    return np.concatenate([(squares - 2 * v @ codes.T).argmin(1) for v in pieces])


def _mean_square(difference):
    return ops.mean(difference**2)
