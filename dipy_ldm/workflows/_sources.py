"""Source images of a command, and diffusion series generated from their b = 0."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._conditions import BVAL, from_saved
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import NONE
from dipy_ldm.data._bvals_bvecs import B0_LIMIT, DIRECTION, Gradients, makes_series
from dipy_ldm.data._conforming import conform_channels
from dipy_ldm.data._grid import Grid, conform
from dipy_ldm.data._nifti import read_volume
from dipy_ldm.data._preprocessing import conform_voxels
from dipy_ldm.data._scans import (
    check_channel_files,
    find_channel_files,
    grid_for_files,
    source_records,
)
from dipy_ldm.data._sources import Source, refuse_mismatch
from dipy_ldm.data.channels import Channel, from_saved as channels_from


class SourceInputs(NamedTuple):
    """Files of source images, and the grid to which they are resampled.

    ``parts`` maps the first file of each source image to the files of all its channels;
    ``assigned`` are the first files of those that this worker uses.
    """

    channels: Sequence[Channel]
    grid: Grid
    parts: dict[Path, list[Path]]
    assigned: list[Path]

    @classmethod
    def of(cls, document: dict, source_files: list[str] | None) -> Self | None:
        """Read and check the headers of source images."""
        if document["source"] and len(document["shape"]) != 4:
            raise InputError(
                "this model is conditioned on source images",
                "generate with LatentDiffusion.predict(source=...)",
            )
        refuse_mismatch(document["source"], source_files, "source_files")
        if source_files is None:
            return None
        source = Source(**document["source"])
        named = channels_from(document.get("source_channels"))
        channels = source_records(source, named)
        cure = "name those of one kind, with a wildcard"
        sets = find_channel_files(source_files, channels, cure=cure)
        start = "the model was trained with source images of"
        along_axis = (source.channels > 1 and not named) or None
        check_channel_files(sets, channels, along_axis, start=start)
        grid = grid_for_files(document["shape"], document["affine"], source.intensity)
        parts = {files[0]: files for files in sets}
        return cls(channels, grid, parts, list(parts))

    @property
    def files(self):
        """The first file of each source image."""
        return list(self.parts)

    def paths(self, file: Path) -> list[str]:
        """Return the files of all channels of a source image, as text."""
        return list(map(str, self.parts[file]))

    def read(self, file: Path) -> np.ndarray:
        """Read a source image on the grid of the model, ``(1, *space, channels)``."""
        pairs = zip(self.channels, self.parts[file])
        return conform_channels(pairs, self.grid)[0][None]


def is_of_series(document: dict) -> bool:
    """Return whether the model of a document makes diffusion series."""
    return makes_series(from_saved(document["conditions"]))


def read_gradients(
    document: dict, bvals: str | None, bvecs: str | None, request: dict | str
) -> Gradients | None:
    """Read b-values and directions of a series to generate; None for other models."""
    if not is_of_series(document):
        if bvals or bvecs:
            raise InputError(
                "this model was trained without `dwi`",
                "leave out `bvals` and `bvecs`, or train a model with `dwi`",
            )
        return None
    check_series(document, request, "the tables of `bvals` and `bvecs`")
    if not (bvals and bvecs):
        raise InputError(
            "this model makes diffusion series",
            "give their b-values as `bvals` and their directions as `bvecs`",
        )
    gradients = Gradients.read(bvals, bvecs)
    if not gradients.weighted.size:
        raise InputError(
            f"{bvals} has no b-value above {B0_LIMIT}, so there is nothing to generate",
            "give other b-values",
        )
    return gradients


def check_series(document: dict, request: dict | str, where: str) -> None:
    """Refuse a model of directions without b = 0, and gradients as conditions."""
    is_whole = document["source"] is not None and BVAL in document["conditions"]
    if not is_whole or document.get("channels"):
        raise InputError(
            "this model has directions, but is not one of series and their b = 0",
            "use it from Python, or train one with `dwi`",
        )
    if isinstance(request, dict) and (names := {BVAL, DIRECTION} & set(request)):
        raise InputError(
            f"{min(names)} is in {where}", "leave it out of the conditions"
        )


class Series(NamedTuple):
    """A series to be generated from the b = 0 in a file.

    ``volume`` is the b = 0 on the grid of the model, in its own intensities; ``source``
    is scaled for networks; ``scale`` converts their images to these intensities. The
    vectors are along the axes of the grid.

    Shapes: volume, source ``(*space, 1)``.
    """

    gradients: Gradients
    volume: np.ndarray
    source: np.ndarray
    scale: float
    affine: np.ndarray

    @classmethod
    def of(cls, file: Path, gradients: Gradients, grid: Grid) -> Self:
        """Read the b = 0, whose voxel axes the vectors refer to."""
        data, affine = read_volume(file)
        source, origin = conform_voxels(file, data, affine, grid, from_zero=True)
        scale = float(origin.intensities.high[0])
        on_grid = gradients.rotated(affine, grid.affine)
        return cls(on_grid, conform(data, affine, grid), source, scale, grid.affine)

    def conditions(
        self, request: dict | str, names: Iterable[str], place: int
    ) -> dict[str, Any]:
        """Return the conditions of a sample, with those of all weighted volumes."""
        row = dict.fromkeys(names, NONE) if isinstance(request, str) else request or {}
        row = {n: v[place] if isinstance(v, list) else v for n, v in row.items()}
        return row | self.gradients.conditions(self.affine, self.gradients.weighted)

    def fill(self, images: np.ndarray) -> np.ndarray:
        """Insert ``(weighted, *space, 1)`` among the b = 0, in their intensities."""
        series = np.repeat(self.volume, len(self.gradients.bvals), -1)
        series[..., self.gradients.weighted] = np.concatenate(self.scale * images, -1)
        return series
