"""Checks and statistics of images before training."""

import re
from unittest import mock

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import _cache as cache, _image_checks as checks


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


def test_survey_gives_the_spread_of_another_image(rng):
    common = rng.normal(0, 5, (8, 8, 8, 1))
    images = common + rng.normal(0, 0.7, (6, 8, 8, 8, 1))
    held_out = common + rng.normal(0, 0.7, (200, 8, 8, 8, 1))
    expected = np.mean((held_out - images.mean(0)) ** 2)
    npt.assert_allclose(checks.survey(images).spread, expected, rtol=0.05)
    npt.assert_allclose(checks.survey(images).variance, images.var(), rtol=1e-6)


def test_survey_of_cached_volumes_is_computed_once(kept, monkeypatch):
    parts = [kept, kept[:9], kept[9:], np.asarray(kept)[3:6]]
    surveys = [checks.survey(part) for part in parts]
    assert surveys == [checks.survey(np.array(part)) for part in parts]
    assert len({*surveys}) == len(parts)
    compute = mock.Mock(side_effect=AssertionError("computed again"))
    monkeypatch.setattr(checks, "_compute_survey", compute)
    assert [checks.survey(part) for part in parts] == surveys
    # Others are not known, whatever their memory is part of.
    for part in (kept[::2], kept[..., :3, :], kept[1:3], np.array(kept)):
        with pytest.raises(AssertionError, match="computed again"):
            checks.survey(part)


def test_survey_is_computed_again_if_its_file_is_damaged(kept):
    first = checks.survey(kept)
    cache.path_beside(kept, "survey").write_text('{"low": 0')
    assert checks.survey(kept) == first


def test_survey_of_a_cache_that_may_only_be_read(kept, monkeypatch):
    refuse = mock.Mock(side_effect=OSError("read-only file system"))
    monkeypatch.setattr(checks, "replacing", refuse)
    assert checks.survey(kept) == checks.survey(np.array(kept))


def test_survey_shows_progress_on_request(capsys):
    images = np.ones((7, 4, 4, 1))
    checks.survey(images)
    assert not capsys.readouterr().err
    checks.survey(images, verbose=True)
    assert "survey: 100%" in capsys.readouterr().err


def test_check_range_allows_noise_and_a_few_bright_voxels():
    images = np.random.default_rng(0).normal(0, 0.08, (4, 20, 20, 1))
    images[2, 0, :2] = 7
    checks.check_range(images, (0, 1), range(4))
    checks.check_range(images[:0], (0, 1), [])
    checks.check_range(images > 0.1, (0, 1), range(4))
    checks.check_range(np.full((1, 4, 4, 1), 5.1), (5, 5), [0])


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (lambda x: (255 * x).astype("uint8"), "from 0 to 255, 50%"),
        (lambda x: 2 * x - 1, "from -1 to 1, 50%"),
        (lambda x: x - 7.5, "from -7.5 to -6.5, 100%"),
    ],
)
def test_check_range_refuses_another_with_both_ranges(change, values):
    images = change(np.repeat([0.0, 1.0], 50).reshape(1, 10, 10, 1))
    inside = np.full((1, 10, 10, 1), 0.5)
    sentence = f"scan 6 .*{values} .* outside the 0 to 1 .*scale scans .*clip"
    with pytest.raises(InputError, match=sentence):
        checks.check_range(np.concatenate([inside, images]), (0, 1), [5, 6], "scan")


@pytest.mark.parametrize(
    ("factor", "warns"), [(1 / 255, True), (0.05, False), (1, False), (0, False)]
)
def test_warn_of_images_on_a_far_smaller_scale(factor, warns, caplog):
    images = factor * np.random.default_rng(0).random((2, 8, 8, 1))
    checks.warn_of_small_values(images, (0, 1))
    assert ("only, and the model was fitted to 0 to 1; scale" in caplog.text) == warns
    checks.warn_of_small_values(images > images.mean(), (0, 1))  # takes masks, too


@pytest.mark.parametrize(
    ("shape", "warning"),
    [
        ((64, 8, 9, 7), "64 two-dimensional .* 8 x 9 pixels with 7 channels; .*None"),
        ((64, 8, 8, 5), "5 channels"),
        ((64, 8, 8, 4), None),
        ((64, 8, 8, 8, 8), None),
    ],
)
def test_warn_of_channels_that_may_be_voxels(shape, warning, caplog):
    checks.warn_of_channels(shape)
    assert bool(caplog.messages) == bool(warning)
    assert re.search(warning or "", caplog.text)


@pytest.mark.parametrize(
    ("shape", "expected", "cure"),
    [
        ((5, 6, 1), (5, 6, 1), "give one image as images[None]."),
        ((5, 6), (5, 6, 1), "give one image as images[None, ..., None]."),
        ((5, 6, 7), (5, 6, 7, 1), "give one image as images[None, ..., None]."),
        ((9, 5, 6), (5, 6, 1), "add the channels with images[..., None]."),
        ((9, 5, 6), None, "add the channels with images[..., None]."),
        ((9, 5, 6, 7, 1), (5, 6, 1), "not (9, 5, 6, 7, 1)."),
    ],
)
def test_as_array_says_how_to_add_missing_axes(shape, expected, cure):
    with pytest.raises(InputError) as refusal:
        checks.as_array(np.zeros(shape), expected)
    assert str(refusal.value).endswith(cure)
