"""Train from the command line: estimators, their options, history and picture."""

from collections.abc import Sequence
import csv
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
import io
import logging
from pathlib import Path
import time
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._presets import Preset
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data._sources import Source
from dipy_ldm.data.channels import Channel
from dipy_ldm.workflows._launch import quiet_start
from dipy_ldm.workflows._option_table import TrainOptions
from dipy_ldm.workflows._outputs import write_text

logger = logging.getLogger("dipy_ldm")

if TYPE_CHECKING:  # they take seconds to import
    from dipy_ldm.anomaly_detector import AnomalyDetector
    from dipy_ldm.latent_diffusion import LatentDiffusion
    from dipy_ldm.training import ResolvedOptions
    from dipy_ldm.vqvae import VQVAE


class Recipe(NamedTuple):
    """Autoencoder and diffusion model, and the options of each ``fit``.

    With an empty ``of_vqvae`` the autoencoder is used without training; ``of_patches``
    has those of its options that concern patches: size, augmentation and weight of the
    background.
    """

    vqvae: "VQVAE"
    model: "LatentDiffusion"
    of_vqvae: dict
    of_model: dict
    of_patches: dict = {"patch": None}
    of_detector: dict | None = None

    def check(
        self, cohort: Cohort, shape: tuple[int, ...], source: Source | None = None
    ) -> None:
        """Refuse what any stage would refuse, before the first takes hours.

        Shapes: shape ``(n, *space, channels)``, of all images, which need not be read.
        """
        if self.of_vqvae:
            self.vqvae.check(shape, patch=self.of_patches["patch"], **self.of_vqvae)
        self.check_images(shape, cohort.channels)
        options = {"source_channels": cohort.source_channels, **self.of_model}
        self.model.check(shape, source, **options)
        if self.of_detector is not None:
            from dipy_ldm.anomaly_detector import AnomalyDetector

            AnomalyDetector().check(shape, **self.of_detector)

    def check_images(
        self, shape: tuple[int, ...], channels: Sequence[Channel] = ()
    ) -> None:
        """Refuse ``(n, *space, channels)`` that do not fit a trained autoencoder."""
        from dipy_ldm.vqvae import refuse_other_images

        if not self.of_vqvae:
            refuse_other_images(self.vqvae, shape[1:], channels)

    def resolved(self, rank: int) -> "dict[str, ResolvedOptions]":
        """Resolve the options of autoencoder and diffusion model, if trained."""
        from dipy_ldm.training import FitOptions, resolve

        def shared(args):
            return {n: v for n, v in args.items() if n in FitOptions.__annotations__}

        stages = {"autoencoder": ("vqvae", self.of_vqvae)} if self.of_vqvae else {}
        stages |= {"diffusion": ("ldm", self.of_model)}
        return {
            title: resolve(stage, rank, shared(args))
            for title, (stage, args) in stages.items()
        }

    def fit(
        self,
        cohort: Cohort,
        held_out: Cohort | None,
        checkpoints: Sequence[Path],
        report: "Report",
        loggers: Sequence[Sequence],
    ) -> "LatentDiffusion":
        """Train autoencoder, diffusion model and, if requested, the detector."""
        validation = {} if held_out is None else held_out._asdict()
        names = "affine", "suffix", "channels"
        kinds: dict[str, Any] = {name: getattr(cohort, name) for name in names}
        held_out_images = validation.get("images")
        if self.of_vqvae:
            self.vqvae.fit(
                cohort.images,
                validation_data=held_out_images,
                masks=cohort.masks,
                checkpoint=checkpoints[0],
                callbacks=[report.autoencoder, *loggers[0]],
                **kinds,
                **self.of_patches,
                **self.of_vqvae,
            )
        else:
            self.vqvae.adapt(cohort.images, **kinds)
        model = self.model.fit(
            cohort.images,
            cohort.conditions,
            source=cohort.sources,
            source_channels=cohort.source_channels,
            subjects=cohort.subjects,
            validation_data=held_out_images,
            validation_conditions=validation.get("conditions"),
            validation_source=validation.get("sources"),
            validation_subjects=validation.get("subjects"),
            units=cohort.units or {},  # not None: they have been logged
            meanings=cohort.meanings,
            checkpoint=checkpoints[1],
            callbacks=[report.diffusion, *loggers[1]],
            **self.of_model,
        )
        if self.of_detector is None:
            return model
        return model.fit_detector(
            cohort.images,
            validation_data=held_out_images,
            checkpoint=checkpoints[2],
            callbacks=[partial(report.detector, model), *loggers[2]],
            **self.of_detector,
        )


def prepare(preset: Preset, strategy: object, options: TrainOptions) -> Recipe:
    """Return the estimators, perhaps from ``init``, and their training options."""
    from dipy_ldm import VQVAE, LatentDiffusion

    sizes = ("n_codes", "n_codebooks", "code_dim", "loss")
    architecture = {name: getattr(preset, name) for name in sizes}
    vqvae = VQVAE(widths=preset.widths_vqvae, seed=options.seed, **architecture)
    model = LatentDiffusion(vqvae, widths=preset.widths_ldm, seed=options.seed)
    names = "learning_rate", "precision", "remat", "accumulate", "checkpoint_steps"
    training = {name: getattr(options, name) for name in names}
    training |= {"batch_size": preset.batch_size, "strategy": strategy}
    of_vqvae, of_model = (training | preset.length(s) for s in ("vqvae", "ldm"))
    # None is the default augmentation, Augmentation() is none.
    augment = Augmentation() if options.no_augment else None
    of_patches: dict = {"patch": preset.patch, "augment": augment}
    of_patches["background"] = options.background
    steps = options.steps_detector
    of_detector = training | {"steps": steps} if steps else None
    recipe = Recipe(vqvae, model, of_vqvae, of_model, of_patches, of_detector)
    return recipe if options.init is None else _start_from_init(recipe, options)


