"""Recipes: both estimators made and trained as the commands are told to."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from dipy_ldm._presets import Settings
from dipy_ldm.data._batches import Augmentation


class Recipe(NamedTuple):
    """Both estimators, and how each is trained."""

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

        Shapes: shape ``(n, *space, channels)``.
        """
        self.vqvae.check(shape, patch=patch, **self.of_vqvae)
        self.model.check(shape, source, **self.of_model)
        if self.of_detector is not None:
            from dipy_ldm.anomaly_detector import AnomalyDetector

            AnomalyDetector().check(shape, **self.of_detector)

    def fit(
        self,
        cohort: Any,
        held_out: Any,
        checkpoints: Sequence,
        callbacks: Sequence,
        **options,
    ) -> Any:
        """Train both, one after the other, and the detector, if there shall be one."""
        validation_images = held_out and held_out.images
        self.vqvae.fit(
            cohort.images,
            validation_data=validation_images,
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
            validation_data=validation_images,
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
            validation_data=validation_images,
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
    """Make both estimators, and say how they are trained."""
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


def augmentation(flip: bool, settings: Settings, unchanged: bool) -> Augmentation:
    """Return how images are changed before the autoencoder sees them."""
    usual = Augmentation() if unchanged else settings.augment or Augmentation()
    return usual._replace(flip=flip)
