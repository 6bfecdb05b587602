"""Limited machines: little may be written, or a command is stopped midway."""

import os
from pathlib import Path
import shutil
import signal
import sys
import time

import nibabel as nib
import numpy as np
from processes import TIMEOUT, answer, run, start
import pytest
from scans import list_cached

ROOT = Path(__file__).parent.parent
TRAIN = "import sys; sys.argv[0] = 'x'; from dipy_ldm.workflows import cli; cli.train()"
SLOW = """
import time
from dipy_ldm.data import volumes
conform = volumes.conform_task
volumes.conform_task = lambda *task: time.sleep(2) or conform(*task)
"""
OPTIONS = "--batch_size 2 --steps_vqvae 1 --steps_ldm 1 --validation 0".split()


@pytest.fixture
def cohort(tmp_path):
    """Return a folder of volumes."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        data = rng.random((12, 12, 12)).astype("float32")
        nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{number}.nii")
    return folder


@pytest.mark.parametrize(
    ("sent", "status", "sentence"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM before the first checkpoint"),
        (signal.SIGINT, 130, "interrupted before the first checkpoint"),
    ],
)
def test_stopped_while_volumes_are_conformed(cohort, tmp_path, sent, status, sentence):
    cache = tmp_path / "cache"
    end = time.monotonic() + TIMEOUT
    options = (cohort, *OPTIONS, "--cache_dir", cache, "--out_dir", "out")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = start(sys.executable, "-c", SLOW + TRAIN, *options, cwd=tmp_path, env=env)
    while not list(cache.glob(".*.partial/images.npy")) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status
    assert sentence in answer(stderr)
    assert "Traceback" not in stderr
    assert not list_cached(cache)
    assert not (tmp_path / "out").exists()


def test_a_home_that_can_not_be_written(cohort, tmp_path):
    home, work = tmp_path / "home", tmp_path / "work"
    prefix = []
    if os.geteuid() == 0:
        # Whom nothing is forbidden.
        if not (which := shutil.which("setpriv")):
            pytest.skip("there is no setpriv")
        less = "-dac_override,-dac_read_search"
        prefix = [which, f"--bounding-set={less}", f"--inh-caps={less}"]
    for folder in (home, work):
        folder.mkdir(mode=0o555)
    command = [*prefix, sys.executable, "-c", TRAIN, cohort, *OPTIONS]
    env = {"PYTHONPATH": str(ROOT), "HOME": str(home), "XDG_CACHE_HOME": ""}
    env = os.environ | env | {"MPLCONFIGDIR": str(tmp_path)}
    status, _, stderr = run(*command, "--out_dir", tmp_path / "out", cwd=work, env=env)
    assert status == 2
    assert f"can't write the cache of volumes in {home}" in answer(stderr)
    assert "name another place with --cache_dir" in answer(stderr)
    assert "Traceback" not in stderr
