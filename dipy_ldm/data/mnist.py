"""The MNIST database of handwritten digits, shipped with the package.

By Yann LeCun, Corinna Cortes and Christopher J.C. Burges, under the licence Creative
Commons Attribution-Share Alike 3.0 (`MNIST-LICENSE.md`). The images and labels are
theirs, unchanged; only the container is ours.

Reference: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning
applied to document recognition", Proceedings of the IEEE 86(11), 2278-2324, 1998.
"""

from pathlib import Path

import numpy as np

from dipy_ldm._utils.checks import choose

_PATH = Path(__file__).with_name("mnist.npz")
_SPLITS = {s: (f"{s}_images", f"{s}_labels") for s in ("train", "test")}


def load_mnist(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Load one part of MNIST.

    Parameters
    ----------
    split : {"train", "test"}
        Which part: 60000 images to train on, or 10000 others.

    Returns
    -------
    images : ndarray of float32, shape (n, 28, 28, 1)
        Ink on an empty page, from 0 (none) to 1.
    labels : ndarray of int64, shape (n,)
        The digit on each image, 0 to 9.

    Raises
    ------
    InputError
        If there is no such part.
    """
    images_name, labels_name = choose("split", split, _SPLITS)
    with np.load(_PATH) as arrays:
        images, labels = arrays[images_name], arrays[labels_name]
    # Divided as they are converted: 190 MB less to be written.
    return np.divide(images[..., None], 255, dtype=np.float32), labels.astype(np.int64)
