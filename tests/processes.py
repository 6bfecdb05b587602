"""The commands, in this process or in one of their own, for the tests that run them."""

import _thread
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache, partial
import io
import json
import logging
import os
from pathlib import Path
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest.mock import patch

import pytest

# Seconds: generous, since a machine may have other work to do.
TIMEOUT = 900
SCRIPTS = Path(sys.executable).parent
ABSENT = Path(__file__).parent / "absent"
# As small as can be: networks take most of their time to be compiled.
TINY = (
    "--epochs_vqvae 2 --epochs_ldm 3 --batch_size 16 --n_codes 16 --code_dim 2 "
    "--widths_vqvae 8 --widths_ldm 8 --precision float32"
).split()
# What is answered to "--devices GPU:9", and to machines that nothing names.
if os.environ["KERAS_BACKEND"] == "tensorflow":
    NO_DEVICE = "there is no device GPU:9; this machine has"
    NO_MACHINES = "neither TF_CONFIG nor Slurm names them"
else:
    NO_DEVICE = "devices can only be chosen with TensorFlow"
    NO_MACHINES = "the strategy multi_worker needs TensorFlow"


@contextmanager
def fresh_loggers():
    """Let loggers be as in a process of its own, and put them back."""
    loggers = logging.getLogger(), logging.getLogger("dipy_ldm")
    before = [
        (logger.handlers[:], logger.level, logger.propagate) for logger in loggers
    ]
    loggers[1].handlers.clear()
    loggers[1].setLevel(logging.NOTSET)
    try:
        yield
    finally:
        # DIPY has a handler for the standard output, a worker one of its own.
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            for handler in set(logger.handlers) - set(handlers):
                handler.close()
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate


@lru_cache(maxsize=4)
def load_once(load, path, content):
    return load(path)


def refuse_faults_of_bids(root):
    """Fail at what the validator of BIDS calls an error."""
    places = os.pathsep.join([str(SCRIPTS), os.environ["PATH"]])
    validator = shutil.which("bids-validator-deno", path=places)
    assert validator, "the group `test` of pyproject.toml has bids-validator-deno"
    words = [validator, "--json", str(root)]
    output = subprocess.run(words, capture_output=True, timeout=TIMEOUT).stdout
    issues = json.loads(output)["issues"]["issues"]
    errors = [issue for issue in issues if issue["severity"] == "error"]
    assert not errors


def load_model(path, load=None):
    """Load a model file, or return it from before, with all that it has compiled."""
    from dipy_ldm import LatentDiffusion

    load, file = load or LatentDiffusion.load, Path(path)
    return load_once(load, file, file.read_bytes()) if file.is_file() else load(path)


def call(command, *arguments, cwd):
    """Run a command here: as ``run``, without the seconds that a process takes."""
    import keras

    from dipy_ldm import LatentDiffusion
    from dipy_ldm.workflows import cli

    # Layers are numbered from the beginning, as in a process: rounding depends on it.
    keras.utils.clear_session(free_memory=False)
    argv, status = sys.argv, 0
    sys.argv = [command, *map(str, arguments)]
    with (
        chdir(cwd),
        fresh_loggers(),
        patch.object(
            LatentDiffusion, "load", partial(load_model, load=LatentDiffusion.load)
        ),
        redirect_stdout(io.StringIO()) as stdout,
        redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            getattr(cli, command.removeprefix("dipy_").removesuffix("_ldm"))()
        except SystemExit as end:
            status = end.code or 0
        finally:
            sys.argv = argv
    return status, stdout.getvalue(), stderr.getvalue()


def execute(name, *arguments, cwd, status=0):
    """Run a command here, which must end with ``status``; return what it writes.

    Of one that fails, this is the standard error alone.
    """
    ended, stdout, stderr = call(f"dipy_{name}_ldm", *arguments, cwd=cwd)
    assert ended == status, stderr
    return stderr if status else stdout + stderr


def heed_ctrl_c():
    """Undo what a shell does to the jobs that it starts in the background."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def with_all(env):
    """Return an environment with what tests alone need, and conftest hides."""
    paths = env.get("PYTHONPATH", "").split(os.pathsep)
    # Nothing before or after a colon would be the folder in which it runs.
    kept = [path for path in paths if path not in ("", str(ABSENT))]
    return {**env, "PYTHONPATH": os.pathsep.join(kept)}


def start(command, *arguments, cwd, env=None, **kwargs):
    return subprocess.Popen(
        [SCRIPTS / command, *map(str, arguments)],
        cwd=cwd,
        env=env,
        text=True,
        preexec_fn=heed_ctrl_c,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **kwargs,
    )


def run(command, *arguments, cwd, **kwargs):
    with start(command, *arguments, cwd=cwd, **kwargs) as process:
        try:
            stdout, stderr = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, stdout, stderr


def run_python(*words, check=True, **options):
    """Run Python in a process of its own; return it with its outputs."""
    command = [sys.executable, *map(str, words)]
    options |= {"capture_output": True, "text": True}
    return subprocess.run(command, check=check, **options)


class StopError(Exception):
    """Stands for a kill after a round."""


def skipped_training(module):
    """Let no estimator of a module be trained, which takes long to compile."""

    def train(estimator, stage):
        estimator.history_ = {"step": [1], "epoch": [1], "loss": [1.0]}

    return patch(f"dipy_ldm.{module}.train", train)


def stop_after(rounds):
    """Return the callback that ends a fit after so many rounds."""

    def callback(estimator):
        if len(estimator.history_["step"]) == rounds:
            raise StopError

    return callback


def answer(stderr):
    """Return the last line, which is the sentence that a user is left with."""
    assert "Traceback" not in stderr
    return stderr.strip().splitlines()[-1]


def wait_for(path, process):
    """Wait until a file is there, which the process writes before it ends."""
    end = time.monotonic() + TIMEOUT
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()


def kill_when(process, path, signal_number):
    """Send a signal once a file is there."""
    wait_for(path, process)
    process.send_signal(signal_number)
    return process.communicate(timeout=TIMEOUT)


# For tests that interrupt: Python closes what was open then, and warns of it.
closed_late = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@contextmanager
def interrupt_when(path, number=signal.SIGINT):
    """Signal to what runs within, as Ctrl-C does, once it has written a file."""
    ended = threading.Event()

    def watch():
        while not ended.wait(0.01):
            if path.exists():
                return _thread.interrupt_main(number)

    watcher = threading.Thread(target=watch)
    # Which a shell lets jobs ignore that it starts in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGINT, before)


def free_ports(n):
    """Find ports that nothing uses."""
    servers = [socket.create_server(("", 0)) for _ in range(n)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports
