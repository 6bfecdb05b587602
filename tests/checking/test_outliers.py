"""Outliers are named, and typical images are not."""

from functools import partial

import numpy as np
import numpy.testing as npt
import pytest
from scans import ellipsoid
from scipy.ndimage import gaussian_filter, shift

from dipy_ldm.checking import _outliers as outliers
from dipy_ldm.checking._findings import robust_scores
from dipy_ldm.checking._outliers import ORIENTATIONS, axes_of, reorient
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data.channels import Channel, Labels, Map

N = 12
NAMES = [f"sub-{i}" for i in range(N)]
AFFINE = np.diag([8.0, 8.0, 8.0, 1.0])


def no_pictures(numbers, caption):
    return ""


check_orientation = partial(outliers.check_orientation, names=NAMES, show=no_pictures)
check_duplicates = partial(
    outliers.check_duplicates, names=NAMES, subjects=NAMES, show=no_pictures
)


@pytest.fixture
def volumes():
    """Return balls of noise in the middle of dark volumes (10, 12, 11)."""
    rng = np.random.default_rng(0)
    ball = ellipsoid((4.5, 5, 5), (3.5, 4, 4), (10, 12, 11))
    images = rng.uniform(0.3, 0.9, (N, 10, 12, 11)) * ball
    return images.astype("float32")[..., None]


def check_brightness(volumes):
    figures, _ = outliers.measure_brightness(volumes)
    least = outliers._OF_VOLUMES
    return outliers.check_outliers("intensities", figures, least, NAMES, no_pictures)


def check_shapes(cubes):
    figures, least = outliers.measure_shape(cubes), outliers._OF_SHAPE
    return outliers.check_outliers("shapes", figures, least, NAMES, no_pictures)


def check_grid(volumes, affine=AFFINE):
    return outliers.check_grid(outliers.measure_brightness(volumes)[1], affine)


def test_robust_scores_of_normal_numbers():
    numbers = np.random.default_rng(0).normal(5, 2, (2000, 1))
    scores = robust_scores(numbers, [0])
    assert scores.std() == pytest.approx(1, abs=0.1)
    # Three wild ones change nothing.
    numbers[:3] = 1e6
    npt.assert_allclose(robust_scores(numbers, [0])[3:], scores[3:], atol=0.02)


def test_robust_scores_of_equal_numbers():
    numbers = np.array([[1.0]] * 9 + [[1.001]])
    assert np.abs(robust_scores(numbers, [0.01])).max() < 1


def test_check_outliers_of_like_volumes(volumes):
    assert check_brightness(volumes).state == "green"
    assert check_shapes(volumes[..., 0]).state == "green"


@pytest.mark.parametrize(
    "change",
    [
        lambda image: (image > 0).astype("float32"),
        lambda image: 0.2 * image,
        lambda image: np.where(image > 0, image, 0.5),
    ],
    ids=["a mask", "few bright voxels set the range", "a bright background"],
)
def test_check_outliers_of_brightness(volumes, change):
    volumes[4] = change(volumes[4])
    finding = check_brightness(volumes)
    assert finding.state == "amber"
    assert finding.message.endswith("sub-4.")
    assert finding.table[1][0] == "sub-4"
    assert abs(finding.table[1][2]) > 7


def test_check_outliers_of_shape(volumes):
    cubes = volumes[..., 0]
    cubes[9] = 0
    cubes[9, 4:6, 4:6, 4:6] = 0.8
    finding = check_shapes(cubes)
    assert finding.state == "amber"
    assert finding.message.endswith("sub-9.")


def test_check_background(volumes):
    figures, _ = outliers.measure_brightness(np.where(volumes > 0, volumes, 0.5))
    assert outliers.check_background(figures).state == "amber"
    figures, _ = outliers.measure_brightness(volumes)
    assert outliers.check_background(figures).state == "green"


