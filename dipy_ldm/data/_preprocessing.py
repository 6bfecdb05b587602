"""One volume: from its file to a grid and to intensities from 0 to 1, and back."""

from pathlib import Path
from typing import Any, NamedTuple

from nibabel.affines import voxel_sizes
import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import _intensity as intensity
from dipy_ldm.data._grid import (
    Grid,
    conform,
    conform_labels,
    is_within_a_voxel,
    restore,
)
from dipy_ldm.data._intensity import Intensities
from dipy_ldm.data._nifti import read_mask, read_volume


class Origin(NamedTuple):
    """Where a conformed volume is from: all that the way back needs.

    ``data`` are the file's own voxels, ``(x, y, z, channels)``, and ``affine`` is
    theirs.
    """

    file: Path
    data: np.ndarray
    affine: np.ndarray
    grid: Grid
    intensities: Intensities


def conform_file(
    file: str | Path, grid: Grid, channels: bool = False
) -> tuple[np.ndarray, Origin]:
    """Read a volume and bring it to a grid, and its intensities to [0, 1].

    What is made of the image goes back to the file's own space with
    :func:`restore_file`::

        image, origin = conform_file(file, grid)
        clean = model.denoise(image[None])[0]
        write_volume(path, restore_file(clean, origin), origin.affine)

    Shapes: image ``(*grid.shape, channels)``.
    """
    data, affine = read_volume(file, channels)
    return conform_voxels(file, data, affine, grid)


def conform_voxels(
    file: str | Path, data: np.ndarray, affine: np.ndarray, grid: Grid
) -> tuple[np.ndarray, Origin]:
    """Bring voxels that are read already to a grid, as :func:`conform_file` does.

    Shapes: data ``(x, y, z, channels)``, image ``(*grid.shape, channels)``.
    """
    intensities = intensity.measure_range(data)
    scaled = intensity.scale_intensities(data, intensities)
    if intensity.is_flattened(data, scaled):
        raise InputError(
            f"{file} has values from {data.min():g} to {data.max():g} that can't be "
            "told apart when they are brought to 0 to 1; subtract what they have in "
            "common, and replace a number that marks missing voxels by 0."
        )
    if is_within_a_voxel(data.shape, affine, grid):
        sizes = " x ".join(f"{n:.3g}" for n in voxel_sizes(grid.affine))
        raise InputError(
            f"{file} is smaller than a voxel of the grid ({sizes} mm), as if its "
            "affine were in metres; write it in mm, or give a smaller `voxel_size`."
        )
    image = conform(scaled, affine, grid)
    if image.min() == image.max():
        raise InputError(
            f"{file} has nothing on the grid, which has the shape {grid.shape} and "
            f"begins at {np.round(grid.affine[:3, 3], 1).tolist()} mm; check its "
            "affine, or give a larger `shape`."
        )
    return image, Origin(Path(file), data, affine, grid, intensities)


def restore_file(image: np.ndarray, origin: Origin) -> np.ndarray:
    """Bring an image on a grid back to the space and intensities of its file.

    Shapes: image ``(*grid.shape, channels)``, result ``(x, y, z, channels)``.
    """
    data = intensity.unscale_intensities(image, origin.intensities)
    shape = origin.data.shape[:3]
    return restore(data, origin.grid, origin.affine, shape, origin.data)


def restore_spread(spread: np.ndarray, origin: Origin) -> np.ndarray:
    """Bring standard deviations of images on a grid back to the space of their file.

    Shapes: spread ``(*grid.shape, channels)``, result ``(x, y, z, channels)``.
    """
    low, high = origin.intensities
    shape = origin.data.shape[:3]
    return restore(spread * (high - low), origin.grid, origin.affine, shape, 0.0)


def conform_source(
    file: str | Path, grid: Grid, channels: bool = False, labels: bool = False
) -> np.ndarray:
    """Read a source and bring it to a grid.

    Shapes: result ``(*grid.shape, channels)``.
    """
    if not labels:
        return conform_file(file, grid, channels)[0]
    data, affine = read_volume(file, channels)
    if (data != np.rint(data)).any():
        raise InputError(
            f"{file} has numbers that are not whole, and is no segmentation; name one, "
            "or leave `source_labels` out."
        )
    return conform_labels(data, affine, grid).astype("int32")


def conform_task(task: Any, grid: Grid, labels: bool = False) -> tuple[np.ndarray, ...]:
    """Bring a volume and what belongs to it to a grid.

    Shapes: result ``(*grid.shape, channels)``.
    """
    info, mask, source = task
    arrays = [conform_file(info.file, grid, channels=info.channels > 1)[0]]
    if mask is not None:
        arrays.append(_conform_mask(mask, info.affine, grid))
    if source is not None:
        channels = source.channels > 1
        arrays.append(conform_source(source.file, grid, channels, labels))
    return tuple(arrays)


def _conform_mask(file, affine, grid):
    mask = conform(read_mask(file), affine, grid)[..., 0] >= 0.5
    if not mask.any():
        raise InputError(
            f"the mask {file} has nothing on the grid; mend it or give a larger "
            "`shape`."
        )
    return mask.astype("uint8")
