"""Holes: what they are filled with, and what they touch."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.diffusion import masks as holes

SPACES = [(15, 12), (9, 11, 10)]


def ball(space, radius=3.2):
    distance = sum(
        (x - n / 2) ** 2 for x, n in zip(np.indices(space), space, strict=True)
    )
    return distance <= radius**2


def ramp(space):
    """Rises by another slope along each axis."""
    weights = np.arange(1, len(space) + 1)
    return np.moveaxis(np.indices(space), 0, -1) @ weights[:, None].astype("float32")


@pytest.mark.parametrize("space", SPACES)
def test_a_hole_in_a_ramp_is_filled_with_the_ramp(space):
    image, hole = ramp(space), ball(space)
    spoilt = np.where(hole[..., None], np.nan, image)
    filled = holes.fill(spoilt[None], hole[None])[0]
    npt.assert_allclose(filled, image, atol=0.02)
    npt.assert_array_equal(filled[~hole], image[~hole])


def test_a_filling_stays_within_what_is_around_it():
    rng = np.random.default_rng(0)
    image, hole = rng.random((1, 20, 20, 2)), ball((20, 20), 6)
    filled = holes.fill(image, hole[None])[0]
    around = image[0][~hole]
    assert around.min() < filled[hole].min() < filled[hole].max() < around.max()


def test_holes_at_the_edge_and_far_from_all_that_is_known():
    image = np.full((1, 8, 8, 1), 3.0)
    hole = np.zeros((1, 8, 8), bool)
    hole[:, :3] = True
    image[hole] = 99
    npt.assert_allclose(holes.fill(image, hole), 3, atol=1e-5)
    # Nothing to do, and nothing to go by.
    npt.assert_array_equal(holes.fill(image, hole & False), image)
    npt.assert_array_equal(holes.fill(image, hole | True), image)


@pytest.mark.parametrize("space", SPACES)
def test_shares_are_of_the_voxels_of_a_latent(space):
    hole = ball(space)
    shares = holes.hole_shares(hole[None], 4)[0]
    assert shares.shape == tuple(-(-n // 4) for n in space)
    wanted = np.zeros_like(shares)
    for voxel in np.argwhere(hole):
        wanted[tuple(voxel // 4)] += 1 / 4 ** len(space)
    inner = tuple(slice(n // 4) for n in space)
    npt.assert_allclose(shares[inner], wanted[inner])
    # Beyond the edge there is what is at the edge.
    npt.assert_array_equal(holes.hole_shares(hole[None] | True, 4), 1)


@pytest.mark.parametrize("space", SPACES)
def test_blending_leaves_no_seam_and_nothing_of_the_hole(space):
    rng = np.random.default_rng(1)
    image, hole = rng.random((1, *space, 1)).astype("float32"), ball(space)
    spoilt = np.where(hole[..., None], np.nan, image)
    # Off by what changes slowly: the truth is found.
    made = image - 0.2 + 0.01 * ramp(space)
    blended = holes.blend(spoilt, made.astype("float32"), hole[None])
    npt.assert_allclose(blended, image, atol=0.01)
    npt.assert_array_equal(blended[0][~hole], image[0][~hole])
    # Nor is anything brighter than all that is around.
    blended = holes.blend(image, made + 5 * hole[..., None], hole[None])
    assert blended.max() == image[0][~hole].max()


@pytest.mark.parametrize("kind", ["uint8", "int16", "float64"])
def test_images_of_any_type_are_blended_in_float32(kind):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 200, (2, 9, 8, 1)).astype(kind)
    hole = np.stack([ball((9, 8))] * 2)
    made = rng.random(image.shape).astype("float32") * 200
    blended = holes.blend(image, made, hole)
    assert blended.dtype == "float32"
    npt.assert_array_equal(blended, holes.blend(image.astype("float32"), made, hole))


def test_dilating_is_in_millimetres():
    hole = np.zeros((15, 15, 15), bool)
    hole[7, 7, 1] = True
    larger = holes.dilated(hole, 2, (1, 0.5, 3))
    index = np.indices(hole.shape).T - [7, 7, 1]
    wanted = np.linalg.norm(index * [1, 0.5, 3], axis=-1).T <= 2
    npt.assert_array_equal(larger, wanted)
    npt.assert_array_equal(holes.dilated(hole, 0, (1, 1, 1)), hole)


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        (np.zeros((3, 5, 4)), "mask 0 is empty; give"),
        (np.ones((5, 5)), r"must be numbers of the shape \(3, 5, 4\) of the images"),
        (np.full((5, 4), np.nan), "masks have NaN; replace"),
        (np.full((5, 4), "in"), "must be numbers of the shape"),
        (np.arange(3)[:, None, None] * np.ones((5, 4)), "mask 0 is empty; give"),
    ],
)
def test_masks_that_can_not_be_used(masks, sentence):
    with pytest.raises(InputError, match=sentence):
        holes.check_masks(masks, (3, 5, 4))


def test_masks_may_be_one_for_all_and_may_have_a_channel():
    one = np.eye(5, 4) - 0.5
    wanted = np.broadcast_to(one > 0, (3, 5, 4))
    for masks in (one, one[..., None], np.stack([one] * 3), wanted[..., None]):
        npt.assert_array_equal(holes.check_masks(masks, (3, 5, 4)), wanted)
