"""Diffusion series that are made of b = 0: their tables, and how they are written."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._conditions import BVAL, from_saved
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import NONE
from dipy_ldm.data._bvals_bvecs import B0_LIMIT, DIRECTION, Gradients, makes_series
from dipy_ldm.data._grid import Grid, conform
from dipy_ldm.data._nifti import read_volume
from dipy_ldm.data._preprocessing import conform_voxels
from dipy_ldm.workflows._outputs import write_tables


def is_of_series(document: dict) -> bool:
    """Return whether the model of a document makes diffusion series."""
    return makes_series(from_saved(document["conditions"]))


def read_table(
    document: dict, bvals: str | None, bvecs: str | None, request: dict | str
) -> Gradients | None:
    """Read the table of the series that a model shall make, if it makes series."""
    if not is_of_series(document):
        if bvals or bvecs:
            raise InputError(
                "this model was trained without `dwi`; leave out `bvals` and `bvecs`, "
                "or train one with it."
            )
        return None
    refuse_others_of_directions(document)
    if not (bvals and bvecs):
        raise InputError(
            "this model makes diffusion series; give their b-values as `bvals` and "
            "their directions as `bvecs`."
        )
    refuse_gradients(request, "the tables of `bvals` and `bvecs`")
    gradients = Gradients.read(bvals, bvecs)
    if not gradients.weighted.size:
        raise InputError(
            f"{bvals} has no b above {B0_LIMIT}, and there is nothing to make; give "
            "others."
        )
    return gradients


def refuse_others_of_directions(document: dict) -> None:
    """Refuse a model of directions that has not learnt series with their b = 0."""
    if document["source"] is None or document.get("channels"):
        raise InputError(
            "this model has directions, but is none of series and their b = 0; use it "
            "from Python, or train one with `dwi`."
        )


def refuse_gradients(request: dict | str, where: str) -> None:
    """Refuse b-values and directions as conditions, which tables have."""
    if isinstance(request, dict) and (own := {BVAL, DIRECTION} & set(request)):
        raise InputError(f"{min(own)} is in {where}; leave it out of the conditions.")


class Series(NamedTuple):
    """A series to be made of the b = 0 of a file.

    ``volume`` is that, on the grid of the model and in its own unit, ``source`` what
    networks get of it, and ``scale`` the unit of their images. The vectors are along
    the axes of the grid.

    Shapes: volume, source ``(*space, 1)``.
    """

    gradients: Gradients
    volume: np.ndarray
    source: np.ndarray
    scale: float
    affine: np.ndarray

    @classmethod
    def of(cls, file: Path, gradients: Gradients, grid: Grid) -> Self:
        """Read the b = 0, along whose voxels the vectors are given."""
        data, affine = read_volume(file)
        source, origin = conform_voxels(file, data, affine, grid, from_zero=True)
        scale = float(origin.intensities.high[0])
        on_grid = gradients.on(affine, grid.affine)
        return cls(on_grid, conform(data, affine, grid), source, scale, grid.affine)

    def conditions(
        self, request: dict | str, names: Iterable[str], place: int
    ) -> dict[str, Any]:
        """Return the conditions of all weighted volumes, and what one sample has."""
        own = dict.fromkeys(names, NONE) if isinstance(request, str) else request or {}
        own = {n: v[place] if isinstance(v, list) else v for n, v in own.items()}
        return own | self.gradients.conditions(self.affine, self.gradients.weighted)

    def fill(self, images: np.ndarray) -> np.ndarray:
        """Put ``(weighted, *space, 1)`` between the b = 0, in the unit of these."""
        series = np.repeat(self.volume, len(self.gradients.bvals), -1)
        series[..., self.gradients.weighted] = self.scale * np.moveaxis(
            images[..., 0], 0, -1
        )
        return series

    def write_tables(self, path: Path) -> None:
        """Write the tables of the series beside its file."""
        write_tables(path, self.gradients.texts())
