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
# Less than a hundred steps: of those of more, something is to be learnt.
FIT = {"epochs": 1, "batch_size": 8, "patch": 16, "verbose": False}


def main(path):
    vqvae = VQVAE(widths=(8, 8), n_codes=16, code_dim=2)
    # Once for all that is made at the first call.
    vqvae.fit(np.random.default_rng(0).random((16, 16, 16, 16, 1)), **FIT)
    # A file with holes, which take no place on the disk.
    volumes = np.lib.format.open_memmap(path, "w+", "float32", (2 * ALLOWED, *VOLUME))
    volumes[:2] = np.random.default_rng(1).random((2, *VOLUME))
    volumes = np.load(path, mmap_mode="r")
    limit = (data_size() + ALLOWED * 1024) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        np.array(volumes)
    except MemoryError:
        pass
    else:
        sys.exit("the limit does not limit")
    vqvae.fit(volumes, **FIT)
    print("trained", vqvae.history_["mse"])


def data_size():
    """Return the kibibytes of this process that the limit is of."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "volumes.npy")
