"""Kill processes that write files at their system calls, and check what remains.

It prints one line of JSON for each of training (checkpoints and a model), denoising
with other options over older results, and filling the cache of volumes: the number of
system calls that change or open files; at how many of them the process was killed; and
after how many of these kills a file was half written, a file had the contents of
another, resuming did not give the result of an uninterrupted run, or a temporary file
was left over after resuming. All but the first two must be 0. It needs Linux, strace,
and permission to trace.
"""

import contextlib
import ctypes
import hashlib
import json
import logging
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from common import Parser, log, print_scores
import nibabel as nib
import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._utils.checks import InputError, at_least
from dipy_ldm._utils.files import claimed
from dipy_ldm.data import _cache as cache, load_volumes
from dipy_ldm.data._nifti import read_volume
from dipy_ldm.data._sidecars import sidecar, write_with_sidecar
from dipy_ldm.data.channels import Unnamed
from dipy_ldm.workflows import _process_scans as process_scans

CALLS = (
    "openat,write,pwrite64,writev,ftruncate,fallocate,fsync,rename,renameat,renameat2,"
    "link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,chmod,fchmod,fchmodat,flock"
)
SHAPE = (4, 5, 6)
# Sizes with about 200 calls per task.
STEPS, SCANS, COHORT = 13, 7, 40
SEIZE = 0x59616D61  # PR_SET_PTRACER: which processes may trace this one


