"""Subjects of images: numbered, gathered, and held out together."""

import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest

from dipy_ldm._utils import subjects
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.subjects import number_disjoint, number_subjects


def test_subjects_are_numbered():
    codes, letters = np.array([9, 1, 9, 3]), pd.Series(["b", "a", "b", "c"])
    for names in (["sub-2", "sub-1", "sub-2", "sub-7"], codes, letters):
        npt.assert_array_equal(number_subjects(names, 4), [0, 1, 0, 2])


def test_missing_subjects_are_different_ones():
    npt.assert_array_equal(number_subjects(None, 3), [0, 1, 2])
    names = ["a", None, "a", np.nan, "n/a"]
    npt.assert_array_equal(number_subjects(names, 5), [0, 1, 0, 2, 3])


@pytest.mark.parametrize("names", ["sub", 3, ["a", "b"], [["a"], ["b"], ["c"]], {}])
def test_invalid_subjects_are_refused(names):
    with pytest.raises(InputError, match="subjects"):
        number_subjects(names, 3)


def test_number_disjoint_refuses_subjects_on_both_sides():
    numbers = number_disjoint((3, ["a", "b", "a"]), (2, ["c", None]))
    npt.assert_array_equal(np.concatenate(numbers), [0, 1, 0, 0, 1])
    assert len(number_disjoint((3, None), (0, None))[1]) == 0
    sentence = "^b are in both `subjects` and `validation_subjects`"
    with pytest.raises(InputError, match=sentence):
        number_disjoint((3, ["a", "b", "a"]), (2, ["c", "b"]))
    codes = pd.Series([1, 2, 1]).astype("category")
    with pytest.raises(InputError, match="^2 are in both"):
        number_disjoint((3, codes), (2, [3, 2]))
    with pytest.raises(InputError, match="each of 0 images"):
        number_disjoint((3, None), (0, ["a"]))


def test_fingerprint_of_subjects_with_several_images():
    assert subjects.fingerprint(np.arange(5)) is None
    one, other = (subjects.fingerprint(np.array(who)) for who in ([0, 0, 1], [0, 1, 1]))
    assert one.startswith("2 of 3 images (")
    assert one != other


def test_images_of_a_subject_are_gathered():
    blocks = subjects.blocks(np.array([4, 1, 4, 2, 1, 0]))
    assert [part.tolist() for part in blocks] == [[[5], [3]], [[1, 4], [0, 2]]]
