"""Conform scans with masks and sources, and diffusion series, to the grid."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, cast

import numpy as np

from dipy_ldm._utils.checks import InputError, check_each
from dipy_ldm.data import _nifti as nifti
from dipy_ldm.data._bvals_bvecs import Gradients
from dipy_ldm.data._grid import Grid, conform
from dipy_ldm.data._pairing import Task
from dipy_ldm.data._preprocessing import (
    Origin,
    conform_voxels,
    scale_intensities,
)
from dipy_ldm.data.channels import Channel, Unnamed


def conform_task(task: Task, grid: Grid) -> tuple[np.ndarray, ...]:
    """Resample a volume, its mask and its source to ``(*grid.shape, columns)``."""
    arrays = [conform_channels(task.parts, grid)[0]]
    if task.mask is not None:
        arrays.append(_conform_mask(task.mask, task.info.affine, grid))
    if task.source_parts:
        arrays.append(conform_channels(task.source_parts, grid)[0])
    return tuple(arrays)


def conform_channels(
    parts: Iterable[tuple[Channel, Path]], grid: Grid
) -> tuple[np.ndarray, list[Origin]]:
    """Return all channels of a scan, ``(*grid.shape, columns)``, and their origins."""
    read: list[tuple] = []
    check_each(lambda part: read.append(part[0].read(part[1], grid)), parts)
    images, origins = zip(*read)
    return np.concatenate(images, -1), list(origins)


def conform_series(tasks: Sequence[Task], grid: Grid) -> Iterator[Callable]:
    """Yield, for each volume of a diffusion series, a function that conforms it.

    All are scaled by the mean b = 0, their source, which keeps the attenuation. Volumes
    are read one by one.
    """
    info, mask = tasks[0].info, tasks[0].mask
    nifti.check_integrity(info.file)
    b0 = _mean_b0(info, tasks[0].gradients)
    source, origin = conform_voxels(info.file, b0, info.affine, grid, from_zero=True)
    masks = [] if mask is None else [_conform_mask(mask, info.affine, grid)]
    intensities = origin.intensities
    del b0, origin

    def conform_one(number, data):
        name = f"volume {number} of {info.file}"
        image = scale_intensities(nifti.refuse_values(name, data), intensities)
        image = conform(image, info.affine, grid)
        if image.min() == image.max():
            raise InputError(f"{name} is empty", "leave it out, also of the tables")
        return image, *masks, source

    numbers = [task.volume for task in tasks]
    for number, data in zip(numbers, nifti.read_each(info, numbers)):
        yield partial(conform_one, number, data)


def _mean_b0(info, gradients):
    """Return the mean b = 0 of a series, ``(x, y, z, 1)``."""
    b0 = sum(nifti.read_each(info, gradients.b0s.tolist())) / len(gradients.b0s)
    return nifti.refuse_values(f"b = 0 of {info.file}", np.asarray(b0, "float32"))


def _conform_mask(file, affine, grid):
    mask = conform(nifti.read_mask(file), affine, grid)[..., 0] >= 0.5
    if not mask.any():
        raise InputError(
            f"the mask {file} has nothing on the grid", "give a larger `shape`"
        )
    return mask.astype("uint8")


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredSeries(Unnamed):
    """A series as columns: mean b = 0, and weighted volumes scaled by it."""

    info: nifti.VolumeInfo
    gradients: Gradients

    @classmethod
    def of(cls, task: Task) -> Self:
        """Return the series of a task."""
        return cls(info=task.info, gradients=cast(Gradients, task.gradients))

    @property
    def width(self) -> int:
        """Number of columns."""
        return 1 + len(self.gradients.weighted)

    @property
    def conditions(self) -> Mapping[str, Sequence]:  # type: ignore[override]
        """b-value and direction of each weighted volume."""
        return self.gradients.conditions(self.info.affine, self.gradients.weighted)

    @property
    def tables(self) -> Sequence[Path]:  # type: ignore[override]
        """Files of b-values and directions."""
        return self.gradients.files

    @property
    def shown(self) -> int:  # type: ignore[override]
        """Index of the first weighted volume."""
        return int(self.gradients.weighted[0])

    def texts(self) -> dict[str, str]:
        """Return the contents of the files of b-values and directions."""
        return self.gradients.texts()

    def load(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read all volumes, ``(x, y, z, volumes)``, and their affine."""
        nifti.check_integrity(file)
        numbers = range(len(self.gradients.bvals))
        volumes = [*nifti.read_each(self.info, numbers)]

        def check(number):
            nifti.refuse_values(f"volume {number} of {file}", volumes[number])

        check_each(check, numbers)
        return np.concatenate(volumes, -1), self.info.affine

    def conform(
        self, file: Path, data: np.ndarray, affine: np.ndarray, grid: Grid
    ) -> tuple[np.ndarray, Origin]:
        """Conform b = 0 and weighted volumes to a grid; return their origin, too."""
        b0 = data[..., self.gradients.b0s].mean(-1, keepdims=True)
        source, origin = conform_voxels(file, b0, affine, grid, from_zero=True)
        weighted = data[..., self.gradients.weighted]
        images = conform(scale_intensities(weighted, origin.intensities), affine, grid)
        return np.concatenate([source, images], -1), origin._replace(data=data)

    def bring_back(self, images: np.ndarray, origin: Origin) -> np.ndarray:
        """Return the file's series with its weighted volumes replaced."""
        weighted, series = self.gradients.weighted, origin.data.copy()
        weighted_origin = origin._replace(data=series[..., weighted])
        series[..., weighted] = super().bring_back(images[..., 1:], weighted_origin)
        return series

    def spread(self, repeated: np.ndarray, origin: Origin) -> np.ndarray:
        """Return standard deviations of weighted volumes, and 0 for those of b = 0."""
        deviations = np.zeros_like(origin.data)
        weighted_deviations = super().spread(repeated, origin)[..., 1:]
        deviations[..., self.gradients.weighted] = weighted_deviations
        return deviations
