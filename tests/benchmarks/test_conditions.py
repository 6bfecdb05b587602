"""The benchmark of conditions: anatomical measurements of volumes."""

import numpy as np
import numpy.testing as npt
import pytest
from scipy.ndimage import gaussian_filter
import scripts

AFFINE = np.diag([4.0, 4, 4, 1])
AFFINE[:3, 3] = -90, -110, -90


@pytest.fixture(scope="module")
def script():
    return scripts.load("benchmarks/conditions.py")


def heads(n, seed=0):
    """Draw heads with a dark middle and grey matter, and say how large and bright."""
    rng = np.random.default_rng(seed)
    world = np.moveaxis(np.indices((45, 55, 45)), 0, -1) * 4 + AFFINE[:3, 3]
    sizes, greys, sides = rng.uniform(12, 24, n), rng.uniform(0.5, 0.9, n), n * [None]
    images = np.zeros((n, 45, 55, 45, 1), "float32")
    for i in range(n):
        off = world - rng.uniform(-4, 4, 3)
        sizes_of = (70, 85, 60), 1
        outer, inner = (np.linalg.norm(off / axes, axis=-1) for axes in sizes_of)
        image = np.where(outer < 0.75, 1.0, greys[i]) * (outer < 1)
        image *= 1 - 0.8 * np.clip((sizes[i] - inner) / 4 + 0.5, 0, 1)
        sides[i] = "patient" if i % 2 else "control"
        if i % 2:
            place = np.linalg.norm(off - [26, 30, 10], axis=-1)
            image *= 1 - 0.4 * np.clip((10 - place) / 4 + 0.5, 0, 1)
        images[i, ..., 0] = 900 * gaussian_filter(image, 0.5)
    return images, {"ventricles": [*sizes], "contrast": [*greys], "group": sides}


def test_covariates_are_measured_whatever_the_sharpness(script):
    images, values = heads(40)
    values["ventricles"][3] = values["group"][4] = None
    table = script.features(images, AFFINE)
    held_out, truth = heads(20, seed=5)
    dull = 2 * gaussian_filter(held_out, (0, 0.6, 0.6, 0.6, 0))
    for name in values:
        measure = script.Measure(table[name], values[name])
        for changed in (held_out, dull):
            result = measure(script.features(changed, AFFINE)[name], truth[name])
            if name == "group":
                assert result["right"] == 1
            else:
                assert result["r"] > 0.97
                npt.assert_allclose(result["slope"], 1, atol=0.15)
