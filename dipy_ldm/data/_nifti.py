"""Check the headers of NIfTI files, and read and write volumes.

Voxels are ``(x, y, z, channels)`` in the order of the file; its affine maps their
indices to millimetres along right, anterior and superior (RAS).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
import gzip
import logging
import math
import os
from pathlib import Path
from typing import Any, NamedTuple
import zlib

import nibabel as nib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError, SpatialImage
import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm._utils.files import fsync, replacing
from dipy_ldm._utils.values import counted
from dipy_ldm.data._bvals_bvecs import find_tables

logger = logging.getLogger("dipy_ldm")

# Errors of nibabel for files that are truncated, corrupt or of another format.
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
# By NIfTI code; all others are mm or unknown.
_UNITS = {1: "metres", 3: "micrometres"}
# The limit of DEFLATE (RFC 1951: 258 bytes from two bits).
_MAX_COMPRESSION = 1032
# "aligned": in the space of the training volumes, which is not a scanner's (1), and may
# or may not be that of a template (3, 4).
ALIGNED = 2
# Rounding of a qform, in voxels.
_QFORM_ROUNDING = 1e-3
# One less than the fields have: some readers need a zero at the end.
_DESCRIPTION_BYTES, _INTENT_BYTES = 79, 15
# Beyond any measurement, and twice as much still fits into float32.
_MAX_VALUE = 1e37
# Overshoot of a mask of 0 and 1 that was resampled by splines.
_RINGING = 0.2
DTYPES = {
    name: np.dtype(name)
    for name in ("float32", "float64", "uint8", "int8", "uint16", "int16", "int32")
}


class VolumeInfo(NamedTuple):
    """Shape, affine, units and NIfTI code of the space of a volume, by its header."""

    file: Path
    shape: tuple
    channels: int
    affine: np.ndarray
    oriented: bool
    unit: str = "mm"
    space: int = ALIGNED


def warn_of_space(infos: Sequence[VolumeInfo]) -> None:
    """Warn of volumes without orientation, or in another unit than mm."""
    fault = "neither sform nor qform, so that left and right are assumed"
    _warn_of_headers(fault, [info.file for info in infos if not info.oriented])
    for unit in _UNITS.values():
        fault = f"headers in {unit}, which are read as mm; write their affines in mm"
        _warn_of_headers(fault, [info.file for info in infos if info.unit == unit])


def _warn_of_headers(fault, files):
    if files:
        logger.warning("%d volumes have %s (%s first)", len(files), fault, files[0])


def read_headers(
    files: Sequence[Path], channels: bool | None = False
) -> tuple[list[VolumeInfo], dict[Path, InputError]]:
    """Return the headers of all good files, and a complaint about each bad one."""
    infos: list[VolumeInfo] = []
    complaints: dict[Path, InputError] = {}
    for file in files:
        try:
            infos.append(read_header(file, channels))
        except InputError as error:
            complaints[file] = error
    counts = Counter(info.channels for info in infos)
    usual = max(counts, key=counts.__getitem__, default=1)
    for info in infos:
        if info.channels != usual:
            complaints[info.file] = InputError(
                f"{info.file} has {info.channels} channels where most have {usual}",
                "give volumes with equal numbers of channels",
                files=[info.file],
            )
    return [info for info in infos if info.file not in complaints], complaints


def refuse_files(
    complaints: Mapping[Any, InputError],
    n_good: int,
    skip_bad: bool | None,
    volumes: int = 0,
) -> None:
    """Raise an error about bad files, or log a warning if they are skipped.

    ``skip_bad`` is None where there is no such option. Of series, so many ``volumes``
    are bad, and ``n_good`` counts volumes, too.
    """
    errors = [*complaints.values()]
    if complaints and (skip_bad is None or not n_good):
        raise InputError(complaints=errors)
    if complaints and not skip_bad:
        good = counted(n_good, "good volume") if volumes else f"{n_good} good"
        bad = "it" if (volumes or len(complaints)) == 1 else "them"
        cure = f"add `skip_bad` to go on without {bad} ({good})"
        raise InputError(cure=cure, complaints=errors)
    if complaints:
        bad = counted(len(complaints), "file" if volumes else "bad file")
        bad = f"{counted(volumes, 'bad volume')} of {bad}" if volumes else bad
        logger.warning("skipped %s:\n%s", bad, InputError(complaints=errors))


def space_of(file: Path) -> int:
    """Return the NIfTI code of the space of a volume."""
    return space_code(nib.load(file).header)


def space_code(header: nib.Nifti1Header) -> int:
    """Return the NIfTI code of the space of a header."""
    code = int(header["sform_code"] or header["qform_code"])
    return code if code in range(6) else ALIGNED


def is_whole(file: Path) -> bool:
    """Return whether a volume file is complete, by its header and size."""
    try:
        read_header(file, channels=True, dwi=bool(find_tables(file)))
    except InputError:
        return False
    return True


def read_header(
    file: str | Path, channels: bool | None, dwi: bool = False
) -> VolumeInfo:
    """Read and check a header; ``dwi`` requires that of a diffusion series.

    ``channels`` is None where no option lets a fourth axis hold them.
    """
    image = _load(file)
    shape, n_channels = _split_axes(file, image.shape)
    if dwi and (n_channels == 1 or len(image.shape) != 4):
        raise InputError(
            f"{file} has shape {image.shape}, and is not a diffusion series",
            "give 4-D files (x, y, z, volumes)",
        )
    if n_channels > 1 and not dwi and (tables := [*find_tables(file).values()]):
        raise InputError(
            f"{file} is a diffusion series ({tables[0].name} is beside it)",
            "give a volume or a map of it, such as b = 0 (by dipy_extract_b0) or FA, "
            "or add `dwi` in a training to learn all of it",
        )
    if n_channels > 1 and not channels:
        option = "add `channels` to use them as channels, or "
        cure = f"{'' if channels is None else option}give one of them"
        raise InputError(f"{file} has {n_channels} volumes, shape {image.shape}", cure)
    refuse_non_real(file, image)
    _check_affine(file, image.affine)
    _check_size(file, image)
    oriented = image.header["sform_code"] > 0 or image.header["qform_code"] > 0
    unit = _UNITS.get(int(image.header["xyzt_units"]) & 7, "mm")
    return VolumeInfo(
        Path(file),
        shape,
        n_channels,
        image.affine,
        bool(oriented),
        unit,
        space_code(image.header),
    )


def refuse_non_real(name: str | Path, image: SpatialImage) -> None:
    """Refuse an image whose voxels are not real numbers."""
    if (kind := image.get_data_dtype().kind) not in "iuf":
        kind = "complex" if kind == "c" else "coloured"
        raise InputError(f"{name} has {kind} voxels", "convert them to real numbers")


def _load(file):
    """Open a file, and read only its header."""
    try:
        image = nib.load(file)
    except UNREADABLE as error:
        raise _load_error(file, error) from error
    if not isinstance(image, nib.Nifti1Pair):
        raise InputError(f"{file} is not NIfTI", "convert it")
    return image


def _load_error(file, error):
    """Return why nibabel can't open a file."""
    return InputError(*_explain_load_error(file, error), files=[file])


