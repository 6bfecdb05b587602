"""Images as users have them: arrays, files, images of nibabel, and loaded volumes.

All that is in files or has an affine goes the way of :func:`load_volumes`, or that of
one volume.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import nibabel as nib
from nibabel.filebasedimages import FileBasedImage
from nibabel.spatialimages import SpatialImage
import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.types import ImageOfNibabel
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._nifti import check_headers
from dipy_ldm.data._paths import (
    choose_files,
    common_suffix,
    find_volumes,
    holds_volumes,
)
from dipy_ldm.data._preprocessing import Origin, conform_file, conform_source
from dipy_ldm.data._sources import Source
from dipy_ldm.data.images import load_images
from dipy_ldm.data.volumes import Volumes, load_volumes

# What has a file or an affine.
Scan: TypeAlias = str | Path | ImageOfNibabel
Scans: TypeAlias = Scan | Sequence[Scan]
ImagesLike: TypeAlias = npt.ArrayLike | Scans | Volumes


def are_scans(images) -> bool:
    """Return whether images are paths or images of nibabel rather than arrays."""
    kinds = {isinstance(item, str | Path | FileBasedImage) for item in _items(images)}
    if len(kinds) > 1:
        raise InputError(
            "arrays and files are mixed; give one array, or paths and images of "
            "nibabel alone."
        )
    return kinds == {True}


def _items(images):
    """List the items of a list, also of a column of a table."""
    dtype = getattr(images, "dtype", None)
    if dtype is not None and dtype.kind in "OSU" and images.ndim == 1:
        images = images.tolist()
    return list(images) if isinstance(images, list | tuple) else [images]


@contextmanager
def files_of(scans) -> Iterator[tuple[list, Path | None]]:
    """Yield the files of scans; those in memory are written to a folder for a while."""
    with TemporaryDirectory() as folder:
        items = _items(scans)
        folders = (Path(folder, f"image-{i}") for i in range(len(items)))
        files = [_file_of(item, place) for item, place in zip(items, folders)]
        try:
            yield files, Path(folder) if files != items else None
        except InputError as error:
            raise InputError(str(error).replace(f"{folder}{os.sep}", "")) from error


def _file_of(scan, folder):
    if isinstance(scan, str | Path):
        return scan
    if not isinstance(scan, SpatialImage):
        raise InputError(
            f"{folder.name} is no volume but of the kind {type(scan).__name__}; give "
            "images with voxels and an affine, such as Nifti1Image."
        )
    name = Path(scan.get_filename() or "scan").name.partition(".")[0]
    folder.mkdir()
    data = scan.get_fdata(dtype=np.float32, caching="unchanged")
    image = nib.Nifti1Image(data, scan.affine, scan.header, dtype="float32")
    image.to_filename(folder / f"{name}.nii")
    return folder / f"{name}.nii"


def grid_of(shape: tuple[int, ...], affine: np.ndarray | None) -> Grid | None:
    """Return the grid of images ``(*space, channels)`` whose affine is known."""
    return None if affine is None else Grid(tuple(shape[:3]), affine)


def read_cohort(
    images: ImagesLike, grid: Grid | None = None, *, verbose: bool = False
) -> Cohort:
    """Load what a training learns from; arrays stay as they are."""
    if isinstance(images, Volumes):
        return Cohort(
            images.images,
            images.masks,
            images.affine,
            subjects=images.subjects,
            suffix=common_suffix(images.files),
            sources=images.sources,
            channels=images.channels,
        )
    if not are_scans(images):
        return Cohort(np.asarray(images))
    with files_of(images) as (files, folder):
        if not holds_volumes(files):
            return Cohort(load_images(files))
        volumes = load_volumes(files, grid=grid, cache_dir=folder, verbose=verbose)
        cohort = read_cohort(volumes)
        if folder is not None:
            cohort = cohort._replace(images=np.array(cohort.images))
        return cohort


def read_scans(
    scans, grid: Grid | None, channels: int
) -> tuple[np.ndarray, list[Origin]]:
    """Bring scans to a model's grid; of two-dimensional images there is no origin.

    Shapes: images ``(n, *space, channels)``.
    """
    with files_of(scans) as (files, folder):
        if grid is None:
            return load_images(files), []
        files = check_scans(files, channels)
        pairs = [conform_file(file, grid, channels > 1) for file in files]
        images, origins = zip(*pairs)
        origins = [o._replace(file=named(o.file, folder)) for o in origins]
        return np.stack(images), origins


def read_sources(source, info: Source | None, grid: Grid | None) -> Any:
    """Bring sources in files to a model's grid; arrays stay as they are."""
    if info is None or grid is None or source is None or not are_scans(source):
        return source
    how = info.channels > 1, bool(info.labels)
    with files_of(source) as (files, _):
        chosen = check_scans(files, info.channels)
        return np.stack([conform_source(file, grid, *how) for file in chosen])


def named(file: Path, folder: Path | None) -> Path:
    """Return how a file is called, without the folder of those in memory."""
    return file.relative_to(folder) if folder and folder in file.parents else file


def check_scans(files: Sequence[str | Path], channels: int) -> list[Path]:
    """Find volumes, and refuse those of other channels than a model has."""
    chosen = choose_files(find_volumes(files), cure="name the files of one kind")
    infos, _ = check_headers(chosen, channels > 1)
    if infos[0].channels != channels:
        raise InputError(
            f"the model is of {channels} channels, and {infos[0].file} has "
            f"{infos[0].channels}; give files like its training data."
        )
    return chosen


def is_one(scans) -> bool:
    """Return whether something is one scan, and not a list or a folder of them."""
    if isinstance(scans, str | Path):
        return Path(scans).expanduser().is_file() and ".nii" in Path(scans).name.lower()
    return isinstance(scans, SpatialImage)


def require_affine(affine: npt.ArrayLike | None) -> np.ndarray:
    """Return the affine of a model, or raise that it has none."""
    if affine is None:
        raise InputError(
            "this model has no affine; fit the VQVAE with "
            "affine=..., or train with dipy_train_ldm."
        )
    return np.array(affine, "float64")
