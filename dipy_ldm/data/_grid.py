"""Resample volumes to one grid, and back to a file's own.

A grid has its axes along right, anterior and superior (RAS). Values are interpolated
linearly, which never overshoots, after a low-pass filter if the new grid is coarser.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nibabel.orientations import io_orientation
import numpy as np

from dipy_ldm._utils.checks import InputError

# In voxels: smaller displacements count as rounding.
_TOLERANCE = 1e-3
# Squared full width at half maximum of a Gaussian, over its variance.
_WIDTH_TO_VARIANCE = 8 * np.log(2)


class Grid(NamedTuple):
    """Shape ``(x, y, z)``, and the affine from indices to millimetres, ``(4, 4)``."""

    shape: tuple
    affine: np.ndarray


def choose_grid(
    infos: Sequence[Any],
    voxel_size: float | Sequence[float] | None = None,
    shape: int | Sequence[int] | None = None,
) -> Grid:
    """Choose the grid for a set of volumes."""
    if voxel_size is None:
        sizes = np.median([_voxel_sizes(info.affine) for info in infos], axis=0)
    else:
        sizes = _as_triple("voxel_size", voxel_size, float)
    boxes = np.array([bounding_box(info.shape, info.affine) for info in infos])
    if shape is None:
        _refuse_scattered(infos, boxes)
    low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
    if (sizes > high - low).all():
        extent = " x ".join(f"{mm:.3g}" for mm in high - low)
        raise InputError(
            f"the voxel size {voxel_size} exceeds the volumes ({extent} mm)", "lower it"
        )
    # Rounding errors must not add a voxel.
    full = np.maximum(np.ceil((high - low) / sizes - 10 * _TOLERANCE), 1).astype(int)
    first = (low + high) / 2 - (full - 1) / 2 * sizes
    if shape is not None:
        requested = np.array(_as_triple("shape", shape, int))
        # By whole voxels, so that those of the data are not moved.
        first -= (requested - full) // 2 * sizes
        full = requested
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = first
    return Grid(tuple(map(int, full)), affine)


def _as_triple(name: str, value: float | Sequence[float], kind: type):
    """Return one or three positive numbers as three."""
    values = list(value) if isinstance(value, Iterable) else [value]
    # Written so that NaN is refused too; for voxels, 64.0 is valid and 64.5 is not.
    if len(values) not in (1, 3) or not all(
        0 < v < np.inf and kind(v) == v for v in values
    ):
        raise InputError(
            f"must be one positive number or three, not {value}", option=name
        )
    return [kind(v) for v in values] * (3 // len(values))


def _voxel_sizes(affine: np.ndarray):
    """Return the voxel sizes of a volume along the axes of RAS."""
    order = io_orientation(affine)[:, 0]
    return np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(order)]


def bounding_box(
    shape: Sequence[int], affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest corner, in mm, edges of voxels included."""
    corners = np.stack(np.meshgrid(*([-0.5, n - 0.5] for n in shape)), -1)
    world = corners.reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
    return world.min(axis=0), world.max(axis=0)


def _refuse_scattered(infos: Sequence[Any], boxes: np.ndarray):
    """Refuse volumes whose common box is over twice as long as the largest box."""
    extent = boxes[:, 1].max(axis=0) - boxes[:, 0].min(axis=0)
    if (extent <= 2 * (boxes[:, 1] - boxes[:, 0]).max(axis=0)).all():
        return
    centres = boxes.mean(axis=1)
    far = np.linalg.norm(centres - np.median(centres, axis=0), axis=1).argmax()
    raise InputError(
        f"the volumes lie far apart ({' x '.join(f'{mm:.0f}' for mm in extent)} mm), "
        f"{infos[far].file} is farthest from the others",
        "align them, leave it out, or give a `shape`",
    )


def same_grid(grid: Any, other: Any) -> bool:
    """Return whether the voxels of two grids or headers coincide."""
    if tuple(grid.shape) != tuple(other.shape):
        return False
    difference = np.linalg.solve(grid.affine, other.affine) - np.eye(4)
    return _max_displacement(difference, other.shape) < 0.1


def is_within_a_voxel(shape: tuple[int, ...], affine: np.ndarray, grid: Grid) -> bool:
    """Return whether a volume is narrower than a voxel of the grid along each axis."""
    widths = np.linalg.norm(np.linalg.solve(affine, grid.affine)[:3, :3], axis=1)
    return bool((widths > shape[:3]).all())


def conform(
    data: np.ndarray, affine: np.ndarray, grid: Grid, nearest: bool = False
) -> np.ndarray:
    """Resample a volume ``(x, y, z, channels)`` to ``(*grid.shape, channels)``.

    Interpolation is linear, or by nearest neighbour.
    """
    index_map = _index_map(affine, grid)
    if data.shape[:3] == tuple(grid.shape) and (index_map == np.eye(4)).all():
        return data.astype("float32")
    result = np.empty((*grid.shape, data.shape[-1]), "float32")
    for i in range(data.shape[-1]):
        result[..., i] = _interpolate(data[..., i], index_map, grid.shape, nearest)
    return result


def coverage(covering: Grid, grid: Grid) -> np.ndarray:
    """Return the share of each voxel that ``covering`` covers, ``(*grid.shape, 1)``."""
    return conform(np.ones((*covering.shape, 1), "float32"), covering.affine, grid)


def restore(
    data: np.ndarray, grid: Grid, original: Grid, outside: np.ndarray | float
) -> np.ndarray:
    """Resample a volume on the grid to a file's own grid.

    Shapes: data ``(*grid.shape, channels)``, outside and result
    ``(*original.shape, channels)``.
    """
    inside = conform(data, grid.affine, original)
    weight = coverage(grid, original)
    return (inside + (1 - weight) * outside).astype("float32", copy=False)


def _index_map(affine: np.ndarray, grid: Grid):
    """Return the affine from the grid's indices to those of the data."""
    index_map = np.linalg.solve(affine, grid.affine)
    # Without displacements by rounding, so that voxels can be copied.
    if _max_displacement(index_map - np.round(index_map), grid.shape) < _TOLERANCE:
        index_map = np.round(index_map)
    # Exact, as DIPY requires.
    index_map[3] = 0, 0, 0, 1
    return index_map


def _max_displacement(difference: np.ndarray, shape: Sequence[int]):
    """Return an upper bound of the displacement of indices, in voxels."""
    reach = np.array([*shape, 1.0])
    return (np.abs(difference) @ reach).max()


def _interpolate(
    channel: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], nearest: bool
):
    # Slow to import.
    from dipy.align.imaffine import AffineMap
    from scipy.ndimage import gaussian_filter

    warp = AffineMap(affine, domain_grid_shape=shape, codomain_grid_shape=channel.shape)
    if nearest:
        return warp.transform(channel, interpolation="nearest")
    # Width of a new voxel along each axis, in voxels of the data.
    width = np.linalg.norm(affine[:3, :3], axis=1)
    sigma = np.sqrt(np.maximum(width**2 - 1, 0) / _WIDTH_TO_VARIANCE)
    smooth = gaussian_filter(channel.astype("float32"), sigma, mode="nearest")
    # Weights that do not quite add up to 1 may overshoot.
    return warp.transform(smooth).clip(min(channel.min(), 0), max(channel.max(), 0))
