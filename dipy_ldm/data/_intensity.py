"""Intensities: each volume's own range to [0, 1], and back."""

from typing import NamedTuple

import numpy as np

# The usual share in neuroimaging; brighter are vessels, fat and artefacts.
_PERCENTILES = 0.5, 99.5
# A volume shows something if more of its voxels than this share, of those that are not
# 0, are farther from both ends of [0, 1] than that.
_SHARE, _END = 0.001, 0.02


class Intensities(NamedTuple):
    """What becomes 0 and what becomes 1, each of shape ``(channels,)``."""

    low: np.ndarray
    high: np.ndarray


def measure_range(data: np.ndarray) -> Intensities:
    """Find the robust range of a volume, channel by channel.

    The highest value is the 99.5th percentile of all voxels that are not 0. The lowest
    is 0 unless more than a few of them are negative, as those of computed tomography
    are: then the 0.5th percentile.

    Shapes: data ``(x, y, z, channels)``.
    """
    ranges = [_range(data[..., i]) for i in range(data.shape[-1])]
    low, high = np.array(ranges, "float32").T
    return Intensities(low, high)


def _range(channel):
    inside = channel[channel != 0]
    low, high = np.percentile(inside, _PERCENTILES) if inside.size else (0, 0)
    low = min(low, 0)
    # Few values, such as those of a label: percentiles may meet.
    if high <= low:
        low, high = min(channel.min(), 0), max(channel.max(), 0)
    return low, high if high > low else low + 1


def scale_intensities(data: np.ndarray, intensities: Intensities) -> np.ndarray:
    """Bring a volume's intensities to [0, 1]; what lies beyond is clipped.

    Shapes: data ``(x, y, z, channels)``.
    """
    low, high = intensities
    return np.clip((data - low) / (high - low), 0, 1).astype("float32", copy=False)


def is_flattened(data: np.ndarray, scaled: np.ndarray) -> bool:
    """Say whether what a volume shows is lost between 0 and 1.

    All its values are at the ends then, although they differ: they have a large offset,
    or a number far from all others marks missing voxels. A label, whose values do not
    differ, is not meant.

    Shapes: data ``(x, y, z, channels)``.
    """
    return any(
        _is_flattened(data[..., i], scaled[..., i]) for i in range(data.shape[-1])
    )


def _is_flattened(channel, scaled):
    inside = channel != 0
    low, high = inside & (scaled <= _END), inside & (scaled >= 1 - _END)
    total, ends = np.count_nonzero(inside), np.count_nonzero(low | high)
    if total - ends > _SHARE * total:
        return False
    groups = (channel[end] for end in (low, high) if end.any())
    return any(group.min() != group.max() for group in groups)


def unscale_intensities(data: np.ndarray, intensities: Intensities) -> np.ndarray:
    """Bring intensities of [0, 1] back to a volume's own range.

    Shapes: data ``(x, y, z, channels)``.
    """
    low, high = intensities
    return (low + data * (high - low)).astype("float32", copy=False)
