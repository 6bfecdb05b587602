"""The autoencoder: images to latents and back, through a codebook."""

from typing import Unpack

from keras import ops
import numpy as np

from dipy_ldm import distribution, documents, networks, persistence, tiles
from dipy_ldm.bottlenecks import BOTTLENECKS
from dipy_ldm.data.arrays import (
    as_array,
    check_alike,
    check_channels,
    check_finite,
    check_latents,
    check_masks,
    learnable,
)
from dipy_ldm.data.windows import read_whole, window_size
from dipy_ldm.estimators import Entry, Estimator
from dipy_ldm.precision import Precision, tell
from dipy_ldm.training import Options, Training, autoencoder, train
from dipy_ldm.validation import (
    check_affine,
    check_counts,
    check_sizes,
    check_space,
    choose,
    plain,
    scalars,
)


class VQVAE(Estimator):
    """Vector-quantised autoencoder :footcite:p:`vandenOord2017`.

    Residual convolutional encoder and decoder for images of one, two or three
    dimensions and any size. The codebook starts from the encoded data (k-means),
    and codes that are no longer used are revived after every round.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level. Each level halves the resolution, so the latents
        are ``2 ** len(widths)`` times smaller per side.
    blocks : int
        Residual blocks of each level.
    n_codes : int
        Number of codes.
    code_dim : int
        Channels of the latents.
    commitment : float
        Weight of the loss that keeps the latents near their codes.
    loss : {"squared", "absolute", "spectral", "structural"}
        How reconstructions are compared with images; see :mod:`dipy_ldm.losses`.
    bottleneck : {"codebook"}
        What quantises the latents; see :mod:`dipy_ldm.bottlenecks`.
    seed : int
        Seed of everything random.

    Attributes
    ----------
    encoder_, decoder_ : keras.Model
        The networks.
    codebook_ : ndarray
        The codes, ``(n_codes, code_dim)``.
    intensity_ : tuple of float
        Lowest and highest value of the training images.
    affine_ : ndarray or None
        Where the voxels of the training images are, ``(4, 4)``, in millimetres.
    precision_ : Precision or None
        What training computed in, and why; None if the file does not say.
    history_ : dict of str to list
        Figures of each round (an epoch, or several short ones): ``step``, ``epoch``,
        ``loss``, ``mse``, ``perplexity``, ``usage``, ``revived``, and ``val_mse``.
    fingerprint_ : str
        Hash of the training images.

    References
    ----------
    .. footbibliography::

    Examples
    --------
    >>> from dipy_ldm import VQVAE
    >>> from dipy_ldm.data import load_mnist
    >>> digits, _ = load_mnist("train")
    >>> vqvae = VQVAE().fit(digits, epochs=2)  # doctest: +SKIP
    >>> reconstructed = vqvae.predict(digits[:8])  # doctest: +SKIP
    """

    _kind = "vqvae"
    _entries = (
        Entry("shape", "shape_", tuple),
        Entry("intensity", "intensity_", tuple),
        Entry("affine", "affine_", lambda a: a and np.array(a, "float64")),
        Entry("history", "history_", dict),
        Entry("fingerprint", "fingerprint_", str),
        Entry("precision", "precision_", Precision.from_saved, Precision.to_saved),
    )

    def __init__(
        self,
        *,
        widths=(32, 64),
        blocks=1,
        n_codes=1024,
        code_dim=3,
        commitment=0.25,
        loss="squared",
        bottleneck="codebook",
        seed=0,
    ):
        self.widths = widths
        self.blocks = blocks
        self.n_codes = n_codes
        self.code_dim = code_dim
        self.commitment = commitment
        self.loss = loss
        self.bottleneck = bottleneck
        self.seed = seed

    @property
    def factor(self):
        """How many times smaller than images latents are, per side."""
        check_sizes(widths=self.widths, blocks=self.blocks)
        widths = tuple(plain(np.atleast_1d(self.widths)))
        return networks.factor_of(widths, int(self.blocks))

    def latent_shape(self, shape):
        """Say what shape the latents have.

        Parameters
        ----------
        shape : tuple of int
            Shape of an image, ``(*space, channels)``.

        Returns
        -------
        tuple of int
            Shape of its latents, ``(*ceil(space / factor), code_dim)``.
        """
        window = window_size(shape[:-1], self.factor)
        return (*(size // self.factor for size in window), self.code_dim)

    def fit(
        self,
        images,
        *,
        validation_data=None,
        affine=None,
        masks=None,
        background=1.0,
        patch=None,
        augment=None,
        **training: Unpack[Options],
    ):
        """Learn to reconstruct images.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of any range. A mapped file is read
            as it is needed and may be larger than the memory.
        validation_data : array_like, optional
            Images that are reconstructed after each round, not learnt from; no more of
            them than are done in a tenth of the time.
        affine : array_like, optional
            Where the voxels are, ``(4, 4)``, in millimetres; kept with the model.
        masks : array_like, optional
            What matters on the images, ``(n, *space)``, if ``background`` is not 1;
            where they are brighter than the darkest voxel of all, if None.
        background : float
            Weight in the loss of a voxel outside of the mask; inside it is 1.
        patch : int or sequence of int, optional
            Voxels along each side of the piece that is drawn of an image, from a
            random place; the whole side if there are no more. The whole image if
            None.
        augment : Augmentation, optional
            How images are changed before they are seen; not at all if None.
        **training
            Options of :class:`dipy_ldm.training.Training`; ``epochs`` is 5 if left out.

        Returns
        -------
        VQVAE
            The estimator itself.

        Raises
        ------
        InputError
            If the images or an option can't be used, or nothing was learnt: if
            reconstructions are no better than the mean of the images, or all latents
            have one code. A training of less than 100 steps is not judged but by a
            warning.
        """
        images = as_array(images)
        if validation_data is not None:
            validation_data = check_alike(validation_data, images.shape)
        affine = None if affine is None else check_affine(affine)
        masks = check_masks(masks, background, images.shape[:-1])
        training = _training(training).settled(images.ndim - 2)
        autoencoder.check(self, images.shape, patch, training)
        found = learnable(images)
        # Only now: what is refused leaves an estimator as it was.
        self.precision_ = tell(training.precision)
        self.shape_ = images.shape[1:]
        self.affine_ = affine
        self.intensity_ = found.low, found.high
        self.fingerprint_ = found.fingerprint
        size = window_size(images.shape[1:-1], self.factor, patch)
        lessons = autoencoder.Lessons(
            images, found, size, masks, background, augment, validation_data
        )
        with distribution.spread(training.strategy):
            self._build()
            model = train(self, autoencoder.stage(self, lessons, training))
            autoencoder.take_weights(self, model)
        return self

    def encode(self, images, *, batch_size=None):
        """Map images to latents, before quantisation.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``.
        batch_size : int, optional
            Images that are encoded at once; as many as memory surely allows if
            None.

        Returns
        -------
        ndarray
            Latents, float32 ``(n, *ceil(space / factor), code_dim)``.

        Raises
        ------
        InputError
            If the images or the option can't be used.
        """
        self._check_fitted()
        check_counts(batch_size=batch_size)
        images = as_array(images, rank=len(self.shape_) - 1)
        check_channels("images", images, self.shape_[-1])

        def encode(numbers):
            windows = self._to_network(images[numbers])
            return self._encode(check_finite(windows, numbers))

        return distribution.in_batches(
            encode,
            np.arange(len(images)),
            batch_size or tiles.safe_batch(images.shape[1:-1]),
        )

    def decode(self, latents, *, space=None, batch_size=None, tile=None):
        """Quantise latents and map them to images.

        Large images are decoded tile by tile. Tiles overlap by all that a voxel
        depends on, so that the result is the same.

        Parameters
        ----------
        latents : ndarray
            Latents, ``(n, *space / factor, code_dim)``.
        space : tuple of int, optional
            Size of the images, where it is not that of the training images.
        batch_size : int, optional
            Latents that are decoded at once; as many as memory surely allows if
            None.
        tile : int, optional
            Voxels along a side of a tile, without the overlap; chosen by the size
            of the images if None.

        Returns
        -------
        ndarray
            Images, float32 ``(n, *space, channels)``, in the intensity range of
            the training images.

        Raises
        ------
        InputError
            If the latents or an option can't be used.
        """
        self._check_fitted()
        check_counts(batch_size=batch_size, tile=tile)
        space = self.shape_[:-1] if space is None else tuple(space)
        check_space(space, len(self.shape_) - 1)
        latents = check_latents(latents, self.latent_shape((*space, 1)), space)
        reach = networks.reach(self.decoder_)
        tile = tile or tiles.safe_side(len(space)) - 2 * reach * self.factor
        cut = tuple(map(slice, space))
        low, high = self.intensity_

        def decode(piece):
            images = tiles.in_tiles(
                self._decode,
                piece,
                tile=max(1, tile // self.factor),
                margin=reach,
                factor=self.factor,
            )[(slice(None), *cut)]
            return np.clip(images, 0, 1) * np.float32(high - low) + np.float32(low)

        batch_size = batch_size or tiles.safe_batch(space)
        return distribution.in_batches(decode, latents, batch_size)

    def predict(self, images, *, batch_size=None, tile=None):
        """Reconstruct images.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``.
        batch_size : int, optional
            Images that are reconstructed at once; as many as memory surely allows
            if None.
        tile : int, optional
            Voxels along a side of a tile, as of :meth:`decode`.

        Returns
        -------
        ndarray
            Reconstructions, float32, of the shape of ``images``.

        Raises
        ------
        InputError
            If the images or an option can't be used.
        """
        check_counts(batch_size=batch_size, tile=tile)
        latents = self.encode(images, batch_size=batch_size)
        space = np.shape(images)[1:-1]
        return self.decode(latents, space=space, batch_size=batch_size, tile=tile)

    def codes(self, latents):
        """Tell which code each latent vector is nearest to.

        Parameters
        ----------
        latents : ndarray
            Latents, ``(n, *space, code_dim)``.

        Returns
        -------
        ndarray of int
            Indices of codes, ``(n, *space)``.

        Raises
        ------
        InputError
            If the latents have other channels than codes.
        """
        self._check_fitted()
        check_channels("latents", latents, self.code_dim)
        return ops.convert_to_numpy(self.quantizer_.nearest(latents))

    @property
    def codebook_(self):
        """The codes, ``(n_codes, code_dim)``."""
        self._check_fitted()
        return ops.convert_to_numpy(self.quantizer_.codebook)

    def to_tensors(self):
        """Name the weights, as they are saved.

        Returns
        -------
        dict of str to ndarray
            Weights of encoder, codebook and decoder.
        """
        self._check_fitted()
        return {"codebook": self.codebook_} | super().to_tensors()

    def _restore(self, tensors, document):
        super()._restore(tensors, document)
        self.quantizer_.codebook.assign(tensors["codebook"])
        return self

    @classmethod
    def _check_saved(cls, document, shapes):
        """Refuse tensors that are not those of the document, before any is read."""
        wanted = cls(**document["vqvae"])._describe(document)._saved_shapes(shapes)
        documents.check_shapes(shapes, wanted)

    def _saved_shapes(self, found):
        """Say what shapes the weights have, unless they would be more than there are.

        No network is sketched that has far more of them.
        """
        choose("bottleneck", self.bottleneck, BOTTLENECKS)
        documents.check_sizes(self.hyperparameters(), found)
        encoder, decoder = autoencoder.sketch(
            self, "float32", self._any_size(), self.shape_[-1]
        )
        return {
            "codebook": (self.n_codes, self.code_dim),
            **persistence.shapes(encoder, "encoder"),
            **persistence.shapes(decoder, "decoder"),
        }

    def check(self, shape, *, patch=None, **training: Unpack[Options]):
        """Refuse a fit that can't be done, or would not fit into the memory.

        Parameters
        ----------
        shape : tuple of int
            Shape of all images, ``(n, *space, channels)``.
        patch, **training
            As of :meth:`fit`.

        Raises
        ------
        InputError
            If the memory is too small, there is no such loss or precision, or a
            number makes no sense.
        """
        training = _training(training).settled(len(shape) - 2)
        autoencoder.check(self, shape, patch, training)

    def _networks(self):
        return [("encoder", self.encoder_), ("decoder", self.decoder_)]

    def _is_fitted(self):
        return hasattr(self, "encoder_")

    def _any_size(self):
        return (None,) * (len(self.shape_) - 1)

    def _build(self):
        """Make the networks that encode and decode, in full precision."""
        with networks.precision("float32"):
            self.encoder_, self.quantizer_, self.decoder_ = autoencoder.parts(
                self, self._any_size()
            )
        quantizer, decoder = self.quantizer_, self.decoder_
        self._encode = distribution.compiled(self.encoder_, self.encoder_.inputs)
        # Of these networks, also in a copy that outlives the next fit.
        self._decode = distribution.compiled(
            lambda latents: decoder(quantizer.quantise(latents)), decoder.inputs
        )

    def _to_network(self, images):
        """Bring images to [0, 1], and their sizes to multiples of the factor."""
        size = window_size(images.shape[1:-1], self.factor)
        return self._scaled(read_whole(images, size))

    def _scaled(self, images):
        low, high = self.intensity_
        return (images - np.float32(low)) / np.float32(high - low or 1)


def _training(options):
    """Collect the options of the training, with the stage's own defaults."""
    return Training(**{"epochs": 5} | scalars(options))
