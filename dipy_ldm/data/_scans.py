"""Accept images as arrays, files, nibabel images or loaded volumes.

Files, and images with an affine, are conformed as by :func:`load_volumes` or singly.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, combinations
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import nibabel as nib
from nibabel.filebasedimages import FileBasedImage
from nibabel.filename_parser import splitext_addext
from nibabel.spatialimages import SpatialImage
import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.progress import reworded
from dipy_ldm._utils.values import listed
from dipy_ldm.data import _nifti as nifti
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data._conforming import conform_channels
from dipy_ldm.data._grid import Grid, same_grid
from dipy_ldm.data._image_checks import refuse_masked
from dipy_ldm.data._pairing import (
    contradict,
    group_channels,
    in_space,
    pair_sources,
    read_channel_sets,
    refuse_spaces,
)
from dipy_ldm.data._paths import (
    choose_files,
    choose_for_channels,
    common_suffix,
    find_volumes,
    holds_volumes,
    stem,
    suffix,
)
from dipy_ldm.data._sources import Source
from dipy_ldm.data._table_rows import find_image_subjects
from dipy_ldm.data.channels import Channel, LabelNumbers, Unnamed
from dipy_ldm.data.images import load_images, read_images as read_image_files
from dipy_ldm.data.volumes import Volumes, conform_volumes, plan_volumes

logger = logging.getLogger("dipy_ldm")

# How far interpolation takes intensities beyond 0 to 1.
_OVERSHOOT = 0.1

# Scans with a file or an affine.
File: TypeAlias = str | Path | FileBasedImage
Scan: TypeAlias = File | Mapping[str, File]
Scans: TypeAlias = Scan | Sequence[Scan]
ImagesLike: TypeAlias = npt.ArrayLike | Scans | Volumes


def are_scans(images) -> bool:
    """Return whether images are paths or nibabel images rather than arrays.

    Scans of named channels may be dictionaries by channel.
    """
    scans = str | Path | FileBasedImage | Mapping
    kinds = {isinstance(item, scans) for item in _as_list(images)}
    if len(kinds) > 1:
        raise InputError(
            "arrays and files are mixed",
            "give one array, or only paths and nibabel images",
        )
    return kinds == {True}


def _as_list(images):
    """Return one item, or those of a list or a column of a table, as a list."""
    if isinstance(images, Iterator):
        raise InputError(
            "images are an iterator, which can be read only once",
            "give list(...) of it",
        )
    kind = getattr(getattr(images, "dtype", None), "kind", None)
    if kind in ("O", "S", "U") and images.ndim == 1:
        images = images.tolist()
    return list(images) if isinstance(images, list | tuple) else [images]


@contextmanager
def files_of(scans) -> Iterator[tuple[list, Path | None]]:
    """Yield the files of scans; those in memory are written to a temporary folder."""
    with TemporaryDirectory() as folder:
        items, prefix = _as_list(scans), f"{folder}{os.sep}"
        folders = (Path(folder, f"image-{i}") for i in range(len(items)))
        files = [_file_of(item, place) for item, place in zip(items, folders)]
        try:
            with reworded("dipy_ldm", lambda text: text.replace(prefix, "")):
                yield files, Path(folder) if files != items else None
        except InputError as error:
            raise error.renamed({prefix: ""}) from error


def _file_of(scan, folder):
    if isinstance(scan, str | Path):
        return scan
    if isinstance(scan, Mapping):
        return {name: _file_of(file, folder / name) for name, file in scan.items()}
    if not isinstance(scan, SpatialImage):
        raise InputError(
            f"{folder.name} is not a volume but a {type(scan).__name__}",
            "give images with voxels and an affine, such as Nifti1Image",
        )
    nifti.refuse_non_real(folder.name, scan)
    name = Path(splitext_addext(scan.get_filename() or "scan")[0]).name
    folder.mkdir(parents=True)
    data = scan.get_fdata(dtype=np.float32, caching="unchanged")
    image = nib.Nifti1Image(data, scan.affine, scan.header, dtype="float32")
    image.to_filename(folder / f"{name}.nii")
    return folder / f"{name}.nii"


def grid_of(shape: tuple[int, ...], affine: np.ndarray | None) -> Grid | None:
    """Return the grid of images ``(*space, channels)``; None without an affine."""
    return None if affine is None else Grid(tuple(shape[:3]), affine)


def grid_for_files(
    shape: Sequence[int], affine: npt.ArrayLike | None, intensity: Sequence[float]
) -> Grid:
    """Return the grid that files are conformed to for a model, or refuse them."""
    grid = Grid(tuple(shape[:3]), require_affine(affine))
    refuse_other_range(intensity)
    return grid


def refuse_other_range(intensity: Sequence[float]) -> None:
    """Refuse files, which are scaled to 0 to 1, for a model of another range."""
    low, high = intensity
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        raise InputError(
            "intensities of files are scaled to 0 to 1, but this model was fitted to "
            f"arrays from {low:g} to {high:g}",
            "give such arrays, or a model that was fitted to files or to what "
            "load_volumes returns",
        )


def read_cohort(
    images: ImagesLike,
    grid: Grid | None = None,
    channels: Sequence[str | Channel] = (),
    *,
    verbose: bool = False,
) -> Cohort:
    """Load training images with their metadata; arrays stay as they are."""
    if isinstance(images, Volumes):
        volume_grid = Grid(images.images.shape[1:4], images.affine)
        if grid is not None and not same_grid(volume_grid, grid):
            raise InputError(
                "the volumes lie on another grid than the training volumes",
                "load them with load_volumes(..., grid=Grid(shape, affine)) of these",
            )
        names = "images masks affine subjects sources channels source_channels".split()
        shared: dict[str, Any] = {name: getattr(images, name) for name in names}
        return Cohort(suffix=common_suffix(images.files), **shared)
    if not are_scans(images):
        return Cohort(_as_array(images))
    with files_of(images) as (files, folder), _explaining_load_options():
        if any(isinstance(scan, Mapping) for scan in files):
            raise InputError(
                "dictionaries of channels are not for training",
                "give files with BIDS names, and `channels`",
            )
        if not holds_volumes(files):
            arrays, file_of = read_image_files(files)
            return Cohort(arrays, subjects=find_image_subjects(file_of))
        plan = plan_volumes(files, grid=grid, channels=channels)
        in_memory = folder is not None
        volumes = conform_volumes(plan, folder, verbose=verbose, temporary=in_memory)
        cohort = read_cohort(volumes)
        return cohort._replace(images=np.array(cohort.images)) if in_memory else cohort


@contextmanager
def _explaining_load_options():
    """Explain the options of load_volumes that an error names."""
    try:
        yield
    except InputError as error:
        if not error.options & {"suffix", "filter", "channels", "skip_bad"}:
            raise
        error.cure += ", by the options of dipy_ldm.data.load_volumes (pass what it "
        error.cure += "returns)"
        raise


def _as_array(images):
    refuse_masked(_as_list(images))
    try:
        return np.asarray(images)
    except ValueError as error:
        raise InputError(
            "images differ in shape",
            "give one array (n, *space, channels), or volumes in files",
        ) from error


def read_images(scans: Scans) -> np.ndarray:
    """Read two-dimensional images from files; refuse volumes."""
    with files_of(scans) as (files, _):
        if holds_volumes(files):
            raise InputError(
                "this model is of two-dimensional images, but these are volumes",
                "give images, or a model of volumes",
            )
        return load_images(files)


def find_channel_files(
    paths: Sequence[str | Path],
    channels: Sequence[Channel],
    suffixes: str | Sequence[str] | None = None,
    values: Mapping[str, str | Sequence[str]] | None = None,
    cure: str = "",
    dwi: bool = False,
) -> list[list[Path]]:
    """Return the files of all channels of each scan, or with ``dwi`` of each series."""
    files, names = find_volumes(paths), [channel.name for channel in channels]
    alone = len(files) == len(names) == 1 and not (suffixes or values)
    if alone and suffix(files[0]) is None:
        name = stem(files[0]).lower()
        if "_" in name and names[0].rpartition("-")[2].lower() not in name:
            text = "%s is used as %s, although its name does not contain it."
            logger.warning(text, files[0].name, names[0])
        return [files]
    if names == [""]:
        return [[file] for file in choose_files(files, suffixes, values, cure, dwi)]
    files = choose_for_channels(files, suffixes, values)
    return group_channels(files, names, cure and "name one of them")


def check_channel_files(
    sets: Sequence[Sequence[Path]],
    channels: Sequence[Channel],
    along_axis: bool | None,
    skip_bad: bool = False,
    start: str = "the model is of",
) -> tuple[list[nifti.VolumeInfo], dict[Path, InputError]]:
    """Return the first header of each good set of channels, and all complaints."""
    good, bad = read_channel_sets(sets, along_axis)
    nifti.refuse_files(bad, len(good) if skip_bad else 0, skip_bad)
    nifti.warn_of_space([*chain(*good)])
    for infos in good:
        refuse_spaces(infos)
    first, width = good[0][0], 1 if channels[0].name else channels[0].width
    if first.channels != width:
        raise InputError(
            f"{start} {width} channels, and {first.file} has {first.channels}",
            "give files like its training data",
        )
    return [set_infos[0] for set_infos in good], bad


def resolve_channel_files(
    files: Sequence, channels: Sequence[Channel]
) -> list[list[Path]]:
    """Return the files of each scan, in the order of its channels."""
    if any(isinstance(scan, Mapping) for scan in files):
        names = [channel.name for channel in channels]
        sets = [[_file_of_channel(scan, name) for name in names] for scan in files]
        for file, other in chain(
            *(combinations(channel_files, 2) for channel_files in sets)
        ):
            if contradict(file, other):
                raise InputError(
                    f"{file} and {other} are of different subjects or sessions",
                    "give all channels of one scan",
                )
            in_space(file, [other])
    else:
        paths = list(map(os.path.abspath, files))
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise InputError(f"{twice} is given twice", "give each scan once")
        sets = find_channel_files(files, channels, cure="name the files of one kind")
    along_axis = channels[0].width > 1 and not channels[0].name
    check_channel_files(sets, channels, along_axis or None)
    return sets


def _file_of_channel(files, name):
    if not name:
        raise InputError(
            "the channels of this model have no names", "give files, not dictionaries"
        )
    names = files if isinstance(files, Mapping) else {}
    if name not in names:
        raise InputError(
            f"the channel {name} is missing (given: "
            f"{listed(names) or files or 'none'})",
            "give each scan as a dictionary with all channels, by their names",
        )
    return Path(os.path.expanduser(files[name]))


def read_sources(
    source,
    info: Source,
    grid: Grid | None,
    channels: Sequence[Channel] = (),
    scans: Sequence[Path] = (),
    *,
    of_series: bool = False,
) -> tuple[np.ndarray, list[list[Path]]]:
    """Read source images ``(n, *space, channels)``; return the files of volumes, too.

    They are paired with ``scans``, if there are any; a single source is shared by all.
    Those ``of_series`` are b = 0 volumes.
    """
    if grid is None:
        return read_images(source), []
    with files_of(source) as (files, folder):
        records = source_records(info, channels, of_series)
        sets = resolve_channel_files(files, records)
        if scans and (len(sets) > 1 or len(scans) == 1):
            source_of = pair_sources(
                scans, [channel_files[0] for channel_files in sets]
            )
            set_of = {channel_files[0]: channel_files for channel_files in sets}
            sets = [set_of[source_of[scan]] for scan in scans]
        images = [
            conform_channels(zip(records, channel_files), grid)[0]
            for channel_files in sets
        ]
        names = [
            [displayed_path(file, folder) for file in channel_files]
            for channel_files in sets
        ]
        return np.stack(images), names


def source_records(
    info: Source, named: Sequence[Channel] = (), of_series: bool = False
) -> Sequence[Channel]:
    """Return the records by which files of sources are read."""
    if not named and info.labels:
        return (LabelNumbers(n=info.channels, labels=info.labels),)
    return named or (Unnamed(n=info.channels, from_zero=of_series),)


def displayed_path(file: Path, folder: Path | None) -> Path:
    """Return a path without the temporary folder of scans in memory."""
    return file.relative_to(folder) if folder and folder in file.parents else file


def is_single_scan(scans) -> bool:
    """Return whether something is one scan rather than a list or folder of them."""
    if isinstance(scans, Mapping):
        return True
    if isinstance(scans, str | Path):
        path = os.path.expanduser(scans)
        return os.path.isfile(path) and ".nii" in os.path.basename(path).lower()
    return isinstance(scans, SpatialImage)


def require_affine(affine: npt.ArrayLike | None) -> np.ndarray:
    """Return the affine of a model, or refuse a model without one."""
    if affine is None:
        raise InputError(
            "this model has no affine",
            "fit the VQVAE with affine=..., or train with dipy_train_ldm",
        )
    return np.array(affine, "float64")
