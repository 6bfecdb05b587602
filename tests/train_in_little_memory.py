"""Train on a mapped file of twice the memory that is allowed; run by a test.

Usage: python train_in_little_memory.py FOLDER
"""

import os
from pathlib import Path
import resource
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from dipy_ldm import VQVAE

VOLUME = (64, 64, 64, 1)  # one mebibyte
ALLOWED = 320  # mebibytes, beside those that Python and TensorFlow take to start


def main(folder):
    small = np.random.default_rng(0).random((16, 16, 16, 16, 1), "float32")
    # Less than a hundred steps: of those of more, something is to be learnt.
    options = {"epochs": 1, "batch_size": 8, "patch": 16, "verbose": False}
    # Once for all that is made at the first call.
    make().fit(small, **options)
    volumes = write(folder / "volumes.npy", 2 * ALLOWED)
    limit = (int(status("VmData")) + ALLOWED * 1024) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        np.array(volumes)
    except MemoryError:
        pass
    else:
        sys.exit("the limit does not limit")
    vqvae = make().fit(volumes, **options)
    print("trained", vqvae.history_["mse"])


def make():
    return VQVAE(widths=(8, 8), n_codes=16, code_dim=2)


def write(path, n):
    """Write volumes of one mebibyte each, and map them."""
    header = np.lib.format.open_memmap(path, "w+", "float32", (n, *VOLUME))
    del header
    one = np.random.default_rng(1).random(VOLUME, "float32")
    with open(path, "r+b") as file:
        file.seek(-n * one.nbytes, os.SEEK_END)
        file.writelines(np.roll(one, i).tobytes() for i in range(n))
    return np.load(path, mmap_mode="r")


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name + ":"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
