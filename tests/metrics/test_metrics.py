import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
import numpy.testing as npt
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from dipy_ldm._utils.checks import InputError
from dipy_ldm.metrics import (
    density_coverage,
    detail_correlation,
    detail_energy,
    dice,
    energy_distance,
    frechet_distance,
    multiscale_ssim,
    nearest_distance,
    octave_correlations,
    octave_energies,
    precision_recall,
    psnr,
)
from dipy_ldm.metrics.distributions import nearest_neighbours
from dipy_ldm.metrics.images import band_energies, halve


def of_moments(rng, n, mean, covariance):
    """Draw samples that have exactly a mean and a covariance."""
    x = rng.standard_normal((n, len(mean)))
    x -= x.mean(axis=0)
    x @= np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians(rng):
    a, b = np.array([[2, 1], [1, 3]]), np.array([[1, -0.5], [-0.5, 2]])
    # The trace of the root of a 2 x 2 matrix with determinant d is sqrt(tr + 2 sqrt d).
    product = a @ b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    samples = of_moments(rng, 300, [0, 1], a), of_moments(rng, 500, [1, -1], b)
    assert frechet_distance(*samples) == pytest.approx(1 + 4 + 3 + 5 - 2 * root)


def test_frechet_distance_of_equal_sets(rng):
    a = rng.standard_normal((200, 20)) * np.logspace(-3, 3, 20)
    assert frechet_distance(a, rng.permutation(a)) == 0
    of_few_dimensions = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 20))
    assert frechet_distance(of_few_dimensions, of_few_dimensions) == 0


def test_frechet_distance_of_integers(rng):
    a, b = rng.integers(0, 255, (2, 50, 3, 3), dtype=np.uint8)
    b[:, 0] = 0
    flat = [x.reshape(50, 9).astype(float) for x in (a, b)]
    distance = frechet_distance(a, b)
    assert distance == pytest.approx(frechet_distance(*flat))
    assert distance == pytest.approx(frechet_distance(b, a))
    assert distance > 0


@pytest.mark.parametrize("k", [1, 4])
def test_neighbour_shares_by_brute_force(rng, k):
    real, fake = rng.standard_normal((300, 3)), rng.standard_normal((400, 3)) + 1
    between = cdist(real, fake)
    radii = [np.sort(cdist(samples, samples))[:, k] for samples in (real, fake)]
    in_real, in_fake = between <= radii[0][:, None], between <= radii[1]
    shares = in_real.any(0).mean(), in_fake.any(1).mean()
    assert precision_recall(real, fake, k) == pytest.approx(shares)
    shares = in_real.sum() / k / 400, in_real.any(1).mean()
    assert density_coverage(real, fake, k) == pytest.approx(shares)


@pytest.mark.parametrize("block_size", [1, 7, 256])
def test_nearest_neighbours_by_brute_force(rng, block_size):
    queries, references = rng.random((30, 3, 2)), rng.random((40, 3, 2))
    references[7] = queries[3]
    distances = cdist(queries.reshape(30, 6), references.reshape(40, 6))
    nearest, rows = nearest_neighbours(queries, references, 4, block_size)
    npt.assert_array_equal(rows, np.argsort(distances, 1)[:, :4])
    npt.assert_allclose(nearest, np.sort(distances, 1)[:, :4], atol=1e-12)
    assert (nearest[3, 0], rows[3, 0]) == (0, 7)
    nearest = nearest_distance(queries, references, block_size)
    npt.assert_allclose(nearest, distances.min(1), atol=1e-12)


def test_nearest_distance_is_not_rounded(rng):
    references = (rng.random((300, 784)) + 1000).astype(np.float32)
    assert not nearest_distance(references[:10], references).any()
    distance = nearest_distance(np.zeros((1, 2), np.uint8), np.full((1, 2), 200, "B"))
    assert distance == pytest.approx(200 * np.sqrt(2))


def test_energy_distance_by_brute_force(rng):
    a, b = rng.random((300, 3, 2)), rng.random((270, 3, 2)) + 0.2
    u, v = a.reshape(300, 6), b.reshape(270, 6)
    expected = 2 * cdist(u, v).mean() - cdist(u, u).mean() - cdist(v, v).mean()
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert energy_distance(a, a) == 0


def test_energy_distance_ignores_a_common_offset_in_single_precision(rng):
    a, b = rng.random((2, 30, 8), dtype=np.float32)
    far = energy_distance(a + np.float32(100), b + np.float32(100))
    assert far == pytest.approx(energy_distance(a, b), abs=1e-4)


def smooth_images(rng, n, *space):
    """Draw images that have structure at all scales."""
    noise = rng.standard_normal((n, *space, 2))
    waves = gaussian_filter(noise, [0, *[2] * len(space), 0])
    return (waves - waves.min()) / np.ptp(waves)


