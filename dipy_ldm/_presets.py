"""Defaults of classes and commands, for images and for volumes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._batches import Augmentation


class Preset(NamedTuple):
    """Parameters and options of all stages whose defaults depend on the data.

    Default: those for images.
    """

    epochs_vqvae: int = 5
    epochs_ldm: int = 10
    steps_vqvae: int | None = None
    steps_ldm: int | None = None
    batch_size: int = 64
    widths_vqvae: tuple = (32, 64)
    widths_ldm: tuple = (128, 128)
    loss: str = "squared"
    code_dim: int = 3
    n_codes: int = 1024
    n_codebooks: int = 1
    patch: tuple | None = None
    augment: Augmentation | None = None
    rate_vqvae: float = 4e-3
    rate_ldm: float = 2e-3
    epochs_detector: int = 10
    steps_detector: int | None = None
    rate_detector: float = 2e-3

    def length(self, stage):
        """Return the training length of a stage, as options of its ``fit``."""
        steps = getattr(self, f"steps_{stage}")
        if steps is not None:
            return {"steps": steps}
        return {"epochs": getattr(self, f"epochs_{stage}")}

    def fit_options(self, stage: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in the defaults of the options of a ``fit``."""
        # None stands for the default, but as a strategy for a single device.
        options = {n: v for n, v in options.items() if v is not None or n == "strategy"}
        defaults = self.length(stage) | {"batch_size": self.batch_size}
        defaults["learning_rate"] = getattr(self, f"rate_{stage}")
        if "epochs" in options:
            if "steps" in options:
                raise InputError("give `epochs` or `steps`, not both")
            defaults["steps"] = None
        return defaults | options


IMAGES = Preset()
VOLUMES = Preset(
    epochs_vqvae=1,
    epochs_ldm=1,
    # In steps, since numbers of volumes differ widely between data sets.
    steps_vqvae=4000,
    steps_ldm=6000,
    batch_size=4,
    widths_ldm=(64, 128, 256),
    # Eight numbers and 40 bits for 64 voxels; with much less, gyri and sulci are lost.
    code_dim=8,
    n_codebooks=4,
    # More than the receptive field; steps on whole volumes would take far longer.
    patch=(48, 48, 48),
    augment=Augmentation(False, 2, 0.05, 0.1),
    rate_vqvae=2e-3,
)


def of_rank(rank: int) -> Preset:
    """Return the defaults for a number of spatial dimensions."""
    return VOLUMES if rank == 3 else IMAGES


def resolve(data: Any, **options) -> Preset:
    """Resolve the defaults for a cohort."""
    settings = {name: value for name, value in options.items() if value is not None}
    for stage in ("vqvae", "ldm"):
        if f"epochs_{stage}" in settings:
            settings[f"steps_{stage}"] = None
    return (IMAGES if data.affine is None else VOLUMES)._replace(**settings)
