"""The cache: whole or not at all, and named by what is in it."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import numpy.testing as npt
import pytest
from scans import small_files

from dipy_ldm._utils import files
from dipy_ldm.data import _cache as cache
from dipy_ldm.data._cache import writing_rows


def test_the_place_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / "dipy_ldm" / "volumes"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root() == Path.home() / ".cache" / "dipy_ldm" / "volumes"
    assert cache.cache_root(tmp_path / "other") == tmp_path / "other"


def test_the_key_is_that_of_content_order_and_settings(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    os.utime(b, ns=(0, a.stat().st_mtime_ns))
    key = cache.make_key([a, b], {"size": 1})
    others = [cache.make_key([b, a], {"size": 1}), cache.make_key([a, b], {"size": 2})]
    (tmp_path / "moved").mkdir()
    moved = [path.rename(tmp_path / "moved" / path.name) for path in (a, b)]
    assert cache.make_key(moved, {"size": 1}) == key
    os.utime(moved[1], ns=(0, 1))
    others.append(cache.make_key(moved, {"size": 1}))
    assert key not in others
    assert len(set(others)) == 3


def test_a_folder_appears_when_it_is_whole(tmp_path):
    folder = tmp_path / "new" / "key"
    with cache.filling(folder) as partial:
        (partial / "a").write_text("whole")
        assert not folder.exists()
    assert (folder / "a").read_text() == "whole"
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_folder_is_removed(tmp_path, error):
    with pytest.raises(error), cache.filling(tmp_path / "key") as partial:
        (partial / "a").write_text("half")
        raise error
    assert not list(tmp_path.iterdir())


def test_the_first_of_two_stays(tmp_path):
    with cache.filling(tmp_path / "key") as one, cache.filling(tmp_path / "key") as two:
        assert one != two
        (one / "a").write_text("one")
        (two / "a").write_text("two")
    # The inner one ends first.
    assert (tmp_path / "key" / "a").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_folder_of_a_concurrent_process_is_kept(tmp_path, monkeypatch):
    remove, others = shutil.rmtree, []

    def rmtree(path, **options):
        # Others put theirs there at the worst moment.
        others.append(path.name == "key")
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with cache.filling(tmp_path / "key") as partial:
        (partial / "a").touch()
    assert not any(others)


def test_folders_of_killed_processes_are_removed_of_running_ones_kept(tmp_path):
    key = f"{7:032x}"
    old, running = (cache._partial_name(Path(key)) for _ in range(2))
    # Of other programs, and a file of ours that is no folder of the cache.
    others = [".rsync.partial", ".ldm.safetensors.partial", "finished"]
    for name in (old, running, *others):
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
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {running, *others, file.name, key}
    assert all((tmp_path / name / "images.npy").exists() for name in others)


def test_only_the_user_looks_into_the_default_place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    chosen = tmp_path / "chosen"
    for root in (cache.cache_root(), chosen):
        with cache.filling(root / "key"):
            pass
    assert cache.cache_root().stat().st_mode & 0o777 == 0o700
    (tmp_path / "any").mkdir()
    assert chosen.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_links_and_relative_paths_are_the_place_they_lead_to(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to("scratch")
    monkeypatch.chdir(tmp_path)
    for name in ("scratch", "link", "./link/"):
        assert cache.cache_root(name) == tmp_path / "scratch"


def test_missing_home_is_an_error_with_a_cure(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    error = RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(Path, "home", mock.Mock(side_effect=error))
    with pytest.raises(OSError, match="name a folder .* with `cache_dir`"):
        cache.cache_root()
    with cache.filling(cache.cache_root(tmp_path) / "key"):
        pass


def fill(root, number, age, size=1000):
    """Make a folder of results, last used that many seconds ago."""
    folder = root / f"{number:032x}"
    with cache.filling(folder) as partial:
        (partial / "images.npy").write_bytes(bytes(size))
        (partial / cache.NOTES).touch()
    os.utime(folder / cache.NOTES, (time.time() - age,) * 2)
    return folder


HOLD = """
import sys
from pathlib import Path
from dipy_ldm._utils import files
from dipy_ldm.data import _cache as cache
cache.hold(Path(sys.argv[1]))
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def used_elsewhere():
    """Return what lets another process use a folder."""
    processes = []

    def use(folder):
        command = [sys.executable, "-c", HOLD, folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        processes.append(subprocess.Popen(command, **pipes))
        assert processes[-1].stdout.readline() == b"holds\n"
        return processes[-1]

    yield use
    for process in processes:
        process.communicate()


def test_least_recently_used_folders_are_removed_first(tmp_path):
    old, new, older = (fill(tmp_path, i, age) for i, age in enumerate((20, 10, 30)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / cache.NOTES).touch()
    folders = cache.list_folders(tmp_path)
    assert list(folders.items()) == [(older, 1000), (old, 1000), (new, 1000)]
    assert cache.make_room(tmp_path, 3000) == []
    assert cache.make_room(tmp_path, 2500) == [older]
    assert cache.make_room(tmp_path, -1) == [old, new]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_using_a_folder_makes_it_the_newest(tmp_path):
    first, second = fill(tmp_path, 1, 20), fill(tmp_path, 2, 10)
    cache.hold(first)
    assert list(cache.list_folders(tmp_path)) == [second, first]


def test_folders_in_use_are_kept(tmp_path, used_elsewhere):
    here, there, free = (fill(tmp_path, i, 30 - i) for i in range(3))
    cache.hold(here)
    cache.hold(here)
    process = used_elsewhere(there)
    assert cache.make_room(tmp_path, 0) == [free]
    process.communicate()
    assert cache.make_room(tmp_path, 0) == [there]


def test_where_nothing_can_be_locked_all_stays(tmp_path, monkeypatch):
    folder = fill(tmp_path, 1, 20)
    monkeypatch.setattr(files, "fcntl", None)
    cache.hold(folder)
    assert cache.make_room(tmp_path, 0) == []


def test_removed_folder_is_not_used(tmp_path, monkeypatch):
    folder = fill(tmp_path, 1, 20)
    # Between the opening and the lock.
    monkeypatch.setattr(cache, "lock", lambda *_, **__: (folder / cache.NOTES).unlink())
    with pytest.raises(FileNotFoundError):
        cache.hold(folder)


def test_a_place_that_can_not_be_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"can't write the cache of volumes in .*file"),
        cache.filling(tmp_path / "file" / "key"),
    ):
        pass


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
    with (
        small_files(100_000),
        pytest.raises(OSError, match=r"can't write the cache .*`cache_dir`") as no,
        cache.filling(tmp_path / "key") as partial,
    ):
        write_large(partial)
    assert str(tmp_path) in str(no.value)
    assert not list(tmp_path.iterdir())


def test_too_little_free_space_is_refused_before_writing(tmp_path):
    path = tmp_path / "a.npy"
    with writing_rows(path, 100, (1000,), "float32"):
        assert path.stat().st_blocks * 512 < 10_000
    full = pytest.raises(OSError, match="No space left")
    with full, writing_rows(path, 10**12, (1000,), "float32"):
        raise AssertionError("it began")