def _explain_load_error(file, error):
    """Return problem and cure of a file that nibabel can't open."""
    if not os.path.lexists(file):
        return f"there is no file {file}", "check the path"
    if not os.path.exists(file):
        return f"{file} is a link to a missing file", "fetch it (datalad get)"
    if isinstance(error, FileNotFoundError):  # nibabel requires lower case
        return f"{file} must end in .nii or .nii.gz, in lower case", "rename it"
    if not os.access(file, os.R_OK):
        return f"no permission to read {file}", "ask its owner"
    if not os.path.getsize(file):
        return f"{file} is empty", "copy or convert it again"
    return (
        f"{file} can't be read as NIfTI: it is incomplete or in another format",
        "copy or convert it again",
    )


@contextmanager
def _naming_file_in_errors(file):
    """Raise errors in reading a file as InputErrors that name it."""
    try:
        # Too large values become infinite, which is refused later.
        with np.errstate(over="ignore"):
            yield
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno:  # not an error in the file
            raise InputError(
                f"{file} can't be read ({error.strerror})",
                "try again, or copy it again",
            ) from error
        raise _cut_off(file) from error
    except MemoryError as error:
        raise _too_large(file) from error


def _cut_off(file):
    problem = f"{file} is cut off or damaged"
    return InputError(problem, "copy or convert it again", files=[file])


