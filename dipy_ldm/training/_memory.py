"""Estimate the memory for training and sampling, and refuse what does not fit.

The constants were measured on CPUs by ``benchmarks/memory.py``.
"""

from collections.abc import Sequence
from typing import Any

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.types import Strategy
from dipy_ldm.nn._analysis import memory_needs, sequential_needs
from dipy_ldm.training._optimizer import MAX_GROUP_SIZE
from dipy_ldm.training._options import ResolvedOptions

# What each network that was trained before leaves in memory.
_EARLIER_BYTES = 20 * 2**20
# Copies of the weights: trained and published ones, momentum and gradient; more during
# an update, of all weights and of the group being updated.
_WEIGHT_COPIES = 4
_UPDATE_COPIES = 2.5
_GROUP_UPDATE_COPIES = 3.5
# Copies of the distances between latents and codes.
DISTANCE_COPIES = 2.7
# Another compiled network, and a U-Net's skip connections as a factor.
_COMPILED_BYTES = 40 * 2**20
_SKIP_FACTOR = 2
# The gradient of the largest layer needs this many copies.
_GRADIENT_COPIES = 2.5


def estimate_training(
    parts: Sequence[Any], batch_size: int, distances: float = 0.0, n_earlier: int = 0
) -> float:
    """Estimate the bytes that a training takes."""
    weights = 4 * sum(part.count_params() for part in parts)
    needs = [memory_needs(part) for part in parts]
    total = sequential_needs(needs)
    step = max(
        total.kept + max(total.recomputed, _GRADIENT_COPIES * total.live),
        needs[0].kept + DISTANCE_COPIES * distances,
    )
    # Activations are freed before the weights are updated.
    group = min(weights, 4 * MAX_GROUP_SIZE)
    update = _UPDATE_COPIES * weights + _GROUP_UPDATE_COPIES * group
    working = max(update, batch_size * step)
    return (
        _backend.TRAINING_OVERHEAD
        + n_earlier * _EARLIER_BYTES
        + _WEIGHT_COPIES * weights
        + working
    )


def estimate_sampling(unets: list[Any], batch_size: int, codec_bytes: float) -> float:
    """Estimate the bytes that generating images takes."""
    live = max(memory_needs(unet).live for unet in unets)
    weights = 4 * sum(unet.count_params() for unet in unets)
    # Denoiser and codec don't share freed memory: the blocks of one are too small for
    # the other.
    working = codec_bytes + batch_size * _SKIP_FACTOR * live
    return len(unets) * _COMPILED_BYTES + weights + working


def check(work: str, needed: float, cure: str, strategy: Strategy = None) -> None:
    """Refuse work that would not fit into memory."""
    free = _backend.free_memory(strategy)
    if needed > free:
        raise InputError(
            f"{work} needs about {needed / 2**30:.1f} GiB of memory, but only "
            f"{free / 2**30:.1f} GiB are available",
            f"use {cure}",
        )


def check_training(network: str, needed: float, options: ResolvedOptions) -> None:
    """Refuse a training that would not fit into memory."""
    cure = (
        f"a smaller `batch_size` (it is {options.batch_size}), fewer voxels (a smaller "
        "`patch` for the autoencoder, a larger voxel size), or `remat`"
    )
    check(f"training {network}", needed, cure, options.strategy)
