"""Inpainting, against the exact denoiser of a Gaussian, and of images."""

from keras import ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.diffusion import _inpainting as inpainting, samplers, schedules
from dipy_ldm.diffusion._denoisers import pinned

CORRELATION = 0.9
COVARIANCE = np.array([[1, CORRELATION], [CORRELATION, 1]])
FREEDOM = np.array([[0, 1]])


def denoise(x, t):
    """Return the exact expectation of pairs of N(0, COVARIANCE) behind ``x``."""
    alpha, sigma = map(float, schedules.rates("cosine", t))
    noisy = alpha**2 * COVARIANCE + sigma**2 * np.eye(2)
    weights = (alpha * COVARIANCE @ np.linalg.inv(noisy)).T
    return ops.convert_to_numpy(x) @ weights.astype("float32")


def slope_and_spread(resamplings, n=5_000):
    """Inpaint the second of each pair; return the line through all pairs."""
    first = np.random.default_rng(1).standard_normal(n)
    pairs = np.stack([first, np.zeros(n)], -1).astype("float32")
    sampler = samplers.make_sampler("dpm++")
    path = schedules.path("cosine", sampler.grid("cosine", inpainting.STEPS))
    noise = samplers.noise_source(0, range(n), (2,))
    alpha, sigma = path[0][1]
    x = alpha * pairs + sigma * noise()
    fitting = pinned(denoise, pairs, FREEDOM)
    latents = samplers.sample(fitting, x, path, sampler.step, noise, resamplings)
    fixed, inpainted = latents.T
    npt.assert_array_equal(fixed, pairs[:, 0])
    slope = (fixed @ inpainted) / (fixed @ fixed)
    return slope, (inpainted - slope * fixed).std()


def test_hole_of_a_gaussian_has_the_conditional_distribution():
    expected = CORRELATION, np.sqrt(1 - CORRELATION**2)
    line = slope_and_spread(inpainting.RESAMPLINGS)
    npt.assert_allclose(line, expected, atol=0.03)
    # Which takes resampling.
    assert slope_and_spread(resamplings=1)[0] < 0.6


def test_pinned_latents_are_freed_by_their_share():
    latents, freedom = np.ones((1, 3, 1)), np.array([0, 0.4, 1])[:, None]
    fitting = pinned(lambda x, t: x, latents, freedom)
    for time, expected in ((0.01, [1, 5, 5]), (0.5, [1, 1, 5]), (1, [1, 1, 5])):
        npt.assert_array_equal(fitting(5 * latents, time)[0, :, 0], expected)


def test_latents_are_set_free_at_one_noise_whatever_the_schedule():
    shares = np.array([0, 0.01, 0.125, 0.3, 0.5, 0.9], "float32")
    cosine = inpainting.release_times(shares, "cosine", 0.01)
    npt.assert_allclose(cosine, [0, 0.25, 0.25, 0.6, 1, 1], atol=1e-6)
    linear = inpainting.release_times(shares, "linear", 0.01)
    npt.assert_array_equal(linear[[0, 4, 5]], [0, 1, 1])
    linear_noise = schedules.rates("linear", linear[1:4])[1]
    cosine_noise = schedules.rates("cosine", cosine[1:4])[1]
    npt.assert_allclose(linear_noise, cosine_noise, atol=1e-5)
    # Whatever is touched is sampled in the last step at least, if it is the only one.
    early = inpainting.release_times(shares, "linear", 1.0)
    npt.assert_array_equal(early, [0, 1, 1, 1, 1, 1])


def test_resampling_restores_the_noise_level():
    before, now = schedules.rates("cosine", 0.8), schedules.rates("cosine", 0.3)
    noise = samplers.noise_source(0, range(1000), (20,))
    x = now[0] * 3 + now[1] * noise()
    x = samplers.renoised(x, now, before, noise)
    npt.assert_allclose([x.mean(), x.std()], [before[0] * 3, before[1]], atol=0.02)


@pytest.fixture(scope="module")
def masks():
    mask = np.zeros((13, 10))
    mask[4:7, 3:6] = 0.5
    return mask


OPTIONS = {"steps": 3, "resamplings": 2, "seed": 4}


def test_inpaint_changes_only_the_hole_and_ignores_its_content(diffusion, blobs, masks):
    images, hole = blobs[:3], masks > 0
    inpainted = diffusion.inpaint(images, masks, **OPTIONS)
    assert inpainted.shape == (3, 13, 10, 1) and inpainted.dtype == np.float32
    npt.assert_array_equal(inpainted[:, ~hole], images[:, ~hole])
    assert (inpainted[:, hole] != images[:, hole]).all()
    spoilt = np.where(hole[..., None], np.nan, images)
    npt.assert_array_equal(diffusion.inpaint(spoilt, masks, **OPTIONS), inpainted)


