"""The layers that Keras lacks."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("dipy_ldm")
class VectorQuantizer(keras.layers.Layer):
    """Replace each vector by the nearest of a codebook.

    The gradient goes straight through to the encoder. Two losses are added: one
    pulls the codes to the vectors, one (``commitment``) the vectors to the codes
    :footcite:p:`vandenOord2017`. How often each code was used since the last
    reset is counted in ``counts``.

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
            initializer="random_normal",
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

    def reset(self):
        """Forget how often the codes were used."""
        self.counts.assign(ops.zeros_like(self.counts))

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


def _mean_square(difference):
    return ops.mean(difference**2)


@keras.saving.register_keras_serializable("dipy_ldm")
class TimeEmbedding(keras.layers.Layer):
    """Turn times into sines and cosines of many frequencies.

    The features of :footcite:p:`Vaswani2017`, for times in [0, 1].

    Parameters
    ----------
    width : int
        Number of features, even.
    **kwargs
        Arguments of :class:`keras.layers.Layer`.

    References
    ----------
    .. footbibliography::
    """

    def __init__(self, width, **kwargs):
        # Sines of large arguments need all their digits.
        super().__init__(dtype="float32", **kwargs)
        self.width = width

    def call(self, t):
        """Map times ``(batch,)`` to features ``(batch, width)``."""
        half = self.width // 2
        # From one radian over the whole range to a thousand.
        frequencies = ops.exp(
            ops.arange(half, dtype="float32") * (math.log(1000.0) / (half - 1))
        )
        angles = t[:, None] * frequencies
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def compute_output_shape(self, input_shape):
        """Return ``(batch, width)``."""
        return (input_shape[0], self.width)

    def get_config(self):
        """Return the arguments of the constructor."""
        return super().get_config() | {"width": self.width}


@keras.saving.register_keras_serializable("dipy_ldm")
class Recomputed(keras.layers.Layer):
    """Compute a network again for the gradient, instead of keeping its insides.

    Gradient checkpointing :footcite:p:`Chen2016`. ``keras.RematScope`` can't do it
    to whole networks in a graph: the argument ``training``, which Keras adds, is
    refused there by TensorFlow's custom gradients.

    Parameters
    ----------
    block : keras.Model
        Network that behaves in training as it does otherwise.
    **kwargs
        Arguments of :class:`keras.layers.Layer`.

    References
    ----------
    .. footbibliography::
    """

    def __init__(self, block, **kwargs):
        super().__init__(**kwargs)
        self.block = block

    def call(self, inputs):
        """Apply the network to a list of tensors."""
        return keras.remat(lambda *tensors: self.block(list(tensors)))(*inputs)

    def compute_output_spec(self, inputs):
        """Return the network's own output."""
        return self.block.compute_output_spec(inputs)

    def get_config(self):
        """Return the arguments of the constructor."""
        block = keras.saving.serialize_keras_object(self.block)
        return super().get_config() | {"block": block}
