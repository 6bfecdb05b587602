"""Outliers: what is unlike the others is named, and what is alike is not."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.checking import _outliers as outliers
from dipy_ldm.checking._findings import robust_scores
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data.channels import Channel, Labels

N = 20


def no_pictures(numbers, caption):
    return []


@pytest.fixture
def volumes():
    """Return balls of noise in the middle of dark volumes (10, 12, 11)."""
    rng = np.random.default_rng(0)
    x, y, z = np.ogrid[:10, :12, :11]
    ball = ((x - 4.5) / 3.5) ** 2 + ((y - 5) / 4) ** 2 + ((z - 5) / 4) ** 2 < 1
    images = rng.uniform(0.3, 0.9, (N, 10, 12, 11)) * ball
    return images.astype("float32")[..., None]


@pytest.fixture
def names():
    return [f"sub-{i}" for i in range(N)]


def check_outliers(title, figures, least, names):
    return outliers.check_outliers(title, figures, least, names, no_pictures)


def judged(volumes, names):
    figures, _ = outliers.measure_brightness(volumes)
    return check_outliers("intensities", figures, outliers._OF_VOLUMES, names)


def check_shapes(cubes, names):
    figures = outliers.measure_shape(cubes)
    return check_outliers("shapes", figures, outliers._OF_SHAPE, names)


def test_scores_are_standard_deviations_of_normal_numbers():
    numbers = np.random.default_rng(0).normal(5, 2, (2000, 1))
    scores = robust_scores(numbers, [0])
    assert scores.std() == pytest.approx(1, abs=0.1)
    # Three wild ones change nothing.
    numbers[:3] = 1e6
    npt.assert_allclose(robust_scores(numbers, [0])[3:], scores[3:], atol=0.02)


def test_equal_numbers_are_no_outliers():
    numbers = np.array([[1.0]] * 9 + [[1.001]])
    assert np.abs(robust_scores(numbers, [0.01])).max() < 1


def test_like_volumes_are_green(volumes, names):
    assert judged(volumes, names).state == "green"
    assert check_shapes(volumes[..., 0], names).state == "green"


@pytest.mark.parametrize(
    "change",
    [
        lambda image: (image > 0).astype("float32"),
        lambda image: 0.2 * image,
        lambda image: np.where(image > 0, image, 0.5),
    ],
    ids=["a mask", "few bright voxels set the range", "a bright background"],
)
def test_brightness_outlier_is_reported(volumes, names, change):
    volumes[4] = change(volumes[4])
    finding = judged(volumes, names)
    assert finding.state == "amber"
    assert finding.message.endswith("sub-4.")
    assert finding.table[1][0] == "sub-4"
    assert abs(finding.table[1][2]) > 7


def test_shape_outlier_is_reported(volumes, names):
    cubes = volumes[..., 0]
    cubes[9] = 0
    cubes[9, 4:6, 4:6, 4:6] = 0.8
    finding = check_shapes(cubes, names)
    assert finding.state == "amber"
    assert finding.message.endswith("sub-9.")


def test_background_within_the_range_is_reported(volumes):
    figures, _ = outliers.measure_brightness(np.where(volumes > 0, volumes, 0.5))
    assert outliers.check_background(figures).state == "amber"
    figures, _ = outliers.measure_brightness(volumes)
    assert outliers.check_background(figures).state == "green"


def test_a_grid_that_is_empty_for_the_most_part_is_to_be_cropped(volumes):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    padded = np.pad(volumes, [(0, 0), *[(6, 6)] * 3, (0, 0)])
    finding = outliers.check_grid(outliers.measure_brightness(padded)[1], affine)
    assert finding.state == "amber"
    assert "--shape 8 10 9" in finding.cure
    assert "22 x 24 x 23 voxels of 2 mm" in finding.message
    _, brightest = outliers.measure_brightness(volumes[:, 1:9, 1:10])
    assert outliers.check_grid(brightest, affine).state == "green"
    thick = outliers.check_grid(brightest, np.diag([1.0, 1.0, 3.0, 1.0]))
    assert "voxels of 1 x 1 x 3 mm, axes RAS" in thick.message


def test_recommended_shape_keeps_off_centre_content(volumes):
    padded = np.pad(volumes, [(0, 0), (9, 0), (30, 30), (30, 30), (0, 0)])
    finding = outliers.check_grid(outliers.measure_brightness(padded)[1], np.eye(4))
    assert "--shape 17 10 9" in finding.cure
    # No larger than it is.
    aside = np.pad(volumes[:, 2:], [(0, 0), (0, 0), (30, 30), (30, 30), (0, 0)])
    finding = outliers.check_grid(outliers.measure_brightness(aside)[1], np.eye(4))
    assert "--shape 8 10 9" in finding.cure


def test_channels_are_compared_by_their_scan_and_all_take_room(volumes, names):
    labels = np.float32(np.roll(volumes, 2, 1) > 0)
    both = np.concatenate([labels, volumes], -1)
    figures, brightest = outliers.measure_brightness(both, 1)
    npt.assert_allclose(figures, outliers.measure_brightness(volumes)[0], rtol=1e-5)
    npt.assert_array_equal(brightest, both.max((0, -1)))
    channels = Labels("dseg", labels=(1,)), Channel("T1w")
    scans = Cohort(volumes, affine=np.diag([2.0, 2, 2, 1]))
    of_scan = outliers.check_images(scans, names)
    pairs = scans._replace(images=both, channels=channels)
    of_both = outliers.check_images(pairs, names)
    assert [f.message for f in of_both[1:]] == [f.message for f in of_scan[1:]]
    maps = scans._replace(images=labels, channels=channels[:1])
    *_, no_scan = outliers.check_images(maps, names)
    assert (no_scan.state, no_scan.message) == ("grey", outliers._NO_SCAN)


def test_equal_images_are_reported():
    images = np.random.default_rng(0).random((30, 8, 8, 1))
    names = [f"image {i}" for i in range(30)]
    assert outliers.check_equal_images(images, names).state == "green"
    images[20] = images[3]
    finding = outliers.check_equal_images(images, names)
    assert finding.state == "amber"
    assert "image 3 and image 20" in finding.message


def test_few_images_are_not_judged(volumes, names):
    assert judged(volumes[:5], names[:5]).state == "grey"
