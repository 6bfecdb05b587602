"""Recipes: what suits the kind of the data, and both estimators made and trained so."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from dipy_ldm.validation import InputError


class Settings(NamedTuple):
    """Options whose default depends on the data."""

    epochs_vqvae: int
    epochs_ldm: int
    steps_vqvae: int | None
    steps_ldm: int | None
    batch_size: int
    widths_vqvae: tuple
    widths_ldm: tuple
    loss: str
    code_dim: int
    n_codes: int
    n_codebooks: int
    patch: tuple | None

    def length(self, stage):
        """Say how long a stage is trained, as its ``fit`` takes it."""
        names = ("epochs", "steps")
        return {name: getattr(self, f"{name}_{stage}") for name in names}


IMAGES = Settings(
    epochs_vqvae=5,
    epochs_ldm=10,
    steps_vqvae=None,
    steps_ldm=None,
    batch_size=64,
    widths_vqvae=(32, 64),
    widths_ldm=(128, 128),
    loss="squared",
    code_dim=3,
    n_codes=1024,
    n_codebooks=1,
    patch=None,
)
VOLUMES = Settings(
    epochs_vqvae=1,
    epochs_ldm=1,
    # Sets of volumes are of very different sizes.
    steps_vqvae=4000,
    steps_ldm=6000,
    batch_size=4,
    widths_vqvae=(32, 64),
    widths_ldm=(64, 128, 256),
    loss="squared",
    # Eight numbers and 40 bits for 64 voxels: folds are lost with much less.
    code_dim=8,
    n_codes=1024,
    n_codebooks=4,
    # More than the autoencoder looks at; steps on whole volumes would take far longer.
    patch=(48, 48, 48),
)


def settle(data: Any, **given) -> Settings:
    """Choose what the user did not.

    Parameters
    ----------
    data : Cohort or Plan
        What is trained on.
    **given
        The user's settings, None for those to be chosen.

    Returns
    -------
    Settings
        All of them.

    Raises
    ------
    InputError
        If a length is given in epochs and in steps.
    """
    given = {name: value for name, value in given.items() if value is not None}
    chosen = IMAGES if data.affine is None else VOLUMES
    for stage in ("vqvae", "ldm"):
        epochs, steps = f"epochs_{stage}", f"steps_{stage}"
        if epochs in given and steps in given:
            raise InputError(f"give --{epochs} or --{steps}, not both.")
        if epochs in given:
            given[steps] = None
    return chosen._replace(**given)


class Recipe(NamedTuple):
    """Both estimators, and how each is trained.

    Parameters
    ----------
    vqvae : VQVAE
        The autoencoder.
    model : LatentDiffusion
        The diffusion model of its latents.
    of_vqvae, of_model : dict
        Options of :class:`dipy_ldm.training.Training`.
    of_detector : dict or None
        The same of a detector of lesions; None if there shall be none.
    """

    vqvae: Any
    model: Any
    of_vqvae: dict
    of_model: dict
    of_detector: dict | None = None

    def check(
        self,
        shape: tuple[int, ...],
        patch: int | Sequence[int] | None,
        source: Any = None,
    ) -> None:
        """Refuse what can't be done in either stage, before the first takes hours.

        Parameters
        ----------
        shape : tuple of int
            Shape of all images, ``(n, *space, channels)``.
        patch : int or sequence of int or None
            As of :meth:`dipy_ldm.VQVAE.fit`.
        source : Source, optional
            What is known of sources.

        Raises
        ------
        InputError
            If something can't.
        """
        self.vqvae.check(shape, patch=patch, **self.of_vqvae)
        self.model.check(shape, source, **self.of_model)
        if self.of_detector is not None:
            from dipy_ldm.detector import Detector

            Detector().check(shape, **self.of_detector)

    def fit(
        self,
        cohort: Any,
        held_out: Any,
        checkpoints: Sequence,
        callbacks: Sequence,
        **options,
    ) -> Any:
        """Train both, one after the other, and the detector, if there shall be one.

        Parameters
        ----------
        cohort : Cohort
            What is learnt from.
        held_out : Cohort or None
            Images on which both are validated.
        checkpoints, callbacks : sequence
            One of each for each stage; the last callback is given the model, too.
        **options
            Further ones of :meth:`dipy_ldm.VQVAE.fit`.

        Returns
        -------
        LatentDiffusion
            The fitted model.
        """
        others = held_out and held_out.images
        self.vqvae.fit(
            cohort.images,
            validation_data=others,
            affine=cohort.affine,
            suffix=cohort.suffix,
            masks=cohort.masks,
            checkpoint=checkpoints[0],
            callbacks=[callbacks[0]],
            **options,
            **self.of_vqvae,
        )
        model = self.model.fit(
            cohort.images,
            cohort.conditions,
            source=cohort.sources,
            subjects=cohort.subjects,
            validation_data=others,
            validation_conditions=held_out and held_out.conditions,
            validation_source=held_out and held_out.sources,
            validation_subjects=held_out and held_out.subjects,
            units=cohort.units or {},  # what is known has been logged
            meanings=cohort.meanings,
            checkpoint=checkpoints[1],
            callbacks=[callbacks[1]],
            **self.of_model,
        )
        if self.of_detector is None:
            return model
        return model.fit_detector(
            cohort.images,
            validation_data=others,
            checkpoint=checkpoints[2],
            callbacks=[partial(callbacks[2], model)],
            **self.of_detector,
        )


def make(
    settings: Settings,
    strategy: Any,
    *,
    schedule,
    target,
    guide,
    seed,
    steps_detector=None,
    **training,
) -> Recipe:
    """Make both estimators, and say how they are trained.

    Parameters
    ----------
    settings : Settings
        What depends on the data.
    strategy : tf.distribute.Strategy or None
        Devices that both are trained on.
    schedule, target, guide, seed
        As of the estimators; a guide that is not asked for is left to the default.
    steps_detector : int, optional
        Steps of a detector of lesions; there is none if None.
    **training
        Further options of the training of both.

    Returns
    -------
    Recipe
        Nothing of it is fitted yet.
    """
    from dipy_ldm import VQVAE, LatentDiffusion

    vqvae = VQVAE(
        widths=settings.widths_vqvae,
        n_codes=settings.n_codes,
        n_codebooks=settings.n_codebooks,
        code_dim=settings.code_dim,
        loss=settings.loss,
        seed=seed,
    )
    model = LatentDiffusion(
        vqvae,
        widths=settings.widths_ldm,
        schedule=schedule,
        target=target,
        guide=guide or None,
        seed=seed,
    )
    training |= {"batch_size": settings.batch_size, "strategy": strategy}
    lengths = map(settings.length, ("vqvae", "ldm"))
    of_vqvae, of_model = (training | length for length in lengths)
    of_detector = training | {"steps": steps_detector} if steps_detector else None
    return Recipe(vqvae, model, of_vqvae, of_model, of_detector)


def augmentation(flip: bool, of_volumes: bool, unchanged: bool) -> Any:
    """Say how images are changed before the autoencoder sees them.

    Parameters
    ----------
    flip : bool
        Whether half of them are mirrored.
    of_volumes : bool
        Whether they are volumes, which are moved, brightened and noised.
    unchanged : bool
        Whether they shall not be.

    Returns
    -------
    dipy_ldm.data.batches.Augmentation
        The changes.
    """
    from dipy_ldm.data.batches import Augmentation

    changes = (2, 0.05, 0.1) if of_volumes and not unchanged else ()
    return Augmentation(flip, *changes)
