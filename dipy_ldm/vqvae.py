"""The autoencoder: encode images to quantised latents, and decode them."""

from __future__ import annotations

from collections.abc import Sequence
import logging
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import numpy.typing as npt

from dipy_ldm import _backend, _presets, _serialization
from dipy_ldm._base import Entry, Estimator, keeps_earlier_fit, show_options
from dipy_ldm._native_space import ImageBatch, read_batch
from dipy_ldm._utils.checks import (
    InputError,
    check_affine,
    check_counts,
    check_space,
)
from dipy_ldm._utils.values import counted
from dipy_ldm.autoencoder._codec import Codec, Parameters, expected_shapes
from dipy_ldm.autoencoder._training import AutoencoderStage, check
from dipy_ldm.data import _image_checks as image_checks
from dipy_ldm.data._batches import Augmentation, patch_size
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data._scans import (
    ImagesLike,
    are_scans,
    grid_for_files,
    grid_of,
    read_cohort,
    refuse_other_range,
)
from dipy_ldm.data.channels import (
    Channel,
    Unnamed,
    as_channels,
    check_columns,
    check_same,
    continuous_columns,
    from_saved,
    harden,
    to_saved,
)
from dipy_ldm.training import FitOptions, resolve, train
from dipy_ldm.training._precision import Precision, log_precision
from dipy_ldm.training._trainer import TrainingData

logger = logging.getLogger("dipy_ldm")