@pytest.mark.parametrize(
    ("padding", "shape"),
    [
        ([(6, 6), (6, 6), (6, 6)], "8 10 9"),
        # About the centre of the grid, and no larger than it is.
        ([(9, 0), (30, 30), (30, 30)], "17 10 9"),
        ([(-2, 0), (30, 30), (30, 30)], "8 10 9"),
    ],
    ids=["in the middle", "aside", "up to the edge"],
)
def test_check_grid_recommends_a_shape(volumes, padding, shape):
    cropped = volumes[:, max(0, -padding[0][0]) :]
    padded = np.pad(cropped, [(0, 0), *np.maximum(padding, 0).tolist(), (0, 0)])
    finding = check_grid(padded)
    assert finding.state == "amber"
    assert f"--shape {shape}" in finding.cure


def test_check_grid_describes_it(volumes):
    finding = check_grid(volumes[:, 1:9, 1:10])
    assert finding.state == "green"
    assert "8 x 9 x 11 voxels of 8 mm" in finding.message
    thick = check_grid(volumes, np.diag([1.0, 1.0, 3.0, 1.0]))
    assert "voxels of 1 x 1 x 3 mm, axes RAS" in thick.message


def test_check_images_by_their_scan(volumes):
    labels = np.float32(np.roll(volumes, 2, 1) > 0)
    both = np.concatenate([labels, volumes], -1)
    figures, brightest = outliers.measure_brightness(both, 1)
    npt.assert_allclose(figures, outliers.measure_brightness(volumes)[0], rtol=1e-5)
    # All channels take room.
    npt.assert_array_equal(brightest, both.max((0, -1)))
    raised = outliers.measure_brightness(both + [0.5, 0], 1, np.array([0.5, 0]))[1]
    npt.assert_allclose(raised, brightest, atol=1e-6)
    channels = Labels("dseg", labels=(1,)), Channel("T1w")
    scans = Cohort(volumes, affine=AFFINE)
    of_scan = outliers.check_images(scans, NAMES)
    pairs = scans._replace(images=both, channels=channels)
    of_both = outliers.check_images(pairs, NAMES)
    assert [f.message for f in of_both[1:]] == [f.message for f in of_scan[1:]]
    maps = scans._replace(images=labels, channels=channels[:1])
    *_, no_scan = outliers.check_images(maps, NAMES)
    assert (no_scan.state, no_scan.message) == ("grey", outliers._NO_SCAN)


def test_check_channels_names_odd_maps_and_a_cure(volumes):
    labels, scans = np.float32(volumes > 0), volumes
    maps = volumes.copy()
    maps[3] /= 8
    channels = Channel("T1w"), Map("desc-FA"), Labels("dseg", labels=(1, 2))
    images = np.concatenate([scans, maps, labels, 0 * labels], -1)
    cohort = Cohort(images, affine=AFFINE, channels=channels)
    of_map, of_labels = outliers.check_channels(cohort, NAMES)
    start = "the desc-FA that belongs to sub-3 has a mean of 0.0"
    assert of_map.message.startswith(start)
    assert "unit and scale" in of_map.cure
    assert of_labels.message == "2 is in 0 of 12 volumes."
    assert "Merge rare labels" in of_labels.cure
    cohort = Cohort(maps, affine=AFFINE, channels=channels[1:2])
    (alone,) = outliers.check_channels(cohort, NAMES)
    assert alone.message.startswith("sub-3 has a mean of 0.0")


def test_check_equal_images():
    images = np.random.default_rng(0).random((N, 8, 8, 1))
    assert outliers.check_equal_images(images, NAMES).state == "green"
    images[11] = images[3]
    finding = outliers.check_equal_images(images, NAMES)
    assert finding.state == "amber"
    assert "sub-3 and sub-11" in finding.message


@pytest.fixture(scope="module")
def heads():
    """Return volumes (16, 20, 18) of one shape, each with details of its own."""
    rng = np.random.default_rng(0)
    head = ellipsoid((8, 10, 9), (5, 8, 6)) + 0.5 * ellipsoid((8, 15, 11), (3, 3, 3))
    head = head - 0.6 * ellipsoid((8, 6, 6), (3, 2, 2))
    details = gaussian_filter(rng.standard_normal((N, 16, 20, 18)), (0, 1.5, 1.5, 1.5))
    images = np.clip(head * (0.6 + 0.8 * details), 0, 1)
    return images.astype("float32")[..., None]


