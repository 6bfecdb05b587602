"""Windows: pieces of images, read from memory or from a mapped file."""

import numpy as np


def read_windows(images, index, corners, size):
    """Read one window of each of some images.

    Only what lies inside the windows is read, so that a mapped file may be far
    larger than the memory. Beyond an image its edge is repeated.

    Parameters
    ----------
    images : ndarray
        Images, ``(n, *space, channels)``, of any type.
    index : sequence of int
        Numbers of the images, ``(b,)``.
    corners : ndarray of int
        First voxel of each window, ``(b, rank)``; it may lie outside.
    size : tuple of int
        Voxels of a window along each axis.

    Returns
    -------
    ndarray
        Windows, float32 ``(b, *size, channels)``.
    """
    space = images.shape[1:-1]
    windows = np.empty((len(index), *size, images.shape[-1]), "float32")
    for window, i, corner in zip(windows, index, corners):
        axes = [
            np.clip(np.arange(first, first + length), 0, end - 1)
            for first, length, end in zip(corner, size, space)
        ]
        inside = images[i][tuple(slice(a[0], a[-1] + 1) for a in axes)]
        window[...] = inside[np.ix_(*(a - a[0] for a in axes))]
    return windows


def read_whole(images, size):
    """Read images as one window each, from their first voxel on.

    Parameters
    ----------
    images : ndarray
        Images, ``(n, *space, channels)``.
    size : tuple of int
        Voxels of a window along each axis, at least those of the images.

    Returns
    -------
    ndarray
        Windows, float32 ``(n, *size, channels)``.
    """
    corners = np.zeros((len(images), len(size)), int)
    return read_windows(images, range(len(images)), corners, size)