def test_inpaint_depends_on_seed_and_sample_alone(diffusion, blobs, masks):
    samples = diffusion.inpaint(blobs[:2], masks, n_samples=3, batch_size=4, **OPTIONS)
    assert samples.shape == (2, 3, 13, 10, 1)
    assert samples.std(1)[:, masks > 0].max() > 0
    one = diffusion.inpaint(blobs[1:2], masks, first=4, **OPTIONS)
    npt.assert_allclose(one[0], samples[1, 1], atol=1e-4)
    other = diffusion.inpaint(blobs[1:2], masks, first=4, **OPTIONS | {"seed": 5})
    assert np.abs(other - one).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"images": np.zeros((1, 8, 8, 1))}, "must have the shape"),
        ({"masks": np.ones((13, 10))}, "mask 0 covers the whole image"),
        ({"n_samples": 0}, "n_samples must be at least 1"),
        ({"resamplings": 0}, "resamplings must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_inpaint_refuses(diffusion, blobs, masks, arguments, sentence):
    arguments = {"images": blobs[:1], "masks": masks} | arguments
    with pytest.raises(InputError, match=sentence):
        diffusion.inpaint(**arguments)


SPACES = [(15, 12), (9, 11, 10)]


def ball(space, radius=3.2):
    off = np.indices(space).T - np.array(space) / 2
    return (off**2).sum(-1).T <= radius**2


def ramp(space):
    """Rises by another slope along each axis."""
    weights = np.arange(1, len(space) + 1)
    return np.moveaxis(np.indices(space), 0, -1) @ weights[:, None].astype("float32")


@pytest.mark.parametrize("space", SPACES)
def test_a_hole_in_a_ramp_is_filled_with_the_ramp(space):
    image, hole = ramp(space), ball(space)
    spoilt = np.where(hole[..., None], np.nan, image)
    filled = inpainting.fill(spoilt[None], hole[None])[0]
    npt.assert_allclose(filled, image, atol=0.02)
    npt.assert_array_equal(filled[~hole], image[~hole])


def test_filling_stays_within_the_surrounding_range(rng):
    image, hole = rng.random((1, 20, 20, 2)), ball((20, 20), 6)
    filled = inpainting.fill(image, hole[None])[0]
    around = image[0][~hole]
    assert around.min() < filled[hole].min() < filled[hole].max() < around.max()


def test_holes_at_the_edge_and_far_from_known_voxels():
    image = np.full((1, 8, 8, 1), 3.0)
    hole = np.zeros((1, 8, 8), bool)
    hole[:, :3] = True
    image[hole] = 99
    npt.assert_allclose(inpainting.fill(image, hole), 3, atol=1e-5)
    # Nothing to do, and nothing to go by.
    npt.assert_array_equal(inpainting.fill(image, hole & False), image)
    npt.assert_array_equal(inpainting.fill(image, hole | True), image)


@pytest.mark.parametrize("space", SPACES)
def test_hole_shares_count_the_voxels_of_latents(space):
    hole = ball(space)
    shares = inpainting.hole_shares(hole[None], 4)[0]
    assert shares.shape == tuple(-(-n // 4) for n in space)
    expected = np.zeros_like(shares)
    for voxel in np.argwhere(hole):
        expected[tuple(voxel // 4)] += 1 / 4 ** len(space)
    inner = tuple(slice(n // 4) for n in space)
    npt.assert_allclose(shares[inner], expected[inner])
    # Beyond the edge there is what is at the edge.
    npt.assert_array_equal(inpainting.hole_shares(hole[None] | True, 4), 1)


@pytest.mark.parametrize("space", SPACES)
def test_blend_leaves_no_seam_and_nothing_of_the_hole(space):
    rng = np.random.default_rng(1)
    image, hole = rng.random((1, *space, 1)).astype("float32"), ball(space)
    spoilt = np.where(hole[..., None], np.nan, image)
    # Off by what changes slowly: the truth is found.
    inpainted = image - 0.2 + 0.01 * ramp(space)
    blended = inpainting.blend(spoilt, inpainted.astype("float32"), hole[None])
    npt.assert_allclose(blended, image, atol=0.01)
    npt.assert_array_equal(blended[0][~hole], image[0][~hole])
    # Nor is anything brighter than all that is around.
    blended = inpainting.blend(image, inpainted + 5 * hole[..., None], hole[None])
    assert blended.max() == image[0][~hole].max()


@pytest.mark.parametrize("kind", ["uint8", "float64"])
def test_blend_is_in_float32(kind, rng):
    image = rng.integers(0, 200, (2, 9, 8, 1)).astype(kind)
    hole = np.stack([ball((9, 8))] * 2)
    inpainted = rng.random(image.shape).astype("float32") * 200
    blended = inpainting.blend(image, inpainted, hole)
    assert blended.dtype == "float32"
    expected = inpainting.blend(image.astype("float32"), inpainted, hole)
    npt.assert_array_equal(blended, expected)


def test_dilated_is_in_millimetres():
    hole = np.zeros((15, 15, 15), bool)
    hole[7, 7, 1] = True
    larger = inpainting.dilated(hole, 2, (1, 0.5, 3))
    index = np.indices(hole.shape).T - [7, 7, 1]
    expected = np.linalg.norm(index * [1, 0.5, 3], axis=-1).T <= 2
    npt.assert_array_equal(larger, expected)
    npt.assert_array_equal(inpainting.dilated(hole, 0, (1, 1, 1)), hole)


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        (np.ones((5, 5)), r"must be numbers of the shape \(3, 5, 4\) of the images"),
        (np.full((5, 4), np.nan), "masks have NaN; replace"),
        (np.full((5, 4), "in"), "must be numbers of the shape"),
        (np.arange(3)[:, None, None] * np.ones((5, 4)), "mask 0 is empty; give"),
    ],
)
def test_check_masks_refuses(masks, sentence):
    with pytest.raises(InputError, match=sentence):
        inpainting.validated_holes(masks, (3, 5, 4))


def test_check_masks_takes_one_for_all_and_a_channel():
    one = np.eye(5, 4) - 0.5
    expected = np.broadcast_to(one > 0, (3, 5, 4))
    for masks in (one, one[..., None], np.stack([one] * 3), expected[..., None]):
        npt.assert_array_equal(inpainting.validated_holes(masks, (3, 5, 4)), expected)
