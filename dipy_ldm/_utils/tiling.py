"""Batch sizes and tiles for large images."""

from collections.abc import Callable, Sequence
from itertools import product
import math
from typing import Any

from keras import ops
import numpy as np

# Voxels that are encoded or decoded at once: less than 0.5 GiB with the default widths,
# and nearly as fast as more. Denoisers take less memory, and gain from larger batches.
SAFE_VOXELS = 2**20
SAFE_LATENTS = 2**22
# Voxels of a tile with its overlaps: 3 GiB. With half as many, most of the time would
# be spent on overlaps.
TILE_VOXELS = 8_000_000


def safe_batch(space: tuple[int, ...], voxels: int = SAFE_VOXELS) -> int:
    """Return a batch size that fits into memory."""
    return max(1, min(256, voxels // math.prod(space)))


def safe_side(rank: int) -> int:
    """Return the side of a tile that fits into memory."""
    return round(TILE_VOXELS ** (1 / rank))


def in_tiles(
    function: Callable,
    array: np.ndarray,
    *,
    tile: int,
    margin: int,
    input_factor: int = 1,
    output_factor: int = 1,
) -> np.ndarray:
    """Apply a function of limited receptive field to an array, tile by tile.

    ``tile`` and ``margin`` are in units of latents.

    Shapes: array ``(n, *space * input_factor, channels)``, result ``(n, *space *
    output_factor, channels)``.
    """
    space = [size // input_factor for size in array.shape[1:-1]]
    if all(size <= tile + 2 * margin for size in space):
        return ops.convert_to_numpy(function(array))
    result: Any = None
    for corner in product(*(range(0, size, tile) for size in space)):
        inner = [slice(c, min(c + tile, size)) for c, size in zip(corner, space)]
        outer = [
            slice(max(0, i.start - margin), min(size, i.stop + margin))
            for i, size in zip(inner, space)
        ]
        piece = ops.convert_to_numpy(function(array[_upscaled(outer, input_factor)]))
        if result is None:
            whole = [size * output_factor for size in space]
            result = np.empty((len(array), *whole, piece.shape[-1]), piece.dtype)
        kept = [
            slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer)
        ]
        result[_upscaled(inner, output_factor)] = piece[_upscaled(kept, output_factor)]
    return result


def _upscaled(slices: Sequence[slice], factor: int):
    """Return the index of slices at a resolution that is `factor` times as fine."""
    return (slice(None), *(slice(p.start * factor, p.stop * factor) for p in slices))
