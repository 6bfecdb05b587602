"""Batches are functions of seed, epoch and example."""

from batches import draw_batches
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._batches import Augmentation, batches, read_padded, read_patches


def order(n_batches, first_step=0, seed=0):
    """Return the numbers of the images in each batch of three of ten."""
    data = batches(np.arange(10.0).reshape(10, 1, 1), 3, seed=seed)
    return np.array([x.ravel() for x, _ in draw_batches(data, n_batches, first_step)])


def draw(images, n_batches=20, batch_size=4, **options):
    """Return inputs and targets of so many batches, joined."""
    data = batches(images, batch_size, seed=0, **options)
    return map(np.concatenate, zip(*draw_batches(data, n_batches), strict=True))


def test_batches_of_an_epoch_repeat_no_image():
    epochs = order(30).reshape(10, 9)
    assert all(len({*epoch}) == 9 for epoch in epochs)
    # What is left out, and the order, change from epoch to epoch.
    assert len({*epochs.sum(1)}) > 2
    assert len(np.unique(epochs, axis=0)) == 10


def test_batches_depend_on_step_and_seed_alone():
    npt.assert_array_equal(order(12)[7:], order(5, first_step=7))
    assert (order(6) != order(6, seed=5)).any()


@pytest.mark.parametrize(("size", "n_corners"), [((3, 2), 4 * 4), ((8, 8), 1)])
def test_batches_are_scaled_patches_from_everywhere(size, n_corners):
    images = np.arange(-40, 200, dtype="float32").reshape(8, 6, 5, 1)
    patches, targets = draw(images, size=size, bounds=(-40.0, 199.0))
    npt.assert_array_equal(patches, targets)
    values = np.rint(239 * patches) - 40
    npt.assert_allclose(239 * patches - 40, values, atol=1e-4)
    numbers, corners = np.divmod(values[:, 0, 0, 0].astype(int) + 40, 30)
    assert len({*corners}) == n_corners
    places = np.stack(np.divmod(corners, 5), -1)
    npt.assert_array_equal(values, read_patches(images, numbers, places, size))


@pytest.mark.parametrize(("space", "axis"), [((6, 5), 2), ((4, 5, 3), 1)])
def test_augmentation_mirrors_half_of_the_images(space, axis, rng):
    image = rng.random((1, *space, 1), "float32")
    inputs, _ = draw(image.repeat(8, 0), 50, augment=Augmentation(flip=True))
    axes = tuple(range(1, inputs.ndim))
    same, mirrored = ((inputs == x).all(axes) for x in (image, np.flip(image, axis)))
    assert (same | mirrored).all()
    assert 0.4 < same.mean() < 0.6


def test_augmentation_shifts_up_to_its_limit():
    images = np.zeros((8, 9, 9, 1), "float32")
    images[:, 4, 4] = 1
    inputs, _ = draw(images, 50, augment=Augmentation(shift=2))
    _, rows, columns, _ = np.nonzero(inputs)
    assert {*rows} == {*columns} == {2, 3, 4, 5, 6}


def test_augmentation_changes_intensities_a_little_within_range():
    images = np.linspace(0, 1, 11, dtype="float32").reshape(1, 11, 1, 1).repeat(8, 0)
    inputs, _ = draw(images, 50, augment=Augmentation(intensity=0.1))
    assert 0 <= inputs.min() and inputs.max() <= 1
    assert 0.02 < np.abs(inputs - images[:1]).max() < 0.15
    assert (np.diff(inputs, axis=1) >= 0).all()


def test_augmentation_noise_is_in_the_input_only():
    images = np.full((8, 30, 30, 1), 0.5, "float32")
    augment = Augmentation(noise=0.1)
    inputs, targets = draw(images, 50, augment=augment)
    npt.assert_array_equal(targets, 0.5)
    spread = inputs.std((1, 2, 3))
    assert spread.min() < 0.01
    assert 0.09 < spread.max() < 0.11
    assert 0.04 < spread.mean() < 0.06
    # Of each epoch and image another, and the same in any batch.
    assert len({*spread.round(7)}) == len(spread)
    halves, _ = draw(images, 100, 2, augment=augment)
    npt.assert_array_equal(halves, inputs)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("size", "shift"), [((4, 4), 0), ((3, 9), 2), ((14, 12), 1)])
