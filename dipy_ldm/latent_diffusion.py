"""Latent diffusion: new images from noise, by way of the autoencoder's latents."""

from collections.abc import Sequence
import copy
from functools import partial
import gc
from pathlib import Path
from typing import Any, Self, Unpack, cast

import numpy as np
import numpy.typing as npt

from dipy_ldm import (
    _backend,
    _documents as documents,
    _serialization as persistence,
    presets,
)
from dipy_ldm._base import Entry, by_kind
from dipy_ldm._utils.checks import choose, scalars
from dipy_ldm._utils.subjects import fingerprint, number_both
from dipy_ldm.anomaly_detector import Detector
from dipy_ldm.conditions import from_saved, to_saved
from dipy_ldm.data import _sources as sources
from dipy_ldm.data._checks import check_trainable, survey
from dipy_ldm.data._table_rows import align_tables
from dipy_ldm.denoiser import _training as diffusion
from dipy_ldm.denoiser._conditioning import ConditioningEncoder, Latents
from dipy_ldm.detecting import Finder
from dipy_ldm.diffusion import schedules
from dipy_ldm.nn import building
from dipy_ldm.prior._latent_prior import LatentPrior
from dipy_ldm.prior._population import Population
from dipy_ldm.training import Options, Training, train
from dipy_ldm.training._precision import Precision, tell
from dipy_ldm.vqvae import VQVAE


def _float32(numbers):
    return np.array(numbers, "float32")


