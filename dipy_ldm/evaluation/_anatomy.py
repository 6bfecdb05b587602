"""Anatomical measurements of volumes, and their distances to those of real ones."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
import logging

import numpy as np

from dipy_ldm.data.channels import Channel, channel_slices
from dipy_ldm.evaluation._fidelity import Sets, finite_mean
from dipy_ldm.evaluation.features import downsample, unscaled
from dipy_ldm.metrics import Interval, bootstrap

# Share of the 99 % quantile above which a voxel counts as foreground.
_FOREGROUND_THRESHOLD = 0.1
TISSUES = "dark tissue", "middle tissue", "bright tissue"
# Segmenting tissues takes seconds per volume: volumes, and voxels of each.
_MAX_TISSUE_VOLUMES, _MAX_TISSUE_VOXELS = 16, 64**3
# Of the Markov random field, as in DIPY's examples.
_SMOOTHNESS, _STEPS = 0.1, 20


def measure_anatomy(
    volumes: np.ndarray, affine: np.ndarray, empty: float = 0.0
) -> dict[str, np.ndarray]:
    """Measure volumes ``(n, x, y, z, channels)``, ``(n,)``; tissues of up to 16.

    ``empty`` is the value outside of heads.
    """
    inside = [foreground(volume, empty) for volume in volumes]
    pairs = zip(volumes[..., 0], inside)
    return {
        "foreground": np.array([mask.sum() for mask in inside]) * _millilitres(affine),
        "intensity": np.array([v[m].mean() if m.any() else 0 for v, m in pairs]),
        "symmetry": np.array([symmetry(volume, empty) for volume in volumes]),
        **dict(zip(TISSUES, tissue_fractions(volumes, empty).T, strict=True)),
    }


def measure_sets(
    sets: Sets, affine: np.ndarray, column: int, empty: float = 0.0
) -> dict[str, dict[str, np.ndarray]]:
    """Measure one channel of the volumes of each set."""
    return {
        name: measure_anatomy(volumes[..., column : column + 1], affine, empty)
        for name, volumes in sets.by_name.items()
    }


def _millilitres(affine: np.ndarray) -> float:
    """Return the volume of a voxel in ml."""
    return abs(np.linalg.det(np.asarray(affine)[:3, :3])) / 1000


def foreground(volume: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Return the mask ``(x, y, z)`` of the foreground of ``(x, y, z, channels)``."""
    first = np.abs(volume[..., 0] - np.float32(empty))
    return first > _FOREGROUND_THRESHOLD * max(np.quantile(first, 0.99), 1e-6)


def symmetry(volume: np.ndarray, empty: float = 0.0) -> float:
    """Correlate a volume with its mirror image about the middle of its foreground."""
    inside = foreground(volume, empty).any((1, 2))
    if not inside.any():
        return 0.0
    first, last = np.flatnonzero(inside)[[0, -1]]
    part = volume[first : last + 1, ..., 0]
    if part.std() == 0:
        return 0.0
    return float(np.corrcoef(part.ravel(), part[::-1].ravel())[0, 1])


def tissue_fractions(volumes: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """Return the shares of three tissues in the foreground of volumes, ``(n, 3)``.

    By DIPY's ``TissueClassifierHMRF``, a hidden Markov random field
    :footcite:p:`Zhang2001`, of at most 16 volumes of at most 64³ voxels.
    """
    few = downsample(volumes[:_MAX_TISSUE_VOLUMES], _MAX_TISSUE_VOXELS)
    return np.array([_fractions_of(volume, empty) for volume in few])


def _fractions_of(volume: np.ndarray, empty: float) -> np.ndarray:
    """Return the shares of three tissues; NaN if the segmentation fails."""
    from dipy.segment.tissue import TissueClassifierHMRF

    inside = foreground(volume, empty)
    image = np.where(inside, volume[..., 0], 0).astype(float)
    if np.unique(image[inside]).size < 10:
        return np.full(3, np.nan)
    classifier = TissueClassifierHMRF(verbose=False)
    try:
        with np.errstate(all="ignore"):
            first, labels, _ = classifier.classify(
                image, 3, _SMOOTHNESS, tolerance=1e-3, max_iter=_STEPS
            )
    except (ValueError, IndexError, np.linalg.LinAlgError) as error:
        logging.getLogger(__name__).debug("no tissues: %s", error)
        return np.full(3, np.nan)
    # Tissues of very different intensity underflow, and all labels are -1.
    labels = first if labels.max() < 0 else labels
    # 0 is the background.
    counts = np.array([np.sum(labels[inside] == i) for i in (1, 2, 3)])
    return counts / counts.sum() if counts.sum() else np.full(3, np.nan)


def measure_channels(
    channels: Sequence[Channel],
    sets: Sets,
    affine: np.ndarray,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> dict[str, dict[str, dict[str, Interval | None]]]:
    """Return the means of each set for each channel; images are scaled from bounds."""
    size, restored = _millilitres(affine), partial(unscaled, bounds=bounds)

    def mean(rows: list[dict], title: str, name: str) -> Interval | None:
        (subject_ids,) = sets.subjects_of(name)
        return finite_mean([row[title] for row in rows], subject_ids, seed)

    figures = {}
    for channel, columns in channel_slices(channels):
        measured = {
            name: [channel.measure(restored(x[..., columns]), size) for x in images]
            for name, images in sets.compared.items()
        }
        pairs = zip(sets.real[..., columns], sets.reconstructed[..., columns])
        overlaps = [channel.compare(*map(restored, pair)) for pair in pairs]
        by_title = {
            title: {name: mean(rows, title, name) for name, rows in measured.items()}
            for title in measured["real"][0]
        }
        for title in overlaps[0]:
            by_title[title] = {"reconstructed": mean(overlaps, title, "reconstructed")}
        if by_title:
            figures[channel.name] = by_title
    return figures


def compare_anatomy(
    measured: Mapping[str, Mapping[str, np.ndarray]], sets: Sets, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Return standardised differences from the means of the reference set."""

    def difference(x: np.ndarray, y: np.ndarray) -> float:
        return (x.mean() - y.mean()) / max(y.std(), 1e-12)

    intervals: dict[str, dict] = {kind: {} for kind in sets.compared}
    for kind, name in product(sets.compared, measured["reference"]):
        pair = measured[kind][name], measured["reference"][name]
        # Tissues are measured in the first volumes alone, and may be NaN.
        finite = [np.isfinite(x) for x in pair]
        owners = zip(sets.subjects_of(kind, "reference"), finite)
        subjects = [ids[: len(f)][f] for ids, f in owners]
        if min(len(np.unique(ids)) for ids in subjects) > 1:
            x, y = (values[f] for values, f in zip(pair, finite))
            interval = bootstrap(difference, x, y, seed=seed, subjects=subjects)
            intervals[kind][name] = interval
    return intervals
