"""Headers of NIfTI files: what they say, and whether it can be.

Nothing but the header and the size of a file is looked at.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import logging
import math
import os
from pathlib import Path
import re
from typing import Any, NamedTuple
import zlib

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
import numpy as np

from dipy_ldm._utils.checks import InputError

logger = logging.getLogger("dipy_ldm")

# What nibabel raises at files that are cut, foreign or nonsense.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    HeaderTypeError,
)
# DEFLATE makes nothing smaller than this (RFC 1951: 258 bytes from two bits).
_STRONGEST_COMPRESSION = 1032


class VolumeInfo(NamedTuple):
    """What a header says of a volume."""

    file: Path
    shape: tuple
    channels: int
    affine: np.ndarray
    oriented: bool


def check_headers(
    files: Sequence[Path], channels: bool = False, skip_bad: bool = False
) -> tuple[list[VolumeInfo], dict[Path, str]]:
    """Read the headers of all files, and report on all the bad ones at once.

    Shapes: infos ``(x, y, z)``.
    """
    infos, complaints = read_headers(files, channels)
    refuse_files(complaints, len(infos), skip_bad)
    unsure = [str(info.file) for info in infos if not info.oriented]
    if unsure:
        logger.warning(
            "%d volumes have neither sform nor qform, so that left and right are "
            "assumed (%s first)",
            len(unsure),
            unsure[0],
        )
    return infos, complaints


def read_headers(
    files: Sequence[Path], channels: bool = False
) -> tuple[list[VolumeInfo], dict[Path, str]]:
    """Read the headers of all files, and refuse none."""
    infos, complaints = [], {}
    for file in files:
        try:
            infos.append(read_header(file, channels))
        except InputError as error:
            complaints[file] = str(error)
    return _with_equal_channels(infos, complaints), complaints


def refuse_files(complaints: Mapping[Any, str], n_good: int, skip_bad: bool) -> None:
    """Report on bad files, as an error or, if they are to be skipped, as a warning."""
    report = "\n".join(complaints.values())
    if complaints and not n_good:
        raise InputError(report)
    if complaints and not skip_bad:
        raise InputError(
            f"{report}\nAdd `skip_bad` to go on without "
            f"{'it' if len(complaints) == 1 else 'them'} ({n_good} good)."
        )
    if complaints:
        logger.warning("skipped %d bad volumes:\n%s", len(complaints), report)


def is_whole(file: Path) -> bool:
    """Say whether a volume is there, as far as its header and size tell."""
    try:
        read_header(file, channels=True)
    except InputError:
        return False
    return True


def read_header(file: str | Path, channels: bool) -> VolumeInfo:
    """Check what a header tells."""
    image = _load(file)
    shape, n_channels = _axes(file, image.shape)
    if n_channels > 1 and (table := _gradients(file)):
        raise InputError(
            f"{file} is a diffusion series ({table.name} is beside it), and a model "
            "does not learn b-values and directions; give a volume or a map of it, "
            "such as b = 0 or FA."
        )
    if n_channels > 1 and not channels:
        raise InputError(
            f"{file} has {n_channels} volumes, shape {image.shape}; add `channels` to "
            "take them for the channels of one, or give a file with one of them."
        )
    _check_type(file, image.get_data_dtype())
    _check_affine(file, image.affine)
    _check_size(file, image)
    oriented = image.header["sform_code"] > 0 or image.header["qform_code"] > 0
    return VolumeInfo(Path(file), shape, n_channels, image.affine, bool(oriented))


def _gradients(file):
    """Find the table of b-values or directions beside a file."""
    stem = re.sub(r"\.nii(\.gz)?$", "", str(file), flags=re.IGNORECASE)
    tables = (Path(f"{stem}{end}") for end in (".bval", ".bvec", ".bvals", ".bvecs"))
    return next(filter(Path.is_file, tables), None)


def _load(file):
    """Open a file; nothing but its header is read."""
    try:
        image = nib.load(file)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {file}; check the path.") from error
    except PermissionError as error:
        raise InputError(f"{file} may not be read; ask for the permission.") from error
    except UNREADABLE as error:
        raise InputError(_explain(file)) from error
    if not isinstance(image, nib.Nifti1Pair):
        raise InputError(f"{file} is of another kind than NIfTI; convert it first.")
    return image


def _explain(file):
    if not Path(file).stat().st_size:
        return f"{file} is empty; copy or convert it anew."
    return (
        f"{file} can't be read as NIfTI; is it whole, and of the kind that its name "
        "tells? Copy or convert it anew."
    )


def cut_off(file: str | Path) -> str:
    """Say that a file is not whole."""
    return f"{file} is cut off or damaged; copy or convert it anew."


def is_compressed(file: str | Path) -> bool:
    """Tell by its name whether a file is compressed."""
    return str(file).lower().endswith(".gz")


def _axes(file, shape):
    """Split the axes into three of space and one of channels."""
    further = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or min(shape[:3]) == 1:
        raise InputError(
            f"{file} is a slice, shape {shape}; give volumes, or slices as .npy or "
            ".png files."
        )
    if 0 in shape or len(further) > 1:
        raise InputError(
            f"{file} has shape {shape}; give volumes (x, y, z) or (x, y, z, channels)."
        )
    return tuple(shape[:3]), math.prod(further)


def _check_type(file, dtype):
    if dtype.kind not in "iuf":
        kind = "complex" if dtype.kind == "c" else "coloured"
        raise InputError(f"{file} has {kind} voxels; convert them to real numbers.")


def _check_affine(file, affine):
    """Refuse an affine that does not tell where voxels are."""
    linear = affine[:3, :3]
    sizes = np.linalg.norm(linear, axis=0)
    # Relative to the size of voxels: those of 1 µm have a small determinant too.
    if (
        not np.isfinite(affine).all()
        or not sizes.all()
        or abs(np.linalg.det(linear / sizes)) < 1e-4
    ):
        raise InputError(
            f"{file} has an affine that places no voxels (zero, NaN or singular); "
            "mend its sform and qform."
        )


def _check_size(file, image):
    """Refuse a file that is too small for its voxels or too large for the machine."""
    # Voxels are read as float32.
    if math.prod(image.shape) * 4 > _machine_memory():
        raise InputError(too_large(file))
    voxels = math.prod(image.shape) * image.get_data_dtype().itemsize
    needed = image.dataobj.offset + voxels
    if is_compressed(file):
        needed /= _STRONGEST_COMPRESSION
    if Path(file).stat().st_size < needed:
        raise InputError(cut_off(file))


def _machine_memory():
    """Return all memory of the machine, in bytes; infinite where it can't be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf


def too_large(file: str | Path) -> str:
    """Say in one sentence that a file does not fit into memory."""
    shape = " x ".join(map(str, nib.load(file).shape))
    return (
        f"{file} has more voxels ({shape}) than fit into memory; crop or resample it, "
        "or mend its header."
    )


def _with_equal_channels(infos, complaints):
    """Keep the volumes that have as many channels as most, and complain of others."""
    if not infos:
        return []
    usual = Counter(info.channels for info in infos).most_common(1)[0][0]
    for info in infos:
        if info.channels != usual:
            complaints[info.file] = (
                f"{info.file} has {info.channels} channels where most have {usual}; "
                "give volumes with equal numbers of channels."
            )
    return [info for info in infos if info.channels == usual]
