"""Two-dimensional images: arrays in .npy and .npz files, PNG files, and MNIST."""

from collections.abc import Callable, Sequence
from functools import partial
import logging
from pathlib import Path

from PIL import Image
import numpy as np

from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm._utils.values import listed
from dipy_ldm.data._paths import match_paths

__all__ = ["load_images"]

logger = logging.getLogger("dipy_ldm")


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
        If a path does not exist, a folder has no images, a file can't be read or is
        transparent, images differ in shape, or PNG files in bit depth.
    """
    return read_images(paths)[0]


def read_images(paths: Sequence[str | Path]) -> tuple[np.ndarray, list[Path]]:
    """Load images as :func:`load_images`, and return the file of each."""
    arrays = {file: _read(file) for file in find_images(paths)}
    if not arrays:
        raise InputError("there are no images", "give files or folders of them")
    _refuse_mixed(arrays)
    (first, expected), *rest = arrays.items()
    for file, images in rest:
        if images.shape[1:] != expected.shape[1:]:
            raise InputError(
                f"{file} has images of shape {images.shape[1:]}, but {first} of "
                f"{expected.shape[1:]}",
                "give images of one shape",
            )
    files = [file for file, images in arrays.items() for _ in images]
    # Too large values become infinite, which is refused below.
    with np.errstate(over="ignore"):
        images = np.concatenate([*arrays.values()], dtype="float32", casting="unsafe")
    _refuse_infinite(images, files)
    return images, files


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """List the image files behind paths, or refuse other files."""
    return [file for path in match_paths(paths) for file in _files(path)]


def _refuse_mixed(arrays: dict[Path, np.ndarray]):
    """Refuse PNG files of different bit depths, whose intensities differ in scale."""
    first: dict[np.dtype, Path] = {}
    for file, images in arrays.items():
        if file.suffix.lower() == ".png":
            first.setdefault(images.dtype, file)
    if len(first) > 1:
        (kind, file), (other, another) = [*first.items()][:2]
        raise InputError(
            f"{file} has {_BITS[kind]} bits a pixel and {another} has {_BITS[other]}",
            "save all PNG files with the same bit depth",
        )


def _refuse_infinite(images: np.ndarray, files: list[Path]):
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3))).tolist()
    if bad:
        file = files[bad[0]]
        numbers = [i - files.index(file) for i in bad if files[i] == file]
        raise InputError(
            f"{file} has NaN or infinite values in {len(numbers)} of "
            f"{files.count(file)} images (number {numbers[0]} first)",
            "replace them",
        )


def _files(path: Path):
    """List the image files in a folder, or the file itself."""
    if not path.is_dir():
        if path.suffix.lower() not in _READERS:
            raise InputError(
                f"{path} is of no known kind (.nii, .nii.gz, .npy, .npz or .png)"
            )
        return [path]
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in _READERS)
    if pictures := list(filter(_is_picture, files)):
        logger.info("left out, as pictures by dipy_ldm: %s", listed(pictures))
        files = [file for file in files if file not in pictures]
    if not files:
        raise InputError(
            f"the folder {path} has no images (.npy, .npz, .png) or volumes (.nii, "
            ".nii.gz)"
        )
    return files


def _is_picture(file: Path):
    """Return whether a PNG file is a command's picture of a training or samples."""
    is_curves = file.name == "training.png" and file.with_name("history.csv").exists()
    return is_curves or file.suffix == ".png" and file.with_suffix(".npz").exists()


def _read(file: Path):
    """Read images ``(n, h, w, channels)``, and refuse invalid ones."""
    try:
        images = _READERS[file.suffix.lower()](file)
    except InputError:
        raise
    # Readers raise errors of any kind for damaged files.
    except Exception as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{file} can't be read ({why})", "is it complete, and of that kind?"
        ) from error
    if images.dtype.kind not in "biuf":
        raise InputError(
            f"{file} holds values of type {images.dtype}", "give real numbers"
        )
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f"{file} has shape {images.shape}", "give an array (n, h, w[, channels])"
        )
    return images


def _read_npz(file: Path):
    # Opened here, as NumPy would leave a damaged file open.
    with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        names = [name for name in arrays.files if name == "images"] or arrays.files
        if len(names) != 1:
            raise InputError(
                f"{file} holds {listed(names) or 'no array'}",
                "name the one to use 'images'",
            )
        return arrays[names[0]]


def _read_png(file: Path):
    with Image.open(file) as image:
        mode = _WITHOUT_ALPHA.get(image.mode, image.mode)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getchannel("A").getextrema()[0] < 255:
                raise InputError(
                    f"{file} is transparent in parts", "save it without transparency"
                )
        return np.asarray(image if mode == image.mode else image.convert(mode))[None]


# Modes of the same colours; indices of a palette are not intensities.
_WITHOUT_ALPHA = {"P": "RGB", "PA": "RGB", "RGBA": "RGB", "LA": "L"}
# Bits a pixel, by the type of arrays of PNG files.
_BITS = {np.dtype(kind): n for kind, n in zip(("?", "u1", "u2", "i4"), (1, 8, 16, 16))}
_READERS: dict[str, Callable] = {
    ".npy": partial(np.load, allow_pickle=False),
    ".npz": _read_npz,
    ".png": _read_png,
}


_PATH = Path(__file__).with_name("mnist.npz")
_SPLITS = {s: (f"{s}_images", f"{s}_labels") for s in ("train", "test")}


def load_mnist(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Load one part of MNIST, handwritten digits, which the package includes.

    By Yann LeCun, Corinna Cortes and Christopher J.C. Burges, "Gradient-based learning
    applied to document recognition", Proceedings of the IEEE 86(11), 2278-2324, 1998,
    under the licence Creative Commons Attribution-Share Alike 3.0 (`MNIST-LICENSE.md`).
    The images and labels are theirs, unchanged; only the container is ours.

    Parameters
    ----------
    split : {"train", "test"}
        Which part: 60000 training images, or 10000 test images.

    Returns
    -------
    images : ndarray of float32, shape (n, 28, 28, 1)
        Ink on an empty page, from 0 (none) to 1.
    labels : ndarray of int64, shape (n,)
        The digit on each image, 0 to 9.

    Raises
    ------
    InputError
        If there is no such split.
    """
    images_name, labels_name = choose("split", split, _SPLITS)
    with np.load(_PATH) as arrays:
        images, labels = arrays[images_name], arrays[labels_name]
    # Divided and converted at once, which saves 190 MB.
    return np.divide(images[..., None], 255, dtype=np.float32), labels.astype(np.int64)
