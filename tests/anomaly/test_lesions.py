"""Synthetic lesions lie in tissue, and change nothing else."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.anomaly import _lesions as lesions
from dipy_ldm.anomaly._lesions import Atlas, add_lesions, deform, lesion_batches

SPACES = [(52, 60), (52, 50, 56)]


def brains(space, n=5):
    """Draw images of another brightness each, with nothing around them."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, s) for s in space)), -1)
    inside = (np.linalg.norm(np.moveaxis(places, 0, 1), axis=-1) < 0.8)[..., None]
    return (inside * rng.uniform(0.4, 0.9, (n, *(1,) * (len(space) + 1)))).astype("f4")


@pytest.mark.parametrize("space", SPACES)
def test_add_lesions_changes_tissue_within_the_mask_only(space):
    image = brains(space, 1)[0]
    strengths = []
    for seed in range(20):
        window, mask = image.copy(), np.zeros(space, "float32")
        add_lesions(window, mask, np.random.default_rng(seed))
        assert mask.min() == 0 and 0.5 < mask.max() <= 1
        npt.assert_array_equal(window[mask == 0], image[mask == 0])
        assert (mask[image[..., 0] == 0] == 0).all()
        # Lesions may meet, so that one undoes another.
        inside = np.abs(window / np.maximum(image, 0.1) - 1)[mask == 1]
        strengths.append(np.median(inside))
        assert 0.001 < mask.mean() < 0.35
    assert 0.14 < min(strengths) < 0.3 and 0.3 < max(strengths) < 0.7


def batches(images, size, seed=0, **options):
    bounds = (0.0, 1.0)
    atlas = Atlas.learn(images, bounds)
    options |= {"seed": seed, "bounds": bounds, "atlas": atlas}
    return lesion_batches(images, 4, size=size, **options)


def test_lesions_are_no_brighter_than_scans_can_be():
    images = np.minimum(1.6 * brains(SPACES[0]), 1)
    inputs, masks = batches(images, SPACES[0]).of(0)
    inside = inputs[..., :1][masks > 0.5]
    assert inside.min() >= 0 and inside.max() == 1
    # Bright ones are there, and others are as before.
    assert (inside == 1).mean() > 0.1 and (inside < 0.9).mean() > 0.1


def test_add_lesions_needs_tissue():
    window, mask = np.zeros((9, 9, 9, 1), "float32"), np.zeros((9, 9, 9), "float32")
    add_lesions(window, mask, np.random.default_rng(0))
    assert not window.any() and not mask.any()


@pytest.mark.parametrize("space", SPACES)
def test_atlas_is_mean_and_spread_and_tells_places(space):
    images = 7 + 2 * brains(space)
    atlas = Atlas.learn(images, (7.0, 9.0))
    scaled = (images - 7) / 2
    npt.assert_allclose(atlas.mean, scaled.mean(0), atol=1e-6)
    npt.assert_allclose(atlas.spread, scaled.std(0), atol=1e-3)
    size, corner = (16,) * len(space), np.arange(len(space)) + 3
    cut = tuple(slice(c, c + 16) for c in corner)
    inputs = atlas.describe(scaled[:1][(slice(None), *cut)], corner[None])
    assert inputs.shape == (1, *size, lesions.n_features(len(space), 1))
    npt.assert_array_equal(inputs[0, ..., 0], scaled[0][cut][..., 0])
    npt.assert_array_equal(inputs[0, ..., 2], atlas.mean[cut][..., 0])
    places = np.moveaxis(inputs[0, ..., 4:], -1, 0)
    for axis, (place, whole) in enumerate(zip(places, space, strict=True)):
        expected = np.linspace(-1, 1, whole)[cut[axis]]
        along = np.moveaxis(place, axis, 0).reshape(16, -1)[:, 0]
        npt.assert_allclose(along, expected, atol=1e-6)


@pytest.mark.parametrize("space", SPACES)
def test_lesions_follow_from_seed_step_and_index(space):
    images, size = brains(space), (24,) * len(space)
    inputs, masks = batches(images, size).of(3)
    assert inputs.dtype == masks.dtype == np.float32
    assert inputs.shape[:-1] == masks.shape[:-1] == (4, *size)
    drawn_inputs, drawn_masks = batches(images, size).draw(3, [2, 0])
    npt.assert_array_equal(drawn_inputs, inputs[[2, 0]])
    npt.assert_array_equal(drawn_masks, masks[[2, 0]])
    assert (batches(images, size, seed=2).of(3)[0] != inputs).any()
    # A replica may have no example of a batch.
    none, _ = batches(images, size).draw(0, range(0))
    assert none.shape == (0, *inputs.shape[1:])


@pytest.mark.parametrize("space", SPACES)
def test_deform_moves_a_little_and_smoothly(space):
    # Of voxels that know where they are.
    places = np.stack(np.indices(space), -1).astype("float32")
    size = tuple(length - 8 for length in space)
    middle = places[tuple(slice(4, -4) for _ in space)]
    streams = [np.random.default_rng(seed) for seed in range(20)]
    for stream in streams:
        npt.assert_array_equal(deform(places, size, 0.0, stream), middle)
    moved = np.stack([deform(places, size, 8.0, s) - middle for s in streams])
    assert moved.dtype == np.float32
    assert 0.5 < moved.std() < 2.5
    assert 2 < np.abs(moved).max() < 8
    npt.assert_allclose(moved.mean(), 0, atol=0.3)
    for axis in range(1, len(space) + 1):
        assert np.abs(np.diff(moved, axis=axis)).max() < 1.2
    npt.assert_array_equal(deform(0 * places + 3, size, 8.0, streams[0]), 3)


def test_training_images_are_deformed_and_held_out_ones_are_not():
    images = brains(SPACES[0], 1).repeat(4, axis=0)
    deformed, _ = batches(images, SPACES[0]).of(0)
    inputs, masks = batches(images, SPACES[0], deformed=False).of(0)
    outside = (masks[:2, ..., 0] == 0).all(0)
    npt.assert_array_equal(inputs[0, outside, 0], inputs[1, outside, 0])
    assert (deformed[0, ..., 0] != deformed[1, ..., 0]).mean() > 0.05
