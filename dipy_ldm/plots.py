"""Figures of images, latents and trainings, and the pictures that commands write."""

from collections.abc import Mapping, Sequence, Sized
import io
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from dipy_ldm._pictures import (
    Comparison,
    ImagesToPlot,
    draw_picture,
    montage,
    montage_pairs,
    normalised,
    pad_to_largest,
    pictures,
    planes,
    plot_curves,
    save_comparison,
    save_montage,
    save_training,
)
from dipy_ldm._utils.checks import InputError

__all__ = [
    "Comparison",
    "as_png",
    "montage",
    "pictures",
    "planes",
    "plot_history",
    "plot_latents",
    "plot_reconstructions",
    "plot_samples",
    "save_comparison",
    "save_montage",
    "save_training",
]


class _Figure(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self):
        return as_png(self)


def as_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Figure to convert.

    Returns
    -------
    bytes
        Content of the PNG file.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _history_of(fitted: Any) -> Any:
    """Return the history of a fitted estimator, or the history itself."""
    if hasattr(fitted, "_check_fitted"):
        fitted._check_fitted()
    return getattr(fitted, "history_", fitted)


def plot_history(history: object) -> Figure:
    """Plot the history of a training.

    Parameters
    ----------
    history : estimator, dict or dict of dict
        Fitted estimator, its ``history_``, or several of these by name.

    Returns
    -------
    matplotlib.figure.Figure
        Losses and other metrics by epoch.
    """
    figures = _history_of(history)
    name = "training" if figures is history else type(history).__name__
    several = {stage: _history_of(part) for stage, part in figures.items()}
    histories = {name: figures} if "loss" in figures else several
    figure = _Figure(figsize=(6 * len(histories), 4), layout="constrained")
    axes = figure.subplots(1, len(histories), squeeze=False)
    for ax, (stage, metrics) in zip(axes[0], histories.items()):
        plot_curves(ax, stage, metrics)
    return figure


def plot_samples(
    images: ImagesToPlot,
    *,
    affine: np.ndarray | None = None,
    channels: Sequence = (),
    columns: int | None = None,
) -> Figure:
    """Plot images, or three planes of volumes, side by side.

    Parameters
    ----------
    images, affine, channels
        As of :func:`pictures`.
    columns : int, optional
        Images in a row. Default: for about a square.

    Returns
    -------
    matplotlib.figure.Figure
        A montage.
    """
    return _montage_figure(montage(pictures(images, affine, channels), columns=columns))


def plot_reconstructions(
    images: ImagesToPlot,
    reconstructed: ImagesToPlot,
    *,
    affine: np.ndarray | None = None,
    channels: Sequence = (),
) -> Figure:
    """Plot rows of images, with rows of reconstructed or denoised ones below.

    Parameters
    ----------
    images, reconstructed, affine, channels
        As of :func:`pictures`.

    Returns
    -------
    matplotlib.figure.Figure
        A montage.
    """
    stacks: tuple[Any, Any] = (images, reconstructed)
    # Volumes are a tuple, too.
    before, after = (list(x) if type(x) in (list, tuple) else [x] for x in stacks)
    if all(isinstance(x, Mapping) or hasattr(x, "get_fdata") for x in before + after):
        _refuse_uneven(before, after)
        # Scans differ in their units: each pair has its own scale.
        both = map(list, zip(before, after))
        pairs = [normalised(pictures(pair, affine, channels)) for pair in both]
        return _montage_figure(montage_pairs(*np.stack(pad_to_largest(pairs), 1)))
    for stack in stacks:
        if hasattr(stack, "images"):  # the other stack has the same affine and channels
            affine, channels = stack.affine, stack.channels
    above, below = (pictures(stack, affine, channels) for stack in stacks)
    _refuse_uneven(above, below)
    if above.shape != below.shape:
        raise InputError(
            "images and reconstructions differ in size", "give arrays of the same shape"
        )
    return _montage_figure(montage_pairs(above, below))


def _refuse_uneven(before: Sized, after: Sized) -> None:
    """Refuse different numbers of images and reconstructions."""
    if len(before) != len(after):
        raise InputError(
            f"there are {len(before)} images and {len(after)} reconstructions",
            "give one for each image",
        )


def plot_latents(latents: np.ndarray, *, columns: int | None = None) -> Figure:
    """Plot latents in colours: up to three channels, or the main components of more.

    Parameters
    ----------
    latents : ndarray
        Latents, ``(n, *space, channels)``, as of :meth:`dipy_ldm.VQVAE.encode`.
    columns : int, optional
        Latents in a row. Default: for about a square.

    Returns
    -------
    matplotlib.figure.Figure
        A montage.
    """
    rows = np.reshape(latents, (-1, latents.shape[-1])).astype("float32")
    if rows.shape[1] > 3:
        rows = rows - rows.mean(0)
        rows = rows @ np.linalg.eigh(rows.T @ rows)[1][:, :-4:-1]
    if rows.shape[1] == 2:  # blue is 0
        rows = np.pad(rows, [(0, 0), (0, 1)])
    # Outliers would leave all others grey.
    low, high = np.percentile(rows, (1, 99), axis=0)
    rows = np.clip((rows - low) / np.maximum(high - low, 1e-12), 0, 1)
    colours = rows.reshape(*latents.shape[:-1], -1)
    return _montage_figure(montage(pictures(colours), columns=columns, gap=1))


def _montage_figure(picture: np.ndarray) -> Figure:
    """Return a figure with a single picture, in its aspect ratio."""
    height, width = picture.shape[:2]
    figure = _Figure(figsize=(8, max(1, 8 * height / width)), layout="constrained")
    draw_picture(figure.subplots(), picture, "")
    return figure
