"""The commands on several workers, as Slurm would start them."""

import os
import signal
import socket
import time

import numpy as np
import numpy.testing as npt
from processes import TIMEOUT, TINY, answer, execute, start, wait_for
import pytest

from dipy_ldm import LatentDiffusion, _backend

# Jobs, and so ports, that neither the other processes of these tests nor others have.
PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
JOBS = iter(range(2 * (os.getppid() % 4000 + PROCESS), 19_000, 2 * 32))


def slurm(job, index):
    """Return the variables that srun sets for two tasks on this machine."""
    return os.environ | {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def start_both(*arguments, cwd, extra=()):
    """Start two trainings; those in ``extra`` are added for the second alone."""
    job = next(JOBS)
    return [
        start("dipy_train_ldm", *arguments, *more, cwd=cwd, env=slurm(job, i))
        for i, more in enumerate([(), extra])
    ]


def end_both(processes):
    """Wait for both, and return what each said last."""
    outputs = [process.communicate(timeout=TIMEOUT) for process in processes]
    return [stderr for _, stderr in outputs]


@pytest.fixture(scope="module")
def together(folder):
    processes = start_both("blobs.npy", *TINY, "--out_dir", "together", cwd=folder)
    outputs = end_both(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    # Progress is the chief's.
    assert "autoencoder, epoch" in outputs[0]
    assert "epoch" not in outputs[1]
    return folder / "together"


def assert_same(folder, other):
    """Compare losses and weights, within rounding."""
    one, two = (LatentDiffusion.load(f / "ldm.safetensors") for f in (folder, other))
    for a, b in ((one, two), (one.vqvae, two.vqvae)):
        for name, values in a.history_.items():
            npt.assert_allclose(b.history_[name], values, rtol=1e-5)
    for network in ("denoiser_", "guide_"):
        weights = (getattr(model, network).get_weights() for model in (one, two))
        for a, b in zip(*weights, strict=True):
            npt.assert_allclose(b, a, atol=1e-4 * max(np.abs(a).max(), 0.1))


def test_two_workers_train_as_one(trained_folder, together):
    assert_same(trained_folder / "out", together)


def test_each_worker_keeps_a_log(together):
    for i in range(2):
        log = (together / f"ldm.safetensors.worker-{i}.log").read_text()
        assert f"worker {i} of 2" in log
        assert "diffusion, round 3: loss" in log
    assert len(list(together.iterdir())) == 6  # and model, options, history and picture


def test_each_worker_generates_its_part(together, tmp_path, monkeypatch):
    model_file = together / "ldm.safetensors"
    arguments = (model_file, "--n_samples", 5, "--steps", 3, "--seed", 7)
    job = next(JOBS)
    for i in range(2):  # neither waits for the other
        for name, value in slurm(job, i).items():
            monkeypatch.setenv(name, value)
        output = execute("generate", *arguments, cwd=tmp_path)
        assert ("generate:" in output) == (i == 0)
    parts = [np.load(tmp_path / f"samples-{first:04d}.npz") for first in (0, 3)]
    numbers = np.concatenate([part["sample"] for part in parts])
    npt.assert_array_equal(numbers, np.arange(5))
    images = np.concatenate([part["images"] for part in parts])
    model = LatentDiffusion.load(model_file)
    npt.assert_allclose(images, model.predict(5, steps=3, seed=7), atol=1e-4)
    assert (tmp_path / "samples-0003.png").is_file()


def test_workers_of_other_options_are_refused(folder, command, monkeypatch):
    def gather(facts):
        return [facts, facts | {"learning_rate": 0.5}]

    monkeypatch.setattr(_backend.workers, "gather_from_workers", gather)
    output = command("train", folder / "blobs.npy", *TINY, status=2)
    assert "learning_rate is 0.5 there and 0.004 for the chief" in answer(output)


def test_a_worker_that_refuses_ends_the_other(folder, tmp_path):
    arguments = (folder / "blobs.npy", *TINY)
    extra = ("--batch_size", 7)  # which two don't divide
    processes = start_both(*arguments, cwd=tmp_path, extra=extra)
    outputs = end_both(processes)
    assert [process.returncode for process in processes] == [2, 2]
    assert "another worker stopped" in answer(outputs[0])
    assert "6 or 8" in answer(outputs[1])


@pytest.mark.parametrize("killed", [0, 1])
def test_killed_worker_ends_its_peer_and_both_resume(
    folder, together, tmp_path, killed
):
    arguments = (folder / "blobs.npy", *TINY, "--checkpoint_steps", 1, "--resume")
    processes = start_both(*arguments, cwd=tmp_path)
    wait_for(tmp_path / "ldm.safetensors.autoencoder-checkpoint", processes[0])
    processes[killed].kill()
    start_of_wait = time.monotonic()
    outputs = end_both(processes)
    assert time.monotonic() - start_of_wait < 60
    assert processes[1 - killed].returncode == 2
    assert "another worker stopped" in answer(outputs[1 - killed])
    assert "Traceback" not in outputs[1 - killed]
    if killed == 0:
        return  # once is enough of what follows
    # The same commands again.
    processes = start_both(*arguments, cwd=tmp_path)
    outputs = end_both(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same(together, tmp_path)


def test_sigterm_to_one_worker_ends_all_with_a_checkpoint(folder, tmp_path):
    arguments = (folder / "blobs.npy", *TINY, "--epochs_vqvae", 500)
    processes = start_both(*arguments, cwd=tmp_path)
    checkpoint = tmp_path / "ldm.safetensors.autoencoder-checkpoint"
    wait_for(checkpoint, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    for process, output in zip(processes, end_both(processes), strict=True):
        assert process.returncode == 143
        # gRPC may have a word of its own after the last.
        assert "the checkpoint is written" in output
        assert "Add --resume to go on" in output
        assert "Traceback" not in output
    assert checkpoint.exists()


def test_a_worker_that_never_comes(folder, tmp_path):
    """Ctrl-C ends the wait at once; without it there is a limit."""
    arguments = (folder / "blobs.npy", *TINY)
    job = next(JOBS)
    process = start("dipy_train_ldm", *arguments, cwd=tmp_path, env=slurm(job, 0))
    wait_for(tmp_path / "ldm.safetensors.worker-0.log", process)
    until = time.monotonic() + TIMEOUT
    while not listens(10_000 + 61 * job % 19_000) and time.monotonic() < until:
        time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, stderr


def listens(port):
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return False
    return True
