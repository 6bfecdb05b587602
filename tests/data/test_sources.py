"""Source images: their scale, their labels, and reading them."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._conditions import UNSPECIFIED
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import _sources as sources
from dipy_ldm.data._sources import ConditioningInputs, Source
from dipy_ldm.data.volumes import Volumes


def test_source_scales_intensities_and_labels():
    scaled = Source(1, (100.0, 300.0), [], "").scaled(np.array([[50, 100, 150, 400]]))
    npt.assert_allclose(scaled, [[0, 0, 0.25, 1]])
    segmentation = Source(1, (-3.0, 40.0), [-3, 0, 40], "")
    labels = segmentation.scaled(np.array([[-3, 40.0, 0, 41, -9, 1]]))
    npt.assert_array_equal(labels, [[0, 2, 1, -1, -1, -1]])


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 3, 3, 700], [0, 3, 700]),
        ([-2, 5, 5, -2], [-2, 5]),
        ([0, 2**40, 7, 7], [0, 7, 2**40]),
        ([True, False, True, True], [0, 1]),
    ],
)
def test_learn_recognises_labels(values, labels):
    array = np.array(values).reshape(2, 1, 2)
    for source in (array, Volumes(array, None, np.eye(4), [])):
        assert sources.learn(source, (2, 1, 2, 1)).labels == labels


def test_as_source_takes_the_sources_of_volumes():
    images = np.zeros((2, 3, 3, 3, 1))
    own = Volumes(images, None, np.eye(4), [], sources=images + 1)
    assert sources.as_source(own, (3, 3, 3)) is own.sources
    alone = Volumes(images, None, np.eye(4), [])
    assert sources.as_source(alone, (3, 3, 3)) is images


def test_as_source_refuses_masked_arrays():
    source = np.ma.masked_equal(np.eye(3)[None], 0)
    with pytest.raises(InputError, match=r"masked values in source, .*\.filled"):
        sources.as_source(source, (3, 3))
    assert sources.as_source(np.ma.array(source.filled(0)), (3, 3)).sum() == 3


def test_learn_refuses_bytes_of_many_levels(caplog):
    levels = np.arange(100).reshape(4, 5, 5, 1)
    with caplog.at_level("INFO", "dipy_ldm"):
        assert len(sources.learn(levels, levels.shape).labels) == 100
        assert sources.learn(levels.astype("float32"), levels.shape).labels == []
    assert "source images are treated as 100 labels" in caplog.text
    assert "source images are treated as intensities" in caplog.text
    with pytest.raises(InputError, match="more than 64 labels as uint8; give labels"):
        sources.learn(levels.astype("uint8"), levels.shape)


def test_sources_read_fills_up_to_the_edge_of_latents():
    images = np.arange(30.0).reshape(2, 3, 5, 1)
    info, numbers = Source(1, (0.0, 29.0), [], ""), np.zeros((2, 1))
    sources = ConditioningInputs.of(numbers, info, images, 4).sources
    assert sources.size == (4, 8)
    read = sources.read(np.array([1.0, -1.0, 0.0], "float32"))
    assert read.shape == (3, 4, 8, 1)
    assert read.dtype == "float32"
    npt.assert_allclose(read[0, :3, :5], images[1] / 29, rtol=1e-6)
    npt.assert_array_equal(read[2, 3, :], read[2, 2, :])
    assert (read[1] == UNSPECIFIED).all()


def test_conditioning_inputs_have_one_source_each_or_for_all():
    numbers = np.zeros((3, 2), "float32")
    for count, numbers_of in ((3, [0, 1, 2]), (1, [0, 0, 0])):
        images = np.arange(float(count))[:, None, None, None]
        info = Source(1, (0.0, 2.0), [], "")
        inputs = ConditioningInputs.of(numbers, info, images, 1)
        npt.assert_array_equal(inputs.table[:, 2], numbers_of)
        conditions, read = inputs.take(np.array([2, 1])).arrays()
        assert conditions.shape == (2, 2)
        npt.assert_array_equal(read.ravel(), [numbers_of[2] / 2, numbers_of[1] / 2])
    for columns, shapes in ((numbers, [(3, 2)]), (numbers[:, :0], [])):
        alone = ConditioningInputs.of(columns, None, None, 4)
        assert [array.shape for array in alone.arrays()] == shapes


def test_check_refuses_sources_for_a_model_of_none():
    assert sources.check(None, None, (2, 2)) is None
    with pytest.raises(InputError, match="leave out `other`"):
        sources.check(None, np.ones((1, 2, 2)), (2, 2), name="other")