@pytest.mark.parametrize("space", [(64,), (13, 10), (200, 180), (24, 23, 30)])
def test_multiscale_ssim_falls_with_noise_and_with_blur(rng, space):
    images = smooth_images(rng, 2, *space)
    noise = rng.standard_normal(images.shape)
    noisy = [multiscale_ssim(images, images + s * noise) for s in (0, 0.02, 0.1, 0.5)]
    npt.assert_allclose(noisy[0], 1)
    assert (np.diff(noisy, axis=0) < 0).all()
    sigmas = ([0, *[s] * len(space), 0] for s in (0, 1, 2, 4))
    blurred = [multiscale_ssim(images, gaussian_filter(images, s)) for s in sigmas]
    assert (np.diff(blurred, axis=0) < 0).all()


def test_multiscale_ssim_of_each_pair_alone(rng):
    a, b = smooth_images(rng, 4, 40, 40), smooth_images(rng, 4, 40, 40)
    similarity = multiscale_ssim(a, b)
    assert similarity.shape == (4,)
    npt.assert_allclose(similarity, multiscale_ssim(b, a))
    npt.assert_allclose(similarity[2:], multiscale_ssim(a[2:], b[2:]))
    assert ((similarity >= 0) & (similarity < 1)).all()
    # Of opposite contrasts.
    assert not multiscale_ssim(a, 1 - a).any()


def test_multiscale_ssim_of_one_scale_by_brute_force(rng):
    images = rng.random((2, 16, 15))
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()
    windows = sliding_window_view(images, (11, 11), (1, 2))

    def average(values):
        return (window * values).sum((-2, -1), keepdims=True)

    means = average(windows)
    off = windows - means
    (u, v), (var_u, var_v) = means, average(off**2)
    structure = (2 * average(off[0] * off[1]) + 9e-4) / (var_u + var_v + 9e-4)
    luminance = (2 * u * v + 1e-4) / (u**2 + v**2 + 1e-4)
    expected = max(np.mean(luminance * structure), 0)
    similarity = multiscale_ssim(*images[:, None, ..., None])
    assert similarity == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("side", "share"), [(30, 0.2856 / (0.0448 + 0.2856)), (176, 0.1333 / 1.0001)]
)
def test_multiscale_ssim_has_brightness_at_the_last_scale_alone(side, share):
    # Of two scales, of 30 pixels a side and of 15, and of all five that there are.
    dark, bright = (np.full((1, side, side, 1), value) for value in (0.2, 0.4))
    luminance = (2 * 0.08 + 1e-4) / (0.04 + 0.16 + 1e-4)
    assert multiscale_ssim(dark, bright) == pytest.approx(luminance**share)


def test_psnr_within_the_mask(rng):
    images = rng.random((2, 9, 8, 7, 1))
    other = images.copy()
    other[:, 2:4] += 0.1
    masks = np.zeros(images.shape[:-1])
    masks[:, 2:4] = 1
    npt.assert_allclose(psnr(images, other, masks), 20)
    npt.assert_allclose(psnr(images, other), 20 + 10 * np.log10(9 / 2))
    assert np.isinf(psnr(images, images)).all()


def test_detail_of_blurred_and_noisy_images(rng):
    truth = gaussian_filter(rng.random((3, 20, 22, 18, 1)), (0, 0.7, 0.7, 0.7, 0))
    npt.assert_allclose(detail_energy(truth, truth), 1)
    npt.assert_allclose(detail_correlation(truth, truth), 1)
    blurred = gaussian_filter(truth, (0, 1, 1, 1, 0))
    energy = detail_energy(blurred, truth)
    assert (energy < 0.3).all()
    noise = rng.normal(0, 0.05, truth.shape)
    assert (detail_energy(blurred + noise, truth) > energy + 0.2).all()
    noisy, clean = (detail_correlation(x, truth) for x in (blurred + noise, blurred))
    assert (noisy < clean).all()
    # A flat image has no detail, and so none that is true.
    npt.assert_array_equal(detail_correlation(0 * truth, truth), 0)
    # What lies outside of the mask does not count.
    masks = np.zeros(truth.shape[:-1])
    masks[:, 5:15] = 1
    spoilt = truth.copy()
    spoilt[:, 19] = 1
    npt.assert_allclose(detail_energy(spoilt, truth, masks), 1, atol=0.01)


def test_detail_energy_by_a_blur_of_one_pixel(rng):
    images, truth = rng.random((2, 3, 20, 24, 1))
    details = [x - gaussian_filter(x, (0, 1, 1, 0)) for x in (images, truth)]
    energies = [np.square(detail).sum((1, 2, 3)) for detail in details]
    ratio = energies[0] / energies[1]
    npt.assert_allclose(detail_energy(images, truth), ratio, rtol=1e-6)


@pytest.mark.parametrize(("cycles", "octave"), [(12, 0), (6, 1), (3, 2)])
def test_octave_energies_of_a_wave(cycles, octave):
    wave = np.sin(2 * np.pi * cycles * np.arange(32) / 32)
    images = np.broadcast_to(wave[None, :, None, None, None], (2, 32, 32, 40, 1))
    expected = np.zeros((2, 3))
    expected[:, octave] = 0.5
    npt.assert_allclose(octave_energies(images + 7), expected, atol=1e-9)