def make_parser():
    """Describe the command line."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=200, help="calls of each task")
    parser.set_defaults(measure=measure)
    return parser


class Training:
    """Checkpoints and a model, over an older model, as a training writes them."""

    def __init__(self, folder):
        self.model = folder / "ldm.safetensors"
        self.checkpoint = folder / "ldm.safetensors.checkpoint"

    def prepare(self):
        """Write an older model."""
        self._save({"w": np.zeros(9)})

    def run(self):
        """Resume from the checkpoint, as ``TrainingRecord`` does."""
        with claimed(self.model):
            done, state = 0, np.ones(999)
            if self.checkpoint.exists():
                path, (tensors, document) = _serialization.load_newest(self.checkpoint)
                if path != self.checkpoint:
                    os.replace(path, self.checkpoint)
                done, state = document["steps"], tensors["w"]
            for step in range(done, STEPS):
                state = np.cos(state * (step + 1.5))
                facts = {"settings": {}, "history": {}, "steps": step + 1}
                written = self.checkpoint, "checkpoint", {"w": state}, facts
                _serialization.save(
                    *written, _serialization.previous_path(self.checkpoint)
                )
            self._save({"w": state})
            for path in (
                _serialization.previous_path(self.checkpoint),
                self.checkpoint,
            ):
                path.unlink(missing_ok=True)

    def _save(self, tensors):
        _serialization.save(self.model, "notes", tensors, {})

    def result(self):
        """Read the model."""
        return _serialization.load(self.model, "notes")[0]["w"].tobytes()

    def inspect(self):
        """Count what is half written, and what is under a name that is not its own."""
        kinds = {self.model: "notes", self.checkpoint: "checkpoint"}
        kinds[_serialization.previous_path(self.checkpoint)] = "checkpoint"
        half = 0
        for path, kind in kinds.items():
            with contextlib.suppress(InputError):
                _serialization.load(path, kind)
                continue
            half += path.exists()
        return half, 0


class Denoising:
    """Volumes and their sidecars, over those of other options."""

    class Flow:
        """The attributes of a command that are read when it writes."""

        written = 0
        _force_overwrite = True

    def __init__(self, folder):
        outputs = [folder / f"{number}_denoised.nii.gz" for number in range(SCANS)]
        self.files = dict(enumerate(outputs))

    def prepare(self):
        """Write the results of another strength."""
        self._run(0.3, resume=False)

    def run(self):
        """Resume, as the command does."""
        self._run(0.8, resume=True)

    def _run(self, strength, resume):
        def make(task):
            number = int(task.file.name)
            volume = content(number, strength)
            write_with_sidecar(
                task.outputs[0], volume, np.eye(4), "float32", task.facts
            )

        facts = {"Strength": strength, "Seed": 0, "ModelFingerprint": "abc"}
        facts["Sources"] = []
        tasks = [
            process_scans.Task(
                [process_scans.Part(Unnamed(), Path(str(number)), [path])], facts
            )
            for number, path in self.files.items()
        ]
        if resume:
            tasks = process_scans._remaining(self.Flow, tasks, "denoise")
        for task in tasks:
            make(task)

    def result(self):
        """Hash all volumes."""
        return self._hash(self.files.values())

    def _hash(self, files):
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    def inspect(self):
        """Count what is half written, and what is under a name that is not its own."""
        half = old = 0
        for number, path in self.files.items():
            if not path.exists():
                # Killed while it was being replaced.
                continue
            try:
                facts = json.loads(sidecar(path).read_text())
                volume, _ = read_volume(path)
            except (OSError, ValueError):
                half += 1
                continue
            old += not np.allclose(volume[..., 0], content(number, facts["Strength"]))
        return half, old


def content(number, strength):
    """Draw a volume that depends on its number and on a strength."""
    rng = np.random.default_rng(number)
    return (strength + rng.random(SHAPE)).astype("float32")


class Cache:
    """Volumes on a grid, kept on disk."""

    def __init__(self, folder):
        self.cohort, self.root = folder.with_name("cohort"), folder
        if self.cohort.exists():
            return
        self.cohort.mkdir()
        for number in range(COHORT):
            image = nib.Nifti1Image(content(number, 0.5), np.eye(4))
            nib.save(image, self.cohort / f"{number}.nii")

    def prepare(self):
        """Do nothing."""

    def run(self):
        """Fill the cache or use it; leftovers count as stale at once."""
        cache._STALE_SECONDS = -1
        load_volumes([self.cohort], cache_dir=self.root)

    def result(self):
        """Hash the cached volumes."""
        (folder,) = self.root.glob("*/")
        return hashlib.sha256((folder / "images.npy").read_bytes()).hexdigest()

    def inspect(self):
        """Count incomplete folders under final names."""
        folders = [path for path in self.root.glob("[0-9a-f]*") if path.is_dir()]
        names = [sorted(file.name for file in folder.iterdir()) for folder in folders]
        return sum(name != ["images.npy", "volumes.json"] for name in names), 0


TASKS = {"training": Training, "denoising": Denoising, "cache": Cache}


def measure(options):
    """Kill each task at system calls, and count the failures."""
    at_least("points", options.points, 1)
    if shutil.which("strace") is None:
        raise InputError("strace is not installed", "install it")
    logging.getLogger("dipy_ldm").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        return {
            name: _kill_at_calls(kind, Path(folder) / name, name, options.points)
            for name, kind in TASKS.items()
        }


def _kill_at_calls(kind, place, name, points):
    """Kill one task at `points` of its calls, evenly spaced."""
    place.mkdir()
    calls = _list_calls(kind, place / "all")
    expected = kind(place / "all").result()
    counts = {"calls": len(calls), "killed": 0, "half": 0, "old": 0}
    counts |= {"not resumed": 0, "left over": 0}
    at = np.linspace(0, len(calls) - 1, min(points, len(calls))).astype(int)
    for number in np.unique(at):
        folder = place / str(number)
        # strace counts calls by name.
        call, nth = calls[number], calls[: number + 1].count(calls[number])
        inject = f"inject={call}:signal=KILL:when={nth}"
        status = _run(kind, folder, "-e", inject)
        counts["killed"] += os.WIFSIGNALED(status)
        task = kind(folder)
        half, old = task.inspect()
        counts["half"] += half > 0
        counts["old"] += old > 0
        # In a separate process, as a user would.
        resumed = (
            os.WEXITSTATUS(_run_forked(task.run)) == 0 and task.result() == expected
        )
        counts["not resumed"] += not resumed
        counts["left over"] += any(folder.glob(".*"))
        shutil.rmtree(folder)
        log(f"{name}: killed at call {number} of {len(calls)}, {call}")
    return counts


def _list_calls(kind, folder):
    """List the calls of a task that is not killed, in order."""
    trace = folder.with_name("calls.txt")
    _run(kind, folder, "-o", trace)
    return re.findall(r"^(\w+)\(", trace.read_text(), re.MULTILINE)


def _run(kind, folder, *options):
    """Run a task under strace, with options that may kill it; return its status."""
    folder.mkdir()
    task = kind(folder)
    task.prepare()
    child = os.fork()
    if child == 0:
        _run_and_exit(task.run, stopped=True)
    os.waitpid(child, os.WUNTRACED)
    command = ["strace", "-q", "-e", f"trace={CALLS}", *options, "-p", child]
    with subprocess.Popen(
        [*map(str, command)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as tracer:
        while tracer.poll() is None and not _is_traced(child):
            time.sleep(0.001)
        if tracer.poll() is not None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise InputError("strace may not trace processes here", "run it as root")
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
    return status


def _is_traced(process):
    status = Path(f"/proc/{process}/status").read_text()
    return "TracerPid:\t0\n" not in status


def _run_forked(function):
    """Call a function in a child process; return its status."""
    child = os.fork()
    if child == 0:
        _run_and_exit(function)
    return os.waitpid(child, 0)[1]


def _run_and_exit(function, stopped=False):
    """Run a function, and end this process with its status."""
    status = 1
    try:
        if stopped:
            ctypes.CDLL(None).prctl(SEIZE, -1, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
        function()
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


if __name__ == "__main__":
    print_scores(make_parser())
