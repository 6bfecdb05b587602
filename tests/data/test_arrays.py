"""What is to be known of images before training."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.data import arrays, cache


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


def test_the_spread_is_that_of_another_image_around_the_mean():
    rng = np.random.default_rng(0)
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

    monkeypatch.setattr(arrays, "_look", fail)
    assert [arrays.survey(part) for part in parts] == found
    # Others are not known, whatever their memory is part of.
    for part in (kept[::2], kept[..., :3, :], kept[1:3], np.array(kept)):
        with pytest.raises(AssertionError, match="looked at again"):
            arrays.survey(part)


def test_what_was_kept_half_is_found_anew(kept):
    found = arrays.survey(kept)
    cache.name_beside(kept, "survey").write_text('{"low": 0')
    assert arrays.survey(kept) == found


def test_a_cache_that_may_only_be_read_is_used_all_the_same(kept, monkeypatch):
    def refuse(path):
        raise OSError("read-only file system")

    monkeypatch.setattr(arrays, "replacing", refuse)
    assert arrays.survey(kept) == arrays.survey(np.array(kept))
    assert cache.name_beside(np.zeros((2, 3)), "survey") is None


def test_a_survey_shows_how_far_it_is(capsys):
    images = np.random.default_rng(0).random((7, 4, 4, 1))
    arrays.survey(images)
    assert not capsys.readouterr().err
    arrays.survey(images, verbose=True)
    assert "survey: 100%" in capsys.readouterr().err
