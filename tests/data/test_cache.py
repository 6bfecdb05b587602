"""The cache is complete or absent, and named by a hash of its contents."""

from concurrent.futures import ThreadPoolExecutor
import json
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


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return a cache that remembers hashes of files that were just written."""
    monkeypatch.setattr(cache, "_SETTLING_NS", 0)
    return tmp_path / "cache"


@pytest.fixture
def n_hashed(monkeypatch):
    """Return a function that counts the files that were hashed since the last call."""
    spy = mock.Mock(wraps=cache._hash_file)
    monkeypatch.setattr(cache, "_hash_file", spy)

    def count():
        n = spy.call_count
        spy.reset_mock()
        return n

    return count


def write_files(folder, **contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def test_make_key_depends_on_content_order_and_settings(tmp_path, root):
    a, b = write_files(tmp_path / "files", a=b"one", b=b"two")
    key = cache.make_key([a, b], {"size": 1}, root)
    other_keys = [
        cache.make_key([b, a], {"size": 1}, root),
        cache.make_key([a, b], {"size": 2}, root),
    ]
    (tmp_path / "files").rename(tmp_path / "moved")
    a, b = (tmp_path / "moved" / path.name for path in (a, b))
    os.utime(b, ns=(0, 1))
    assert cache.make_key([a, b], {"size": 1}, root) == key
    b.write_bytes(b"new")
    other_keys.append(cache.make_key([a, b], {"size": 1}, root))
    assert key not in other_keys
    assert len(set(other_keys)) == 3


def test_make_key_tells_files_of_one_size_time_and_beginning_apart(tmp_path, root):
    start = bytes(2**21)
    a, b = write_files(tmp_path, a=start + b"one", b=start + b"two")
    times = (0, 10**18)
    for file in (a, b):
        os.utime(file, ns=times)
    before = [cache.make_key([file], {}, root) for file in (a, b)]
    # In place, with the time of the old content.
    with open(a, "rb+") as stream:
        stream.seek(len(start))
        stream.write(b"new")
    os.utime(a, ns=times)
    after = [cache.make_key([file], {}, root) for file in (a, b)]
    assert len({*before, after[0]}) == 3
    assert after[1] == before[1]


def test_make_key_hashes_files_once_until_they_change(tmp_path, root, n_hashed):
    files = write_files(tmp_path / "files", a=b"one", b=b"two", c=b"three")
    key = cache.make_key([*files, files[0]], {}, root)
    assert n_hashed() == 3
    assert cache.make_key([*files, files[0]], {}, root) == key
    assert n_hashed() == 0
    os.utime(files[1])
    assert cache.make_key([*files, files[0]], {}, root) == key
    assert n_hashed() == 1


def test_make_key_hashes_recent_files_again(tmp_path, n_hashed):
    files = write_files(tmp_path, a=b"one")
    keys = {cache.make_key(files, {}, tmp_path / "cache") for _ in range(2)}
    assert n_hashed() == 2
    assert len(keys) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[1]", b"7", b'{"a": ', b'{"%s": null}']
)
def test_make_key_ignores_damaged_hashes(tmp_path, root, n_hashed, content):
    files = write_files(tmp_path, a=b"one")
    key = cache.make_key(files, {}, root)
    (state,) = json.loads((root / cache._HASHES).read_text())
    (root / cache._HASHES).write_bytes(content.replace(b"%s", state.encode()))
    for n in (1, 1, 0):
        assert n_hashed() == n
        assert cache.make_key(files, {}, root) == key


def test_make_key_keeps_hashes_of_other_processes_up_to_a_limit(
    tmp_path, root, n_hashed, monkeypatch
):
    files = write_files(tmp_path, **{f"f{i}": bytes(i) for i in range(8)})
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda file: cache.make_key([file], {}, root), files))
    assert n_hashed() == 8
    cache.make_key(files, {}, root)
    assert n_hashed() == 0
    assert [path.name for path in root.iterdir()] == [cache._HASHES]
    monkeypatch.setattr(cache, "_MAX_HASHES", 3)
    (file,) = write_files(tmp_path, new=b"new")
    for recent in ([file], [file]):
        cache.make_key(recent, {}, root)
    assert n_hashed() == 1
    assert len(json.loads((root / cache._HASHES).read_text())) == 3


def test_make_key_works_where_hashes_can_not_be_written(tmp_path, root):
    files = write_files(tmp_path, a=b"one", file=b"")
    key = cache.make_key(files, {}, root)
    assert cache.make_key(files, {}, tmp_path / "file") == key
    assert (tmp_path / "file").read_bytes() == b""


def test_make_key_of_a_file_that_can_not_be_read(tmp_path, root, monkeypatch):
    files = write_files(tmp_path, a=b"one")
    error = mock.Mock(side_effect=OSError("Input/output error"))
    with monkeypatch.context() as patch:
        patch.setattr(cache.hashlib, "file_digest", error)
        unread = cache.make_key(files, {}, root)
    assert cache.make_key(files, {}, root) != unread


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