@pytest.fixture(scope="module")
def small(heads):
    return outliers.centred_cubes(heads, AFFINE)


def test_centred_cubes_wherever_the_content_lies(heads):
    images = np.stack([heads[0], np.roll(heads[0], 1, 1), 0 * heads[0]])
    cube, moved, empty = outliers.centred_cubes(images, AFFINE)
    assert cube.shape == (20, 20, 20)
    npt.assert_allclose(cube, moved, atol=0.02)
    assert cube.any() and not empty.any()


def test_figures_of_a_signed_map_are_about_its_background(heads):
    signed = (1 + heads) / 2
    figures, _ = outliers.measure_brightness(signed, empty=np.array([0.5]))
    assert outliers.check_background(figures).state == "green"
    cubes = outliers.centred_cubes(signed, AFFINE, 0.5)
    small = outliers.centred_cubes(heads / 2, AFFINE)
    npt.assert_allclose(cubes, small, atol=1e-6)
    shapes = outliers.measure_shape(cubes), outliers.measure_shape(-cubes)
    for shape in shapes:
        npt.assert_allclose(shape, outliers.measure_shape(small), rtol=1e-4)


def test_orientations_are_all_different(small):
    cubes = {reorient(small[0], view).tobytes() for view in ORIENTATIONS}
    assert len(ORIENTATIONS) == len(cubes) == len(set(map(axes_of, ORIENTATIONS))) == 48
    assert axes_of(ORIENTATIONS[0]) == "RAS"
    npt.assert_array_equal(reorient(small[0], ORIENTATIONS[0]), small[0])


def test_checks_of_a_cohort_as_it_should_be(small):
    finding = check_orientation(small)
    assert finding.state == "green", finding
    assert check_duplicates(small).state == "green"


@pytest.mark.parametrize("view", [ORIENTATIONS[i] for i in (1, 2, 9, 20, 33, 47)])
def test_check_orientation_names_swapped_axes(small, view):
    changed = small.copy()
    changed[5] = reorient(small[5], view)
    finding = check_orientation(changed)
    assert finding.state == "red"
    (row,) = finding.table[1:]
    likely = ORIENTATIONS[outliers.compare_orientations(changed)[1][5]]
    assert row[0] == f"sub-5 ({axes_of(likely)})"
    # But for left and right, which are alike in these.
    cubes = np.stack([reorient(small[5], v) for v in (likely, view)])
    one, other = outliers.unit_vectors(cubes)
    assert one @ other > 0.9


@pytest.mark.parametrize(
    "copied",
    [
        lambda image, noise: image,
        lambda image, noise: 0.7 * image,
        lambda image, noise: np.roll(image, 1, 0),
        lambda image, noise: shift(image, (0.5, 0.5, 0, 0), order=1),
        lambda image, noise: image + 0.02 * noise * (image > 0),
    ],
    ids=["equal", "darker", "moved", "interpolated", "noisy"],
)
def test_check_duplicates_of_copies(heads, copied):
    images = heads.copy()
    noise = np.random.default_rng(1).standard_normal(heads[2].shape)
    images[7] = copied(heads[2], noise)
    finding = check_duplicates(outliers.centred_cubes(images, AFFINE))
    assert finding.state == "red"
    assert [row[0] for row in finding.table[1:]] == ["sub-2 and sub-7"]
    assert finding.cure


def test_check_duplicates_of_one_subject(small):
    twice = small.copy()
    twice[1] = twice[0]
    assert check_duplicates(twice, subjects=["sub-0", *NAMES[:-1]]).state == "amber"


def test_few_volumes_are_grey(volumes, small):
    findings = check_orientation(small[:5]), check_duplicates(small[:5])
    for finding in (*findings, check_brightness(volumes[:5])):
        assert finding.state == "grey"
        assert "6" in finding.message