def _too_large(file):
    shape = " x ".join(map(str, nib.load(file).shape))
    problem = f"{file} has more voxels ({shape}) than fit into memory"
    return InputError(problem, "crop or resample it", files=[file])


def _is_compressed(file):
    return str(file).lower().endswith(".gz")


def _split_axes(file, shape):
    """Return the shape of space and the number of channels."""
    further = [n for n in shape[3:] if n != 1]
    if len(shape) < 3 or min(shape[:3]) == 1 or 0 in shape or len(further) > 1:
        raise InputError(
            f"{file} has shape {shape}",
            "give volumes (x, y, z) or (x, y, z, channels), or slices as .npy or "
            ".png files",
        )
    return tuple(shape[:3]), math.prod(further)


def _check_affine(file, affine):
    """Refuse an invalid affine."""
    linear = affine[:3, :3]
    sizes = np.linalg.norm(linear, axis=0)
    # Relative to voxel size: that of 1 µm has a small determinant, too.
    if (
        not np.isfinite(affine).all()
        or not sizes.all()
        or abs(np.linalg.det(linear / sizes)) < 1e-4
    ):
        raise InputError(
            f"{file} has a zero, NaN or singular affine", "fix its sform and qform"
        )


def _check_size(file, image):
    """Refuse a file that is too small for its voxels or too large for the machine."""
    n_voxels = math.prod(image.shape)
    # Voxels are read as float32.
    if n_voxels * 4 > _machine_memory():
        raise _too_large(file)
    needed = image.dataobj.offset + n_voxels * image.get_data_dtype().itemsize
    if _is_compressed(file):
        needed /= _MAX_COMPRESSION
    if os.path.getsize(file) < needed:
        raise _cut_off(file)


def _machine_memory():
    """Return the machine's memory in bytes; infinite if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf


def read_volume(
    file: str | Path, channels: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume and its affine.

    Parameters
    ----------
    file : str or Path
        NIfTI file.
    channels : bool
        Whether a fourth axis is one of channels; it is refused otherwise.

    Returns
    -------
    data : ndarray
        Voxels in the order of the file, float32 ``(x, y, z, channels)``.
    affine : ndarray
        Maps voxel indices to millimetres, ``(4, 4)``.

    Raises
    ------
    InputError
        If the file can't be read, or its voxels are constant or not finite.
    """
    data, affine = read_voxels(file, channels)
    if data.min() == data.max():
        raise InputError(f"{file} is constant ({data.flat[0]:g})", "leave it out")
    return data, affine


def read_mask(file: str | Path, warn: bool = True) -> np.ndarray:
    """Read a mask ``(x, y, z, 1)`` from 0 to 1; labels other than 0 become 1."""
    data, _ = read_voxels(file, channels=None)
    low, high = data.min(), data.max()
    if low < -_RINGING or high > 1 + _RINGING:
        if warn and (data != np.rint(data)).any():
            logger.warning(
                "the mask %s has values from %g to %g, of which all but 0 are inside; "
                "if they are probabilities, scale them to 0 to 1.",
                file,
                low,
                high,
            )
        data = (data != 0).astype("float32")
    data = data.clip(0, 1)
    if not data.any():
        raise InputError(f"the mask {file} is empty", "give one with voxels above 0")
    return data