def test_background_weighs_less_and_the_mean_weight_is_1(masked, size, shift):
    # In one corner, so that some patches have nothing of it and others nothing else.
    images = np.zeros((40, 12, 10, 1), "float32")
    images[:, :5, :4] = np.linspace(0.2, 1, 40).reshape(-1, 1, 1, 1)
    options = {"masks": images > 0.5} if masked else {}
    options |= {"size": size, "augment": Augmentation(flip=True, shift=shift)}
    inputs, targets = draw(images, 80, 40, background=0.1, **options)
    npt.assert_array_equal(targets[..., :1], inputs)
    weights = targets[..., 1:]
    inside = np.where(inputs > (0.5 if masked else 0), 1, 0.1)
    npt.assert_allclose(weights, inside * weights.max(), rtol=1e-6)
    npt.assert_allclose(weights.mean(), 1, atol=0.05)


def test_background_of_a_map_is_its_own_value():
    images = np.zeros((8, 6, 5, 2), "float32")
    images[..., 1] = 1 / 3
    images[:, :3, :, 1] = 0
    _, targets = draw(images, background=0.5, empty=np.array([0, 1 / 3]))
    expected = np.where(images[:1, ..., 1], 2 / 3, 4 / 3)
    npt.assert_allclose(targets[..., 2], expected.repeat(len(targets), 0))


@pytest.mark.parametrize("ends", [(0, 1), (0.25, 0.875), (-1, 3)])
@pytest.mark.parametrize("noise", [0, 0.05])
def test_background_of_a_map_wherever_it_lies(ends, noise, rng):
    images = np.full((8, 6, 5, 1), 0.45, "float32")
    images[:, :3] = rng.uniform(*ends, (8, 3, 5, 1))
    options = {"bounds": ends, "augment": Augmentation(noise=noise)}
    empty = np.array([0.45], "float32")
    _, targets = draw(images, background=0.1, empty=empty, **options)
    expected = np.where(np.arange(6) < 3, 1, 0.1)[:, None] / 0.55
    npt.assert_allclose(
        targets[..., 1], np.broadcast_to(expected, (len(targets), 6, 5))
    )


def test_background_of_scans_is_the_lowest_value(rng):
    images = rng.uniform(-1, 3, (8, 6, 5, 1)).astype("float32")
    images[:, 3:] = images.min()
    ends = float(images.min()), float(images.max())
    _, targets = draw(images, background=0.1, bounds=ends)
    weights = targets[0, ..., 1]
    npt.assert_allclose(weights[3:], 0.1 * weights[0, 0], rtol=1e-6)
    npt.assert_allclose(weights.mean(), 1, atol=0.02)


def test_background_without_weight_needs_something_else():
    with pytest.raises(InputError, match="no voxel lies inside the masks"):
        draw(np.zeros((8, 6, 5, 1), "float32"), background=0.0)


@pytest.mark.parametrize("space", [(4, 6), (3, 4, 5)])
def test_read_patches_repeats_the_nearest_voxels(space, rng):
    images = rng.random((2, *space, 2))
    for _ in range(100):
        size = tuple(rng.integers(1, 9, len(space)))
        corner = rng.integers(-12, 13, len(space))
        (patch,) = read_patches(images, [1], corner[None], size)
        assert patch.dtype == np.float32
        nearest = [
            np.clip(np.arange(first, first + length), 0, end - 1)
            for first, length, end in zip(corner, size, space, strict=True)
        ]
        npt.assert_array_equal(patch, images[1][np.ix_(*nearest)].astype("float32"))


def test_read_padded_extends_the_far_edges(rng):
    images = rng.random((2, 5, 7, 1), "float32")
    padded = read_padded(images, (8, 8))
    npt.assert_array_equal(
        padded, np.pad(images, ((0, 0), (0, 3), (0, 1), (0, 0)), "edge")
    )
