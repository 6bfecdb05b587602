"""Volumes beside their median: turned and doubled ones are found, and no others."""

import numpy as np
import numpy.testing as npt
import pytest
from scipy.ndimage import gaussian_filter, shift

from dipy_ldm.checking import _outliers as likeness
from dipy_ldm.checking._outliers import ORIENTATIONS, axes_of, reorient

AFFINE = np.diag([8.0, 8.0, 8.0, 1.0])
N = 12


def no_pictures(numbers, caption):
    return []


@pytest.fixture(scope="module")
def heads():
    """Return volumes (16, 20, 18) of one shape, each with details of its own."""
    rng = np.random.default_rng(0)
    x, y, z = np.ogrid[:16, :20, :18]

    def ball(centre, radii):
        away = [(a - c) / r for a, c, r in zip((x, y, z), centre, radii, strict=True)]
        return sum(a**2 for a in away) < 1

    head = ball((8, 10, 9), (5, 8, 6)) + 0.5 * ball((8, 15, 11), (3, 3, 3))
    head = head - 0.6 * ball((8, 6, 6), (3, 2, 2))
    details = gaussian_filter(rng.standard_normal((N, 16, 20, 18)), (0, 1.5, 1.5, 1.5))
    images = np.clip(head * (0.6 + 0.8 * details), 0, 1)
    return images.astype("float32")[..., None]


@pytest.fixture(scope="module")
def small(heads):
    return likeness.centred_cubes(heads, AFFINE)


@pytest.fixture(scope="module")
def names():
    return [f"sub-{i}" for i in range(N)]


def test_cubes_are_centred_wherever_the_content_lies(heads):
    both = np.stack([heads[0], np.roll(heads[0], 1, 1)])
    cube, moved = likeness.centred_cubes(both, AFFINE)
    assert cube.shape == (20, 20, 20)
    npt.assert_allclose(cube, moved, atol=0.02)


def test_a_volume_without_content_has_an_empty_cube(heads):
    lesions = np.stack([heads[0], 0 * heads[1]])
    cube, empty = likeness.centred_cubes(lesions, AFFINE)
    assert cube.any() and not empty.any()


def test_all_views_are_different_and_the_first_is_none(small):
    cubes = {reorient(small[0], view).tobytes() for view in ORIENTATIONS}
    assert len(ORIENTATIONS) == len(cubes) == len(set(map(axes_of, ORIENTATIONS))) == 48
    assert axes_of(ORIENTATIONS[0]) == "RAS"
    npt.assert_array_equal(reorient(small[0], ORIENTATIONS[0]), small[0])


def test_a_cohort_as_it_should_be_is_green(small, names):
    finding = likeness.check_orientation(small, names, no_pictures)
    assert finding.state == "green", finding
    assert likeness.check_duplicates(small, names, names, no_pictures).state == "green"


@pytest.mark.parametrize("view", [ORIENTATIONS[i] for i in (1, 2, 9, 20, 33, 47)])
def test_swapped_axes_are_named(small, names, view):
    changed = small.copy()
    changed[5] = reorient(small[5], view)
    finding = likeness.check_orientation(changed, names, no_pictures)
    assert finding.state == "red"
    (row,) = finding.table[1:]
    found = ORIENTATIONS[likeness.compare_orientations(changed)[1][5]]
    assert row[0] == f"sub-5 ({axes_of(found)})"
    # But for left and right, which are alike in these.
    pair = likeness.unit_vectors(
        np.stack([reorient(small[5], v) for v in (found, view)])
    )
    assert pair[0] @ pair[1] > 0.9


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
def test_duplicates_are_reported(heads, names, copied):
    images = heads.copy()
    noise = np.random.default_rng(1).standard_normal(heads[2].shape)
    images[7] = copied(heads[2], noise)
    small = likeness.centred_cubes(images, AFFINE)
    finding = likeness.check_duplicates(small, names, names, no_pictures)
    assert finding.state == "red"
    assert [row[0] for row in finding.table[1:]] == ["sub-2 and sub-7"]
    assert finding.cure


def test_repetitions_of_one_subject_are_amber(small, names):
    twice = small.copy()
    twice[1] = twice[0]
    subjects = ["sub-0", *names[:-1]]
    finding = likeness.check_duplicates(twice, names, subjects, no_pictures)
    assert finding.state == "amber"


def test_few_volumes_are_not_judged(small, names):
    few = small[:5]
    for finding in (
        likeness.check_orientation(few, names, no_pictures),
        likeness.check_duplicates(few, names, names, no_pictures),
    ):
        assert finding.state == "grey"
        assert "6" in finding.message