def _start_from_init(recipe, options):
    """Start the training of a recipe from the model file of ``init``."""
    from dipy_ldm import VQVAE, LatentDiffusion

    init = options.init
    kind = _serialization.read_document(_serialization.find(init))["kind"]
    whole = LatentDiffusion.load(init) if kind == "latent_diffusion" else None
    vqvae = whole.vqvae_ if whole else VQVAE.load(init)
    recipe = recipe._replace(of_model=recipe.of_model | {"init": whole})
    if whole:
        names = "blocks", "attention", "schedule", "target", "guide"
        recipe.model.set_params(**{name: whole._fitted_with[name] for name in names})
        if whole.detector_ and not options.steps_detector:
            logger.warning(
                "the detector of %s is not used; train one with `steps_detector`.",
                init,
            )
    if not options.keeps_autoencoder:
        kept = "blocks", "bottleneck", "commitment"
        recipe.vqvae.set_params(**{name: vqvae._fitted_with[name] for name in kept})
        return recipe._replace(of_vqvae=recipe.of_vqvae | {"init": vqvae})
    model = recipe.model.set_params(vqvae=vqvae)
    return recipe._replace(vqvae=vqvae, model=model, of_vqvae={})


def tensorboard_callbacks(folder: str | None) -> list[list]:
    """Return the TensorBoard callbacks of each stage; none without a folder."""
    stages = "autoencoder", "diffusion", "detector"
    if folder is None:
        return [[] for _ in stages]
    if not (find_spec("tensorflow") and find_spec("tensorboard")):
        raise InputError(
            "`tensorboard` needs the packages tensorflow and tensorboard",
            "install them (pip install tensorboard), or leave it out: history.csv "
            "has the metrics",
        )
    with quiet_start():  # it imports TensorFlow
        from keras.callbacks import TensorBoard

    return [[TensorBoard(Path(folder) / s, write_graph=False)] for s in stages]


@dataclass
class Report:
    """Write the history after every round, and the picture as often as is cheap."""

    history_path: Path
    picture_path: Path
    shown: Cohort
    trains_autoencoder: bool = True
    histories: dict[str, dict] = field(default_factory=dict)
    pairs: tuple | None = None
    samples: np.ndarray | None = None
    not_before: float = 0.0

    # Maximum share of the time to draw pictures.
    MAX_DRAWING_SHARE: ClassVar[float] = 0.05

    def __post_init__(self) -> None:
        """Select the images in the picture, and their source images."""
        n = 16 if self.shown.affine is None else 4
        images, sources = self.shown.images[:n], self.shown.sources
        sources = None if sources is None else sources[:n]
        self.shown = self.shown._replace(images=images, sources=sources)

    def autoencoder(self, vqvae: "VQVAE") -> None:
        """Report on the autoencoder."""
        self.histories["autoencoder"] = vqvae.history_
        self._report(lambda: self._reconstruct(vqvae))

    def diffusion(self, model: "LatentDiffusion") -> None:
        """Report on the diffusion model."""
        self._collect(model)
        if self.pairs is None:
            self._reconstruct(model.vqvae)
        self._report(lambda: self._sample(model))

    def detector(
        self, model: "LatentDiffusion", detector: "AnomalyDetector | None"
    ) -> None:
        """Report on the detector, if there is one."""
        self._collect(model, detector)
        write_history(self.history_path, self.histories)

    def finish(self, model: "LatentDiffusion") -> None:
        """Write the final report, including stages that an earlier process trained."""
        self.detector(model, model.detector_)
        self._reconstruct(model.vqvae)
        self._sample(model)
        self._draw()

    def _collect(self, model, detector=None):
        """Collect the histories; an earlier process may have trained earlier stages."""
        # An autoencoder of init has the history of another training.
        vqvae = model.vqvae if self.trains_autoencoder else None
        stages = {"autoencoder": vqvae, "diffusion": model, "detector": detector}
        self.histories = {
            name: s.history_ for name, s in stages.items() if s is not None
        }

    def _reconstruct(self, vqvae):
        pair = self.shown.images, vqvae.predict(self.shown.images)
        self.pairs = tuple(map(self._pictures, pair))

    def _sample(self, model):
        sources = self.shown.sources
        n = 36 if self.shown.affine is None else 4
        n = n if sources is None else len(sources)
        self.samples = self._pictures(model.predict(n, source=sources, steps=10))

    def _pictures(self, images):
        from dipy_ldm import plots

        return plots.pictures(images, self.shown.affine, self.shown.channels)

    def _report(self, update):
        write_history(self.history_path, self.histories)
        start = time.monotonic()
        if start >= self.not_before:
            update()
            self._draw()
            end = time.monotonic()
            self.not_before = end + (end - start) / self.MAX_DRAWING_SHARE

    def _draw(self):
        from dipy_ldm import plots

        plots.save_training(
            self.picture_path, self.histories, pairs=self.pairs, samples=self.samples
        )


def write_history(path: Path, histories: dict[str, dict]) -> None:
    """Write a table of the histories, with a row for each round of each stage."""
    names = dict.fromkeys(name for history in histories.values() for name in history)
    table = io.StringIO()
    writer = csv.DictWriter(table, ["stage", *names], lineterminator="\n")
    writer.writeheader()
    for stage, history in histories.items():
        rounds = (dict(zip(history, figures)) for figures in zip(*history.values()))
        writer.writerows({"stage": stage} | figures for figures in rounds)
    write_text(path, table.getvalue())
