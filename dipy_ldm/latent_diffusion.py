"""Latent diffusion: generate images from noise in the latent space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import copy
import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

import numpy as np
import numpy.typing as npt

from dipy_ldm import _backend, _serialization
from dipy_ldm._base import Entry, Estimator, keeps_earlier_fit, show_options
from dipy_ldm._conditions import (
    UNSPECIFIED,
    Condition,
    ConditionBatch,
    ConditionsLike,
    from_saved,
    requested,
    to_saved,
)
from dipy_ldm._native_space import (
    ImageBatch,
    as_sample,
    read_batch,
    read_masked_batch,
    with_sources,
)
from dipy_ldm._utils import checks, tiling as tiles
from dipy_ldm._utils.checks import InputError
from dipy_ldm.anomaly_detector import AnomalyDetector
from dipy_ldm.data import _image_checks as image_checks, _sources as sources
from dipy_ldm.data._bvals_bvecs import makes_series, refuse_series
from dipy_ldm.data._scans import ImagesLike, are_scans, read_sources, require_affine
from dipy_ldm.data._sidecars import SyntheticImage
from dipy_ldm.data._table_rows import join_to_files
from dipy_ldm.data.channels import (
    Channel,
    as_channels,
    check_columns,
    check_same_sources,
    chosen_columns,
    from_saved as channels_from,
    harden,
    require_intensity_channels,
    to_saved as channels_to_saved,
)
from dipy_ldm.data.volumes import Volumes
from dipy_ldm.denoiser import _training as training
from dipy_ldm.denoiser._conditioning import Conditioning, Examples, Latents
from dipy_ldm.denoiser._networks import (
    Architecture,
    ConditionalDenoiser,
    Parameters,
    expected_shapes,
)
from dipy_ldm.denoiser._transfer import check_compatible, transfer_weights
from dipy_ldm.diffusion import _inpainting as inpainting, samplers
from dipy_ldm.diffusion._denoisers import pinned
from dipy_ldm.diffusion._options import (
    Sampling,
    SamplingOptions,
    resolve as resolve_sampling,
)
from dipy_ldm.prior._condition_sampler import Population, draw_conditions
from dipy_ldm.prior._latent_prior import LatentPrior
from dipy_ldm.training import FitOptions, _memory as memory, resolve, train
from dipy_ldm.training._precision import Precision, log_precision
from dipy_ldm.vqvae import VQVAE

if TYPE_CHECKING:  # the back-end reports a missing Keras
    import keras

logger = logging.getLogger(__name__)


# Options that sidecars omit: they do not change the result, or are in other entries.
_UNRECORDED = ("first", "batch_size", "tile")


def _float32(numbers):
    return np.array(numbers, "float32")


class LatentDiffusion(Estimator):
    """Diffusion model of the latents of an autoencoder :footcite:p:`Rombach2022`.

    A U-Net learns to remove noise from latents; sampling starts from pure noise, and
    the decoder turns the sampled latents into images. A second, smaller and briefly
    trained U-Net guides it (autoguidance): samples are extrapolated from the estimate
    of the guide beyond that of the denoiser :footcite:p:`Karras2024`. Both may have
    conditions, each of which may be unspecified, and a source image.

    Parameters
    ----------
    vqvae : VQVAE
        A fitted autoencoder. It stays fitted in clones of scikit-learn.
    widths : sequence of int, optional
        Channels of the U-Net's levels; each but the first halves the resolution.
        Default: 128 and 128 for images; 64, 128 and 256 for volumes.
    blocks : int
        Residual blocks of each level.
    attention : bool or sequence of bool, optional
        Whether each level has self-attention, one entry per level or one for all; the
        middle always has. Default: no level.
    schedule : {"cosine", "linear"}
        Noise schedule.
    target : {"v", "noise", "clean"}
        What the network predicts.
    guide : bool, optional
        Whether to train a guide. Default: only for images; volumes are better without
        guidance.
    seed : int
        Random seed of the training.

    Attributes
    ----------
    vqvae_ : VQVAE
        Snapshot of the autoencoder at the fit; later fits of ``vqvae`` do not change
        it.
    denoiser_, guide_ : keras.Model
        The U-Nets, with EMA weights; None if there is no guide.
    conditions_ : dict of str to Condition
        Levels with their counts or quantiles, units, and the share of missing values.
    population_ : Population or None
        Joint distribution of conditions; None if there are less than two.
    source_ : Source or None
        Channels and range, or labels, of source images; None if there are none.
    source_channels_ : tuple of Channel
        Channels of source images; empty if unnamed.
    conditional_mean_ : ConditionalMean or None
        Conditional mean of latents; None if there are no conditions.
    gaussian_ : Gaussian or None
        Low-rank Gaussian of latents about that mean; only for aligned volumes.
    probe_ : LinearProbe or None
        Linear probe that guides samples of such latents towards their conditions.
    detector_ : AnomalyDetector or None
        Anomaly detector; None before :meth:`fit_detector`.
    latent_mean_, latent_scale_ : ndarray
        Mean of each channel of the latents, and their common standard deviation,
        repeated for each channel.
    latent_shape_ : tuple of int
        Shape of a latent, ``(*space, channels)``.
    history_ : dict of str to list
        Metrics of each round (an epoch, or several short ones): ``step`` (batches so
        far), ``epoch``, ``loss``, and ``val_loss`` with EMA weights; the model keeps
        the weights of the round where it was lowest. ``val_gain_name`` is its increase
        when the condition ``name``, or ``source``, is shuffled across images: 0 means
        no effect.
    fingerprint_, step_seconds_, precision_
        As in :class:`dipy_ldm.VQVAE`.

    References
    ----------
    .. footbibliography::

    Examples
    --------
    >>> from dipy_ldm import LatentDiffusion
    >>> model = LatentDiffusion.load("mnist")
    >>> model.predict(4, steps=2, seed=1).shape
    (4, 28, 28, 1)
    """

    _kind = "latent_diffusion"
    _presets = {"widths": "widths_ldm"}
    _entries = (
        Entry("latent_mean", "latent_mean_", _float32),
        Entry("latent_scale", "latent_scale_", _float32),
        Entry("latent_shape", "latent_shape_", tuple),
        Entry("conditions", "conditions_", from_saved, to_saved),
        Entry.of_record("population", "population_", Population),
        Entry.of_record("source", "source_", sources.Source),
        Entry("source_channels", "source_channels_", channels_from, channels_to_saved),
        Entry("latent_diffusion_history", "history_"),
        Entry("latent_diffusion_fingerprint", "fingerprint_"),
        Entry.of_record("latent_diffusion_precision", "precision_", Precision),
    )

    vqvae_: VQVAE
    denoiser_: keras.Model
    guide_: keras.Model | None
    conditions_: dict[str, Condition]
    population_: Population | None
    source_: sources.Source | None
    source_channels_: tuple[Channel, ...] = ()
    detector_: AnomalyDetector | None = None
    latent_mean_: np.ndarray
    latent_scale_: np.ndarray
    latent_shape_: tuple[int, ...]
    _denoiser: ConditionalDenoiser

    def __init__(
        self,
        vqvae: VQVAE,
        *,
        widths: Sequence[int] | None = None,
        blocks: int = 1,
        attention: bool | Sequence[bool] | None = None,
        schedule: str = "cosine",
        target: str = "v",
        guide: bool | None = None,
        seed: int = 0,
    ) -> None:
        self.vqvae = vqvae
        self.widths = widths
        self.blocks = blocks
        self.attention = attention
        self.schedule = schedule
        self.target = target
        self.guide = guide
        self.seed = seed

    @show_options(FitOptions)
    @keeps_earlier_fit
    def fit(
        self,
        images: ImagesLike,
        conditions: ConditionsLike = None,
        *,
        init: Self | str | Path | None = None,
        source: npt.ArrayLike | Volumes | None = None,
        source_channels: Sequence[Channel] = (),
        subjects: npt.ArrayLike | None = None,
        validation_data: ImagesLike | None = None,
        validation_conditions: ConditionsLike = None,
        validation_source: npt.ArrayLike | Volumes | None = None,
        validation_subjects: npt.ArrayLike | None = None,
        units: dict[str, str] | None = None,
        meanings: dict[str, dict[str, str]] | None = None,
        **options: Unpack[FitOptions],
    ) -> Self:
        """Train a denoiser on the latents of images.

        Parameters
        ----------
        images : array_like, path, NIfTI image, list of these, or Volumes
            Images, ``(n, *space, channels)``, of the shape of the autoencoder's
            training images. Files and nibabel images are resampled to its grid;
            ``subjects`` are inferred from their names, and volumes of
            :func:`dipy_ldm.data.load_volumes` also have a ``source``.
        conditions : dict, DataFrame or array_like, optional
            Values of each image by the names of the conditions, or one array of labels,
            which is named ``label``. Text and booleans are classes, and so are integers
            without gaps from 0 or 1 on and all integers of an unnamed array, also if an
            array has them as floats because of missing values; other numbers are
            continuous. None, NaN, ``""``, ``n/a`` and ``nan`` are missing. Rows with
            names, in a column ``participant_id`` or an index, are joined to
            ``subjects``; others are in the order of the images.
        init : LatentDiffusion, str or Path, optional
            Fitted model, or a file, whose denoiser is fine-tuned; ``widths`` of None
            are taken from it. Image sizes may differ. Conditions and levels are matched
            by name; new ones have no effect at first. Its autoencoder is not used: see
            :meth:`VQVAE.adapt`.
        source : array_like or Volumes, optional
            Source image of each image, on its grid: another contrast, a coarser scan or
            a segmentation, ``(n, *space, channels)`` or ``(n, *space)``. Integers are
            labels, other numbers intensities.
        source_channels : sequence of Channel, optional
            Channels of ``source``, as returned by :func:`dipy_ldm.data.load_volumes`.
        subjects : array_like, optional
            Subject of each image, such as ``"sub-01"``, needed if some have several
            images: effects of conditions are estimated across subjects. Default: each
            image has its own subject.
        validation_data : as images, optional
            Held-out images for the validation loss after each round. The networks end
            with the weights with which it was lowest.
        validation_conditions : dict, DataFrame or array_like, optional
            Their conditions. Levels that are not in ``conditions`` are unspecified.
        validation_source : array_like, optional
            Their source images. Labels that are not in ``source`` are left out.
        validation_subjects : array_like, optional
            Their subjects, none of which is in ``subjects``.
        units, meanings : dict of str, optional
            For ``conditions_``: units of numbers, and meanings of levels.
        **options
            See :class:`dipy_ldm.training.FitOptions`. Default: 10 epochs in batches of
            64 images, or 6,000 steps of 4 volumes. The guide, which is trained first,
            has a checkpoint of the same name and ``.guide``.

        Returns
        -------
        LatentDiffusion
            The estimator itself.

        Raises
        ------
        InputError
            If the images, `init` or an option are invalid.
        """
        self._check_vqvae()
        verbose = options.get("verbose", True)
        loaded, examples = self._read_examples(
            images, conditions, source, subjects, verbose, source_channels
        )
        loaded = image_checks.validated_images(loaded, self.vqvae.shape_)
        start, rank = self._read_init(init), loaded.ndim - 2
        held_out, validation = self._read_examples(
            validation_data,
            *(validation_conditions, validation_source, validation_subjects),
            verbose,
        )
        if held_out is not None:
            held_out = image_checks.validated_held_out(held_out, loaded.shape)
        conditioning = Conditioning.learn(
            examples, validation, self.vqvae.factor, units, meanings
        )
        resolved = resolve(
            "ldm", rank, options, training.guide_path(options.get("checkpoint"))
        )
        architecture = self._architecture(
            loaded.shape, conditioning.source, start, examples.source_channels
        )
        training.check(architecture, len(loaded), resolved)
        self.fingerprint_ = image_checks.trainable_survey(loaded).fingerprint
        self.step_seconds_ = {}
        self.conditions_, self.source_ = conditioning.conditions, conditioning.source
        self.source_channels_ = tuple(examples.source_channels)
        self.vqvae_, self.detector_ = self.vqvae._snapshot(), None
        self.precision_ = log_precision(resolved.precision)
        self._fitted_with = self._resolved(rank, start)
        settings = self._fitted_with | {
            "images": self.fingerprint_,
            **conditioning.settings(),
            "vqvae": image_checks.survey(self.vqvae_.codebook_).fingerprint,
            "validation data": image_checks.identify(held_out),
            "init": start and _serialization.checksum(start.to_tensors()),
        }
        with _backend.distributed(resolved.strategy):
            # Before workers exchange data.
            _backend.require_agreement(settings | resolved.settings())
            latents = self._learn_latents(loaded, conditioning)
            held_out = self._encode_held_out(held_out, conditioning)
            self._build(start)
            stages = training.stages(
                self._denoiser, latents, held_out, resolved, settings
            )
            for number, stage in enumerate(stages):
                if number:
                    # The first stage has reference cycles, which Python frees late.
                    gc.collect()
                train(self, stage)
        return self

    def _read_examples(
        self, images, conditions, source, subjects, verbose, source_channels=()
    ):
        """Load images, with their sources and subjects unless these are passed."""
        if source is not None and are_scans(source):
            raise InputError(
                "sources of a training must be arrays",
                "pass arrays or, as images, load_volumes(files, source_files=...), "
                "which includes them",
            )
        if images is None:
            return None, Examples((), conditions, source, subjects)
        cohort = self.vqvae._read_cohort(images, verbose)
        if source is None:
            source = cohort.sources
            source_channels = source_channels or cohort.source_channels
        subjects = cohort.subjects if subjects is None else subjects
        own = conditions, source, subjects, as_channels(source_channels)
        return cohort.images, Examples(cohort.shape, *own)

    def _learn_latents(self, images, conditioning):
        """Encode images, and fit the scale and the prior of their latents."""
        inputs, subjects = conditioning.inputs, conditioning.subjects
        latents = Latents(self.vqvae_.encode(images), inputs, None, subjects)
        self.latent_mean_, self.latent_scale_ = training.latent_scale(latents)
        self.latent_shape_ = latents.clean.shape[1:]
        # Keep no other copy: latents of thousands of volumes take gigabytes.
        latents = latents._replace(clean=self._scaled(latents.clean))
        learnt = inputs.table, self.conditions_, subjects
        self.population_ = Population.learn(*learnt)
        prior = LatentPrior.learn(latents.clean, *learnt, volumes=not self._of_images())
        self._set_prior(prior)
        return latents._replace(conditional_mean=self.conditional_mean_)

    def _encode_held_out(self, images, conditioning):
        if images is None:
            return None
        image_checks.check_ranges(images, self.vqvae_.intensity_, "validation image")
        latents = self._scaled(self.vqvae_.encode(images))
        inputs, subjects = conditioning.held_out, conditioning.held_out_subjects
        return Latents(latents, inputs, self.conditional_mean_, subjects)

    @show_options(FitOptions)
    def check(
        self,
        shape: tuple[int, ...],
        source: sources.Source | None = None,
        *,
        source_channels: Sequence[Channel] = (),
        init: Self | str | Path | None = None,
        **options: Unpack[FitOptions],
    ) -> None:
        """Refuse a fit that is invalid or would exceed the memory.

        ``shape`` is that of all images, ``(n, *space, channels)``; ``source`` and
        ``source_channels`` describe source images; other arguments and errors are as in
        :meth:`fit`. The autoencoder need not be fitted yet.
        """
        self._check_vqvae()
        resolved = resolve("ldm", len(shape) - 2, options)
        architecture = self._architecture(
            shape, source, self._read_init(init), source_channels
        )
        training.check(architecture, shape[0], resolved)

    @overload
    def predict(
        self, n: int | None = None, *, as_images: Literal[True], **options: object
    ) -> list[SyntheticImage]: ...
    @overload
    def predict(
        self,
        n: int | None = None,
        *,
        conditions: ConditionsLike = None,
        source: ImagesLike | None = None,
        same_noise: bool = False,
        guidance: float | None = None,
        strategy: Any = "auto",
        verbose: bool = False,
        as_images: Literal[False] = False,
        **options: Unpack[SamplingOptions],
    ) -> np.ndarray: ...
    @show_options(SamplingOptions)  # type: ignore[misc]  # of any options above
    def predict(
        self,
        n: int | None = None,
        *,
        conditions: ConditionsLike = None,
        source: ImagesLike | None = None,
        same_noise: bool = False,
        guidance: float | None = None,
        strategy: Any = "auto",
        verbose: bool = False,
        as_images: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Any:
        """Generate images.

        Sample ``i`` depends only on ``(seed, i)``, its conditions and its source, and
        not on its batch.

        Parameters
        ----------
        n : int, optional
            Number of images. Default: the number of values of ``conditions`` or of
            sources, or 1.
        conditions : dict, DataFrame or object, optional
            Requested values by the names in ``conditions_``: one for all images, or a
            list with one for each; for a single condition also the values alone.
            Missing conditions and values of None are drawn as in
            :meth:`draw_conditions`. ``"none"``, for all or as a value, leaves
            conditions unspecified.
        source : array_like, path, NIfTI image, or list of these, optional
            Source images, for models conditioned on them: one for all, or one for each,
            ``(n, *space, channels)`` or ``(n, *space)``, with intensities or labels as
            in the training, or scans of any space. Rows of conditions with names are
            joined to scans as in :meth:`fit`. ``np.repeat(source, 3, 0)`` makes three
            samples of each.
        same_noise : bool
            Generate all images from the noise of the first, so that they differ only by
            their conditions.
        guidance : float, optional
            Guidance scale: extrapolate the denoiser away from its guide or, without a
            guide, from its unconditional estimate. 1 is without guidance, and faster;
            the higher, the clearer the images and the less they vary. Guidance acts at
            times from 0.4 to 0.9 of the cosine schedule, or at equal noise of others.
            Default: :attr:`default_guidance`, or 1 without guide, conditions and
            source.
        strategy : str or tf.distribute.Strategy or None
            Distribution over devices, as in :func:`dipy_ldm.make_strategy`; ``"auto"``
            uses this machine only. The result is the same.
        verbose : bool
            Show a progress bar.
        as_images : bool
            Return volumes as NIfTI images, with the affine of the training volumes.
        **options
            ``sampler``, ``steps`` (network calls per image), ``eta``,
            ``seed``, ``first``, ``batch_size`` and ``tile``; see
            :class:`dipy_ldm.diffusion.SamplingOptions`.

        Returns
        -------
        ndarray or list of NIfTI images
            Images, float32 ``(n, *space, channels)``, in the intensity range of
            the training images. ``to_filename`` of NIfTI images also writes their
            provenance to a JSON file.

        Raises
        ------
        InputError
            If the model is not fitted, or an option is invalid.
        """
        self._check_fitted()
        if as_images and self._of_images():
            raise InputError("`as_images` is for models of volumes", "leave it out")
        affine = require_affine(self.vqvae_.affine_) if as_images else None
        source, files = self._read_source(source)
        conditions = join_to_files(conditions, [own[0] for own in files])
        n = self._count(conditions, source) if n is None else n
        requested_guidance = 1.0 if guidance is None else guidance
        sampling = self.check_sampling(n, guidance=requested_guidance, **options)
        first = sampling.first
        # Finer details of images would be lost in quantisation anyway.
        path = sampling.path(self._schedule, fine=not self._of_images())
        conditions = self.draw_conditions(
            n, conditions, seed=sampling.seed, first=first, same_noise=same_noise
        )
        inputs, guidance = self._guided_inputs(guidance, conditions, source, n)

        def generate(numbers):
            own = np.zeros_like(numbers) if same_noise else numbers
            noise = sampling.noise(own, self.latent_shape_)
            batch = inputs.take(numbers)
            # Little signal is left at the start, but the common mean matters.
            start = noise()
            start += np.float32(path[0][1][0]) * self._denoiser.mean(batch)
            denoise = self._denoiser.make_denoiser(batch, guidance)
            latents = samplers.sample(
                denoise, start, path, sampling.step_function, noise
            )
            return self._decode(latents, sampling.tile)

        title = "generate" if verbose else None
        with _backend.distributed(_backend.make_strategy(strategy, alone=True)):
            images = self._in_batches(generate, n, sampling, title)
        if affine is None:
            return images
        recorded = {
            "guidance": guidance,
            "same_noise": same_noise,
            **sampling._asdict(),
        }
        metadata = with_sources(self._provenance(n, conditions, **recorded), files)
        channels = self.vqvae_._channels()
        return [
            as_sample(image, channels, affine, own | {"Sample": number})
            for number, (image, own) in enumerate(zip(images, metadata), first)
        ]

    @show_options(SamplingOptions)
    def denoise(
        self,
        images: ImagesLike,
        *,
        conditions: ConditionsLike = None,
        source: ImagesLike | None = None,
        strength: float = 0.1,
        **options: Unpack[SamplingOptions],
    ) -> Any:
        """Add noise to the latents of images, and denoise them from there.

        The more noise, the more is resampled; after :footcite:p:`Meng2022`. There is no
        guidance, since the aim is a likely image rather than a clear one.

        Parameters
        ----------
        images : array_like, path, NIfTI image, or list of these
            Images, ``(n, *space, channels)``, of the shape of the training images, or
            scans of any space and intensities. Named channels are matched by name in
            BIDS folders and files, or passed as a dictionary.
        conditions, source
            As in :meth:`predict`; missing conditions are unspecified, and rows with
            names are joined to scans as in :meth:`fit`. Several sources in files are
            matched to scans by name, as in :func:`dipy_ldm.data.load_volumes`.
        strength : float
            Time in [0, 1] up to which noise is added. At 0 the result is the
            autoencoder's reconstruction, at 1 it does not depend on the image.
        **options
            As in :meth:`predict`; ``steps`` are counted from ``strength``. Default:
            :meth:`default_denoising_steps`, one at the default strength.

        Returns
        -------
        ndarray, NIfTI image, or list of images
            Images, float32, of the shape of ``images``; those of scans in their space
            and intensity range, named channels in a dictionary. ``to_filename`` of
            NIfTI images also writes their provenance to a JSON file.

        Raises
        ------
        InputError
            If the model is not fitted, or an argument is invalid.

        References
        ----------
        .. footbibliography::
        """
        batch = self._read_batch(images)
        n = len(batch.images)
        conditions, inputs, source_files = self._match(batch, conditions, source)
        checks.check_shares(strength=strength)
        if options.get("steps") is None:
            sampler = options.get("sampler", "dpm++")
            options["steps"] = self.default_denoising_steps(sampler, strength)
        sampling = self.check_sampling(**options)
        path = sampling.path(self._schedule, strength)
        alpha, sigma = path[0][1]
        encoded = self._encode(batch.images, batch.names, sampling)

        def denoise(numbers):
            if strength == 0:
                # Unscaled: scaling and rescaling would round, and so choose other codes
                # among equally near ones.
                return self.vqvae_.decode(encoded[numbers], tile=sampling.tile)
            noise = sampling.noise(numbers, self.latent_shape_)
            x = alpha * self._scaled(encoded[numbers]) + sigma * noise()
            denoise = self._denoiser.make_denoiser(inputs.take(numbers), 1.0)
            latents = samplers.sample(denoise, x, path, sampling.step_function, noise)
            return self._decode(latents, sampling.tile)

        denoised = self._in_batches(denoise, n, sampling)
        describe = self._description(conditions, sampling, strength=strength)
        return batch.to_images(denoised, describe, source_files)

    @show_options(SamplingOptions)
    def inpaint(
        self,
        images: ImagesLike,
        masks: ImagesLike,
        *,
        conditions: ConditionsLike = None,
        source: ImagesLike | None = None,
        channels: Sequence[str] | None = None,
        n_samples: int | None = None,
        resamplings: int = inpainting.RESAMPLINGS,
        **options: Unpack[SamplingOptions],
    ) -> Any:
        """Inpaint masks, so that they fit their surroundings.

        Voxels inside the masks are never used. Latents inside a mask are sampled from
        noise, or from less noise if less than half of their voxels are inside; others
        are fixed. The decoded image is blended into the masks only, without a seam.

        Parameters
        ----------
        images : array_like, path, NIfTI image, or list of these
            As in :meth:`denoise`.
        masks : as images
            Masks to inpaint, ``(n, *space)`` or, for all images, ``(*space)``; values
            above 0 are inside. Masks of scans are on the grids of the scans.
        conditions, source
            As in :meth:`denoise`.
        channels : sequence of str, optional
            Named channels to fill; the others are unchanged, but not used inside the
            masks, either. Default: all.
        n_samples : int, optional
            Number of samples for each image. Default: one, without a sample axis.
        resamplings : int
            Number of times that each step is taken, with its noise added again in
            between.
        **options
            As in :meth:`predict`. Default: 10 steps, with ``steps * resamplings`` calls
            of the network. Image ``i`` uses the noise of the samples ``first + i *
            n_samples`` and following.

        Returns
        -------
        ndarray, NIfTI image, or list of images
            Images, float32 of the shape of ``images`` or, with ``n_samples``,
            ``(n, n_samples, *space, channels)``; those of scans in their space, or a
            list of ``n_samples`` for each. Outside the masks they are bitwise equal to
            ``images`` in float32.

        Raises
        ------
        InputError
            If the model is not fitted, an argument is invalid, or a mask is empty or
            covers the whole image.
        """
        batch = self._read_batch(images, masks)
        arrays, n = batch.images, len(batch.images)
        conditions, inputs, source_files = self._match(batch, conditions, source)
        checks.check_counts(n_samples=n_samples, resamplings=resamplings)
        samples = n_samples or 1
        options.setdefault("steps", inpainting.STEPS)
        sampling = self.check_sampling(**options)
        inside = inpainting.validated_holes(batch.masks, arrays.shape[:-1])
        is_filled = chosen_columns(channels, self.vqvae_._channels())
        shares = inpainting.hole_shares(inside, self.vqvae_.factor)[..., None]
        inpainting.refuse_covering_masks(shares)
        path = sampling.path(self._schedule)
        release = inpainting.release_times(shares, self._schedule, path[-2][0])
        alpha, sigma = path[0][1]
        filled = inpainting.fill(arrays, inside)
        clean = self._scaled(self._encode(filled, batch.names, sampling))

        def inpaint(numbers):
            i = numbers // samples
            noise = sampling.noise(numbers, self.latent_shape_)
            denoise = pinned(
                self._denoiser.make_denoiser(inputs.take(i), 1.0), clean[i], release[i]
            )
            x = alpha * clean[i] + sigma * noise()
            latents = samplers.sample(
                denoise, x, path, sampling.step_function, noise, resamplings
            )
            blended = inpainting.blend(
                arrays[i], self._decode(latents, sampling.tile), inside[i]
            )
            return np.where(
                inside[i][..., None] & is_filled,
                harden(blended, self.channels_),
                arrays[i].astype("float32", copy=False),
            )

        inpainted = self._in_batches(inpaint, n * samples, sampling)
        if n_samples is not None:
            inpainted = inpainted.reshape(n, n_samples, *inpainted.shape[1:])
        details = {"samples": samples, "resamplings": resamplings}
        describe = self._description(conditions, sampling, **details)
        return batch.to_images(inpainted, describe, source_files, channels)

    @show_options(FitOptions)
    def fit_detector(
        self,
        images: ImagesLike,
        *,
        validation_data: ImagesLike | None = None,
        patch: int | Sequence[int] | None = None,
        **options: Unpack[FitOptions],
    ) -> Self:
        """Fit an anomaly detector; the rest of a fitted model does not change.

        It is trained on synthetic lesions, without annotated ones. Arguments are as in
        :meth:`dipy_ldm.anomaly_detector.AnomalyDetector.fit`; images have no or few
        lesions, and otherwise are as in :meth:`fit`.
        """
        images, _ = self._read_images(images)
        require_intensity_channels(self.channels_)
        if validation_data is not None:
            validation_data = self.vqvae_._read_cohort(validation_data).images
        self.detector_ = AnomalyDetector(seed=self.seed).fit(
            images, validation_data=validation_data, patch=patch, **options
        )
        return self

    def detect(
        self,
        images: ImagesLike,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> Any:
        """Return lesion probabilities of voxels, after :meth:`fit_detector`.

        Arguments and result are as in
        :meth:`dipy_ldm.anomaly_detector.AnomalyDetector.predict`; for scans, as in
        :meth:`denoise`, the result is NIfTI images in their space.
        """
        self._check_fitted()
        if self.detector_ is None:
            raise InputError(
                "this model has no detector",
                "train one with fit_detector(images), or --steps_detector of "
                "dipy_train_ldm",
            )
        batch = self._read_batch(images)
        likely = self.detector_.predict(batch.images, batch_size=batch_size, tile=tile)
        return batch.to_images(likely, self._provenance)

    def denoiser(
        self,
        guidance: float = 1.0,
        conditions: ConditionsLike = None,
        source: ImagesLike | None = None,
    ) -> Callable:
        """Return the denoising function that samplers call.

        Parameters
        ----------
        guidance, conditions, source
            As in :meth:`predict`, with one value for all latents or one for each of a
            batch; missing conditions are unspecified.

        Returns
        -------
        callable
            ``denoise(x, t)``, which estimates clean latents of unit variance from noisy
            ones ``(batch, *space, channels)`` and their time in [0, 1].
        """
        self._check_fitted()
        source, _ = self._read_source(source)
        n = self._count(conditions, source)
        self.check_sampling(n, guidance=guidance)
        inputs, guidance = self._guided_inputs(guidance, conditions, source, n)
        return self._denoiser.make_denoiser(inputs, guidance)

    def draw_conditions(
        self,
        n: int,
        conditions: ConditionsLike = None,
        *,
        seed: int = 0,
        first: int = 0,
        same_noise: bool = False,
    ) -> Any:
        """Draw missing conditions, as :meth:`predict` does.

        They are drawn from the distribution in the training images, given the requested
        ones: from the joint distribution if enough images had several conditions.

        Parameters
        ----------
        n, conditions, seed, first, same_noise
            As in :meth:`predict`.

        Returns
        -------
        dict of str to list, str or None
            A value of each condition for each image; ``"none"`` if that was requested,
            and None for a model without conditions.
        """
        self.check_sampling(n, seed=seed, first=first)
        learnt = self.conditions_, self.population_
        return draw_conditions(
            *learnt, conditions, n, seed=seed, first=first, same=same_noise
        )

    @show_options(SamplingOptions)
    def check_sampling(
        self, n: int = 1, *, guidance: float = 1.0, **options: Unpack[SamplingOptions]
    ) -> Sampling:
        """Refuse invalid options of :meth:`predict`.

        Returns
        -------
        Sampling
            The options, with defaults filled in.
        """
        self._check_fitted()
        checks.check_counts(n=n)
        checks.at_least("guidance", guidance, 0)
        if guidance != 1 and not (self.guide_ or self.conditions_ or self.source_):
            raise InputError(
                f"this model has no guide for a guidance of {guidance}",
                "omit it, or train with conditions or guide=True",
            )
        return resolve_sampling(options)

    @property
    def channels_(self):
        """Channels of the images; empty if unnamed."""
        return self.vqvae_.channels_

    @property
    def default_guidance(self):
        """Best measured scale: 2 for images, 1 for volumes, 3 for diffusion series."""
        self._check_fitted(AttributeError)
        # Without guidance, effects of directions are half as large as they should be.
        if any(
            condition.kind == "direction" for condition in self.conditions_.values()
        ):
            return 3.0
        return 2.0 if self._of_images() and self.guide_ else 1.0

    def default_denoising_steps(self, sampler: str, strength: float) -> int:
        """Return how many steps suffice for denoising from a strength.

        This is the number of steps below the strength in a grid of 20 steps from 1: for
        ``dpm++`` 1 up to a strength of about 0.1, 3 at 0.2 and 5 at 0.4. More steps did
        not improve the measured accuracy.
        """
        self._check_fitted()
        times = samplers.make_sampler(sampler).grid(self._schedule, 20)
        return 1 + int(np.sum(times < strength - 1e-6))

    def needed_memory(
        self, batch_size: int | None = None, tile: int | None = None
    ) -> float:
        """Estimate the bytes that :meth:`predict` needs, without the images."""
        self._check_fitted()
        coded = self._coding_batch_size(batch_size)
        coding = max(self.vqvae_.needed_memory(batch_size=coded, tile=tile))
        networks = [*self._networks().values()]
        return memory.estimate_sampling(networks, self._batch_size(batch_size), coding)

    def check_memory(
        self,
        batch_size: int | None = None,
        tile: int | None = None,
        strategy: Any = None,
    ) -> None:
        """Refuse to generate or denoise if it would exceed the memory.

        It assumes a new process: memory that earlier work could release counts as used.
        Arguments are as in :meth:`predict`.
        """
        cure = "`tile` (64, say)" if batch_size == 1 else "`batch_size`"
        needed = self.needed_memory(batch_size, tile)
        memory.check("the work on images", needed, f"a smaller {cure}", strategy)

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write the fitted model, with its autoencoder, to one file.

        Parameters
        ----------
        path : str or Path
            File to write.
        half : bool
            Round the weights to 16 bits: half the size, with invisible changes of
            samples.
        """
        tensors = self.to_tensors()
        if half:
            tensors = _serialization.halved(tensors)
        path = Path(path).expanduser()
        _serialization.save(path, self._kind, tensors, self.to_document())

    @classmethod
    def from_saved(cls, tensors: dict[str, np.ndarray], document: dict) -> Self:
        """Build the fitted model from saved tensors and document."""
        model = cls(VQVAE(), **document["latent_diffusion"])
        model._restore(tensors, document)
        model.vqvae = model.vqvae_._snapshot()
        return model

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the weights by their names in a model file."""
        self._check_fitted()
        tensors = self.vqvae_.to_tensors() | super().to_tensors()
        tensors |= self._prior().to_tensors()
        return tensors | (self.detector_.to_tensors() if self.detector_ else {})

    def to_document(self) -> dict:
        """Return everything but the weights, as JSON types."""
        self._check_fitted()
        document = self.vqvae_.to_document() | super().to_document()
        if self.detector_ is None:
            return document
        return document | {"lesion_detector": self.detector_.to_document()}

    def _restore(self, tensors, document):
        self.vqvae_ = VQVAE.from_saved(tensors, document)
        # Before networks are built, since these include the prior.
        conditions = from_saved(document["conditions"])
        self._set_prior(LatentPrior.from_tensors(tensors, conditions))
        detector = document.get("lesion_detector")
        self.detector_ = detector and AnomalyDetector.from_saved(tensors, detector)
        return super()._restore(tensors, document)

    @classmethod
    def _expected_shapes(cls, document, shapes):
        expected = VQVAE._expected_shapes(document, shapes)
        n_columns = document["source"]["channels"] if document["source"] else 0
        check_columns(channels_from(document.get("source_channels")), n_columns)
        vqvae = VQVAE(**document["vqvae"])
        latent_shape = vqvae.latent_shape(document["shape"])
        if tuple(document["latent_shape"]) != latent_shape:
            raise InputError(
                f"latent_shape must be {latent_shape}, not {document['latent_shape']}"
            )
        expected |= expected_shapes(document, shapes, latent_shape, vqvae.factor)
        if detector := document.get("lesion_detector"):
            expected |= AnomalyDetector._expected_shapes(detector, shapes)
        return expected

    def __sklearn_clone__(self):
        """Clone the model with its fitted autoencoder and copied parameters."""
        params = self.get_params(deep=False)
        vqvae = params.pop("vqvae")
        vqvae = vqvae._snapshot() if isinstance(vqvae, VQVAE) else vqvae
        return type(self)(vqvae, **copy.deepcopy(params))

    def _resolved(self, rank, init=None):
        resolved = super()._resolved(rank, init)
        levels, guide = resolved["attention"], resolved["guide"]
        # As types that model files allow.
        if levels is not None:
            if not isinstance(levels, list):
                levels = [levels] * len(resolved["widths"])
            resolved["attention"] = [bool(level) for level in levels]
        if guide is not None:
            resolved["guide"] = bool(guide)
        return resolved

    def _architecture(self, shape, source=None, init=None, source_channels=()):
        """Return the architecture of a fit's networks, without the prior."""
        parameters = Parameters(**self._resolved(len(shape) - 2, init))
        latent_shape = self.vqvae.latent_shape(shape[1:])
        # Without conditions, whose memory is negligible.
        new = Architecture(parameters, latent_shape, self.vqvae.factor, {}, source)
        if init is not None:
            check_compatible(new, init._denoiser.architecture)
            check_same_sources(source_channels, init.source_channels_, "`init`")
        return new

    def _prior(self):
        return LatentPrior(self.conditional_mean_, self.gaussian_, self.probe_)

    def _set_prior(self, prior):
        self.conditional_mean_, self.gaussian_, self.probe_ = prior

    def _summary(self):
        inner = self.vqvae_._summary()
        conditions = (
            f"{name}: {condition}" for name, condition in self.conditions_.items()
        )
        names = ", ".join(channel.name for channel in self.source_channels_)
        return {
            "images": inner["images"],
            "latents": inner["latents"],
            "conditions": "; ".join(conditions) or "none",
            "source images": "none" if self.source_ is None else names or "needed",
        } | super()._summary()

    def _networks(self):
        return self._denoiser.networks

    def _build(self, init=None):
        prior = self._prior()
        architecture = Architecture(
            Parameters(**self._fitted_with),
            self.latent_shape_,
            self.vqvae_.factor,
            self.conditions_,
            self.source_,
            with_mean=prior.conditional_mean is not None,
            directions=prior.gaussian and len(prior.gaussian.loadings),
        )
        self._denoiser = ConditionalDenoiser(architecture, prior)
        if init is not None:
            transfer_weights(self._denoiser, init._denoiser)
        self.denoiser_, self.guide_ = self._denoiser.network, self._denoiser.guide

    @property
    def _schedule(self):
        return self._fitted_with["schedule"]

    def _of_images(self):
        return len(self.latent_shape_) == 3

    def _check_vqvae(self):
        if not isinstance(self.vqvae, VQVAE):
            raise InputError(
                f"`vqvae` must be a VQVAE, not {self.vqvae!r}",
                "load a file with VQVAE.load(path)",
            )

    def _read_images(
        self, images: ImagesLike, subjects: Any = None
    ) -> tuple[np.ndarray, Any]:
        """Return images as an array of the autoencoder's shape, and their subjects."""
        self._check_fitted()
        cohort = self.vqvae_._read_cohort(images)
        array = image_checks.validated_images(cohort.images, self.vqvae_.shape_)
        return array, cohort.subjects if subjects is None else subjects

    def _read_batch(self, images: ImagesLike, masks: Any = None) -> ImageBatch:
        """Read scans, or images of the autoencoder's shape, with their masks."""
        if not are_scans(images):
            return ImageBatch(self._read_images(images)[0], masks)
        self._check_fitted()
        refuse_series(self.conditions_)
        if masks is not None:
            return read_masked_batch(images, masks, *self.vqvae_._grid())
        batch = read_batch(images, *self.vqvae_._grid())
        image_checks.validated_images(batch.images, self.vqvae_.shape_)
        return batch

    def _match(self, batch, conditions, source):
        """Match conditions and sources to scans by name.

        Returns conditions, the inputs of networks, and files of sources.
        """
        conditions = join_to_files(conditions, batch.first_files)
        source, files = self._read_source(source, batch.first_files)
        return conditions, self._inputs(conditions, source, len(batch.images)), files

    def _read_source(self, source, scans=()):
        """Return source images as an array, matched to scans by name, and their files.

        Arrays are returned unchanged, without files.
        """
        if self.source_ is None or not are_scans(source):
            return source, []
        grid = self.vqvae_._grid_for(self.source_.intensity)
        how = self.source_, grid, self.source_channels_, scans
        return read_sources(source, *how, of_series=makes_series(self.conditions_))

    def _provenance(self, n, conditions=None, noise=None, **options):
        """Return the provenance of each of `n` images, as in sidecars of commands."""
        [metadata] = super()._provenance(1)
        for name, value in options.items():
            if value is not None and name not in _UNRECORDED:
                metadata[name.title().replace("_", "")] = checks.plain(value)
        table = requested(self.conditions_, conditions, n)
        columns = (
            ["n/a" if v is None else v for v in values] for values in table.values()
        )
        rows = [{"Conditions": dict(zip(table, row))} for row in zip(*columns)]
        noise_entries = (
            [{}] * n if noise is None else [{"Noise": number} for number in noise]
        )
        return [
            metadata | row | place
            for row, place in zip(rows or [{}] * n, noise_entries)
        ]

    def _description(self, conditions, sampling, **details):
        """Return a function that describes the provenance of `n` images."""

        def describe(n):
            step = details.get("samples", 1)
            noise = range(sampling.first, sampling.first + n * step, step)
            return self._provenance(
                n, conditions, noise, **sampling._asdict(), **details
            )

        return describe

    def _count(self, conditions, source):
        """Return how many images conditions and arrays of sources request."""
        n, space = 1, self.vqvae_.shape_[:-1]
        if self.source_ is not None and source is not None:
            n = len(sources.as_source(source, space))
        return max(n, len(ConditionBatch.of(self.conditions_, conditions).numbers))

    def _inputs(self, conditions, source, n):
        """Encode conditions and sources for `n` images."""
        source, _ = self._read_source(source)
        images = sources.check(self.source_, source, self.vqvae_.shape_[:-1], n=n)
        encoded = ConditionBatch.of(self.conditions_, conditions, n)
        for sentence in encoded.range_warnings:
            logger.warning("%s", sentence)
        factor = self.vqvae_.factor
        return sources.ConditioningInputs.of(
            encoded.numbers, self.source_, images, factor
        )

    def _guided_inputs(self, guidance, conditions, source, n):
        """Encode conditions and sources; choose or check the guidance."""
        inputs = self._inputs(conditions, source, n)
        unguided = self.guide_ is None and (inputs.table == UNSPECIFIED).all()
        if guidance is None:
            return inputs, 1.0 if unguided else self.default_guidance
        if guidance != 1 and unguided:
            raise InputError(
                f"this model has no guide: a guidance of {guidance} needs conditions",
                "pass `conditions`, or omit the guidance",
            )
        return inputs, guidance

    def _in_batches(self, make, n, sampling, title=None):
        """Make `n` images by their numbers, in batches that fit into memory."""
        batch_size = self._batch_size(sampling.batch_size)
        return _backend.in_batches(make, np.arange(n), batch_size, title)

    def _encode(self, images, names, sampling):
        """Encode images to unscaled latents; warnings have their names."""
        image_checks.warn_of_small_values(images, self.vqvae_.intensity_)
        batch_size = self._coding_batch_size(sampling.batch_size)
        latents = self.vqvae_.encode(images, batch_size=batch_size, tile=sampling.tile)
        self._denoiser.warn_of_outliers(self._scaled(latents), names)
        return latents

    def _decode(self, latents, tile):
        unscaled = latents * self.latent_scale_ + self.latent_mean_
        return self.vqvae_.decode(unscaled, tile=tile)

    def _scaled(self, latents):
        """Scale latents to mean 0 and variance 1."""
        return (latents - self.latent_mean_) / self.latent_scale_

    def _batch_size(self, batch_size):
        space = self.vqvae_.shape_[:-1]
        return batch_size or tiles.safe_batch(space, tiles.SAFE_LATENTS)

    def _coding_batch_size(self, batch_size):
        """Return how many images of a batch are encoded or decoded at once."""
        space = self.vqvae_.shape_[:-1]
        return min(self._batch_size(batch_size), tiles.safe_batch(space))
