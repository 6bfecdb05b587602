"""The memory that encoding and decoding take."""

from collections.abc import Sequence
from functools import lru_cache, partial
import math

from dipy_ldm import _backend
from dipy_ldm.autoencoder import _network as autoencoder_network
from dipy_ldm.nn import building, memory as network_memory
from dipy_ldm.training._memory import DISTANCES


def estimate_coding(
    chosen: dict,
    space: Sequence[int],
    channels: int,
    *,
    tile: int,
    margin: int,
    batch_size: int,
) -> tuple[float, float]:
    """Estimate what encoding and decoding images take."""
    names = ("widths", "blocks", "code_dim")
    widths, blocks, code_dim = (chosen[name] for name in names)
    design = (tuple(widths), blocks, code_dim, channels, len(space))
    per_voxel, latents = _per_voxel(*design)
    codes = DISTANCES * 4 * chosen["n_codes"] * latents
    # In the range of the images and of [0, 1].
    whole = 8 * channels * math.prod(space)
    piece = math.prod(_largest(size, tile, margin) for size in space)
    encoding, decoding = (
        _backend.ONCE_APPLYING + batch_size * (each * piece + whole)
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
    size = (4 * autoencoder_network.factor_of(widths, blocks),) * rank
    options = {"widths": widths, "blocks": blocks, "code_dim": code_dim}
    build = partial(
        autoencoder_network.encoder_and_decoder, size, channels, seed=0, **options
    )
    parts = building.build_without_weights("float32", build)
    voxels = math.prod(size)
    latents = math.prod(parts[0].output.shape[1:-1])
    return [
        network_memory.memory_needs(part).live / voxels for part in parts
    ], latents / voxels
