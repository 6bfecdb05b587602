"""What training and applying networks needs of the memory, and what is free.

The numbers were measured on processors: ``benchmarks/memory.py``.
"""

from collections.abc import Sequence
from functools import lru_cache, partial, reduce
import math
from typing import Any

from dipy_ldm import distribution, networks
from dipy_ldm.networks import Needs
from dipy_ldm.optimizers import AT_ONCE
from dipy_ldm.validation import InputError

_BEFORE = 20 * 2**20
# Copies of the weights: those that are trained and used, a moment and the gradient;
# more while the weights are changed, and of those changed at once.
_COPIES = 4
_MORE_COPIES = 2.5
_CHANGED_COPIES = 3.5
# Distances of latents to codes: their products, and what is made of these.
_DISTANCES = 2.7
# What a further compiled network takes, and what lies beside a U-Net's largest layer.
_COMPILED = 40 * 2**20
_SKIPS = 2
# What the gradient of the largest layer is made of, beside what is kept.
_GRADIENTS = 2.5


def estimate_training(
    parts: list[Any], batch_size: int, distances: float = 0.0, before: int = 0
) -> float:
    """Estimate what training takes.

    Parameters
    ----------
    parts : list of keras.Model
        Networks of known spatial size.
    batch_size : int
        Examples in a batch.
    distances : float
        Bytes of the distances of an example's latents to all codes, behind the first
        of the networks.
    before : int
        Small networks that are trained before.

    Returns
    -------
    float
        Bytes.
    """
    weights = 4 * sum(part.count_params() for part in parts)
    each = [networks.needs(part) for part in parts]
    both = reduce(Needs.beside, each)
    step = max(
        both.kept + max(both.again, _GRADIENTS * both.live),
        each[0].kept + _DISTANCES * distances,
    )
    # The weights are changed when nothing is kept any more.
    at_once = min(weights, 4 * AT_ONCE)
    changing = _MORE_COPIES * weights + _CHANGED_COPIES * at_once
    working = max(changing, batch_size * step)
    return distribution.ONCE_TRAINING + before * _BEFORE + _COPIES * weights + working


def estimate_sampling(unets: list[Any], batch_size: int, coding: float) -> float:
    """Estimate what generating images takes.

    Parameters
    ----------
    unets : list of keras.Model
        Denoiser and guide.
    batch_size : int
        Latents at once.
    coding : float
        Bytes that decoding them takes.

    Returns
    -------
    float
        Bytes.
    """
    live = max(networks.needs(unet).live for unet in unets)
    weights = 4 * sum(unet.count_params() for unet in unets)
    # What the one has used is too small for the other, and not given back.
    working = coding + batch_size * _SKIPS * live
    return len(unets) * _COMPILED + weights + working


def estimate_coding(
    chosen: dict,
    space: Sequence[int],
    channels: int,
    *,
    tile: int,
    margin: int,
    batch_size: int,
) -> tuple[float, float]:
    """Estimate what encoding and decoding images take.

    Parameters
    ----------
    chosen : dict
        Hyper-parameters of the autoencoder.
    space : sequence of int
        Voxels along each side of an image.
    channels : int
        Channels of the images.
    tile : int
        Voxels along a side of a tile.
    margin : int
        By how many voxels tiles overlap, to each side.
    batch_size : int
        Images at once.

    Returns
    -------
    encoding, decoding : float
        Bytes.
    """
    names = ("widths", "blocks", "code_dim")
    widths, blocks, code_dim = (chosen[name] for name in names)
    given = (tuple(widths), blocks, code_dim, channels, len(space))
    per_voxel, latents = _per_voxel(*given)
    codes = _DISTANCES * 4 * chosen["n_codes"] * latents
    # In the range of the images and of [0, 1].
    whole = 8 * channels * math.prod(space)
    piece = math.prod(_largest(size, tile, margin) for size in space)
    encoding, decoding = (
        distribution.ONCE_APPLYING + batch_size * (each * piece + whole)
        for each in (per_voxel[0], max(codes, per_voxel[1]))
    )
    return encoding, decoding


def _largest(size, tile, margin):
    """Say how long the longest tile of a side is, with its overlaps."""
    if size <= tile + 2 * margin:
        return size
    return min(size, tile + (2 if size > 2 * tile else 1) * margin)


@lru_cache
def _per_voxel(widths, blocks, code_dim, channels, rank):
    """Say how many bytes each part needs at once, and how many latents there are."""
    size = (4 * networks.factor_of(widths, blocks),) * rank
    options = {"widths": widths, "blocks": blocks, "code_dim": code_dim}
    build = partial(networks.encoder_and_decoder, size, channels, seed=0, **options)
    parts = networks.sketched("float32", build)
    voxels = math.prod(size)
    latents = math.prod(parts[0].output.shape[1:-1])
    return [networks.needs(part).live / voxels for part in parts], latents / voxels


def check(what: str, needed: float, cure: str, strategy: Any = None) -> None:
    """Refuse what would not fit into the memory.

    Parameters
    ----------
    what : str
        What is to be done, in the user's words.
    needed : float
        Bytes.
    cure : str
        What to give, such that less is needed.
    strategy : tf.distribute.Strategy or None
        Devices that it is done on.

    Raises
    ------
    InputError
        If it needs more than is free.
    """
    free = distribution.free_memory(strategy)
    if needed > free:
        raise InputError(
            f"{what} needs about {needed / 2**30:.1f} GiB of memory and "
            f"{free / 2**30:.1f} GiB are free; give {cure}."
        )


def check_training(what: str, needed: float, training: Any) -> None:
    """Refuse a training that would not fit into the memory.

    Parameters
    ----------
    what : str
        What is trained, in the user's words.
    needed : float
        Bytes, as of :func:`estimate_training`.
    training : Training
        Options, settled.

    Raises
    ------
    InputError
        If it needs more than is free.
    """
    cure = (
        f"a smaller `batch_size` (it is {training.batch_size}), images of fewer voxels "
        "(a smaller `patch` for the autoencoder, a larger voxel size), or `remat`"
    )
    check(f"training {what}", needed, cure, training.strategy)
