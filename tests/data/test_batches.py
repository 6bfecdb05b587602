"""Batches: functions of seed, epoch and example."""

from batches import draw_batches
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._batches import Augmentation, batches, read_padded, read_patches

IMAGES = np.arange(10, dtype="float32").reshape(10, 1, 1)


def order(n_batches, first_step=0, **kwargs):
    data = batches(IMAGES, 3, **kwargs)
    return [x.ravel().tolist() for x, _ in draw_batches(data, n_batches, first_step)]


def test_an_epoch_has_every_image_at_most_once():
    epochs = np.array(order(30, seed=0)).reshape(10, 9)
    for epoch in epochs:
        assert len(set(epoch)) == 9
    # What is left out, and the order, change from epoch to epoch.
    assert len({45 - epoch.sum() for epoch in epochs}) > 2
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_training_can_be_entered_in_the_middle_of_an_epoch():
    assert order(12, seed=4)[7:] == order(5, seed=4, first_step=7)
    assert order(6, seed=4) != order(6, seed=5)


def pieces(images, n_batches=20, batch_size=4, **kwargs):
    data = batches(images, batch_size, seed=0, **kwargs)
    return zip(*draw_batches(data, n_batches), strict=True)


def test_patches_are_pieces_from_everywhere():
    images = np.arange(8 * 6 * 5, dtype="float32").reshape(8, 6, 5, 1)
    found, wanted = map(np.concatenate, pieces(images, size=(3, 2)))
    npt.assert_array_equal(found, wanted)
    corners = found[:, 0, 0, 0].astype(int)
    assert len(set(corners % 30)) == 4 * 4
    # Each is a piece of one image.
    flat = images.reshape(8, 30)
    rows = corners[:, None, None] + 5 * np.arange(3)[:, None] + np.arange(2)
    npt.assert_array_equal(found[..., 0], flat.ravel()[rows])


def test_a_window_larger_than_the_image_starts_with_it():
    images = np.random.default_rng(0).random((8, 6, 5, 1))
    found, _ = map(np.concatenate, pieces(images, size=(8, 8)))
    assert found.shape[1:] == (8, 8, 1)
    firsts = {round(float(x), 6) for x in images[:, 0, 0, 0]}
    assert {round(float(x), 6) for x in found[:, 0, 0, 0]} == firsts


def test_intensities_are_brought_to_bounds():
    images = np.random.default_rng(0).uniform(-5, 20, (8, 6, 5, 1))
    found, _ = map(np.concatenate, pieces(images, bounds=(-5.0, 20.0)))
    assert 0 <= found.min() < 0.05
    assert 0.95 < found.max() <= 1


@pytest.mark.parametrize(("space", "axis"), [((6, 5), 2), ((4, 5, 3), 1)])
def test_augmentation_mirrors_half_of_the_images(space, axis):
    images = np.random.default_rng(0).random((1, *space, 1)).repeat(8, 0)
    found, _ = pieces(images, 50, augment=Augmentation(flip=True))
    found = np.concatenate(found).astype("float64")
    off = (found - image for image in (images[:1], np.flip(images[:1], axis)))
    same, mirrored = (np.abs(x).reshape(len(x), -1).max(1) < 1e-6 for x in off)
    assert (same | mirrored).all()
    assert 0.4 < same.mean() < 0.6


def test_shifts_are_as_small_as_promised_and_of_any_size():
    images = np.zeros((8, 9, 9, 1), "float32")
    images[:, 4, 4] = 1
    found, _ = pieces(images, 50, augment=Augmentation(shift=2))
    _, rows, columns, _ = np.nonzero(np.concatenate(found))
    assert set(rows) == set(columns) == {2, 3, 4, 5, 6}


def test_intensities_change_a_little_and_stay_in_range():
    images = np.linspace(0, 1, 11, dtype="float32").reshape(1, 11, 1, 1).repeat(8, 0)
    found, _ = pieces(images, 50, augment=Augmentation(intensity=0.1))
    found = np.concatenate(found)
    assert 0 <= found.min()
    assert found.max() <= 1
    assert 0.02 < np.abs(found - images[:1]).max() < 0.15
    assert (np.diff(found, axis=1) >= 0).all()


