"""Presets: what suits the kind of the data, images or volumes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._batches import Augmentation


class Settings(NamedTuple):
    """Parameters and options of both stages whose defaults depend on the data."""

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
    augment: Augmentation | None

    def length(self, stage):
        """Return how long a stage is trained, as its ``fit`` takes it."""
        names = ("epochs", "steps")
        return {name: getattr(self, f"{name}_{stage}") for name in names}

    def training(self, stage: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Add to the options of a training what they leave out: length and batches."""
        length = self.length(stage)
        if options.get("epochs") is not None:
            length["steps"] = None
        return length | {"batch_size": self.batch_size} | options


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
    augment=None,
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
    augment=Augmentation(False, 2, 0.05, 0.1),
)


def of_rank(rank: int) -> Settings:
    """Return the defaults for a number of spatial dimensions."""
    return VOLUMES if rank == 3 else IMAGES


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
