"""Pictures of findings: of images and of volumes, beside a usual one."""

import numpy as np
import pytest

from dipy_ldm.checking._findings import Gallery, flat, show_reconstructions

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
IMAGES = np.random.default_rng(0).random((6, 28, 20, 1))
VOLUMES = np.random.default_rng(0).random((6, 8, 9, 10, 1))


def test_small_pictures_are_enlarged():
    assert flat(IMAGES, None).shape == (6, 84, 60, 1)
    # Axial, coronal and sagittal planes side by side.
    assert flat(VOLUMES, AFFINE).shape[0] == 6
    assert flat(VOLUMES, AFFINE).shape[1] >= 80


@pytest.mark.parametrize(("images", "affine"), [(IMAGES, None), (VOLUMES, AFFINE)])
def test_the_last_is_a_usual_one(images, affine):
    (picture,) = Gallery(images, affine, usual=4)([1], "Far out")
    (same,) = Gallery(images, affine, usual=1)([4], "Far out")
    assert picture.caption == "Far out"
    assert picture.image.shape == same.image.shape
    assert 0 <= picture.image.min() <= picture.image.max() <= 1
    assert not np.array_equal(picture.image, same.image)


@pytest.mark.parametrize(("images", "affine"), [(IMAGES, None), (VOLUMES, AFFINE)])
def test_reconstructions_are_shown_below(images, affine):
    picture = show_reconstructions(images, 0 * images, affine)
    assert picture.ndim == 3
    assert picture.max() == pytest.approx(1, abs=0.1)