class LatentDiffusion(Finder):
    """Diffusion model of the latents of an autoencoder :footcite:p:`Rombach2022`.

    A U-Net learns to take noise away from the latents; sampling starts from pure
    noise, and the decoder turns what remains into images. A second, smaller U-Net
    that is trained for a short time guides it: where the two differ, the larger one
    is followed further than it goes :footcite:p:`Karras2024`. Both may be told of
    conditions, of which each may be left out, and of a source, another image.

    Parameters
    ----------
    vqvae : VQVAE
        A fitted autoencoder. Clones of scikit-learn keep it fitted.
    widths : sequence of int, optional
        Channels of the U-Net's levels; each but the first halves the resolution.
        Default: 128 and 128 for images; 64, 128 and 256 for volumes.
    blocks : int
        Residual blocks of each level.
    attention : sequence of bool, optional
        Whether a level has self-attention, one entry a level; the middle always
        has. None is for no level.
    schedule : {"cosine", "linear"}
        How noise grows with time.
    target : {"v", "noise", "clean"}
        What the network predicts.
    guide : bool, optional
        Whether a guide is trained. None is for images alone: volumes are better without
        guidance.
    seed : int
        Seed of everything random in training.

    Attributes
    ----------
    vqvae_ : VQVAE
        The autoencoder as it was when this was fitted: denoiser and latents are of no
        use with another one, so that a further fit of ``vqvae`` changes nothing here.
    denoiser_, guide_ : keras.Model
        The U-Nets, with averaged weights; no guide is None.
    conditions_ : dict of str to Condition
        Levels with their counts or quantiles, units, and the share that was missing.
    population_ : Population or None
        How often conditions came together; None if there are less than two, or the file
        is older.
    source_ : Source or None
        Channels and range of sources, or their labels; None if there are none.
    expectation_ : ConditionalMean or None
        What is to be expected of latents, by what is told; None if there are no
        conditions, or the file is older.
    gaussian_ : Gaussian or None
        Mean and covariance of latents of volumes, beside what is expected; None of
        images, of volumes that are not aligned, or if the file is older.
    readings_ : LinearProbe or None
        What is read in such latents of conditions, to which samples are held; None
        where one of the two is missing, or if the file is older.
    detector_ : Detector or None
        What finds lesions; None before :meth:`fit_detector`, or if the file has none.
    latent_mean_, latent_scale_ : ndarray
        Mean of each channel of the latents, and the standard deviation of all of them
        (of each, in earlier model files) once for each.
    history_ : dict of str to list
        Figures of each round (an epoch, or several short ones): ``step``, ``epoch``,
        ``loss``, and ``val_loss`` with averaged weights, which the model has of the
        round where it was lowest; ``val_gain_name`` is how much higher that is where
        the condition ``name``, or ``source``, is another image's: 0 where the model
        does not listen to it.
    fingerprint_ : str
        Hash of the training images.
    step_seconds_ : dict of str to list of float
        How long each step took, by the name of the stage, in this process.
    precision_ : Precision or None
        What training computed in, and why; None if the file does not say.

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
    _by_kind = {"widths": "widths_ldm"}
    _entries = (
        Entry("latent_mean", "latent_mean_", _float32),
        Entry("latent_scale", "latent_scale_", _float32),
        Entry("latent_shape", "latent_shape_", tuple),
        Entry("conditions", "conditions_", from_saved, to_saved),
        Entry(
            "population",
            "population_",
            Population.from_saved,
            lambda population: population and population.to_saved(),
        ),
        Entry("source", "source_", sources.from_saved, sources.to_saved),
        Entry("latent_diffusion_history", "history_", dict),
        Entry("latent_diffusion_fingerprint", "fingerprint_", str),
        Entry(
            "latent_diffusion_precision",
            "precision_",
            Precision.from_saved,
            Precision.to_saved,
        ),
    )

    def __init__(
        self,
        vqvae: VQVAE,
        *,
        widths: Sequence[int] | None = None,
        blocks: int = 1,
        attention: Sequence[bool] | None = None,
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

    @by_kind
    def fit(
        self,
        images: npt.ArrayLike,
        conditions: Any = None,
        *,
        source: npt.ArrayLike | None = None,
        subjects: npt.ArrayLike | None = None,
        validation_data: npt.ArrayLike | None = None,
        validation_conditions: Any = None,
        validation_source: npt.ArrayLike | None = None,
        validation_subjects: npt.ArrayLike | None = None,
        units: dict[str, str] | None = None,
        meanings: dict[str, dict[str, str]] | None = None,
        **training: Unpack[Options],
    ) -> Self:
        """Learn to take noise from the latents of images.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of the shape of those that the
            autoencoder was fitted to.
        conditions : dict, DataFrame or array_like, optional
            What is known of each image: values by the names of the conditions, or one
            array of labels, which is called ``label``. Text and truth values are
            classes, and so are whole numbers without gaps from 0 or 1 on and all of an
            array of whole numbers given alone, also where an array has them as floats
            since some are missing; other numbers are continuous. None, NaN, ``""`` and
            ``n/a`` are missing. Rows with names, in a column ``participant_id`` or an
            index, are joined to ``subjects``; others are in the order of the images.
        source : array_like, optional
            What each image shall be made of, on its grid: another contrast, a coarser
            scan or a segmentation, ``(n, *space, channels)`` or ``(n, *space)``. Whole
            numbers are labels, others intensities.
        subjects : array_like, optional
            Whose each image is, such as ``"sub-01"``. What conditions tell is learnt of
            subjects and not of images: where some have several, what holds for others
            can't be told without. None is for one image of each.
        validation_data : array_like, optional
            Images on which the loss is measured after each round. In the end the
            networks have the weights with which it was lowest.
        validation_conditions : dict, DataFrame or array_like, optional
            What is known of these. Levels that ``conditions`` have not are left out.
        validation_source : array_like, optional
            Their sources. Labels that ``source`` has not are left out.
        validation_subjects : array_like, optional
            Whose these are; none of ``subjects``.
        units, meanings : dict of str, optional
            For ``conditions_``: units of numbers, and meanings of levels.
        **training
            Options of :class:`dipy_ldm.training.Training`. Default: 10 epochs in
            batches of 64 images, or 6,000 steps of 4 volumes. The guide, which is
            trained first, has a checkpoint of the same name and ``.guide``.

        Returns
        -------
        LatentDiffusion
            The estimator itself.

        Raises
        ------
        InputError
            If the images or an option can't be used.
        """
        images = self._check_images(images, self.vqvae)
        others = self._check_held_out(validation_data)
        people, other_people = number_both(
            (images, subjects), (others, validation_subjects)
        )
        conditions, validation_conditions = align_tables(
            (conditions, subjects), (validation_conditions, validation_subjects)
        )
        chosen = _training(training, images.ndim - 2)
        guides = diffusion.of_guide(chosen.checkpoint)
        chosen = chosen.settled(images.ndim - 2, guides, rates=diffusion.RATES)
        known = ConditioningEncoder.learn(
            conditions,
            source,
            images.shape,
            self.vqvae.factor,
            units,
            meanings,
            people,
        )
        diffusion.check(self, images.shape, chosen, known.source)
        told = known.transform(images, conditions, source)
        told_others = known.transform(others, validation_conditions, validation_source)
        # An interruption before the networks are there leaves what was fitted before.
        new = self._as_it_is()
        new.fingerprint_ = check_trainable(images).fingerprint
        new.conditions_, new.source_ = known.conditions, known.source
        new.vqvae_ = self.vqvae._as_it_is()
        new.detector_ = None
        new.precision_ = tell(chosen.precision)
        settings = self.hyperparameters() | {
            "images": new.fingerprint_,
            **known.fingerprints(told),
            "subjects": fingerprint(people),
            "vqvae": survey(new.vqvae_.codebook_).fingerprint,
            "the shape of the validation data": np.shape(others),
        }
        with _backend.spread(chosen.strategy):
            # Before anything is exchanged.
            _backend.require_agreement(settings | chosen.settings())
            latents = new._learn_latents(images, told, people)
            held_out = new._held_out(others, told_others, other_people)
            new._learnt_with = self.hyperparameters()
            new._build()
            vars(self).update(vars(new))
            given = latents, held_out, chosen, settings
            for number, stage in enumerate(
                diffusion.stages(self, self._predict, *given)
            ):
                if number:
                    # What is left of the first refers to itself in circles, which
                    # Python finds late.
                    gc.collect()
                train(self, stage)
        return self

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write the fitted model, with its autoencoder, to one file.

        Parameters
        ----------
        path : str or Path
            File to write.
        half : bool
            Round the weights to 16 bits: half the size, and samples that differ
            by less than can be seen.

        Raises
        ------
        OSError
            If the file can't be written.
        """
        tensors = self.to_tensors()
        if half:
            tensors = persistence.halved(tensors)
        persistence.save(path, self._kind, tensors, self.to_document())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : str or Path
            File to read, or the name of a packaged model: ``"mnist"``.

        Returns
        -------
        LatentDiffusion
            The fitted model.

        Raises
        ------
        InputError
            If the file is not that of a latent diffusion model.
        """
        return super().load(persistence.find(path))

    @classmethod
    def _planned(cls, tensors, document):
        vqvae = VQVAE.from_saved(tensors, document)
        model = cls(vqvae, **_parameters(document))
        model.vqvae_ = vqvae._as_it_is()
        return model

    def _alike(self, document):
        return type(self)(cast(VQVAE, self.vqvae_), **_parameters(document))

    def _tensors(self):
        tensors = self.vqvae_._tensors() | super()._tensors()
        known = LatentPrior(self.expectation_, self.gaussian_, self.readings_)
        tensors |= known.to_tensors()
        return tensors | (self.detector_.to_tensors() if self.detector_ else {})

    def _document(self):
        document = self.vqvae_._document() | super()._document()
        if self.detector_ is None:
            return document
        return document | {"lesion_detector": self.detector_.to_document()}

    def _restore(self, tensors, document):
        # A copy or a pickle comes with its parameters alone.
        if not hasattr(self, "vqvae_"):
            self.vqvae_ = VQVAE.from_saved(tensors, document)
        # Before networks are built, to which it is given.
        known = from_saved(document.get("conditions"))
        found = LatentPrior.from_tensors(tensors, known)
        self.expectation_, self.gaussian_, self.readings_ = found
        self.detector_ = None
        if described := document.get("lesion_detector"):
            self.detector_ = Detector.from_saved(tensors, described)
        return super()._restore(tensors, document)

    @classmethod
    def _check_saved(cls, document, shapes):
        """Refuse tensors that are not those of the document, before any is read."""
        vqvae = VQVAE(**document["vqvae"])._describe(document)
        wanted = vqvae._saved_shapes(shapes)
        model = cls(vqvae, **_parameters(document))._describe(document)
        model.vqvae_ = vqvae
        choose("schedule", model.schedule, schedules.SCHEDULES)
        choose("target", model.target, schedules.TARGETS)
        documents.check_sizes(document["latent_diffusion"], shapes)
        documents.check_latents(document, vqvae.latent_shape(vqvae.shape_))
        wanted |= LatentPrior.shapes(shapes, model.latent_shape_, model.conditions_)
        make = partial(model._make_unets, **LatentPrior.network_options(shapes))
        for name, unet in building.build_without_weights("float32", make).items():
            wanted |= persistence.shapes(unet, name)
        if described := document.get("lesion_detector"):
            documents.check_detector(document)
            wanted |= Detector._saved_shapes(described, shapes)
        documents.check_shapes(shapes, wanted)

    def hyperparameters(self) -> dict:
        """Say the parameters as JSON can, but for the autoencoder.

        Returns
        -------
        dict
            Parameters by their names.
        """
        levels = self.attention
        levels = levels if levels is None else [bool(level) for level in levels]
        return super().hyperparameters() | {"attention": levels}

    def __sklearn_clone__(self):
        """Clone it with the autoencoder as it is: nothing could be fitted without."""
        params = self.get_params(deep=False)
        vqvae = params.pop("vqvae")
        return type(self)(vqvae, **copy.deepcopy(params))

    @by_kind
    def check(
        self,
        shape: tuple[int, ...],
        source: sources.Source | None = None,
        **training: Unpack[Options],
    ) -> None:
        """Refuse a fit that can't be done, or would not fit into the memory.

        The autoencoder need not be fitted yet.

        Parameters
        ----------
        shape : tuple of int
            Shape of all images, ``(n, *space, channels)``.
        source : Source, optional
            What is known of sources.
        **training
            As of :meth:`fit`.

        Raises
        ------
        InputError
            If a name is unknown (the sentence lists the known ones), a number makes
            no sense, or the memory is too small.
        """
        chosen = _training(training, len(shape) - 2).settled(
            len(shape) - 2, rates=diffusion.RATES
        )
        diffusion.check(self, shape, chosen, source)

    def _check_held_out(self, images: Any) -> Any:
        """Return images for validation as an array; None if there are none."""
        if images is not None:
            images = self._check_images(images, self.vqvae)
            survey(images, "validation image")
        return images

    def _learn_latents(self, images, told, subjects):
        """Encode images, learn the scale of their latents, and what to expect."""
        latents = self.vqvae_.encode(images)
        self.latent_mean_, self.latent_scale_ = diffusion.scale_of(latents)
        self.latent_shape_ = latents.shape[1:]
        # The only copy: of thousands of volumes they take gigabytes.
        latents = self._scaled(latents)
        numbers = None if told is None else told.table
        self.population_ = Population.learn(numbers, self.conditions_, subjects)
        given = latents, numbers, self.conditions_
        options = {"volumes": not self._of_images(), "subjects": subjects}
        known = LatentPrior.learn(*given, **options)
        self.expectation_, self.gaussian_, self.readings_ = known
        return Latents(latents, told, self.expectation_)

    def _held_out(self, images, told, subjects):
        """Encode images for validation; None if there are none."""
        if images is None:
            return None
        latents = self._scaled(self.vqvae_.encode(images))
        return Latents(latents, told, self.expectation_, subjects)


def _training(options: Options, rank: int) -> Training:
    """Collect the options of the training, with the stage's own defaults."""
    return Training(**presets.of_rank(rank).training("ldm", scalars(options)))


def _parameters(document):
    """Return the hyper-parameters that a document tells of."""
    # Earlier versions trained a guide in any case.
    return {"guide": True} | document["latent_diffusion"]
