"""Windows: what is read of an image, and what is beyond its edge."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.data._batches import read_whole, read_windows


@pytest.mark.parametrize("space", [(9, 7), (5, 6, 8)])
def test_a_window_inside_is_a_piece_of_the_image(space):
    images = np.random.default_rng(0).integers(0, 255, (3, *space, 2), "uint8")
    size = (3,) * len(space)
    corners = np.array([(1,) * len(space), (2,) * len(space)])
    first, second = read_windows(images, [2, 0], corners, size)
    assert first.dtype == np.float32
    npt.assert_array_equal(first, images[(2, *(slice(1, 4),) * len(space))])
    npt.assert_array_equal(second, images[(0, *(slice(2, 5),) * len(space))])


def test_beyond_the_image_its_edge_is_repeated():
    images = np.arange(4.0).reshape(1, 2, 2, 1)
    (window,) = read_windows(images, [0], np.array([(-1, -2)]), (4, 5))
    padded = np.pad(images[0], [(1, 1), (2, 1), (0, 0)], mode="edge")
    npt.assert_array_equal(window, padded)
    (far,) = read_windows(images, [0], np.array([(9, 9)]), (2, 2))
    npt.assert_array_equal(far, 3)


@pytest.mark.parametrize("space", [(6,), (4, 6), (3, 4, 5)])
def test_windows_anywhere_hold_the_nearest_voxels(space):
    rng = np.random.default_rng(0)
    images = rng.random((2, *space, 2))
    for _ in range(100):
        size = tuple(rng.integers(1, 9, len(space)))
        corner = rng.integers(-12, 13, len(space))
        (window,) = read_windows(images, [1], corner[None], size)
        nearest = [
            np.clip(np.arange(first, first + length), 0, end - 1)
            for first, length, end in zip(corner, size, space, strict=True)
        ]
        npt.assert_array_equal(window, images[1][np.ix_(*nearest)].astype("float32"))


def test_a_whole_image_is_copied_at_once(monkeypatch):
    monkeypatch.setattr(np, "pad", None)
    images = np.random.default_rng(0).random((2, 5, 7, 1), "float32")
    npt.assert_array_equal(read_whole(images, (5, 7)), images)


def test_the_whole_is_filled_up_at_its_end():
    images = np.random.default_rng(0).random((2, 5, 7, 1))
    whole = read_whole(images, (8, 8))
    npt.assert_allclose(whole[:, :5, :7], images, rtol=1e-6)
    npt.assert_array_equal(whole[:, 5:, :7], whole[:, 4:5, :7].repeat(3, 1))
