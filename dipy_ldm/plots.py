"""Pictures: montages of images, latents, and the course of a training."""

from collections.abc import Sequence
import io
import math
from pathlib import Path
from typing import Any

from PIL import Image
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from dipy_ldm._utils.files import replacing
from dipy_ldm._utils.types import ShownLike

# Pixels along a side, up to which pictures are enlarged, and compressed as well as can
# be: 16 images of 1024 x 1024 took 42 s.
_LARGE = 2000


def montage(
    images: np.ndarray, *, columns: int | None = None, gap: int = 2
) -> np.ndarray:
    """Arrange images in one montage.

    Parameters
    ----------
    images : ndarray
        Images, ``(n, h, w, channels)``; the first channel is shown, or three as
        colours.
    columns : int, optional
        Images in a row; about a square if None.
    gap : int
        Pixels between images.

    Returns
    -------
    ndarray
        Picture, ``(height, width, channels)`` with 1 or 3 channels, float32 in
        [0, 1]: the lowest and highest values of all images.
    """
    images = np.asarray(images, "float32")
    images = images if images.shape[-1] == 3 else images[..., :1]
    low, high = images.min(), images.max()
    images = (images - low) / (high - low or 1)
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    _, height, width, channels = images.shape
    # Gaps are grey, so that the edges of black and of white images can be seen.
    picture = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels),
        0.5,
        "float32",
    )
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        y, x = gap + row * (height + gap), gap + column * (width + gap)
        picture[y : y + height, x : x + width] = image
    return picture


