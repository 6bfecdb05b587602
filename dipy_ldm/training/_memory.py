"""What training and applying networks needs of the memory, and what there is.

The numbers were measured on processors: ``benchmarks/memory.py``.
"""

from collections.abc import Sequence
from typing import Any

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError
from dipy_ldm.nn._analysis import memory_needs, one_after_another
from dipy_ldm.training._optimizer import MAX_GROUP_SIZE
from dipy_ldm.training._options import ResolvedOptions

_BEFORE = 20 * 2**20
# Copies of the weights: those that are trained and used, a moment and the gradient;
# more while the weights are changed, and of those changed at once.
_COPIES = 4
_MORE_COPIES = 2.5
_CHANGED_COPIES = 3.5
# Distances of latents to codes: their products, and what is made of these.
DISTANCES = 2.7
# What a further compiled network takes, and what lies beside a U-Net's largest layer.
_COMPILED = 40 * 2**20
_SKIPS = 2
# What the gradient of the largest layer is made of, beside what is kept.
_GRADIENTS = 2.5


def estimate_training(
    parts: Sequence[Any], batch_size: int, distances: float = 0.0, before: int = 0
) -> float:
    """Estimate what training takes."""
    weights = 4 * sum(part.count_params() for part in parts)
    each = [memory_needs(part) for part in parts]
    both = one_after_another(each)
    step = max(
        both.kept + max(both.again, _GRADIENTS * both.live),
        each[0].kept + DISTANCES * distances,
    )
    # The weights are changed when nothing is kept any more.
    at_once = min(weights, 4 * MAX_GROUP_SIZE)
    changing = _MORE_COPIES * weights + _CHANGED_COPIES * at_once
    working = max(changing, batch_size * step)
    return _backend.ONCE_TRAINING + before * _BEFORE + _COPIES * weights + working


def estimate_sampling(unets: list[Any], batch_size: int, coding: float) -> float:
    """Estimate what generating images takes."""
    live = max(memory_needs(unet).live for unet in unets)
    weights = 4 * sum(unet.count_params() for unet in unets)
    # What the one has used is too small for the other, and not given back.
    working = coding + batch_size * _SKIPS * live
    return len(unets) * _COMPILED + weights + working


def check(work: str, needed: float, cure: str, strategy: Any = None) -> None:
    """Refuse what would not fit into the memory."""
    free = _backend.free_memory(strategy)
    if needed > free:
        raise InputError(
            f"{work} needs about {needed / 2**30:.1f} GiB of memory and "
            f"{free / 2**30:.1f} GiB can be had; give {cure}."
        )


def check_training(network: str, needed: float, options: ResolvedOptions) -> None:
    """Refuse a training that would not fit into the memory."""
    cure = (
        f"a smaller `batch_size` (it is {options.batch_size}), images of fewer voxels "
        "(a smaller `patch` for the autoencoder, a larger voxel size), or `remat`"
    )
    check(f"training {network}", needed, cure, options.strategy)