class VQVAE(Estimator):
    """Vector-quantised autoencoder :footcite:p:`vandenOord2017`.

    Residual convolutional encoder and decoder for images of two or three dimensions
    and any size. The codebook is initialised by k-means of encoded images, and unused
    codes are revived after every round.

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
        Number of codebooks; each quantises the residual of those before it.
        Default: 1 for images, 4 for volumes.
    code_dim : int, optional
        Channels of the latents. Default: 3 for images, 8 for volumes.
    commitment : float
        Weight of the commitment loss, which keeps latents near their codes.
    loss : {"squared"}
        Reconstruction loss; see :mod:`dipy_ldm.autoencoder.losses`.
    bottleneck : {"codebook"}
        How latents are quantised; see :mod:`dipy_ldm.autoencoder.quantizers`.
    seed : int
        Random seed.

    Attributes
    ----------
    encoder_, decoder_ : keras.Model
        The networks.
    codebook_ : ndarray
        The codes, ``(n_codebooks * n_codes, code_dim)``, one codebook after the other.
    shape_ : tuple of int
        Shape of a training image, ``(*space, channels)``.
    intensity_ : tuple of float
        Lowest and highest value of the training images.
    affine_ : ndarray or None
        Affine from voxels of the training images to millimetres, ``(4, 4)``.
    suffix_ : str or None
        BIDS suffix of the training images, such as T1w.
    channels_ : tuple of Channel
        Channels of the training images; empty if unnamed.
    precision_ : Precision or None
        Precision of the training and the reason for it; None if the file has none.
    history_ : dict of str to list
        Metrics of each round (an epoch, or several short ones): ``step`` (batches so
        far), ``epoch``, ``loss``, ``mse``, ``perplexity``, ``usage``, ``revived`` and,
        on validation data, ``val_mse`` and ``val_detail``, the correlation of the
        finest detail of reconstructions with that of the images.
    sharpening_ : float
        Share of their finest detail that is added to decoded volumes, to match the
        training volumes; 0 for images and for channels of labels. Set it to 0 for the
        smallest error.
    fingerprint_ : str
        Hash of the training images.
    step_seconds_ : dict of str to list of float
        Duration of each step in this process, by stage.

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
    _presets = {"n_codebooks": "n_codebooks", "code_dim": "code_dim"}
    _entries = (
        Entry("shape", "shape_", tuple),
        Entry("intensity", "intensity_", tuple),
        Entry("affine", "affine_", lambda a: a and np.array(a, "float64")),
        Entry("suffix", "suffix_"),
        Entry("channels", "channels_", from_saved, to_saved),
        Entry("history", "history_"),
        Entry("fingerprint", "fingerprint_"),
        Entry.of_record("precision", "precision_", Precision),
        Entry("sharpening", "sharpening_", float),
    )

    shape_: tuple[int, ...]
    intensity_: tuple[float, float]
    sharpening_: float
    channels_: tuple[Channel, ...] = ()
    _codec: Codec

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

    @show_options(FitOptions)
    @keeps_earlier_fit
    def fit(
        self,
        images: ImagesLike,
        *,
        init: Self | str | Path | None = None,
        validation_data: ImagesLike | None = None,
        affine: npt.ArrayLike | None = None,
        suffix: str | None = None,
        channels: Sequence[str | Channel] = (),
        masks: npt.ArrayLike | None = None,
        background: float = 1.0,
        patch: int | Sequence[int] | None = None,
        augment: Augmentation | None = None,
        **options: Unpack[FitOptions],
    ) -> Self:
        """Train the autoencoder to reconstruct images.

        Parameters
        ----------
        images : array_like, path, NIfTI image, list of these, or Volumes
            Images, ``(n, *space, channels)``, of any range. Memory-mapped arrays are
            read in parts and may be larger than the memory. Two-dimensional images with
            more than four channels cause a warning, since volumes without a channel
            axis look like them. Files, folders and nibabel images are read by
            :func:`dipy_ldm.data.load_volumes`, whose result has its own grid, masks and
            suffix, or :func:`dipy_ldm.data.load_images`.
        init : VQVAE, str or Path, optional
            Fitted autoencoder to fine-tune, or a file with one. Parameters of None are
            taken from it. Weights whose shapes differ, such as those of other channels,
            start at random.
        validation_data : as images, optional
            Held-out images that are reconstructed after each round; as many of them as
            take a tenth of the time at most.
        affine : array_like, optional
            Affine from voxels to millimetres, ``(4, 4)``; saved with the model. The
            model accepts files, which are rescaled to [0, 1], only if its training
            images are in that range, too.
        suffix : str, optional
            BIDS suffix, such as T1w; saved with the model.
        channels : sequence of str or Channel
            Names of the channels of files, as in :func:`dipy_ldm.data.load_volumes`, or
            for arrays the channels that it returns; saved with the model. Labels have
            their own loss, and each decoded voxel has one label or none.
        masks : array_like, optional
            Foreground of the images, ``(n, *space)``, if ``background`` is not 1.
            Default: voxels that differ from the darkest of all or, in maps, from the
            background.
        background : float
            Weight in the loss of a voxel outside the mask; inside it is 1.
        patch : int or sequence of int, optional
            Side lengths in voxels of the random patch that is drawn from each image;
            shorter sides are taken whole. Default: the whole image, or 48 voxels of
            volumes.
        augment : Augmentation, optional
            Augmentation of the training images; ``Augmentation()`` for none. Default:
            volumes are slightly shifted, brightened and noised.
        **options
            See :class:`dipy_ldm.training.FitOptions`. Default: 5 epochs in batches of
            64 images, or 4,000 steps of 4 volumes.

        Returns
        -------
        VQVAE
            The estimator itself.

        Raises
        ------
        InputError
            If the images, `init` or an option are invalid, or nothing was learnt:
            reconstructions are no better than the mean of the images, or all latents
            have one code. Of the latter, trainings of less than 100 steps only warn.
        """
        verbose = options.get("verbose", True)
        cohort = _read_training_images(images, affine, suffix, channels, verbose)
        images, affine = cohort.images, cohort.affine
        check_columns(cohort.channels, images.shape[-1])
        held_out = None
        if validation_data is not None:
            own = images.shape[1:], affine, cohort.channels
            held_out = _read_on_grid(validation_data, *own).images
            held_out = image_checks.validated_held_out(held_out, images.shape)
        masks = _masks_of(cohort, background) if masks is None else masks
        masks = image_checks.validated_masks(masks, background, images.shape[:-1])
        resolved_options, patch, resolved, initial = self._plan_fit(
            images.shape, init, patch, options, augment
        )
        survey = self._record_images(cohort)
        image_checks.warn_of_channels(images.shape)
        self.precision_ = log_precision(resolved.precision)
        self.sharpening_ = 0.0
        self._fitted_with = resolved_options
        size = patch_size(images.shape[1:-1], self.factor, patch)
        if augment is None:
            augment = _presets.of_rank(images.ndim - 2).augment
        data = TrainingData(
            images, survey, size, held_out, masks, background, augment, self.channels_
        )
        with _backend.distributed(resolved.strategy):
            self._build()
            stage = AutoencoderStage(self._codec, data, resolved, initial)
            train(self, stage)
            self.sharpening_ = stage.sharpening()
        return self

    @show_options(FitOptions)
    def check(
        self,
        shape: tuple[int, ...],
        *,
        init: Self | str | Path | None = None,
        patch: int | Sequence[int] | None = None,
        **options: Unpack[FitOptions],
    ) -> None:
        """Refuse a fit that is invalid or would exceed the memory.

        ``shape`` is that of all images, ``(n, *space, channels)``; other arguments and
        errors are as in :meth:`fit`.
        """
        self._plan_fit(shape, init, patch, options)

    def _plan_fit(self, shape, init, patch, options, augment=None):
        """Check a fit; return its parameters, patch, options and initial weights."""
        if augment and not isinstance(augment, Augmentation):
            raise InputError(f"`augment` must be an Augmentation, not {augment!r}")
        rank = len(shape) - 2
        patch = _presets.of_rank(rank).patch if patch is None else patch
        resolved = resolve("vqvae", rank, options)
        start = self._read_init(init)
        resolved_options = self._resolved(rank, start)
        parameters = Parameters(**resolved_options)
        check(parameters, shape, patch, resolved)
        return (
            resolved_options,
            patch,
            resolved,
            _initial_weights(start, parameters, shape[1:]),
        )

    def adapt(
        self,
        images: ImagesLike,
        *,
        affine: npt.ArrayLike | None = None,
        suffix: str | None = None,
        channels: Sequence[str | Channel] = (),
    ) -> Self:
        """Adapt to images of another size, range or grid, without training.

        Parameters
        ----------
        images : as in fit
            Images, ``(n, *space, channels)``, of any size and range, with the same
            number of dimensions and channels.
        affine, suffix, channels
            As in :meth:`fit`; labels must be those of the training.

        Returns
        -------
        VQVAE
            The estimator itself.

        Raises
        ------
        InputError
            If it is not fitted, or the images are invalid.

        Examples
        --------
        >>> from dipy_ldm import LatentDiffusion, VQVAE
        >>> vqvae = VQVAE.load("v.safetensors").adapt(scans)  # doctest: +SKIP
        >>> model = LatentDiffusion(vqvae).fit(scans)  # doctest: +SKIP
        """
        self._check_fitted()
        channels = channels or self.channels_
        cohort = _read_training_images(images, affine, suffix, channels)
        refuse_other_images(self, cohort.shape[1:], cohort.channels)
        check_columns(cohort.channels, cohort.shape[-1])
        self._record_images(cohort)
        # New networks, since copies of the estimator may share the old ones.
        return self._restore(self.to_tensors(), self.to_document())

    def _record_images(self, cohort):
        """Set the attributes that describe images, and return their survey."""
        survey = image_checks.trainable_survey(cohort.images)
        self.shape_, self.channels_ = cohort.shape[1:], cohort.channels
        self.affine_, self.suffix_ = cohort.affine, cohort.suffix
        self.intensity_ = survey.low, survey.high
        self.fingerprint_ = survey.fingerprint
        return survey

    def encode(
        self,
        images: ImagesLike,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Encode images to latents, before quantisation.

        Parameters
        ----------
        images : array_like, path, NIfTI image, or list of these
            Images, ``(n, *space, channels)``; scans are resampled to the model's grid.
        batch_size : int, optional
            Images encoded at once. Default: as many as safely fit into memory.
        tile : int, optional
            Side length in voxels, without overlap, of the tiles in which large images
            are encoded; the result is the same. Default: depends on the image size.

        Returns
        -------
        ndarray
            Latents, float32 ``(n, *ceil(space / factor), code_dim)``.

        Raises
        ------
        InputError
            If the images or an option are invalid.
        """
        self._check_fitted()
        check_counts(batch_size=batch_size, tile=tile)
        array = image_checks.as_array(self._read_batch(images).images, self.shape_)
        image_checks.check_channels("images", array, self.shape_[-1])
        return self._codec.encode(array, batch_size, tile)

    def decode(
        self,
        latents: np.ndarray,
        *,
        space: tuple[int, ...] | None = None,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Quantise latents and decode them to images.

        Parameters
        ----------
        latents : ndarray
            Latents, ``(n, *ceil(space / factor), code_dim)``.
        space : tuple of int, optional
            Size of the images. Default: that of the training images.
        batch_size, tile : int, optional
            As in :meth:`encode`.

        Returns
        -------
        ndarray
            Images, float32 ``(n, *space, channels)``, in the intensity range of
            the training images.

        Raises
        ------
        InputError
            If the latents or an option are invalid.
        """
        self._check_fitted()
        check_counts(batch_size=batch_size, tile=tile)
        space = self.shape_[:-1] if space is None else space
        space = tuple(np.atleast_1d(space).tolist())
        check_space(space, len(self.shape_) - 1)
        latents = image_checks.validated_latents(
            latents, self.latent_shape((*space, 1)), space
        )
        images = self._codec.decode(latents, space, batch_size, tile, self._gains())
        return harden(images, self.channels_)

    def predict(
        self,
        images: ImagesLike,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> Any:
        """Reconstruct images.

        Parameters
        ----------
        images : array_like, path, NIfTI image, or list of these
            Images, ``(n, *space, channels)``.
        batch_size, tile : int, optional
            As in :meth:`encode`.

        Returns
        -------
        ndarray, NIfTI image, or list of images
            Reconstructions, float32, of the shape of ``images``; those of scans in
            their space and intensity range.

        Raises
        ------
        InputError
            If the images or an option are invalid.
        """
        batch = self._read_batch(images)
        latents = self.encode(batch.images, batch_size=batch_size, tile=tile)
        space = batch.images.shape[1:-1]
        decoded = self.decode(latents, space=space, batch_size=batch_size, tile=tile)
        return batch.to_images(decoded, self._provenance)

    def codes(self, latents: np.ndarray) -> np.ndarray:
        """Return the codes nearest to each latent vector.

        Parameters
        ----------
        latents : ndarray
            Latents, ``(n, *space, code_dim)``.

        Returns
        -------
        ndarray of int
            Row numbers of ``codebook_``, one for each codebook, ``(n, *space,
            n_codebooks)``; the sum of these codes is decoded.
        """
        self._check_fitted()
        image_checks.check_channels("latents", latents, self._parameters().code_dim)
        return self._codec.nearest(latents)

    def needed_memory(
        self,
        space: tuple[int, ...] | None = None,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> tuple[float, float]:
        """Estimate the bytes that encoding and decoding need, without their results."""
        self._check_fitted()
        space = self.shape_[:-1] if space is None else space
        return self._codec.needed_memory(space, batch_size, tile, self._gains())

    @property
    def factor(self):
        """Downsampling factor of latents, per side."""
        return self._parameters().factor

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents of an image.

        Parameters
        ----------
        shape : tuple of int
            Shape of an image, ``(*space, channels)``.

        Returns
        -------
        tuple of int
            Shape of its latents, ``(*ceil(space / factor), code_dim)``.
        """
        return self._parameters(len(shape) - 1).latent_shape(shape[:-1])

    @property
    def codebook_(self):
        """The codes, ``(n_codebooks * n_codes, code_dim)``."""
        self._check_fitted(AttributeError)
        return self._codec.codebook

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the weights by their names in a model file."""
        tensors = super().to_tensors()
        return {"codebook": self.codebook_} | tensors

    def _parameters(self, rank=2, init=None):
        """Return the parameters of the fitted model, or else of the next fit."""
        parameters = self._fitted_with or self._resolved(rank, init)
        return Parameters(**parameters)

    def _restore(self, tensors, document):
        super()._restore(tensors, document)
        self.quantizer_.codebook.assign(tensors["codebook"])
        return self

    @classmethod
    def _expected_shapes(cls, document, shapes):
        check_columns(from_saved(document.get("channels")), document["shape"][-1])
        return expected_shapes(document, shapes)

    @classmethod
    def _read_file(cls, path):
        """Read the autoencoder from its own file or from that of a whole model."""
        if _serialization.read_document(path)["kind"] != "latent_diffusion":
            return super()._read_file(path)

        def expected(document, shapes):
            # Only the tensors of the autoencoder are checked.
            return shapes | cls._expected_shapes(document, shapes)

        return _serialization.load(path, "latent_diffusion", expected)

    def _read_cohort(
        self, images: ImagesLike, verbose: bool = False, any_size: bool = False
    ) -> Cohort:
        """Load images on the grid of the training images; return arrays unchanged."""
        self._check_fitted()
        affine = None if any_size else self.affine_
        cohort = _read_on_grid(images, self.shape_, affine, self.channels_, verbose)
        if len(self.shape_) == 4 and cohort.affine is not None:
            refuse_other_range(self.intensity_)
        return cohort

    def _read_batch(self, images: ImagesLike) -> ImageBatch:
        """Read scans, or images of any size."""
        self._check_fitted()
        if are_scans(images):
            return read_batch(images, *self._grid())
        return ImageBatch(self._read_cohort(images, any_size=True).images)

    def _grid(self):
        """Return the grid, None for images, and the channels."""
        return self._grid_for(self.intensity_), self._channels()

    def _grid_for(self, intensity):
        """Return the grid of files, None for images; refuse ranges beyond [0, 1]."""
        own = self.shape_, self.affine_, intensity
        return grid_for_files(*own) if len(self.shape_) == 4 else None

    def _channels(self):
        """Return the channels; unnamed ones are a single one with all columns."""
        return self.channels_ or (Unnamed(n=self.shape_[-1]),)

    def _gains(self):
        """Return the sharpening of each column, ``(channels,)``."""
        return self.sharpening_ * continuous_columns(self.channels_, self.shape_[-1])

    def _summary(self):
        *space, channels = self.shape_
        low, high = self.intensity_
        names = ", ".join(channel.name for channel in self.channels_) or channels
        images = f"{_size_text(space)}, channels: {names}, from {low:.3g} to {high:.3g}"
        if self.affine_ is not None:
            sizes = np.linalg.norm(self.affine_[:3, :3], axis=0)
            images += f", voxels of {_size_text(np.round(sizes, 2).tolist())} mm"
        if self.suffix_:
            images += f", {self.suffix_}"
        latents = _size_text(self.latent_shape(self.shape_))
        return {"images": images, "latents": latents} | super()._summary()

    def _networks(self):
        return {"encoder": self.encoder_, "decoder": self.decoder_}

    def _build(self):
        codec = Codec(self._parameters(), self.shape_, self.intensity_)
        self._codec = codec
        self.encoder_, self.decoder_ = codec.encoder, codec.decoder
        self.quantizer_: Any = codec.quantizer


def _read_training_images(images, affine, suffix, channels, verbose=False) -> Cohort:
    """Load training images; files provide the metadata that is not passed."""
    cohort = read_cohort(images, channels=channels, verbose=verbose)
    return cohort._replace(
        images=image_checks.as_array(cohort.images),
        affine=cohort.affine if affine is None else check_affine(affine),
        suffix=suffix or cohort.suffix,
        channels=tuple(cohort.channels or as_channels(channels)),
    )


def _read_on_grid(images, shape, affine, channels, verbose=False) -> Cohort:
    """Load images on the grid of shape and affine; return arrays unchanged."""
    grid = grid_of(shape, affine)
    cohort = read_cohort(images, grid, channels, verbose=verbose)
    if cohort.channels:
        check_same(cohort.channels, channels)
    return cohort


def _masks_of(cohort, background):
    """Return the masks of volumes, if any; warn if they have no effect."""
    if background == 1 and cohort.masks is not None:
        logger.warning(
            "masks of the volumes have no effect while `background` is 1; lower it, to "
            "0.1 for example."
        )
    return None if background == 1 else cohort.masks


def refuse_other_images(
    vqvae: VQVAE, shape: tuple[int, ...], channels: Sequence[Channel]
) -> None:
    """Refuse images ``(*space, channels)`` that an autoencoder was not fitted for."""
    # Labels first, since each is a column: they also change the number of columns.
    check_same(channels, vqvae.channels_)
    *space, n_channels = vqvae.shape_
    if (len(space) + 1, n_channels) != (len(shape), shape[-1]):
        cure = "fine-tune it (`steps_vqvae`, or VQVAE.fit(init=...)), or "
        cure = cure if len(space) + 1 == len(shape) else ""
        raise InputError(
            f"the autoencoder is for images of {len(space)} dimensions with "
            f"{counted(n_channels, 'channel')}, and these have {len(shape) - 1} with "
            f"{shape[-1]}",
            f"{cure}choose another",
        )


def _size_text(numbers):
    return " x ".join(f"{number:g}" for number in numbers)


def _initial_weights(init, parameters, shape):
    """Return the weights of `init` that fit images ``(*space, channels)``."""
    if init is None:
        return {}
    if len(init.shape_) != len(shape):
        raise InputError(
            f"`init` is for images of {len(init.shape_) - 1} dimensions, and these "
            f"have {len(shape) - 1}",
            "choose another, or train without `init`",
        )
    blocks = init._fitted_with["blocks"]
    if blocks != parameters.blocks:
        raise InputError(
            f"`init` was trained with blocks = {blocks}, not {parameters.blocks}",
            "use the same",
        )
    return _serialization.matching_weights(
        parameters.weight_shapes(shape), init.to_tensors()
    )
