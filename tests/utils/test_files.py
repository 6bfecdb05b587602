"""Files: whole or not at all, for one writer and for many, with the mode they had."""

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


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"

    def work(number):
        for _ in range(50):
            write(path, str(number) * 10_000)
            assert len(set(path.read_text())) == 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_processes_of_one_number_do_not_meet(tmp_path, monkeypatch):
    # As in containers that share a disk.
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as two:
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "file").read_text() == "one"


def test_private_files_are_private_from_the_beginning(tmp_path):
    path = tmp_path / "file"
    path.touch(0o600)
    with replacing(path) as partial:
        assert mode(partial) == 0o600
        partial.write_text("new")
    assert mode(path) == 0o600


@pytest.mark.parametrize("kept", [0o444, 0o664])
def test_mode_of_a_replaced_file_is_kept(tmp_path, kept):
    path = tmp_path / "file"
    path.touch()
    path.chmod(kept)
    write(path)
    assert mode(path) == kept
    assert path.read_text() == "new"


def test_the_mask_of_other_threads_is_let_be(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "umask")
    write(tmp_path / "file")


def test_a_link_that_somebody_foresaw_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    for name in (".file.partial", f".file.{os.getpid()}.partial"):
        (tmp_path / name).symlink_to(victim)
    write(tmp_path / "file")
    assert victim.read_text() == "precious"
    assert mode(victim) == 0o600


def test_an_output_that_is_a_link_stays_one(tmp_path):
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


def test_remains_of_a_killed_process_are_removed_by_the_next_write(tmp_path):
    path = tmp_path / "file"
    write(path, "old")
    subprocess.run([sys.executable, "-c", DIE, path])
    assert len(list(tmp_path.iterdir())) == 2
    assert path.read_text() == "old"
    write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_file_being_written_by_another_is_kept(tmp_path):
    with replacing(tmp_path / "file") as partial:
        partial.write_text("slow")
        write(tmp_path / "file", "fast")
        assert partial.read_text() == "slow"
    assert (tmp_path / "file").read_text() == "slow"


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
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


@pytest.mark.parametrize("length", [200, 240, 255])
def test_long_names_are_no_longer_while_they_are_written(tmp_path, length):
    write(tmp_path / ("é" * (length // 2)))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    with pytest.raises(OSError, match=r"can't write .*\(File name too long\)"):
        write(tmp_path / ("a" * 256))


def test_without_locks_files_are_written_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / ".file.partial").write_text("of another")
    write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / ".file.partial").read_text() == "of another"


def test_mandatory_locks_are_released(tmp_path, monkeypatch):
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


def test_the_one_before_is_kept(tmp_path):
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


def test_claim_of_another_process_is_refused_with_its_name(tmp_path, another):
    owner = f"process {another.pid} on {socket.gethostname()}"
    sentence = f"file is being written by {owner}"
    with pytest.raises(OSError, match=sentence):
        files.refuse_claimed(tmp_path / "file")
    with pytest.raises(OSError, match=sentence), claimed(tmp_path / "file"):
        pass
    files.refuse_claimed(tmp_path / "other")
    another.communicate()
    assert not list(tmp_path.iterdir())


def test_claim_of_a_killed_process_is_free(tmp_path, another):
    another.kill()
    another.wait()
    assert [path.name for path in tmp_path.iterdir()] == [".file.lock"]
    files.refuse_claimed(tmp_path / "file")
    with claimed(tmp_path / "file"):
        assert str(os.getpid()) in (tmp_path / ".file.lock").read_text()
    assert not list(tmp_path.iterdir())


def test_claims_that_wait_come_one_after_the_other(tmp_path):
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


def test_a_full_disk_is_told_by_what_is_written_there(tmp_path):
    sentence = "file .File too large.; free some space"
    with small_files(0), pytest.raises(OSError, match=sentence):
        with claimed(tmp_path / "file"), files.replacing(tmp_path / "file") as partial:
            partial.write_text("all")
    assert not list(tmp_path.iterdir())


def test_claim_follows_no_symbolic_link(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".file.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError), claimed(tmp_path / "file"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_without_locks_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with claimed(tmp_path / "file"), claimed(tmp_path / "file"):
        files.refuse_claimed(tmp_path / "file")
    assert not list(tmp_path.iterdir())
