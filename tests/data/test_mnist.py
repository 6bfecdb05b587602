from hashlib import sha256
import struct

import numpy as np
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data.mnist import load_mnist

# The four files as their authors published them, decompressed.
PUBLISHED = {
    "train": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "test": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
SIZES = {"train": 60000, "test": 10000}


def idx_bytes(values):
    """An IDX file: two zeros, 8 for uint8, the rank, big-endian sizes, the values."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.mark.parametrize("split", PUBLISHED)
def test_every_pixel_and_label_is_as_published(split):
    images, labels = load_mnist(split)
    files = idx_bytes(np.rint(images[..., 0] * 255)), idx_bytes(labels)
    assert tuple(sha256(file).hexdigest() for file in files) == PUBLISHED[split]
    assert images.shape == (SIZES[split], 28, 28, 1)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.shape == (SIZES[split],)
    assert labels.dtype == np.int64
    assert set(labels) == set(range(10))


def test_another_split_is_refused():
    with pytest.raises(InputError, match="unknown split 'all'; choose one of train, "):
        load_mnist("all")
