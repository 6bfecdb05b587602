"""Conform one volume to a grid and to intensities from 0 to 1, and back."""

from pathlib import Path
from typing import NamedTuple

from nibabel.affines import voxel_sizes
import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import _nifti as nifti
from dipy_ldm.data._grid import Grid, conform, coverage, is_within_a_voxel, restore

# Rounding of labels that were scaled or computed.
_ROUNDING = 1e-3
# Usual in neuroimaging: vessels, fat and artefacts are brighter. 0 stays 0: the lower
# percentile only counts if it is negative.
_PERCENTILES = 0.5, 99.5
# A volume has contrast if more than this share of its voxels other than 0 are farther
# than this distance from both ends of [0, 1].
_MIN_SHARE, _MARGIN = 0.001, 0.02


class IntensityRange(NamedTuple):
    """The intensities that become 0 and 1, each of shape ``(channels,)``."""

    low: np.ndarray
    high: np.ndarray


def measure_range(data: np.ndarray) -> IntensityRange:
    """Return the robust range of each channel of a volume ``(x, y, z, channels)``.

    The highest value is the 99.5th percentile of all voxels other than 0; the lowest is
    0, or their 0.5th percentile if that is negative, as in computed tomography.
    """
    ranges = [_percentile_range(data[..., i]) for i in range(data.shape[-1])]
    return IntensityRange(*np.array(ranges, "float32").T)


def _percentile_range(channel):
    inside = channel[channel != 0]
    low, high = np.percentile(inside, _PERCENTILES) if inside.size else (0, 0)
    low = min(low, 0)
    # Of few values, such as those of a label, percentiles may coincide.
    if high <= low:
        low, high = min(channel.min(), 0), max(channel.max(), 0)
    return low, high if high > low else low + 1


def scale_intensities(data: np.ndarray, intensities: IntensityRange) -> np.ndarray:
    """Scale intensities ``(x, y, z, channels)`` to [0, 1], and clip them."""
    low, high = intensities
    return np.clip((data - low) / (high - low), 0, 1).astype("float32", copy=False)


def is_flattened(data: np.ndarray, scaled: np.ndarray) -> bool:
    """Return whether a volume loses its contrast by scaling to [0, 1].

    Its values then differ, but all end up at 0 or 1, because of a large offset or of
    sentinel values for missing voxels. A label, whose values do not differ, is no case.
    """
    channels = range(data.shape[-1])
    return any(_is_flattened(data[..., i], scaled[..., i]) for i in channels)


def _is_flattened(channel, scaled):
    inside = channel != 0
    low, high = inside & (scaled <= _MARGIN), inside & (scaled >= 1 - _MARGIN)
    total, ends = np.count_nonzero(inside), np.count_nonzero(low | high)
    if total - ends > _MIN_SHARE * total:
        return False
    groups = (channel[end] for end in (low, high) if end.any())
    return any(group.min() != group.max() for group in groups)


def unscale_intensities(data: np.ndarray, intensities: IntensityRange) -> np.ndarray:
    """Scale values ``(x, y, z, channels)`` in [0, 1] back to a volume's own range."""
    low, high = intensities
    return (low + data * (high - low)).astype("float32", copy=False)


class Origin(NamedTuple):
    """The file of a conformed volume, with its voxels, affine, scaling and space.

    With a ``hole`` to inpaint, ``(x, y, z)``, ``data`` are filled there, and
    ``unfilled`` as in the file.
    """

    file: Path
    data: np.ndarray
    affine: np.ndarray
    grid: Grid
    intensities: IntensityRange
    space: int = nifti.ALIGNED
    hole: np.ndarray | None = None
    unfilled: np.ndarray | None = None

    @property
    def measured(self) -> np.ndarray:
        """Voxels as in the file."""
        return self.data if self.unfilled is None else self.unfilled

    def with_hole(self, values: npt.ArrayLike) -> np.ndarray:
        """Return the volume with new values ``(voxels, channels)`` in its hole."""
        volume = self.measured.copy()
        volume[self.hole] = values
        return volume

    def hole_only(self, values: npt.ArrayLike) -> np.ndarray:
        """Return values ``(voxels, channels)`` in the hole, and 0 elsewhere."""
        return self._replace(unfilled=np.zeros_like(self.measured)).with_hole(values)

    def restore(self, image: np.ndarray, outside: np.ndarray | float) -> np.ndarray:
        """Resample ``(*grid.shape, channels)`` to the file's own grid."""
        file_grid = Grid(self.data.shape[:3], self.affine)
        return restore(image, self.grid, file_grid, outside)


def conform_voxels(
    file: str | Path,
    data: np.ndarray,
    affine: np.ndarray,
    grid: Grid,
    *,
    from_zero: bool = False,
) -> tuple[np.ndarray, Origin]:
    """Resample and scale voxels to ``(*grid.shape, channels)`` in [0, 1].

    ``from_zero`` keeps 0 at 0, even if values are negative.
    """
    intensities = measure_range(data)
    if from_zero:
        intensities = intensities._replace(low=np.zeros_like(intensities.low))
    scaled = scale_intensities(data, intensities)
    if is_flattened(data, scaled):
        raise InputError(
            f"{file} has values from {data.min():g} to {data.max():g}, which collapse "
            "when rescaled to 0 to 1",
            "subtract the offset, and replace sentinel values by 0",
        )
    if is_within_a_voxel(data.shape, affine, grid):
        sizes = " x ".join(f"{n:.3g}" for n in voxel_sizes(grid.affine))
        raise InputError(
            f"{file} is smaller than a voxel of the grid ({sizes} mm)",
            "write its affine in mm, or give a smaller `voxel_size`",
        )
    image = conform(scaled, affine, grid)
    refuse_empty(file, image, grid)
    return image, Origin(Path(file), data, affine, grid, intensities)


def refuse_empty(file: str | Path, image: np.ndarray, grid: Grid) -> None:
    """Refuse a volume that is constant on the grid."""
    if image.min() == image.max():
        raise InputError(
            f"{file} has nothing on the grid (shape {grid.shape} from "
            f"{np.round(grid.affine[:3, 3], 1).tolist()} mm)",
            "check its affine, or train with a larger `shape`",
        )


def refuse_off_grid(
    file: str | Path,
    image: np.ndarray,
    data: np.ndarray,
    affine: np.ndarray,
    grid: Grid,
) -> None:
    """Refuse a segmentation or map, which may be empty, outside the grid."""
    if image.min() == image.max():
        overlap = coverage(Grid(data.shape[:3], affine), grid)
        if not overlap.any():
            refuse_empty(file, overlap, grid)


def read_labels(
    file: str | Path, cure: str, channels: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Read a segmentation ``(x, y, z, channels)``, rounded, and its affine."""
    # It may be empty: not every brain has a lesion.
    data, affine = nifti.read_voxels(file, channels)
    labels = np.rint(data)
    if (np.abs(data - labels) > _ROUNDING).any():
        raise InputError(
            f"{file} has fractional values and is not a segmentation",
            f"give one, or {cure}",
        )
    return labels, affine
