"""Tiles put together equal the whole."""

import numpy as np
import numpy.testing as npt
import pytest
from scipy.ndimage import uniform_filter

from dipy_ldm._utils import tiling as tiles


def doubled(array):
    """Look two positions to each side, and double each side."""
    size = (1, *(5,) * (array.ndim - 2), 1)
    smoothed = uniform_filter(array, size, mode="constant")
    for axis in range(1, array.ndim - 1):
        smoothed = smoothed.repeat(2, axis)
    return smoothed


@pytest.mark.parametrize("tile", [1, 3, 4, 100])
@pytest.mark.parametrize("space", [(11, 7), (6, 9, 5)])
def test_tiles_give_the_whole(space, tile):
    array = np.random.default_rng(0).random((2, *space, 3))
    whole = doubled(array)
    tiled = tiles.in_tiles(doubled, array, tile=tile, margin=2, output_factor=2)
    npt.assert_allclose(tiled, whole, atol=1e-12)


def test_tiles_are_as_small_as_promised():
    sizes = []

    def watch(array):
        sizes.append(array.shape[1:-1])
        return doubled(array)

    array = np.zeros((1, 30, 30, 1))
    tiles.in_tiles(watch, array, tile=4, margin=2, output_factor=2)
    assert len(sizes) == 64
    assert max(max(size) for size in sizes) == 8


def test_safe_sizes():
    assert tiles.safe_batch((28, 28)) == 256
    assert tiles.safe_batch((64, 64, 64)) == 4
    assert tiles.safe_batch((100, 100, 100), tiles.SAFE_LATENTS) == 4
    assert tiles.safe_batch((1000, 1000, 1000)) == 1
    assert tiles.safe_side(3) == 200
