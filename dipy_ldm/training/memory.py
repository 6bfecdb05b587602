"""What a training needs of the memory, and what is free."""

from typing import Any

from dipy_ldm import distribution, networks
from dipy_ldm.validation import InputError


def estimate_memory(parts: list[Any], batch_size: int, extra: int = 0) -> float:
    """Estimate what training takes.

    Parameters
    ----------
    parts : list of keras.Model
        Networks of known spatial size.
    batch_size : int
        Examples in a batch.
    extra : int
        Bytes that an example takes beside the networks.

    Returns
    -------
    float
        Bytes.
    """
    weights = sum(part.count_params() for part in parts)
    kept = sum(networks.kept_bytes(part) for part in parts)
    # A weight has its gradient, two moments and an average; and some of what is
    # kept is there twice while gradients are computed.
    return 4 * 6 * weights + batch_size * (1.5 * kept + extra)


def check_memory(
    what: str, parts: list[Any], batch_size: int, extra: int = 0, strategy: Any = None
) -> None:
    """Refuse networks whose training would not fit into the memory.

    Parameters
    ----------
    what : str
        What is trained, in the user's words.
    parts : list of keras.Model
        Networks of known spatial size.
    batch_size : int
        Examples in a batch.
    extra : int
        Bytes that an example takes beside the networks.
    strategy : tf.distribute.Strategy or None
        Devices that it is trained on.

    Raises
    ------
    InputError
        If it needs more than is free.
    """
    needed = estimate_memory(parts, batch_size, extra)
    free = distribution.free_memory(strategy)
    if needed > free:
        raise InputError(
            f"training {what} needs about {needed / 2**30:.1f} GiB of memory and "
            f"{free / 2**30:.1f} GiB are free; give a smaller `batch_size` (it is "
            f"{batch_size}), images of fewer voxels (a smaller `patch` for the "
            "autoencoder, a larger voxel size), or `remat`."
        )
