"""Pictures that commands write: montages, comparisons, and training curves."""

from collections.abc import Mapping, Sequence
import math
import os
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

from PIL import Image, ImageDraw, ImageFont
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator
from nibabel import Nifti1Image, as_closest_canonical
from nibabel.filebasedimages import FileBasedImage
import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import replacing

# Images to plot.
ImagesToPlot: TypeAlias = (
    npt.ArrayLike
    | FileBasedImage
    | Mapping[str, FileBasedImage]
    | Sequence[FileBasedImage]
    | Sequence[Mapping[str, FileBasedImage]]
)

# Pixels along a side up to which pictures are enlarged and their compression optimised:
# 16 images of 1024 x 1024 took 42 s.
_MAX_OPTIMISED = 2000


def count_columns(images: np.ndarray) -> int:
    """Return the default number of columns of a montage."""
    return math.ceil(math.sqrt(len(images)))


def montage(
    images: np.ndarray,
    *,
    columns: int | None = None,
    gap: int = 2,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Arrange images in one montage.

    Parameters
    ----------
    images : ndarray
        Images, ``(n, h, w, channels)``; three channels are shown as colours, otherwise
        the first.
    columns : int, optional
        Images in a row. Default: for about a square.
    gap : int
        Pixels between images.
    limits : tuple of float, optional
        Values of black and white. Default: the lowest and highest of all images.

    Returns
    -------
    ndarray
        Picture, ``(height, width, channels)`` with 1 or 3 channels, float32 in
        [0, 1].
    """
    images = np.asarray(images, "float32")
    images = images if images.shape[-1] == 3 else images[..., :1]
    images = normalised(images, limits)
    columns = columns or count_columns(images)
    # Grey gaps show the edges of both black and white images.
    missing = [(0, -len(images) % columns), (gap, 0), (gap, 0), (0, 0)]
    images = np.pad(images, missing, constant_values=0.5)
    rows = images.reshape(-1, columns, *images.shape[1:])
    picture = np.concatenate(np.concatenate(rows, 1), 1)
    return np.pad(picture, [(0, gap), (0, gap), (0, 0)], constant_values=0.5)


def normalised(
    images: np.ndarray, limits: tuple[float, float] | None = None
) -> np.ndarray:
    """Scale images from their limits, by default minimum and maximum, to [0, 1]."""
    low, high = limits or (np.nanmin(images), np.nanmax(images))
    return np.nan_to_num((images - low) / (high - low or 1)).clip(0, 1)


def _repeats(affine: np.ndarray) -> np.ndarray:
    """Return repeats of voxels along each axis that make them about isotropic."""
    sizes = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return np.maximum(np.rint(sizes / sizes.min()), 1).astype(int)


def planes(
    volumes: np.ndarray,
    affine: np.ndarray,
    channels: Sequence = (),
    *,
    through: Sequence[int] | None = None,
) -> np.ndarray:
    """Show axial, coronal and sagittal planes of volumes side by side.

    Left in the picture is left in the brain (neurological convention). Anterior is up
    in the axial plane and right in the sagittal one; superior is up in the others.

    Parameters
    ----------
    volumes : ndarray
        Volumes, ``(n, x, y, z, channels)``, in RAS orientation.
    affine : ndarray
        From voxels to millimetres, ``(4, 4)``; for the voxel size.
    channels : sequence of Channel, optional
        Named channels, which are shown below each other, labels in colours.
    through : sequence of int, optional
        Voxel where the planes intersect. Default: the centre.

    Returns
    -------
    ndarray
        Pictures, float32 ``(n, h, w, channels)``.
    """
    if channels:
        parts = np.split(volumes, np.cumsum([c.width for c in channels])[:-1], -1)
        colours = (c.picture(x) for c, x in zip(channels, parts))
        return np.concatenate([planes(x, affine, through=through) for x in colours], 1)
    repeats = _repeats(affine)
    for axis, times in enumerate(repeats):
        volumes = np.repeat(volumes, times, axis + 1)
    middle = [size // 2 for size in volumes.shape[1:4]]
    x, y, z = middle if through is None else np.multiply(through, repeats)
    slices = volumes[:, :, :, z], volumes[:, :, y], volumes[:, x]
    cuts = [cut.swapaxes(1, 2)[:, ::-1] for cut in slices]
    height = max(cut.shape[1] for cut in cuts)
    # Not the minimum: the background of some maps is in the middle of their range.
    corner = volumes[:, :1, :1, :1].min(initial=np.inf)
    return np.concatenate([_padded(cut, height, corner) for cut in cuts], 2)


def pictures(
    images: ImagesToPlot, affine: np.ndarray | None = None, channels: Sequence = ()
) -> np.ndarray:
    """Convert images to pictures, and volumes to their three middle planes.

    Parameters
    ----------
    images : ndarray, NIfTI image, dict or list of these, or Volumes
        Images, ``(n, *space, channels)``, or NIfTI images; for named channels a
        dictionary of such images, which are shown below each other.
    affine : ndarray, optional
        From voxels of volumes to millimetres, ``(4, 4)``, as of :func:`planes`.
    channels : sequence of Channel
        As of :func:`planes`.

    Returns
    -------
    ndarray
        Pictures, ``(n, h, w, channels)``.

    Raises
    ------
    InputError
        If the array is neither of images nor of volumes.
    """
    volumes: Any = images
    if hasattr(volumes, "images"):
        images, affine, channels = volumes.images, volumes.affine, volumes.channels
    scans: Any = images if isinstance(images, list | tuple) else [images]
    if scans and isinstance(scans[0], Mapping):
        rows = [pictures([scan[name] for scan in scans]) for name in scans[0]]
        width = max(row.shape[2] for row in rows)
        return np.concatenate([_padded(normalised(x), width, 0, 2) for x in rows], 1)
    if scans and hasattr(scans[0], "get_fdata"):
        drawn = []
        for scan in map(as_closest_canonical, scans):
            data = scan.get_fdata()
            data = data[..., None] if data.ndim == 3 else data
            drawn.append(pictures(data[None], scan.affine, channels))
        return np.concatenate(pad_to_largest(drawn))
    array = np.asarray(images)
    if array.ndim not in (4, 5) or len(array) == 0:
        raise InputError(
            "images must be (n, height, width, channels), and volumes (n, x, y, z, "
            f"channels), not {array.shape}"
        )
    if array.ndim == 4:
        return array
    return planes(array, np.eye(4) if affine is None else affine, channels)


def pad_to_largest(stacks: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Pad several pictures to the maximum height and width."""
    for axis in (1, 2):
        size = max(stack.shape[axis] for stack in stacks)
        stacks = [_padded(x, size, x.min(), axis) for x in stacks]
    return stacks


def _padded(pictures: np.ndarray, size: int, value: float, axis: int = 1) -> np.ndarray:
    """Pad pictures on both sides along an axis, by default to a height."""
    missing = size - pictures.shape[axis]
    sides = [(0, 0)] * 4
    sides[axis] = missing // 2, missing - missing // 2
    return np.pad(pictures, sides, constant_values=value).astype("float32")


def save_montage(
    path: str | Path,
    images: np.ndarray,
    *,
    columns: int | None = None,
    scale: int = 3,
    captions: Sequence[str] = (),
) -> None:
    """Write a montage as a PNG file.

    Parameters
    ----------
    path : str or Path
        File to write.
    images : ndarray
        Images, ``(n, h, w, channels)``.
    columns : int, optional
        Images in a row. Default: for about a square.
    scale : int
        Magnification, reduced if a side would exceed 2000 pixels.
    captions : sequence of str, optional
        Captions below each image.
    """
    columns = columns or count_columns(images)
    picture = np.uint8(np.round(montage(images, columns=columns) * 255)).squeeze()
    size: int = max(picture.shape)
    scale = max(1, min(scale, _MAX_OPTIMISED // size))
    enlarged = np.kron(picture, np.ones((scale, scale, 1)[: picture.ndim], "uint8"))
    whole = Image.fromarray(enlarged)
    if captions:
        whole = _captioned(whole, captions, columns)
    with replacing(os.path.expanduser(path)) as file:
        whole.save(file, "PNG", optimize=size <= _MAX_OPTIMISED)


def _captioned(
    picture: Image.Image, captions: Sequence[str], columns: int
) -> Image.Image:
    """Insert a line of text below each image of a montage."""
    line = 14  # pixels
    rows = math.ceil(len(captions) / columns)
    width, height = picture.width, picture.height // rows
    whole = Image.new("RGB", (width, picture.height + rows * line), "white")
    draw = ImageDraw.Draw(whole)
    for row in range(rows):
        top = row * (height + line)
        box = 0, row * height, width, (row + 1) * height
        whole.paste(picture.crop(box), (0, top))
        for column, text in enumerate(captions[row * columns : (row + 1) * columns]):
            place = column * width // columns + 3, top + height
            # The font has latin-1 only, each letter 6 pixels wide.
            text = text.encode("latin-1", "backslashreplace").decode("latin-1")
            if fitting := text[: width // columns // 6]:
                draw.text(place, fitting, "black", ImageFont.load_default_imagefont())
    return whole


def save_training(
    path: str | Path,
    histories: dict[str, dict],
    *,
    pairs: tuple[np.ndarray, ...] | None = None,
    samples: np.ndarray | None = None,
) -> None:
    """Write training curves, reconstructions and samples as a PNG file.

    Parameters
    ----------
    path : str or Path
        File to write.
    histories : dict of str to dict
        History of each stage, ``{metric: [value per validation round]}``.
    pairs : tuple of ndarray, optional
        Images and their reconstructions, both ``(n, h, w, channels)``.
    samples : ndarray, optional
        Generated images, ``(n, h, w, channels)``.
    """
    columns = max(2, len(histories))
    figure = Figure(figsize=(6 * columns, 8), layout="constrained")
    axes = figure.subplots(2, columns)
    for ax, (stage, history) in zip(axes[0], histories.items()):
        plot_curves(ax, stage, history)
    if pairs is not None:
        draw_picture(axes[1, 0], montage_pairs(*pairs), "images above reconstructions")
    if samples is not None:
        draw_picture(axes[1, 1], montage(samples), "samples")
    for ax in axes.flat:
        if not (ax.has_data() or ax.texts):
            ax.set_axis_off()
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    with replacing(os.path.expanduser(path)) as file:
        figure.savefig(file, format="png", dpi=100)


class Comparison(NamedTuple):
    """Planes of a volume before and after, ``(h, w)``, the first ``axial`` wide."""

    name: str
    before: np.ndarray
    after: np.ndarray
    axial: int

    @classmethod
    def of(
        cls, name: str, before: np.ndarray, after: np.ndarray, affine: np.ndarray
    ) -> Self:
        """Create a comparison, with planes through the voxel with most changes.

        Parameters
        ----------
        name : str
            Title of the volume.
        before, after : ndarray
            Volumes, ``(x, y, z, channels)``; the first channel is shown.
        affine : ndarray
            From voxels to millimetres, ``(4, 4)``.

        Returns
        -------
        Comparison
            A row of :func:`save_comparison`.
        """
        first = (np.asarray(v[..., 0], "float32") for v in (before, after))
        turned = [as_closest_canonical(Nifti1Image(v, affine)) for v in first]
        volumes = np.stack([image.get_fdata(dtype="float32") for image in turned])
        through = _where_changed(volumes[0] != volumes[1])
        affine = turned[0].affine
        first, second = planes(volumes[..., None], affine, through=through)[..., 0]
        return cls(name, first, second, volumes.shape[1] * _repeats(affine)[0])


def _where_changed(changed: np.ndarray) -> list[int]:
    """Return the voxel whose planes have most changes, or the centre."""
    if not 0 < changed.mean() < 0.1:
        return [size // 2 for size in changed.shape]
    return [int(changed.sum(axes).argmax()) for axes in ((1, 2), (0, 2), (0, 1))]


def save_comparison(
    path: str | Path, rows: Sequence[Comparison], caption: str = ""
) -> None:
    """Write volumes before, after, and their difference, as a PNG file.

    Parameters
    ----------
    path : str or Path
        File to write.
    rows : sequence of Comparison
        Volumes, one per row.
    caption : str
        Title of the picture, such as the options.
    """
    height, width = rows[0].before.shape
    size = 15, 0.8 + len(rows) * (5 * height / width + 0.1)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(_drawable(caption), fontsize=9, parse_math=False)
    for line, row in zip(figure.subplots(len(rows), 3, squeeze=False), rows):
        low, high = np.percentile(row.before, (0.5, 99.8))
        for ax, picture in zip(line, (row.before, row.after)):
            ax.imshow(picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        difference = row.before - row.after
        limit = max(np.percentile(np.abs(difference), 99.8), 1e-6)
        drawn = line[2].imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit)
        figure.colorbar(drawn, ax=line[2], shrink=0.8)
        for ax, title in zip(line, (row.name, "after", "before minus after")):
            ax.set_title(_drawable(title), fontsize=8, parse_math=False)
            ax.set(xticks=[], yticks=[])
        share = row.axial / row.before.shape[1]
        for start in (0, share):  # axial and coronal planes are equally wide
            for place, side in ((start + 0.02, "L"), (start + share - 0.03, "R")):
                at = {"x": place, "y": 0.03, "transform": line[0].transAxes}
                line[0].text(s=side, color="yellow", **at)
    _save(figure, path)


def _drawable(text: str) -> str:
    """Escape characters that the font of figures lacks."""
    letters = get_font(findfont(FontProperties())).get_charmap()
    return "".join(x if ord(x) in letters else ascii(x).strip("'") for x in text)


def montage_pairs(images: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """Arrange images in rows, each with a row of reconstructions below."""
    # Two wide pictures, such as planes of volumes, fit into a row.
    columns = 8 if images.shape[2] < 2 * images.shape[1] else 2
    columns = min(columns, len(images))
    # Fills the last row, so that its reconstructions are in the next.
    missing = [(0, 0), (0, -len(images) % columns), (0, 0), (0, 0), (0, 0)]
    pairs = np.stack([images, reconstructed], dtype="float32", casting="unsafe")
    pairs = np.pad(pairs, missing, constant_values=np.nan)
    rows = pairs.reshape(2, -1, columns, *images.shape[1:]).swapaxes(0, 1)
    return montage(rows.reshape(-1, *images.shape[1:]), columns=columns)


_LOSSES = "loss", "val_loss", "mse", "val_mse"
_SHARES = "val_detail", "val_dice"


def plot_curves(ax: Axes, stage: str, history: Mapping[str, Sequence]) -> None:
    """Plot the losses, and below them metrics between 0 and 1."""
    losses = [name for name in _LOSSES if name in history]
    shares = [name for name in _SHARES if name in history]
    if len(history["epoch"]) == 1:
        figures = (f"{name} {history[name][0]:.4g}" for name in losses + shares)
        ax.text(0.5, 0.5, "\n".join(["one round:", *figures]), ha="center", va="center")
        ax.set(title=stage, xticks=[], yticks=[])
        return
    if shares:
        whole = ax.get_subplotspec() or GridSpec(1, 1)[0]
        grid = whole.subgridspec(2, 1, height_ratios=(3, 1))
        ax.set_subplotspec(grid[0])
        lower = ax.figure.add_subplot(grid[1], sharex=ax)
        for name in shares:
            lower.plot(history["epoch"], history[name], "g.-", label=name)
        lower.set_ylim(0, 1.05)
        lower.set_xlabel("epoch")
        lower.grid(alpha=0.3)
        lower.legend(loc="lower right", frameon=False)
    for name in losses:
        ax.plot(history["epoch"], history[name], marker=".", label=name)
    ax.set_title(stage, pad=24)
    ax.set_xlabel("" if shares else "epoch")
    if "mse" in history:  # which falls by orders of magnitude
        ax.set_yscale("log")
    ax.grid(alpha=0.3)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if "perplexity" in history:
        twin = ax.twinx()
        twin.plot(history["epoch"], history["perplexity"], "k.:", label="perplexity")
        twin.set_ylabel("perplexity of the codes (dotted)")
    # Below the title, since curves may fill the axes.
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False)


def draw_picture(ax: Axes, picture: np.ndarray, title: str) -> None:
    """Draw a picture into a frame without ticks."""
    ax.imshow(picture, cmap="gray" if picture.shape[-1] == 1 else None, vmin=0, vmax=1)
    ax.set(title=title, xticks=[], yticks=[])