def test_detail_of_integers(rng):
    truth = gaussian_filter(rng.uniform(0, 100, (2, 20, 18, 1)), (0, 1, 1, 0))
    images = np.uint8(np.round(truth))
    for figure in detail_energy, detail_correlation:
        npt.assert_array_equal(
            figure(images, np.uint8(truth)),
            figure(images.astype("float32"), np.float32(np.uint8(truth))),
        )


def test_neighbour_shares_of_ties(rng):
    # The fifth of five equal samples is as far as the first, far from 0, too.
    samples = np.repeat(1000 + rng.standard_normal((20, 3000)), 5, axis=0)
    assert precision_recall(samples, rng.permutation(samples)) == (1, 1)
    density, coverage = density_coverage(samples, rng.permutation(samples), k=4)
    assert (density, coverage) == (1.25, 1)


def test_band_energies_of_a_wave_within_the_mask():
    masks = np.zeros((2, 64, 48))
    masks[:, 8:-8] = 1
    for length, band in ((2.5, 0), (6, 1), (12, 2), (24, 3)):
        wave = np.sin(2 * np.pi * np.arange(64) / length)
        images = np.broadcast_to(wave[None, :, None, None], (2, 64, 48, 1)) + 7
        energies = band_energies(images, masks)
        assert energies.shape == (2, 4)
        assert (energies.argmax(1) == band).all()
        spoilt = np.array(images)
        spoilt[:, 0] = 100
        assert (band_energies(spoilt, masks)[:, :2] < 0.6).all()


def test_dice():
    a, b = np.zeros((2, 4, 4), bool)
    a[:2], b[1:4] = True, True
    assert dice(a, b) == 2 * 4 / (8 + 12)
    assert dice(a, a) == dice(a & ~a, a & ~a) == 1
    assert dice(a, ~a) == 0


def test_halve_takes_the_mean_of_blocks():
    image = np.arange(5 * 4.0).reshape(5, 4, 1)
    expected = [[[2.5], [4.5]], [[10.5], [12.5]]]
    npt.assert_allclose(halve(image), expected)
    assert halve(np.ones((7, 6, 5, 2))).shape == (3, 3, 2, 2)


LINES = np.ones((2, 9, 1))


@pytest.mark.parametrize(
    ("figure", "arguments", "message"),
    [
        (frechet_distance, (np.ones((9, 2)), np.ones((9, 3))), "differ at most in n"),
        (frechet_distance, (np.ones(9), np.ones(9)), "n, \\*shape"),
        (frechet_distance, (np.eye(4), np.eye(4)), "needs 5 samples of each"),
        (precision_recall, (np.eye(3), np.eye(3)), "at least 4, not 3"),
        (precision_recall, (np.eye(3), np.eye(3), 0), "k must be at least 1"),
        (precision_recall, (np.eye(3), np.eye(3), 1.5), "k must be a whole number"),
        (nearest_distance, (np.eye(3), np.ones((0, 3))), "at least 1, not 0"),
        (nearest_distance, (np.eye(3), np.eye(3), 0), "block_size must be"),
        (nearest_neighbours, (np.eye(3), np.eye(3), 4), "at least 4, not 3"),
        (density_coverage, (np.eye(6), np.eye(6)[:5]), "at least 6, not 5"),
        (nearest_distance, (np.eye(3), np.eye(3) * np.nan), "NaN or infinite"),
        (energy_distance, (np.eye(3), np.ones((0, 3))), "samples must be at least 1"),
        (energy_distance, (np.eye(3), np.eye(4)), "not \\(3, 3\\) and \\(4, 4\\)"),
        (multiscale_ssim, (np.eye(3), np.eye(3)), "n, \\*space, channels"),
        (multiscale_ssim, (np.ones((1, 3, 3)), np.ones((2, 3, 3))), "the same shape"),
        (multiscale_ssim, 2 * (np.ones((0, 3, 3)),), "number of samples"),
        (psnr, (np.eye(3), np.eye(3)), "two arrays \\(n, \\*space"),
        (psnr, (LINES, LINES, np.ones((2, 8))), "the shape \\(2, 9\\), not"),
        (psnr, (LINES, LINES, np.zeros((2, 9))), "none may be empty"),
        (dice, (np.eye(3), np.eye(3)[..., None]), "must have one shape, not"),
        (detail_energy, (LINES, LINES), "has no detail"),
        (detail_energy, (np.eye(3), np.eye(3)), "two arrays .* of the same shape"),
        (octave_energies, (np.ones((2, 7, 9, 1)),), "8 voxels per side"),
    ],
)
def test_metrics_refuse_invalid_inputs(figure, arguments, message):
    with pytest.raises(InputError, match=message):
        figure(*arguments)


def test_octave_correlations_of_the_true_signal(rng):
    truth = rng.standard_normal((3, 32, 32, 1))
    coarse = gaussian_filter(truth, [0, 2, 2, 0])
    invented = coarse + 0.3 * rng.standard_normal(truth.shape)
    correlations = octave_correlations(invented, truth).mean(0)
    assert correlations.shape == (3,)
    assert abs(correlations[0]) < 0.15
    assert correlations[2] > 0.85
    npt.assert_allclose(octave_correlations(2 * truth, truth), 1)
    npt.assert_array_equal(octave_correlations(0 * truth, truth), 0)
