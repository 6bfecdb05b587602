"""NIfTI files: volumes read and written.

Voxels are given as ``(x, y, z, channels)`` in the order of the file; its affine takes
their indices to millimetres, x to the right, y to the front, z to the top.
"""

from collections.abc import Callable
from contextlib import contextmanager
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm._utils.files import flush, replacing
from dipy_ldm.data._headers import (
    UNREADABLE,
    cut_off,
    is_compressed,
    read_header,
    too_large,
)

# The field has 80 bytes, and some readers look for a zero at the end.
_DESCRIPTION_BYTES = 79
# Nothing that is measured is so large, and twice as much fits into float32.
_MAX_VALUE = 1e37
DTYPES = {
    name: np.dtype(name)
    for name in ("float32", "float64", "uint8", "int8", "uint16", "int16", "int32")
}


def read_volume(
    file: str | Path, channels: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume.

    Shapes: data ``(x, y, z, channels)``.
    """
    data, affine = _read(file, channels)
    if data.min() == data.max():
        raise InputError(
            f"{file} has the value {data.flat[0]:g} everywhere; give volumes that show "
            "something."
        )
    return data, affine


def read_mask(file: str | Path) -> np.ndarray:
    """Read a mask.

    Shapes: result ``(x, y, z, 1)``.
    """
    data, _ = _read(file, channels=False)
    if data.min() < 0 or data.max() > 1:
        data = (data != 0).astype("float32")
    if not data.any():
        raise InputError(f"the mask {file} is empty; give one that holds something.")
    return data


def _read(file, channels):
    info = read_header(file, channels)
    data = _voxels(file).reshape(*info.shape, info.channels)
    bad = data.size - np.count_nonzero(np.isfinite(data))
    if bad:
        raise InputError(
            f"{file} has NaN or infinite values in {bad} voxels; replace them."
        )
    extreme = np.count_nonzero(np.abs(data) > _MAX_VALUE)
    if extreme:
        raise InputError(
            f"{file} has values beyond {_MAX_VALUE:g} in {extreme} voxels, as if to "
            "mark missing ones; replace them, by 0 say."
        )
    return data, info.affine


def _voxels(file):
    """Read all voxels, scaled."""
    try:
        # What float32 can't hold becomes infinite, and is refused as such.
        with np.errstate(over="ignore"):
            if is_compressed(file):
                return _decompressed(file)
            return _float32(nib.load(file, mmap=False))
    except UNREADABLE as error:
        raise InputError(cut_off(file)) from error
    except MemoryError as error:
        raise InputError(too_large(file)) from error


def _decompressed(file):
    with gzip.open(file) as stream:
        data = _float32(type(nib.load(file)).from_stream(stream))
        # The checksum stands at the end, where nibabel does not look.
        while stream.read(2**20):
            pass
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
) -> None:
    """Write a volume to a NIfTI-1 file, whole or not at all.

    Shapes: data ``(x, y, z)``.
    """
    path = Path(path)
    dtype = choose("type of voxels", dtype, DTYPES)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path} must end in .nii or .nii.gz; rename it.")
    image = _image(np.asarray(data), np.asarray(affine, float), dtype)
    image.header["descrip"] = _description(description)
    if comment:
        extension = nib.nifti1.Nifti1Extension("comment", comment.encode())
        image.header.extensions.append(extension)
    with _writing(path, ready) as stream:
        image.to_stream(stream)


def write_changed(
    path: str | Path,
    file: str | Path,
    inside: np.ndarray,
    values: np.ndarray,
    description: str,
    ready: Callable | None = None,
) -> None:
    """Write a volume of which some voxels are changed, and nothing else.

    All that is outside, and all of the header but its description, is equal to the
    bit: type, scaling, affine, extensions.

    Shapes: inside ``(x, y, z)``, values ``(voxels, channels)``.
    """
    image = nib.load(file)
    proxy, place = image.dataobj, image.header.structarr.dtype.fields["descrip"]
    try:
        opener = gzip.open if is_compressed(file) else open
        with opener(file, "rb") as stream:
            content = bytearray(stream.read())
        voxels = np.ndarray(
            (*inside.shape, values.shape[-1]),
            proxy.dtype,
            content,
            proxy.offset,
            order="F",
        )
    except (*UNREADABLE, TypeError) as error:
        raise InputError(cut_off(file)) from error
    voxels[inside] = _unscaled(values, proxy.slope, proxy.inter, voxels.dtype)
    text = _description(description)
    content[place[1] : place[1] + place[0].itemsize] = text.ljust(80, b"\0")
    with _writing(path, ready) as stream:
        stream.write(content)


def _description(text):
    return text.encode()[:_DESCRIPTION_BYTES]


@contextmanager
def _writing(path, ready):
    """Give a stream for a file, which is whole in the end or not there."""
    with replacing(path) as partial:
        with open(partial, "wb") as file:
            if is_compressed(path):
                # No name and no time: the same volume makes the same bytes.
                with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
                    yield packed
            else:
                yield file
        if ready is not None:
            flush(partial)
            ready()


def _image(data, affine, dtype):
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    slope, intercept = _scaling(data, dtype)
    image = nib.Nifti1Image(_unscaled(data, slope, intercept, dtype), affine)
    image.header.set_slope_inter(slope, intercept)
    image.header.set_xyzt_units("mm")
    # "aligned" (2): in the space of the volumes that the model has learnt from. It is
    # no scanner's own (1), and nobody knows whether it is that of a template (3, 4).
    image.set_sform(affine, "aligned")
    image.set_qform(affine, "aligned")
    return image


def _unscaled(data, slope, intercept, dtype):
    """Return what the file has for values, rounded and clipped for integers."""
    if (slope, intercept) != (1, 0):
        data = (data.astype(float) - intercept) / slope
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        data = np.rint(data).clip(limits.min, limits.max)
    return data.astype(dtype)


def _scaling(data, dtype):
    """Choose slope and intercept so that the values fill the type's range."""
    if dtype.kind == "f" or data.dtype == bool:
        return 1.0, 0.0
    limits = np.iinfo(dtype)
    low, high = min(data.min(), 0), max(data.max(), 0)
    if limits.min == 0:
        slope, intercept = (high - low) / limits.max, low
    else:
        slope, intercept = max(low / limits.min, high / limits.max), 0
    # As the header has them.
    return float(np.float32(slope)) or 1.0, float(np.float32(intercept))
