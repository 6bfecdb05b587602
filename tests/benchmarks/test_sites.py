"""The benchmark of harmonisation: brightness by ranks, and distances of scans."""

import numpy as np
import pytest
import scripts


@pytest.fixture(scope="module")
def sites():
    return scripts.load("benchmarks/sites.py")


def brains(rng):
    """Draw boxes of voxels in air."""
    images = np.zeros((3, 9, 8, 7, 1), "float32")
    images[:, 1:-1, 1:-1, 1:-1] = rng.uniform(0.3, 0.8, (3, 7, 6, 5, 1))
    return images


def test_quantiles_undo_a_change_of_brightness(sites, rng):
    usual = brains(rng)
    darker = 0.9 * usual**1.5
    matched = sites.match_quantiles(darker, usual)
    assert matched.shape == usual.shape
    assert (matched[darker == 0] == 0).all()
    # Ranks are those of each brain, and the brightness that of all.
    assert np.abs(matched - usual).max() < 0.05 < np.abs(darker - usual).max()


def test_scans_are_compared_with_the_truth(sites, rng):
    truth = brains(rng)
    noise = rng.normal(0, 1e-4, truth.shape)
    near, far = (sites.measure(x, truth) for x in (truth + noise, 0.9 * truth**1.5))
    assert near["contrast_off"] < 1e-3 < far["contrast_off"]
    assert near["ssim"] > far["ssim"]
    assert near["psnr"] > 60 > far["psnr"]
