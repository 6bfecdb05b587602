"""Work on scans in their own space: to a model's grid, and back."""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import (
    Any,
    Concatenate,
    NamedTuple,
    ParamSpec,
    Protocol,
    cast,
    overload,
)

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.types import ImageOfNibabel
from dipy_ldm.data._grid import Grid, conform, restore, same_grid
from dipy_ldm.data._nifti import read_header, read_mask, read_volume
from dipy_ldm.data._paths import expand
from dipy_ldm.data._plan import pair_masks
from dipy_ldm.data._preprocessing import Origin, conform_voxels, restore_file
from dipy_ldm.data._scans import (
    Scan,
    are_scans,
    check_scans,
    files_of,
    is_one,
    named,
    read_scans,
)
from dipy_ldm.data._sidecars import SyntheticImage, synthetic_image
from dipy_ldm.diffusion import _inpainting as inpainting

# Of a voxel of the model: with less of it in the mask, none of it is inpainted.
_MIN_HOLE_SHARE = 0.05

P = ParamSpec("P")


class OfScans(Protocol[P]):
    """A method of images: arrays for arrays, images of nibabel for scans."""

    @overload
    def __call__(
        self, images: ImageOfNibabel, *args: P.args, **kwargs: P.kwargs
    ) -> SyntheticImage: ...
    @overload
    def __call__(
        self, images: str | Path, *args: P.args, **kwargs: P.kwargs
    ) -> Any: ...
    @overload  # paths are text, of which arrays may be, too
    def __call__(  # type: ignore[overload-overlap]
        self, images: Sequence[Scan], *args: P.args, **kwargs: P.kwargs
    ) -> list[SyntheticImage]: ...
    @overload
    def __call__(
        self, images: npt.ArrayLike, *args: P.args, **kwargs: P.kwargs
    ) -> np.ndarray: ...


def of_scans(
    method: Callable[Concatenate[Any, npt.ArrayLike, P], np.ndarray],
) -> OfScans[P]:
    """Let a method that works on arrays take scans, and return them in their space."""

    @wraps(method)
    def apply(self, images, *args, **kwargs):
        if not are_scans(images):
            return method(self, images, *args, **kwargs)
        self._check_fitted()
        on_grid, origins = read_scans(images, *self._grid())
        results = method(self, on_grid, *args, **kwargs)
        if not origins:
            return results
        facts = self._facts(len(results), **kwargs)
        restored = list(map(_restored, results, origins, facts))
        return restored[0] if is_one(images) else restored

    return cast(OfScans[P], apply)


def _restored(result, origin, facts):
    """Bring an image, or a map of probabilities without channels, to a scan's space."""
    if result.ndim == 3:
        shape = origin.data.shape[:3]
        volume = restore(result[..., None], origin.grid, origin.affine, shape, 0.0)
    else:
        volume = restore_file(result, origin)
    return synthetic_image(
        volume, origin.affine, facts | {"Sources": [str(origin.file)]}
    )


def of_masked_scans(
    method: Callable[Concatenate[Any, npt.ArrayLike, P], np.ndarray],
) -> OfScans[P]:
    """Let a method that inpaints arrays take scans and masks, as :func:`of_scans`."""

    @wraps(method)
    def apply(self, images, masks, **kwargs):
        inpaint: Any = method
        if not are_scans(images):
            return inpaint(self, images, masks, **kwargs)
        self._check_fitted()
        grid, channels = self._grid()
        masked = _read_masked(images, masks, grid, channels)
        arrays, holes, origins = zip(*(scan.conformed(grid) for scan in masked))
        results = inpaint(self, np.stack(arrays), np.stack(holes), **kwargs)
        several = kwargs.get("n_samples") is not None
        samples = results if several else results[:, None]
        facts = self._facts(len(results), **kwargs)
        inpainted: list = [
            [_inpainted(scan, sample, origin, own) for sample in own_samples]
            for scan, own_samples, origin, own in zip(masked, samples, origins, facts)
        ]
        inpainted = inpainted if several else [one for (one,) in inpainted]
        return inpainted[0] if is_one(images) else inpainted

    return cast(OfScans[P], apply)


def _inpainted(scan, sample, origin, facts):
    volume = scan.blended(restore_file(sample, origin))
    return synthetic_image(volume, scan.affine, facts | {"Sources": [str(scan.file)]})


def _read_masked(scans, masks, grid, channels):
    """Read volumes and their masks, which have their grids."""
    if grid is None:
        raise InputError("masks of two-dimensional images are arrays; give both so.")
    with files_of(scans) as (files, folder), files_of(masks) as (mask_files, _):
        files, mask_files = check_scans(files, channels), expand(mask_files)
        if len(mask_files) == 1:
            mask_files *= len(files)
        pairs = pair_masks(files, mask_files)
        return [
            _masked(file, mask, grid, channels)._replace(file=named(file, folder))
            for file, mask in pairs.items()
        ]


def _masked(file, mask_file, grid, channels):
    data, affine = read_volume(file, channels > 1)
    info = read_header(mask_file, channels=False)
    if not same_grid(data.shape[:3], affine, info.shape, info.affine):
        raise InputError(
            f"the mask {mask_file} has another grid (shape or affine) than {file}; "
            "bring it to that of its volume."
        )
    hole = read_mask(mask_file)[..., 0] > 0
    if not on_grid(hole, affine, grid).any():
        raise InputError(
            f"the mask {mask_file} has nothing on the grid of the model; align it and "
            "its volume with the training volumes."
        )
    return MaskedScan(file, data, affine, hole)


class MaskedScan(NamedTuple):
    """A volume, and the mask to inpaint.

    ``data`` are ``(x, y, z, channels)``, ``affine`` takes their indices to millimetres,
    and ``hole`` says which are inpainted, bool ``(x, y, z)``.
    """

    file: Path
    data: np.ndarray
    affine: np.ndarray
    hole: np.ndarray

    def conformed(self, grid: Grid) -> tuple[np.ndarray, np.ndarray, Origin]:
        """Return the volume and its hole on a grid, and the way back.

        What is in the hole changes neither the range of the intensities nor, by the
        blur of larger voxels, what is around it: it is filled first.
        """
        filled = inpainting.fill(self.data[None], self.hole[None])[0]
        image, origin = conform_voxels(self.file, filled, self.affine, grid)
        return image, on_grid(self.hole, self.affine, grid), origin

    def filled(self, values: np.ndarray) -> np.ndarray:
        """Return the volume with other values in its hole.

        Shapes: values ``(voxels, channels)``.
        """
        volume = self.data.copy()
        volume[self.hole] = values
        return volume

    def blended(self, restored: np.ndarray) -> np.ndarray:
        """Blend an inpainted volume into the hole.

        Shapes: restored ``(x, y, z, channels)``.
        """
        images = self.data[None], restored[None], self.hole[None]
        return inpainting.blend(*images)[0]


def on_grid(hole: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Return which voxels of the model's grid are inpainted.

    Shapes: hole ``(x, y, z)``.
    """
    return (
        conform(hole[..., None].astype("float32"), affine, grid)[..., 0]
        > _MIN_HOLE_SHARE
    )
