"""What is to be known of images before training."""

import re

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import _cache as cache, _image_checks as arrays


@pytest.fixture
def kept(tmp_path):
    """Return twelve volumes of the cache, mapped and in use."""
    folder = tmp_path / ("0" * 32)
    folder.mkdir()
    volumes = np.random.default_rng(0).random((12, 4, 5, 6, 1), "float32")
    np.save(folder / "images.npy", volumes)
    (folder / cache.NOTES).write_text("{}")
    cache.hold(folder)
    yield np.load(folder / "images.npy", mmap_mode="r")
    cache.release(folder)


def test_the_spread_is_that_of_another_image_around_the_mean(rng):
    common = rng.normal(0, 5, (8, 8, 8, 1))
    images = common + rng.normal(0, 0.7, (6, 8, 8, 8, 1))
    others = common + rng.normal(0, 0.7, (200, 8, 8, 8, 1))
    expected = np.mean((others - images.mean(0)) ** 2)
    npt.assert_allclose(arrays.survey(images).spread, expected, rtol=0.05)
    npt.assert_allclose(arrays.survey(images).variance, images.var(), rtol=1e-6)


def test_volumes_of_the_cache_are_looked_at_once(kept, monkeypatch):
    parts = [kept, kept[:9], kept[9:], np.asarray(kept)[3:6]]
    found = [arrays.survey(part) for part in parts]
    assert found == [arrays.survey(np.array(part)) for part in parts]
    assert len(set(found)) == len(parts)

    def fail(*args):
        raise AssertionError("looked at again")

    monkeypatch.setattr(arrays, "_compute_survey", fail)
    assert [arrays.survey(part) for part in parts] == found
    # Others are not known, whatever their memory is part of.
    for part in (kept[::2], kept[..., :3, :], kept[1:3], np.array(kept)):
        with pytest.raises(AssertionError, match="looked at again"):
            arrays.survey(part)


def test_half_kept_survey_is_computed_again(kept):
    found = arrays.survey(kept)
    cache.path_beside(kept, "survey").write_text('{"low": 0')
    assert arrays.survey(kept) == found


def test_a_cache_that_may_only_be_read_is_used_all_the_same(kept, monkeypatch):
    def refuse(path):
        raise OSError("read-only file system")

    monkeypatch.setattr(arrays, "replacing", refuse)
    assert arrays.survey(kept) == arrays.survey(np.array(kept))
    assert cache.path_beside(np.zeros((2, 3)), "survey") is None


def test_a_survey_shows_how_far_it_is(capsys):
    images = np.random.default_rng(0).random((7, 4, 4, 1))
    arrays.survey(images)
    assert not capsys.readouterr().err
    arrays.survey(images, verbose=True)
    assert "survey: 100%" in capsys.readouterr().err


def test_noise_and_a_few_bright_voxels_are_within_a_range():
    images = np.random.default_rng(0).normal(0, 0.08, (4, 20, 20, 1))
    images[2, 0, :2] = 7
    assert arrays.check_range(images, (0, 1), range(4)) is images
    arrays.check_range(images[:0], (0, 1), [])
    arrays.check_range(images > 0.1, (0, 1), range(4))
    arrays.check_range(np.full((1, 4, 4, 1), 5.1), (5, 5), [0])


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (lambda x: (255 * x).astype("uint8"), "from 0 to 255, 50%"),
        (lambda x: 2 * x - 1, "from -1 to 1, 50%"),
        (lambda x: x - 7.5, "from -7.5 to -6.5, 100%"),
    ],
)
def test_another_intensity_range_is_refused_with_both_ranges(change, values):
    images = change(np.repeat([0.0, 1.0], 50).reshape(1, 10, 10, 1))
    inside = np.full((1, 10, 10, 1), 0.5)
    sentence = f"scan 6 .*{values} .* outside the 0 to 1 .*scale scans .*clip"
    with pytest.raises(InputError, match=sentence):
        arrays.check_range(np.concatenate([inside, images]), (0, 1), [5, 6], "scan")


@pytest.mark.parametrize(
    ("shape", "warned"),
    [
        ((64, 8, 9, 7), "64 two-dimensional .* 8 x 9 pixels with 7 channels; .*None"),
        ((64, 8, 8, 5), "5 channels"),
        ((64, 8, 8, 4), None),
        ((64, 8, 8, 8, 8), None),
    ],
)
def test_volumes_without_channels_are_warned_of(shape, warned, caplog):
    arrays.warn_of_channels(shape)
    assert bool(caplog.messages) == bool(warned)
    assert re.search(warned or "", caplog.text)


@pytest.mark.parametrize(
    ("got", "shape", "cure"),
    [
        ((5, 6, 1), (5, 6, 1), "give one image as images[None]."),
        ((5, 6), (5, 6, 1), "give one image as images[None, ..., None]."),
        ((5, 6, 7), (5, 6, 7, 1), "give one image as images[None, ..., None]."),
        ((9, 5, 6), (5, 6, 1), "add the channels with images[..., None]."),
        ((9, 5, 6), None, "add the channels with images[..., None]."),
        ((9, 5, 6, 7, 1), (5, 6, 1), "not (9, 5, 6, 7, 1)."),
    ],
)
def test_missing_axes_get_a_cure(got, shape, cure):
    with pytest.raises(InputError) as caught:
        arrays.as_array(np.zeros(got), shape)
    assert str(caught.value).endswith(cure)