def read_voxels(
    file: str | Path, channels: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    """Read voxels ``(x, y, z, channels)``, constant ones too, and their affine."""
    file = Path(os.path.expanduser(file))
    info = read_header(file, channels)
    data = _read_data(file).reshape(*info.shape, info.channels)
    return refuse_values(file, data), info.affine


def check_integrity(file: Path) -> None:
    """Refuse a compressed file that is cut off or has a wrong checksum."""
    if _is_compressed(file):
        with _naming_file_in_errors(file), gzip.open(file) as stream:
            _read_to_end(stream)


def _read_to_end(stream):
    """Read to the end, which verifies the checksum."""
    while stream.read(2**20):
        pass


def read_each(info: VolumeInfo, volumes: Iterable[int]) -> Iterator[np.ndarray]:
    """Yield volumes ``(x, y, z, 1)`` of a series, unchecked; fastest in file order."""
    # Kept open, a compressed file is not read from its start each time.
    proxy = nib.load(info.file, mmap=False, keep_file_open=True).dataobj
    for number in volumes:
        with _naming_file_in_errors(info.file):
            data = np.asarray(proxy[..., number], "float32")[..., None]
        yield data


def refuse_values(name: str | Path, data: np.ndarray) -> np.ndarray:
    """Refuse NaN, infinite and far too large values; return the rest."""
    # Written so that NaN is counted too.
    if bad := np.count_nonzero(~(np.abs(data) <= _MAX_VALUE)):
        raise InputError(
            f"{name} has NaN or infinite values, or some beyond {_MAX_VALUE:g}, in "
            f"{bad} voxels",
            "replace them, by 0 say",
        )
    return data


def _read_data(file):
    """Read all voxels, scaled."""
    with _naming_file_in_errors(file):
        if not _is_compressed(file):
            return _float32(nib.load(file, mmap=False))
        with gzip.open(file) as stream:
            data = _float32(type(nib.load(file)).from_stream(stream))
            _read_to_end(stream)  # nibabel does not
        return data


def _float32(image):
    return image.get_fdata(dtype=np.float32, caching="unchanged")


def write_volume(
    path: str | Path,
    data: npt.ArrayLike,
    affine: npt.ArrayLike,
    dtype: str = "float32",
    description: str = "",
    comment: str = "",
    ready: Callable | None = None,
    intent: tuple[str, str] = ("none", ""),
    space: int = ALIGNED,
) -> None:
    """Write a volume to a NIfTI-1 file, atomically.

    Integers that fit into the type are stored without scaling.

    Parameters
    ----------
    path : str or Path
        File name that ends in ``.nii`` or ``.nii.gz``.
    data : array_like
        Voxels, ``(x, y, z)`` or ``(x, y, z, channels)``.
    affine : array_like
        Maps voxel indices to millimetres, ``(4, 4)``.
    dtype : {"float32", "float64", "uint8", "int8", "uint16", "int16", "int32"}
        Type of the voxels in the file.
    description : str
        Description in the header, of which 79 bytes are kept.
    comment : str
        Longer text, stored as a header extension.
    ready : callable, optional
        Called when all is on disk, before the file gets its final name.
    intent : tuple of str
        NIfTI intent code, and a name.
    space : int
        NIfTI code of the space (``sform_code``). Default: aligned to another image.

    Raises
    ------
    InputError
        If the file name or type is not supported, or an integer type would have to
        hold NaN or infinite values.
    """
    path = Path(os.path.expanduser(path))
    kind = choose("type of voxels", dtype, DTYPES)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path} must end in .nii or .nii.gz", "rename it")
    data = np.asarray(data)
    if kind.kind in "iu" and not np.isfinite(data).all():
        raise InputError(
            f"{path} would have NaN or infinite values, which {dtype} can't hold",
            "replace them, or choose float32",
        )
    image = make_image(data, np.asarray(affine, float), kind, description, space)
    name = intent[1].encode("ascii", "replace")[:_INTENT_BYTES]
    image.header.set_intent(intent[0], (), name)
    if comment:
        extension = nib.nifti1.Nifti1Extension("comment", comment.encode())
        image.header.extensions.append(extension)
    with _atomic_stream(path, ready) as stream:
        image.to_stream(stream)


