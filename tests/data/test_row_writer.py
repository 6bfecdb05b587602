"""Rows: a whole array at the end, or one sentence."""

import resource

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.data import _cache as cache
from dipy_ldm.data._cache import writing_rows


@pytest.mark.parametrize("n", [0, 1, 7, 12])
def test_rows_are_a_whole_array_however_many_they_are(tmp_path, n):
    array = np.random.default_rng(0).random((n, 3, 2)).astype("float32")
    with writing_rows(tmp_path / "a.npy", 12, (3, 2), "float32") as append:
        for row in array:
            append(row)
    npt.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    assert (tmp_path / "a.npy").stat().st_size == 128 + array.nbytes


def test_rows_of_any_order_are_written_alike(tmp_path):
    array = np.arange(12, dtype="float32").reshape(4, 3).T
    with writing_rows(tmp_path / "a.npy", 1, (3, 4), "float32") as append:
        append(array)
    npt.assert_array_equal(np.load(tmp_path / "a.npy")[0], array)


def write_large(folder):
    path = folder / "a.npy"
    with writing_rows(path, 4, (100, 100), "float32") as append:
        for _ in range(4):
            append(np.ones((100, 100)))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with (
            pytest.raises(OSError, match=r"can't write the cache .*`cache_dir`") as no,
            cache.filling(tmp_path / "key") as partial,
        ):
            write_large(partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(tmp_path) in str(no.value)
    assert not list(tmp_path.iterdir())


def test_what_exceeds_the_free_space_is_refused_before_the_first_row(tmp_path):
    path = tmp_path / "a.npy"
    with writing_rows(path, 100, (1000,), "float32"):
        assert path.stat().st_blocks * 512 < 10_000
    with (
        pytest.raises(OSError, match="No space left"),
        writing_rows(path, 10**12, (1000,), "float32"),
    ):
        raise AssertionError("it began")