def test_augmentation_noise_is_in_the_input_only():
    images = np.full((8, 30, 30, 1), 0.5, "float32")
    augment = Augmentation(noise=0.1)
    found, wanted = map(np.concatenate, pieces(images, 50, augment=augment))
    npt.assert_array_equal(wanted, 0.5)
    spread = found.std((1, 2, 3))
    assert spread.min() < 0.01
    assert 0.09 < spread.max() < 0.11
    assert 0.04 < spread.mean() < 0.06
    # Of each epoch and image another, and the same in any batch.
    assert len({round(float(x), 7) for x in spread}) == len(spread)
    halves, _ = map(np.concatenate, pieces(images, 100, 2, augment=augment))
    npt.assert_array_equal(halves, found)


def test_weights_follow_the_masks():
    images = np.random.default_rng(0).random((8, 6, 5, 1)).astype("float32")
    masks = images > 0.5
    options = {"augment": Augmentation(flip=True, shift=1), "size": (4, 4)}
    found, wanted = pieces(images, masks=masks, background=0.25, **options)
    found, wanted = np.concatenate(found), np.concatenate(wanted)
    npt.assert_array_equal(wanted[..., :1], found)
    weights = wanted[..., 1:]
    assert len(np.unique(weights[found > 0.5])) == 1
    npt.assert_array_equal(weights[found <= 0.5], weights[found > 0.5][0] / 4)


def test_without_masks_the_darkest_is_background():
    images = np.zeros((8, 6, 5, 1), "float32")
    images[:, :3] = 1
    _, wanted = pieces(images, background=0.5)
    # Of mean 1.
    npt.assert_allclose(np.concatenate(wanted)[:, :3, :, 1], 4 / 3, rtol=1e-6)
    npt.assert_allclose(np.concatenate(wanted)[:, 3:, :, 1], 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("size", "shift"), [((4, 4), 0), ((3, 9), 2), ((20, 20), 1)])
def test_background_patches_weigh_as_background(masked, size, shift):
    # In one corner, so that some pieces have nothing of it and others nothing else.
    images = np.zeros((40, 12, 10, 1), "float32")
    images[:, :5, :4] = np.linspace(0.2, 1, 40).reshape(-1, 1, 1, 1)
    options = {"masks": images > 0.5} if masked else {}
    augment = Augmentation(flip=True, shift=shift)
    options |= {"background": 0.1, "size": size, "augment": augment}
    _, wanted = map(np.concatenate, pieces(images, 800, **options))
    weights = wanted[..., 1]
    light, heavy = np.unique(weights)
    npt.assert_allclose(light, heavy / 10, rtol=1e-6)
    npt.assert_allclose(weights.mean(), 1, atol=0.05)


def test_nothing_but_background_without_weight_is_refused():
    with pytest.raises(InputError, match="no voxel lies inside the masks"):
        pieces(np.zeros((8, 6, 5, 1), "float32"), background=0.0)


@pytest.mark.parametrize("space", [(6,), (4, 6), (3, 4, 5)])
def test_windows_anywhere_hold_the_nearest_voxels(space, rng):
    images = rng.random((2, *space, 2))
    for _ in range(100):
        size = tuple(rng.integers(1, 9, len(space)))
        corner = rng.integers(-12, 13, len(space))
        (window,) = read_patches(images, [1], corner[None], size)
        assert window.dtype == np.float32
        nearest = [
            np.clip(np.arange(first, first + length), 0, end - 1)
            for first, length, end in zip(corner, size, space, strict=True)
        ]
        npt.assert_array_equal(window, images[1][np.ix_(*nearest)].astype("float32"))


def test_the_whole_is_filled_up_at_its_end():
    images = np.random.default_rng(0).random((2, 5, 7, 1))
    whole = read_padded(images, (8, 8))
    npt.assert_allclose(whole[:, :5, :7], images, rtol=1e-6)
    npt.assert_array_equal(whole[:, 5:, :7], whole[:, 4:5, :7].repeat(3, 1))
