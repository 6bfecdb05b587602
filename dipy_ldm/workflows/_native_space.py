"""Making parts of volumes anew in their own space: those of a mask, or lesions."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._grid import Grid, conform, restore
from dipy_ldm.data._nifti import write_changed
from dipy_ldm.data._preprocessing import conform_file, conform_voxels, restore_file
from dipy_ldm.diffusion import masks as holes
from dipy_ldm.workflows._provenance import describe, sidecar_first

# Of a voxel of the model: with less of it in the mask, none of it is made anew.
_TOUCHED = 0.05
# Of what is no background: where more is to be made anew, there is little to go by.
_MOST = 0.5


class Scan(NamedTuple):
    """A volume, and where it is made anew.

    ``data`` are ``(x, y, z, channels)``, ``affine`` takes their indices to millimetres,
    and ``hole`` says which are made anew, bool ``(x, y, z)``.
    """

    file: Path
    data: np.ndarray
    affine: np.ndarray
    hole: np.ndarray


def find_lesions(
    model: Any,
    file: Path,
    grid: Grid,
    channels: bool,
    threshold: float,
    tile: int | None,
) -> Scan:
    """Read a volume, and find where the detector of a model takes it for a lesion."""
    image, origin = conform_file(file, grid, channels)
    likely = model.detect(image[None], tile=tile)[0, ..., None]
    shape = origin.data.shape[:3]
    lesions = restore(likely, grid, origin.affine, shape, 0.0)[..., 0] >= threshold
    if lesions.sum() > _MOST * (origin.data != 0).any(-1).sum():
        raise InputError(
            f"{file} is taken for a lesion in most places; give a higher `threshold`, "
            "or volumes like those that the model learnt from."
        )
    return Scan(file, origin.data, origin.affine, lesions)


def on_grid(hole: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Say which voxels of the model's grid are not known.

    Shapes: hole ``(x, y, z)``.
    """
    return conform(hole[..., None].astype("float32"), affine, grid)[..., 0] > _TOUCHED


def fill_in(
    model: Any, scan: Scan, grid: Grid, n_samples: int, options: dict
) -> np.ndarray:
    """Make anew what is in the hole of a volume.

    Shapes: result ``(n_samples, voxels, channels)``.
    """
    # First of all: what is in the hole shall change neither the range of the
    # intensities nor, by the blur of larger voxels, what is around it.
    filled = holes.fill(scan.data[None], scan.hole[None])[0]
    image, origin = conform_voxels(scan.file, filled, scan.affine, grid)
    unknown = on_grid(scan.hole, scan.affine, grid)
    samples = []
    for number in range(n_samples):
        if unknown.any():
            sample_options = options | {"first": options["first"] + number}
            inpainted = model.inpaint(image[None], unknown[None], **sample_options)[0]
            restored = restore_file(inpainted, origin)
        else:
            restored = filled
        blended = holes.blend(scan.data[None], restored[None], scan.hole[None])[0]
        samples.append(blended[scan.hole])
    return np.stack(samples)


def write(path: Path, scan: Scan, values: np.ndarray, facts: dict) -> None:
    """Write a volume with other values in its hole, and beside it how it was made.

    Shapes: values ``(voxels, channels)``.
    """
    with sidecar_first(path, facts) as ready:
        write_changed(path, scan.file, scan.hole, values, describe(facts), ready)
