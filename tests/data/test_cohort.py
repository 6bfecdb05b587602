"""A split of a cohort has no subject on both sides."""

from itertools import groupby

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._cohort import Cohort, draw_order, split

SCANS = [f"sub-{i}" for i in range(10) for _ in range(i % 3 + 1)]  # 19


def cohort(subjects=None, n=None, affine=None):
    n = len(subjects) if subjects is not None else n
    masks = None if affine is None else np.arange(n)
    return Cohort(np.arange(n), masks, affine, {"x": list(range(n))}, subjects)


@pytest.mark.parametrize("subjects", [None, [*map(str, range(20))]])
def test_split_of_subjects_with_one_image_each_is_as_drawn(subjects):
    order = np.random.default_rng(3).permutation(20)
    assert draw_order(range(20), 3) == order.tolist()
    train, held_out = split(cohort(subjects, n=20), 0.12, 3, 4)
    npt.assert_array_equal(train.images, order[3:])
    npt.assert_array_equal(held_out.images, order[:3])
    # The last volumes, which need not be copied.
    train, held_out = split(cohort(subjects, 20, np.eye(4)), 0.12, 3, 4)
    npt.assert_array_equal(train.images, np.arange(17))
    npt.assert_array_equal(train.masks, np.arange(17))
    npt.assert_array_equal(held_out.images, [17, 18, 19])
    assert held_out.masks is None


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("affine", [None, np.eye(4)])
def test_split_keeps_subjects_together(share, affine):
    order = draw_order(SCANS, 0) if affine is not None else range(len(SCANS))
    subjects = [SCANS[i] for i in order]
    train, held_out = split(cohort(subjects, affine=affine), share, 5, 1)
    assert [subjects[i] for i in train.images] == train.subjects
    assert [subjects[i] for i in held_out.images] == held_out.subjects
    for part in (train, held_out):
        assert part.conditions["x"] == part.images.tolist()
    assert not set(held_out.subjects) & set(train.subjects)
    everything = np.sort([*train.images, *held_out.images])
    npt.assert_array_equal(everything, np.arange(len(SCANS)))
    # At least the share, and no more than one subject beyond.
    count = len(held_out.images)
    assert share * len(SCANS) <= count <= share * len(SCANS) + 3


def test_draw_order_keeps_scans_of_a_subject_together():
    drawn = [SCANS[i] for i in draw_order(SCANS, 1)]
    assert len([*groupby(drawn)]) == len({*SCANS})
    assert draw_order(SCANS, 1) != draw_order(SCANS, 2)


def test_draw_order_does_not_favour_subjects_of_many_scans():
    subjects = ["sub-1"] * 9 + ["sub-2"]
    firsts = [subjects[draw_order(subjects, seed)[0]] for seed in range(200)]
    assert 75 < firsts.count("sub-1") < 125


@pytest.mark.parametrize("affine", [None, np.eye(4)])
def test_split_of_a_cohort_without_conditions(affine):
    train, held_out = split(Cohort(np.arange(20), affine=affine), 0.2, 1, 4)
    assert train.conditions is held_out.conditions is None


def test_split_of_a_share_of_nothing():
    train, held_out = split(cohort(SCANS), 0.0, 5, 1)
    assert held_out is None
    assert len(train.images) == len(SCANS)


def test_split_refuses_too_few_training_images():
    with pytest.raises(InputError, match=r"of 6 images, 0 remain .*\(6 held out"):
        split(cohort(["sub-1"] * 6), 0.1, 0, 1)
