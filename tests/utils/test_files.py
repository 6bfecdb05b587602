"""Files are written atomically, by one writer or several, and keep their mode."""

from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import socket
import stat
import subprocess
import sys

import pytest
from scans import small_files

from dipy_ldm._utils import files
from dipy_ldm._utils.files import claimed, replacing


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def write(path, text="new"):
    with replacing(path) as partial:
        partial.write_text(text)


def test_replacing_by_many_writers(tmp_path):
    path = tmp_path / "file"

    def work(number):
        for _ in range(50):
            write(path, str(number) * 10_000)
            assert len(set(path.read_text())) == 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kept", [0o600, 0o444, 0o664])
def test_replacing_keeps_the_mode(tmp_path, monkeypatch, kept):
    # Which other threads have, too.
    monkeypatch.delattr(os, "umask")
    path = tmp_path / "file"
    path.touch()
    path.chmod(kept)
    with replacing(path) as partial:
        # Private from the beginning.
        assert not mode(partial) & ~(kept | 0o600)
        partial.write_text("new")
    assert mode(path) == kept
    assert path.read_text() == "new"


def test_replacing_follows_no_link_that_somebody_foresaw(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    for name in (".file.partial", f".file.{os.getpid()}.partial"):
        (tmp_path / name).symlink_to(victim)
    write(tmp_path / "file")
    assert victim.read_text() == "precious"
    assert mode(victim) == 0o600


def test_replacing_keeps_links(tmp_path):
    (tmp_path / "scratch").mkdir()
    path = tmp_path / "file"
    path.symlink_to(tmp_path / "scratch" / "file")
    for text in ("first", "second"):
        write(path, text)
        assert path.is_symlink()
        assert (tmp_path / "scratch" / "file").read_text() == text


DIE = """
import os, signal, sys
from dipy_ldm._utils.files import claimed, replacing
with replacing(sys.argv[1]) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_replacing_removes_the_remains_of_a_killed_process(tmp_path):
    path = tmp_path / "file"
    write(path, "old")
    subprocess.run([sys.executable, "-c", DIE, path])
    assert len(list(tmp_path.iterdir())) == 2
    assert path.read_text() == "old"
    write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_replacing_during_another_write(tmp_path, monkeypatch):
    # With its number, as in containers that share a disk.
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with replacing(tmp_path / "file") as partial:
        partial.write_text("slow")
        write(tmp_path / "file", "fast")
        assert partial.read_text() == "slow"
    assert (tmp_path / "file").read_text() == "slow"


def test_replacing_flushes_before_it_renames(tmp_path, monkeypatch):
    done, rename = [], os.replace

    def fsync(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def replace(partial, path):
        done.append("renamed")
        rename(partial, path)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write(tmp_path / "file")
    assert done == [".file.partial", "renamed", tmp_path.name]


@pytest.mark.parametrize("length", [200, 255])
def test_replacing_long_names(tmp_path, length):
    write(tmp_path / ("é" * (length // 2)))
    assert len(list(tmp_path.iterdir())) == 1


def test_replacing_refuses_a_name_that_is_too_long(tmp_path):
    with pytest.raises(OSError, match=r"can't write .*\(File name too long\)"):
        write(tmp_path / ("a" * 256))


def test_files_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / ".file.partial").write_text("of another")
    with claimed(tmp_path / "file"), claimed(tmp_path / "file"):
        files.refuse_claimed(tmp_path / "file")
        write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / ".file.partial").read_text() == "of another"
    assert len(list(tmp_path.iterdir())) == 2


def test_replacing_releases_mandatory_locks(tmp_path, monkeypatch):
    def open_as_on_smb(path, *how, **options):
        stream = open(path, *how, **options)
        try:
            files.lock(stream.fileno(), wait=False)
        except BlockingIOError:
            stream.close()
            raise PermissionError(13, "Permission denied") from None
        files.fcntl.flock(stream, files.fcntl.LOCK_UN)
        return stream

    monkeypatch.setattr(files, "open", open_as_on_smb, raising=False)
    write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"


def test_replacing_keeps_the_previous_file(tmp_path):
    path, previous = tmp_path / "file", tmp_path / "previous"
    for text in ("first", "second", "third"):
        with replacing(path, previous) as partial:
            partial.write_text(text)
    assert path.read_text() == "third"
    assert previous.read_text() == "second"


CLAIM = """
import sys
from dipy_ldm._utils.files import claimed
with claimed(sys.argv[1]):
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def another(tmp_path):
    """Return a process that has claimed a file."""
    command = [sys.executable, "-c", CLAIM, tmp_path / "file"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == b"claimed\n"
        yield process
        process.kill()


def test_claimed_names_the_process_that_has_the_file(tmp_path, another):
    owner = f"process {another.pid} on {socket.gethostname()}"
    sentence = f"file is being written by {owner}"
    with pytest.raises(OSError, match=sentence):
        files.refuse_claimed(tmp_path / "file")
    with pytest.raises(OSError, match=sentence), claimed(tmp_path / "file"):
        pass
    files.refuse_claimed(tmp_path / "other")
    another.communicate()
    assert not list(tmp_path.iterdir())


def test_claimed_after_a_killed_process(tmp_path, another):
    another.kill()
    another.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".file.lock"]
    files.refuse_claimed(tmp_path / "file")
    with claimed(tmp_path / "file"):
        assert str(os.getpid()) in (tmp_path / ".file.lock").read_text()
    assert not list(tmp_path.iterdir())


def test_claimed_waits(tmp_path):
    inside, most = [], []

    def work(number):
        for _ in range(50):
            with claimed(tmp_path / "file", wait=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert most == [1] * 200
    assert not list(tmp_path.iterdir())


def test_claimed_on_a_full_disk(tmp_path):
    sentence = "file .File too large.; free some space"
    with small_files(0), pytest.raises(OSError, match=sentence):
        with claimed(tmp_path / "file"), files.replacing(tmp_path / "file") as partial:
            partial.write_text("all")
    assert not list(tmp_path.iterdir())


def test_claimed_follows_no_symbolic_link(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".file.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError), claimed(tmp_path / "file"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"
