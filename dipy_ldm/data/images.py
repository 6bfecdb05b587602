"""One's own two-dimensional images: arrays in .npy and .npz files, PNG files."""

from collections.abc import Sequence
from glob import glob
from pathlib import Path
import zipfile

from PIL import Image, UnidentifiedImageError
import numpy as np

from dipy_ldm.validation import InputError


def load_images(paths: Sequence[str | Path]) -> np.ndarray:
    """Load images from files and folders.

    Parameters
    ----------
    paths : sequence of str or Path
        Arrays ``(n, h, w)`` or ``(n, h, w, channels)`` in ``.npy`` or ``.npz``
        files, PNG files, folders of these, or wildcards.

    Returns
    -------
    ndarray
        Images in the order of the paths, float32 ``(n, h, w, channels)``, with
        the intensities that the files have.

    Raises
    ------
    InputError
        If a path is not there, a folder has no images, a file can't be read, or
        the images differ in shape.
    """
    return read_images(paths)[0]


def read_images(paths: Sequence[str | Path]) -> tuple[np.ndarray, list[Path]]:
    """Load images, and say from where each is.

    Parameters
    ----------
    paths : sequence of str or Path
        As of :func:`load_images`.

    Returns
    -------
    images : ndarray
        float32 ``(n, h, w, channels)``.
    files : list of Path
        The file of each image.

    Raises
    ------
    InputError
        As of :func:`load_images`.
    """
    pieces = {file: _read(file) for path in paths for file in _files(Path(path))}
    first = next(iter(pieces))
    for file, images in pieces.items():
        if images.shape[1:] != pieces[first].shape[1:]:
            raise InputError(
                f"{file} has images of shape {images.shape[1:]}, but {first} has "
                f"{pieces[first].shape[1:]}; give images of one shape."
            )
    files = [file for file, images in pieces.items() for _ in images]
    return np.concatenate(list(pieces.values())), files


def _files(path):
    """List the image files behind a path."""
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in _READERS)
        if not files:
            raise InputError(
                f"the folder {path} has no images; put volumes (.nii, .nii.gz) or "
                "images (.npy, .npz, .png) there."
            )
        return files
    if path.exists():
        return [path]
    # A quoted wildcard, or one of a shell that does not expand it.
    files = sorted(map(Path, glob(str(path))))
    if not files:
        raise InputError(f"there is no file {path}; check the path.")
    return files


def _read(file):
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise InputError(
            f"{file} is of no known kind; give volumes (.nii, .nii.gz) or images "
            "(.npy, .npz, .png)."
        )
    try:
        images = reader(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} can't be read; is it whole, and of that kind?") from (
            error
        )
    return _checked(file, images)


def _checked(file, images):
    """Give images their channels, and refuse what is none."""
    if not (np.issubdtype(images.dtype, np.number) or images.dtype == bool) or (
        np.iscomplexobj(images)
    ):
        raise InputError(
            f"{file} holds values of type {images.dtype}; give real numbers."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f"{file} has shape {images.shape}; give an array (n, h, w) or "
            "(n, h, w, channels)."
        )
    images = images.astype("float32")
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
    if bad.size:
        raise InputError(
            f"{file} has NaN or infinite values in {bad.size} of {len(images)} images "
            f"(the first is number {bad[0]}); remove or replace them."
        )
    return images


def _read_npy(file):
    return np.load(file, allow_pickle=False)


def _read_npz(file):
    with np.load(file, allow_pickle=False) as arrays:
        if not arrays.files:
            raise InputError(f"{file} holds no array; give one named 'images'.")
        name = "images" if "images" in arrays else arrays.files[0]
        if "images" not in arrays and len(arrays.files) > 1:
            raise InputError(
                f"{file} holds several arrays ({', '.join(arrays.files)}); "
                "name the one to use 'images'."
            )
        return arrays[name]


def _read_png(file):
    try:
        with Image.open(file) as image:
            # A palette's numbers are no intensities.
            return np.asarray(image.convert("RGB") if image.mode == "P" else image)[
                None
            ]
    except UnidentifiedImageError as error:
        raise OSError(str(error)) from error


_READERS = {".npy": _read_npy, ".npz": _read_npz, ".png": _read_png}