def write_edited(
    path: str | Path,
    file: str | Path,
    inside: np.ndarray,
    values: np.ndarray,
    description: str,
    ready: Callable | None = None,
) -> None:
    """Write a copy of a volume with other values ``(voxels, channels)`` inside a mask.

    Voxels outside and the header (type, scaling, affine, extensions), except its
    description, stay identical to the bit.
    """
    image = nib.load(file)
    proxy, field = image.dataobj, image.header.structarr.dtype.fields["descrip"]
    shape = *inside.shape, values.shape[-1]
    opener = gzip.open if _is_compressed(file) else open
    with _naming_file_in_errors(file), opener(file, "rb") as stream:
        content = bytearray(stream.read())
        stored = np.frombuffer(content, proxy.dtype, math.prod(shape), proxy.offset)
    voxels = stored.reshape(shape, order="F")
    voxels[inside] = _to_stored(values, proxy.slope, proxy.inter, voxels.dtype)
    text = description.encode()[:_DESCRIPTION_BYTES]
    content[field[1] : field[1] + field[0].itemsize] = text.ljust(80, b"\0")
    with _atomic_stream(path, ready) as stream:
        stream.write(content)


@contextmanager
def _atomic_stream(path, ready):
    """Open a stream for a file that is written atomically."""
    with replacing(path) as partial:
        with open(partial, "wb") as file:
            if _is_compressed(path):
                # Without name and time, so that equal volumes give equal bytes.
                with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
                    yield packed
            else:
                yield file
        if ready is not None:
            fsync(partial)
            ready()


def make_image(
    data: np.ndarray,
    affine: np.ndarray,
    dtype: np.dtype,
    description: str,
    space: int = ALIGNED,
) -> nib.Nifti1Image:
    """Return a volume ``(x, y, z[, channels])`` as an image, scaled to its type."""
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    slope, intercept = _choose_scaling(data, dtype)
    image = nib.Nifti1Image(_to_stored(data, slope, intercept, dtype), affine)
    image.header.set_slope_inter(slope, intercept)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, space)
    image.set_qform(affine, space)
    if not np.allclose(image.affine, affine):  # a space of code 0 has no affine
        image.set_sform(affine, ALIGNED)
    rounding = _QFORM_ROUNDING * np.linalg.norm(affine[:3, :3], axis=0).max()
    if not np.allclose(image.get_qform(), affine, atol=rounding):
        image.header["qform_code"] = 0  # it can't hold shears
    image.header["descrip"] = description.encode()[:_DESCRIPTION_BYTES]
    return image


def _to_stored(data, slope, intercept, dtype):
    """Return the stored values of intensities; integers are rounded and clipped."""
    if (slope, intercept) != (1, 0):
        data = (data.astype(float) - intercept) / slope
    if dtype.kind in "iu" and data.dtype.kind == "f":
        limits = np.iinfo(dtype)
        data = np.rint(data).clip(limits.min, limits.max)
    return data.astype(dtype)


def _choose_scaling(data, dtype):
    """Choose slope and intercept so that the values fill the type's range."""
    if dtype.kind == "f" or data.dtype == bool:
        return 1.0, 0.0
    limits = np.iinfo(dtype)
    low, high = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
    if data.dtype.kind in "iu" and limits.min <= low and high <= limits.max:
        return 1.0, 0.0
    slope, intercept = max(low / (limits.min or -1), high / limits.max), 0.0
    if low < 0 and limits.min == 0:
        # With few enough bits that 0, a multiple of the slope, is exact in float32.
        bits = 24 - 8 * dtype.itemsize
        mantissa, exponent = math.frexp((high - low) / (limits.max - 1))
        slope = math.ldexp(math.ceil(mantissa * 2**bits), exponent - bits)
        intercept = -math.ceil(-low / slope) * slope
    # With the precision of the header.
    return float(np.float32(slope)) or 1.0, float(np.float32(intercept))