def planes(
    volumes: np.ndarray, affine: np.ndarray, channels: Sequence = ()
) -> np.ndarray:
    """Cut volumes through their middle: axial, coronal and sagittal, side by side.

    The left of a picture is the left of the brain (the neurological convention). Up
    is the front in the axial plane and the top in the others; in the sagittal one
    the front is to the right.

    Parameters
    ----------
    volumes : ndarray
        Volumes, ``(n, x, y, z, channels)``, with axes to the right, the front and
        the top.
    affine : ndarray
        From voxels to millimetres, ``(4, 4)``; it tells the voxel size.
    channels : sequence of Channel, optional
        What the channels are: each is shown, below the one before, labels in colours.

    Returns
    -------
    ndarray
        Pictures, float32 ``(n, h, w, channels)``.
    """
    if channels:
        parts = np.split(volumes, np.cumsum([c.width for c in channels])[:-1], -1)
        rows = [planes(c.picture(x), affine) for c, x in zip(channels, parts)]
        return np.concatenate(rows, 1)
    sizes = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    # Voxels of other sizes than the smallest are repeated: planes keep their shape.
    for axis, times in enumerate(np.maximum(np.rint(sizes / sizes.min()), 1)):
        volumes = np.repeat(volumes, int(times), axis + 1)
    x, y, z = (size // 2 for size in volumes.shape[1:4])
    slices = volumes[:, :, :, z], volumes[:, :, y], volumes[:, x]
    cuts = [cut.swapaxes(1, 2)[:, ::-1] for cut in slices]
    height = max(cut.shape[1] for cut in cuts)
    low = volumes.min(initial=np.inf)
    return np.concatenate([_padded(cut, height, low) for cut in cuts], 2)


def pictures(
    images: ShownLike, affine: np.ndarray | None = None, channels: Sequence = ()
) -> np.ndarray:
    """Return images as pictures, and volumes as their three middle planes.

    Parameters
    ----------
    images : ndarray, NIfTI image or list of these
        Images, ``(n, *space, channels)``, or NIfTI images of one shape.
    affine : ndarray, optional
        From voxels of volumes to millimetres, ``(4, 4)``, as of :func:`planes`.
    channels : sequence of Channel
        As of :func:`planes`.

    Returns
    -------
    ndarray
        Pictures, ``(n, h, w, channels)``.
    """
    scans = [images] if hasattr(images, "get_fdata") else images
    if isinstance(scans, list) and hasattr(scans[0], "get_fdata"):
        from nibabel import as_closest_canonical

        turned = [as_closest_canonical(scan) for scan in scans]
        array, affine = np.stack([s.get_fdata() for s in turned]), turned[0].affine
        array = array[..., None] if array.ndim == 4 else array
    else:
        array = np.asarray(images)
    if array.ndim == 4:
        return array
    return planes(array, np.eye(4) if affine is None else affine, channels)


def _padded(pictures, height, value):
    """Pad pictures to a height."""
    missing = height - pictures.shape[1]
    above = missing // 2
    rows = [(0, 0), (above, missing - above), (0, 0), (0, 0)]
    return np.pad(pictures, rows, constant_values=value).astype("float32")


def save_montage(
    path: str | Path, images: np.ndarray, *, columns: int | None = None, scale: int = 3
) -> None:
    """Write a montage as a PNG file.

    Parameters
    ----------
    path : str or Path
        File to write.
    images : ndarray
        Images, ``(n, h, w, channels)``.
    columns : int, optional
        Images in a row; about a square if None.
    scale : int
        Enlargement of each pixel, less where the picture would be larger than 2000
        pixels a side.
    """
    picture = np.uint8(np.round(montage(images, columns=columns) * 255)).squeeze()
    size: int = max(picture.shape)
    scale = max(1, min(scale, _LARGE // size))
    enlarged = np.kron(picture, np.ones((scale, scale, 1)[: picture.ndim], "uint8"))
    with replacing(path) as partial:
        Image.fromarray(enlarged).save(partial, "PNG", optimize=size <= _LARGE)


def save_training(
    path: str | Path,
    histories: dict[str, dict],
    *,
    pairs: tuple[np.ndarray, ...] | None = None,
    samples: np.ndarray | None = None,
) -> None:
    """Write curves, reconstructions and samples as a PNG file.

    Parameters
    ----------
    path : str or Path
        File to write.
    histories : dict of str to dict
        History of each stage, ``{figure: [value of each round]}``.
    pairs : tuple of ndarray, optional
        Images and their reconstructions, both ``(n, h, w, channels)``.
    samples : ndarray, optional
        Generated images, ``(n, h, w, channels)``.
    """
    columns = max(2, len(histories))
    figure = Figure(figsize=(6 * columns, 8), layout="constrained")
    axes = figure.subplots(2, columns)
    for ax, (stage, history) in zip(axes[0], histories.items()):
        _curves(ax, stage, history)
    if pairs is not None:
        _show(axes[1, 0], _beside(*pairs), "images, and reconstructed below")
    if samples is not None:
        _show(axes[1, 1], montage(samples), "samples")
    for ax in axes.flat:
        if not ax.has_data():
            ax.set_axis_off()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def _beside(images, reconstructed):
    """Arrange rows of images, and of their reconstructions below each."""
    # Wide pictures, as planes of volumes are, go two to a row.
    columns = 8 if images.shape[2] < 2 * images.shape[1] else 2
    columns = min(columns, len(images))
    rows = [
        half[start : start + columns]
        for start in range(0, len(images), columns)
        for half in (images, reconstructed)
    ]
    return montage(np.concatenate(rows), columns=columns)


def _curves(ax, stage, history):
    for name in ("loss", "val_loss", "mse", "val_mse", "val_detail", "val_dice"):
        if name in history:
            ax.plot(history["epoch"], history[name], marker=".", label=name)
    ax.set_title(stage, pad=24)
    ax.set_xlabel("epoch")
    if "mse" in history:  # falls by orders of magnitude
        ax.set_yscale("log")
    ax.grid(alpha=0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if "perplexity" in history:
        twin = ax.twinx()
        twin.plot(history["epoch"], history["perplexity"], "k.:", label="perplexity")
        twin.set_ylabel("perplexity of the codes (dotted)")
    # Under the title: within the axes there may be no place without a curve.
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False)


def _show(ax, picture, title):
    ax.imshow(picture, cmap="gray" if picture.shape[-1] == 1 else None, vmin=0, vmax=1)
    ax.set(title=title, xticks=[], yticks=[])


class _Figure(Figure):
    """A figure that notebooks show, also where nobody has imported pyplot."""

    def _repr_png_(self):
        return as_png(self)


def as_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure.

    Returns
    -------
    bytes
        The file.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def plot_history(history: object) -> Figure:
    """Plot the course of a training.

    Parameters
    ----------
    history : estimator, dict or dict of dict
        Fitted estimator, its ``history_``, or several of these by their names.

    Returns
    -------
    matplotlib.figure.Figure
        Loss and further figures by epochs.
    """
    name = type(history).__name__ if hasattr(history, "history_") else "training"
    figures: Any = getattr(history, "history_", history)
    histories = {name: figures} if "loss" in figures else figures
    figure = _Figure(figsize=(6 * len(histories), 4), layout="constrained")
    axes = figure.subplots(1, len(histories), squeeze=False)
    for ax, (stage, one) in zip(axes[0], histories.items()):
        _curves(ax, stage, one)
    return figure


def plot_samples(
    images: ShownLike, *, affine: np.ndarray | None = None, columns: int | None = None
) -> Figure:
    """Plot images side by side, and volumes by three planes.

    Parameters
    ----------
    images, affine
        As of :func:`pictures`.
    columns : int, optional
        Images in a row; about a square if None.

    Returns
    -------
    matplotlib.figure.Figure
        A montage.
    """
    return _alone(montage(pictures(images, affine), columns=columns))


def plot_reconstructions(
    images: ShownLike,
    reconstructed: ShownLike,
    *,
    affine: np.ndarray | None = None,
) -> Figure:
    """Plot rows of images, with their reconstructions, or what was denoised, below.

    Parameters
    ----------
    images, reconstructed, affine
        As of :func:`pictures`.

    Returns
    -------
    matplotlib.figure.Figure
        A montage.
    """
    return _alone(_beside(pictures(images, affine), pictures(reconstructed, affine)))


def plot_latents(latents: np.ndarray, *, columns: int | None = None) -> Figure:
    """Plot latents in colours: three channels, or the three main components of more.

    Parameters
    ----------
    latents : ndarray
        Latents, ``(n, *space, channels)``, as of :meth:`dipy_ldm.VQVAE.encode`.
    columns : int, optional
        Latents in a row; about a square if None.

    Returns
    -------
    matplotlib.figure.Figure
        A montage.
    """
    rows = np.reshape(latents, (-1, latents.shape[-1])).astype("float32")
    if rows.shape[1] > 3:
        rows = rows - rows.mean(0)
        rows = rows @ np.linalg.eigh(rows.T @ rows)[1][:, :-4:-1]
    # A few far values would leave all others grey.
    low, high = np.percentile(rows, (1, 99), axis=0)
    rows = np.clip((rows - low) / np.maximum(high - low, 1e-12), 0, 1)
    colours = rows.reshape(*latents.shape[:-1], -1)
    return _alone(montage(pictures(colours), columns=columns, gap=1))


def _alone(picture):
    """Show a picture alone, as large as its pixels allow."""
    height, width = picture.shape[:2]
    figure = _Figure(figsize=(8, max(1, 8 * height / width)), layout="constrained")
    _show(figure.subplots(), picture, "")
    return figure
