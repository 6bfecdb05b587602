"""Windows: pieces of images, read from memory or from a mapped file."""

from collections.abc import Sequence

import numpy as np


def window_size(
    space: tuple[int, ...], factor: int, patch: int | Sequence[int] | None = None
) -> tuple[int, ...]:
    """Say how large a window the networks are given of an image."""
    sizes = np.minimum(space, space if patch is None else patch)
    return tuple(int(size) + -int(size) % factor for size in sizes)


def read_windows(
    images: np.ndarray,
    index: Sequence[int] | np.ndarray,
    corners: np.ndarray,
    size: tuple[int, ...],
) -> np.ndarray:
    """Read one window of each of some images.

    Only what lies inside the windows is read, so that a mapped file may be far
    larger than the memory. Beyond an image its edge is repeated.

    Shapes: images ``(n, *space, channels)``, index ``(b,)``, corners ``(b, rank)``,
    result ``(b, *size, channels)``.
    """
    windows = np.empty((len(index), *size, images.shape[-1]), "float32")
    for window, i, corner in zip(windows, index, corners):
        # At least one voxel, the nearest, of a window that lies outside.
        axes = [
            (min(max(first, 0), end - 1), max(min(first + length, end), 1))
            for first, length, end in zip(corner, size, images.shape[1:-1])
        ]
        inside = images[i][tuple(slice(low, high) for low, high in axes)]
        if inside.shape != window.shape:
            inside = _with_edges(inside, axes, corner, size)
        window[...] = inside
    return windows


def _with_edges(inside, axes, corner, size):
    """Repeat the edge of what lies inside, as far as the window goes."""
    missing = [
        (max(low - first, 0), max(first + length - high, 0))
        for (low, high), first, length in zip(axes, corner, size)
    ]
    whole = np.pad(inside, [*missing, (0, 0)], mode="edge")
    # Longer, where the window lies outside by more than its own length.
    return whole[tuple(slice(length) for length in size)]


def read_whole(images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Read images as one window each, from their first voxel on.

    Shapes: images ``(n, *space, channels)``, result ``(n, *size, channels)``.
    """
    corners = np.zeros((len(images), len(size)), int)
    return read_windows(images, range(len(images)), corners, size)


def scaled_to(images: np.ndarray, bounds: tuple[float, ...]) -> np.ndarray:
    """Bring images to [0, 1]."""
    low, high = bounds
    return (images - np.float32(low)) / np.float32(high - low or 1)
