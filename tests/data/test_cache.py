"""The cache is complete or absent, and named by a hash of its contents."""

import os
from pathlib import Path
import time
from unittest import mock

import numpy as np
import numpy.testing as npt
import pytest
from scans import small_files

from dipy_ldm._utils import files
from dipy_ldm.data import _cache as cache
from dipy_ldm.data._cache import writing_rows


def test_cache_root_is_chosen_or_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / "dipy_ldm" / "volumes"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root() == Path.home() / ".cache" / "dipy_ldm" / "volumes"
    (tmp_path / "link").symlink_to("other")
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "other", "other", "link", "./link/"):
        assert cache.cache_root(name) == tmp_path / "other"


def test_cache_root_without_home_names_the_option(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    error = RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(Path, "home", mock.Mock(side_effect=error))
    with pytest.raises(OSError, match="name a folder .* with `cache_dir`"):
        cache.cache_root()
    with cache.filling(cache.cache_root(tmp_path) / "key"):
        pass


def test_make_key_depends_on_content_order_and_settings(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    os.utime(b, ns=(0, a.stat().st_mtime_ns))
    key = cache.make_key([a, b], {"size": 1})
    other_keys = [
        cache.make_key([b, a], {"size": 1}),
        cache.make_key([a, b], {"size": 2}),
    ]
    (tmp_path / "moved").mkdir()
    moved = [path.rename(tmp_path / "moved" / path.name) for path in (a, b)]
    assert cache.make_key(moved, {"size": 1}) == key
    os.utime(moved[1], ns=(0, 1))
    other_keys.append(cache.make_key(moved, {"size": 1}))
    assert key not in other_keys
    assert len(set(other_keys)) == 3


def test_filling_makes_a_folder_appear_when_it_is_whole(tmp_path):
    folder = tmp_path / "new" / "key"
    with cache.filling(folder) as partial:
        (partial / "a").write_text("whole")
        assert not folder.exists()
    assert (folder / "a").read_text() == "whole"
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_filling_keeps_the_first_of_two_folders(tmp_path):
    with (
        cache.filling(tmp_path / "key") as last,
        cache.filling(tmp_path / "key") as one,
    ):
        (last / "a").write_text("last")
        (one / "a").write_text("first")
    assert (tmp_path / "key" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_filling_removes_folders_of_killed_processes(tmp_path):
    key = f"{7:032x}"
    old, running = (cache._partial_name(Path(key)) for _ in range(2))
    # Of other programs, and a file of ours that is no folder of the cache.
    foreign = [".rsync.partial", ".ldm.safetensors.partial", "finished"]
    for name in (old, running, *foreign):
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.npy").write_text("half")
        age = 1000 if name == running else 4000
        for path in (tmp_path / name / "images.npy", tmp_path / name):
            os.utime(path, (time.time() - age,) * 2)
    file = tmp_path / cache._partial_name(Path(key))
    file.touch()
    os.utime(file, (0, 0))
    with cache.filling(tmp_path / key):
        pass
    remaining = {path.name for path in tmp_path.iterdir()}
    assert remaining == {running, *foreign, file.name, key}
    assert all((tmp_path / name / "images.npy").exists() for name in foreign)


def test_filling_makes_the_default_folder_private(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    chosen = tmp_path / "chosen"
    for root in (cache.cache_root(), chosen):
        with cache.filling(root / "key"):
            pass
    assert cache.cache_root().stat().st_mode & 0o777 == 0o700
    (tmp_path / "any").mkdir()
    assert chosen.stat().st_mode == (tmp_path / "any").stat().st_mode


def fill(root, number, age, size=1000):
    """Make a folder of results, last used that many seconds ago."""
    folder = root / f"{number:032x}"
    with cache.filling(folder) as partial:
        (partial / "images.npy").write_bytes(bytes(size))
        (partial / cache.NOTES).touch()
    os.utime(folder / cache.NOTES, (time.time() - age,) * 2)
    return folder


def test_make_room_removes_the_least_recently_used_first(tmp_path):
    old, new, older = (fill(tmp_path, i, age) for i, age in enumerate((20, 10, 30)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / cache.NOTES).touch()
    folders = cache.list_folders(tmp_path)
    assert list(folders.items()) == [(older, 1000), (old, 1000), (new, 1000)]
    assert cache.make_room(tmp_path, 3000) == []
    assert cache.make_room(tmp_path, 2500) == [older]
    assert cache.make_room(tmp_path, -1) == [old, new]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_hold_makes_a_folder_the_newest(tmp_path):
    first, second = fill(tmp_path, 1, 20), fill(tmp_path, 2, 10)
    cache.hold(first)
    assert list(cache.list_folders(tmp_path)) == [second, first]


def test_make_room_keeps_folders_in_use(tmp_path):
    used, free = (fill(tmp_path, i, 30 - i) for i in range(2))
    cache.hold(used)
    cache.hold(used)
    # The lock of an open file, which does not depend on whose process it is.
    assert cache.make_room(tmp_path, 0) == [free]
    cache.release(used)
    assert cache.make_room(tmp_path, 0) == [used]


def test_make_room_keeps_all_where_nothing_can_be_locked(tmp_path, monkeypatch):
    folder = fill(tmp_path, 1, 20)
    monkeypatch.setattr(files, "fcntl", None)
    cache.hold(folder)
    assert cache.make_room(tmp_path, 0) == []


def test_hold_refuses_a_removed_folder(tmp_path, monkeypatch):
    folder = fill(tmp_path, 1, 20)
    # Between the opening and the lock.
    monkeypatch.setattr(cache, "lock", lambda *_, **__: (folder / cache.NOTES).unlink())
    with pytest.raises(FileNotFoundError):
        cache.hold(folder)


def test_filling_names_a_place_that_can_not_be(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"can't write the cache of volumes in .*file"),
        cache.filling(tmp_path / "file" / "key"),
    ):
        pass


@pytest.mark.parametrize("n", [0, 7, 12])
@pytest.mark.parametrize("order", "CF")
def test_writing_rows_makes_an_array_of_any_length(tmp_path, rng, n, order):
    array = rng.random((n, 3, 2)).astype("float32")
    with writing_rows(tmp_path / "a.npy", 12, (3, 2), "float32") as append:
        for row in array:
            append(row.copy(order))
    npt.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    assert (tmp_path / "a.npy").stat().st_size == 128 + array.nbytes


def test_filling_names_a_full_disk_and_leaves_nothing(tmp_path):
    with (
        small_files(100_000),
        pytest.raises(OSError, match=rf"the cache .*{tmp_path} .*`cache_dir`"),
        cache.filling(tmp_path / "key") as partial,
        writing_rows(partial / "a.npy", 4, (100, 100), "float32") as append,
    ):
        for _ in range(4):
            append(np.ones((100, 100)))
    assert not list(tmp_path.iterdir())


def test_writing_rows_refuses_too_little_free_space(tmp_path):
    path = tmp_path / "a.npy"
    with writing_rows(path, 100, (1000,), "float32"):
        assert path.stat().st_blocks * 512 < 10_000
    full = pytest.raises(OSError, match="No space left")
    with full, writing_rows(path, 10**12, (1000,), "float32"):
        raise AssertionError("it began")
