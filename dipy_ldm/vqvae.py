"""The autoencoder: images to latents and back, through a codebook."""

from collections.abc import Sequence
from typing import Any, Self, Unpack

import numpy as np
import numpy.typing as npt

from dipy_ldm import (
    _backend,
    _documents as documents,
    _serialization as persistence,
    presets,
)
from dipy_ldm._base import Entry, by_kind
from dipy_ldm._utils.checks import check_affine, choose, scalars
from dipy_ldm.autoencoder import (
    _network as autoencoder_network,
    _training as autoencoder,
)
from dipy_ldm.autoencoder.quantizers import BOTTLENECKS
from dipy_ldm.codec import Codec
from dipy_ldm.data._batches import window_size
from dipy_ldm.data._checks import (
    as_array,
    check_alike,
    check_masks,
    check_trainable,
    warn_of_channels,
)
from dipy_ldm.nn import building
from dipy_ldm.training import Options, Training, train
from dipy_ldm.training._precision import Precision, tell


class VQVAE(Codec):
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
        Number of codes in a codebook.
    n_codebooks : int, optional
        Number of codebooks; each has codes for what those before it leave of a latent.
        Default: 1 for images, 4 for volumes.
    code_dim : int, optional
        Channels of the latents. Default: 3 for images, 8 for volumes.
    commitment : float
        Weight of the loss that keeps the latents near their codes.
    loss : {"squared", "absolute", "spectral", "structural"}
        How reconstructions are compared with images; see
        :mod:`dipy_ldm.autoencoder.losses`.
    bottleneck : {"codebook"}
        What quantises the latents; see :mod:`dipy_ldm.autoencoder.quantizers`.
    seed : int
        Seed of everything random.

    Attributes
    ----------
    encoder_, decoder_ : keras.Model
        The networks.
    codebook_ : ndarray
        The codes, ``(n_codebooks * n_codes, code_dim)``, one codebook after the other.
    intensity_ : tuple of float
        Lowest and highest value of the training images.
    affine_ : ndarray or None
        Where the voxels of the training images are, ``(4, 4)``, in millimetres.
    suffix_ : str or None
        BIDS' word for what the training images are, such as T1w.
    precision_ : Precision or None
        What training computed in, and why; None if the file does not say.
    history_ : dict of str to list
        Figures of each round (an epoch, or several short ones): ``step``, ``epoch``,
        ``loss``, ``mse``, ``perplexity``, ``usage``, ``revived``, and of validation
        ``val_mse`` and ``val_detail``, the share of detail that is true.
    sharpening_ : float
        How much of their finest detail is added to decoded volumes, so that they have
        as much of it as the training volumes
        (:mod:`dipy_ldm.autoencoder._sharpening`); 0 of images, or if the file is
        older. Set to 0, errors are least.
    fingerprint_ : str
        Hash of the training images.
    step_seconds_ : dict of str to list of float
        How long each step took, by the name of the stage, in this process.

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
    _by_kind = {"n_codebooks": "n_codebooks", "code_dim": "code_dim"}
    _entries = (
        Entry("shape", "shape_", tuple),
        Entry("intensity", "intensity_", tuple),
        Entry("affine", "affine_", lambda a: a and np.array(a, "float64")),
        Entry("suffix", "suffix_", lambda suffix: suffix),
        Entry("history", "history_", dict),
        Entry("fingerprint", "fingerprint_", str),
        Entry("precision", "precision_", Precision.from_saved, Precision.to_saved),
        Entry("design", "design_", int),
        Entry("sharpening", "sharpening_", float),
    )

    # How new networks are built.
    design_ = autoencoder_network.DESIGN

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        n_codes: int = 1024,
        n_codebooks: int | None = None,
        code_dim: int | None = None,
        commitment: float = 0.25,
        loss: str = "squared",
        bottleneck: str = "codebook",
        seed: int = 0,
    ) -> None:
        self.widths = widths
        self.blocks = blocks
        self.n_codes = n_codes
        self.n_codebooks = n_codebooks
        self.code_dim = code_dim
        self.commitment = commitment
        self.loss = loss
        self.bottleneck = bottleneck
        self.seed = seed

    @by_kind
    def fit(
        self,
        images: npt.ArrayLike,
        *,
        validation_data: npt.ArrayLike | None = None,
        affine: npt.ArrayLike | None = None,
        suffix: str | None = None,
        masks: npt.ArrayLike | None = None,
        background: float = 1.0,
        patch: int | Sequence[int] | None = None,
        augment: Any = None,
        **training: Unpack[Options],
    ) -> Self:
        """Learn to reconstruct images.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of any range. A mapped file is read
            as it is needed and may be larger than the memory. There is a warning of
            two-dimensional images with more than four channels: volumes without an
            axis of channels look like them.
        validation_data : array_like, optional
            Images that are reconstructed after each round, not learnt from; no more of
            them than are done in a tenth of the time.
        affine : array_like, optional
            Where the voxels are, ``(4, 4)``, in millimetres; kept with the model.
        suffix : str, optional
            BIDS' word for what they are, such as T1w; kept with the model.
        masks : array_like, optional
            What matters on the images, ``(n, *space)``, if ``background`` is not 1;
            where they are brighter than the darkest voxel of all, if None.
        background : float
            Weight in the loss of a voxel outside of the mask; inside it is 1.
        patch : int or sequence of int, optional
            Voxels along each side of the piece that is drawn of an image, from a
            random place; the whole side if there are no more. Default: the whole
            image, and 48 voxels of volumes.
        augment : Augmentation, optional
            How images are changed before they are seen; ``Augmentation()`` is for not
            at all. Default: volumes are moved, brightened and noised a little.
        **training
            Options of :class:`dipy_ldm.training.Training`. Default: 5 epochs in batches
            of 64 images, or 4,000 steps of 4 volumes.

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
        usual = presets.of_rank(images.ndim - 2)
        patch = usual.patch if patch is None else patch
        augment = usual.augment if augment is None else augment
        chosen = _training(training, images.ndim - 2)
        autoencoder.check(self, images.shape, patch, chosen)
        found = check_trainable(images)
        warn_of_channels(images.shape)
        # Only now: what is refused leaves an estimator as it was.
        self.precision_ = tell(chosen.precision)
        self.design_ = autoencoder_network.DESIGN
        self.sharpening_ = 0.0
        self.shape_ = images.shape[1:]
        self.affine_ = affine
        self.suffix_ = suffix
        self.intensity_ = found.low, found.high
        self.fingerprint_ = found.fingerprint
        self._learnt_with = self.hyperparameters()
        size = window_size(images.shape[1:-1], self.factor, patch)
        lessons = autoencoder.Lessons(
            images, found, size, masks, background, augment, validation_data
        )
        with _backend.spread(chosen.strategy):
            self._build()
            train(self, autoencoder.stage(self, lessons, chosen))
            self.sharpening_ = autoencoder.sharpening(self, lessons, chosen)
        return self

    def _tensors(self):
        return {"codebook": self.codebook_} | super()._tensors()

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
        chosen = self.hyperparameters()
        documents.check_sizes(chosen, found)
        encoder, decoder = autoencoder.sketch(
            self, "float32", self._any_size(), self.shape_[-1]
        )
        return {
            "codebook": (chosen["n_codebooks"] * self.n_codes, chosen["code_dim"]),
            **persistence.shapes(encoder, "encoder"),
            **persistence.shapes(decoder, "decoder"),
        }

    @by_kind
    def check(
        self,
        shape: tuple[int, ...],
        *,
        patch: int | Sequence[int] | None = None,
        **training: Unpack[Options],
    ) -> None:
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
        usual = presets.of_rank(len(shape) - 2)
        patch = usual.patch if patch is None else patch
        chosen = _training(training, len(shape) - 2)
        autoencoder.check(self, shape, patch, chosen)

    def _networks(self):
        return [("encoder", self.encoder_), ("decoder", self.decoder_)]

    def _any_size(self):
        return (None,) * (len(self.shape_) - 1)

    def _build(self):
        """Make the networks that encode and decode, in full precision."""
        with building.precision("float32"):
            self.encoder_, self.quantizer_, self.decoder_ = autoencoder.parts(
                self, self._any_size()
            )
        encoder, quantizer, decoder = self.encoder_, self.quantizer_, self.decoder_
        self._encode = _backend.compiled(encoder, encoder.inputs, [encoder])
        # Of these networks, also in a copy that outlives the next fit.
        self._decode = _backend.compiled(
            lambda latents: decoder(quantizer.quantise(latents)),
            decoder.inputs,
            [quantizer, decoder],
        )


def _training(options: Options, rank: int) -> Training:
    """Collect the options of the training, with the stage's own defaults."""
    given = presets.of_rank(rank).training("vqvae", scalars(options))
    return Training(**given).settled(rank, rates=autoencoder.RATES)
