"""Source images, and the network inputs of conditions and sources.

A source is on the grid of its image. Networks get intensities from 0 to 1 or indices of
labels, and ``UNSPECIFIED`` without a source. Sources are read batch by batch: a memory
map may be far larger than memory.
"""

from collections.abc import Collection
import logging
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from dipy_ldm._conditions import UNSPECIFIED
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import listed
from dipy_ldm.data._batches import patch_size, read_patches
from dipy_ldm.data._image_checks import (
    check_ranges,
    refuse_masked,
    survey,
    trainable_survey,
)

logger = logging.getLogger("dipy_ldm")

# Name of sources in condition ablation.
SOURCE = "source"
# Of bytes, which have at most 256 values, more are most likely intensities.
_MAX_LABELS, _MAX_LABELS_OF_BYTES = 256, 64
# Up to this label, each one is counted.
_MAX_COUNTED_LABEL = 2**20


class Source(NamedTuple):
    """Channels and intensity bounds, or labels, of source images."""

    channels: int
    bounds: list[float]
    labels: list[int]
    fingerprint: str

    @property
    def intensity(self):
        """Range of intensities; [0, 1] for labels, which are not scaled."""
        return [0.0, 1.0] if self.labels else self.bounds

    def scaled(self, images: np.ndarray) -> np.ndarray:
        """Scale ``(n, *space, channels)`` to [0, 1], or map labels to indices."""
        if not self.labels:
            low, high = map(np.float32, self.bounds)
            return np.clip((images - low) / (high - low), 0, 1).astype("float32")
        labels = np.array(self.labels)
        numbers = np.searchsorted(labels, images).clip(max=len(labels) - 1)
        is_label = labels[numbers] == images
        return np.where(is_label, numbers, UNSPECIFIED).astype("float32")


def learn(
    source: npt.ArrayLike | None,
    shape: tuple[int, ...],
    named: bool = False,
    conditions: Collection[str] = (),
) -> Source | None:
    """Return channels, and bounds or labels, of sources ``(n, *space, channels)``.

    The bounds of named channels are always 0 and 1.
    """
    if source is None:
        return None
    if SOURCE in conditions:
        raise InputError(
            f"a condition can't be called {SOURCE} beside source images", "rename it"
        )
    images = as_source(source, shape[1:-1])
    if len(images) != shape[0]:
        raise InputError(
            f"source must have {shape[0]} images, one for each, not {len(images)}"
        )
    labels = [] if images.dtype.kind == "f" else _find_labels(images)
    kind = f"{len(labels)} labels" if labels else "intensities"
    if not named:
        logger.info("the source images are treated as %s.", kind)
    summary = trainable_survey(images, "source image")
    bounds = [0.0, 1.0] if named else [summary.low, summary.high]
    return Source(images.shape[-1], bounds, labels, summary.fingerprint)


def as_source(
    source: npt.ArrayLike, space: tuple[int, ...], name: str = "source"
) -> np.ndarray:
    """Return sources as an array ``(n, *space, channels)``, or refuse them."""
    loaded_sources = getattr(
        source, "sources", None
    )  # of Volumes that were loaded with them
    source = (
        getattr(source, "images", source) if loaded_sources is None else loaded_sources
    )
    refuse_masked(source, name)
    images = np.asarray(source)
    images = images[..., None] if images.ndim == len(space) + 1 else images
    if images.shape[1:-1] != tuple(space) or 0 in images.shape:
        raise InputError(
            f"{name} must have the size {tuple(space)} of the images, (n, *space, "
            f"channels), not the shape {np.shape(source)}",
            "resample it",
        )
    if images.dtype.kind not in "biuf":
        raise InputError(f"{name} must be real numbers, not {images.dtype}")
    return images


def check(
    info: Source | None,
    source: Any,
    space: tuple[int, ...],
    *,
    n: int | None = None,
    name: str = "source",
    lenient: bool = False,
) -> np.ndarray | None:
    """Return sources ``(n, *space, channels)``, or refuse those unlike in training."""
    refuse_mismatch(info, source, name)
    if info is None:
        return None
    images = as_source(source, space, name)
    if images.shape[-1] != info.channels:
        raise InputError(
            f"{name} must have {info.channels} channels, not {images.shape[-1]}"
        )
    if n is not None and len(images) not in (1, n):
        counts = "one image" if n == 1 else f"one image or {n}, one for each"
        raise InputError(f"{name} must have {counts}, not {len(images)}")
    survey(images, f"{name} image")
    if not info.labels:
        check_ranges(images, info.bounds, f"{name} image")
    for number, image in enumerate(images if info.labels and not lenient else ()):
        refuse_unknown_labels(f"{name} {number}", image, info.labels)
    return images


def refuse_mismatch(info: object, source: object, name: str) -> None:
    """Refuse sources for a model without them, and their lack for a model with them."""
    if info is None and source is not None:
        raise InputError(
            "this model was trained without source images",
            f"leave out `{name}`, or train one with them",
        )
    if info is not None and source is None:
        raise InputError(
            "this model is conditioned on source images", f"give them as `{name}`"
        )


def _find_labels(images):
    """Return the sorted labels of segmentations."""
    if images.shape[-1] != 1:
        raise InputError(
            "a source of integers must be a segmentation with one channel, not "
            f"{images.shape[-1]}",
            "give intensities as float32",
        )
    labels: set[int] = set()
    limit = _MAX_LABELS_OF_BYTES if images.dtype.itemsize == 1 else _MAX_LABELS
    for image in images:
        labels |= _distinct_labels(image)
        if len(labels) > limit:
            cure = "merge some" if limit == _MAX_LABELS else "give labels as int32"
            raise InputError(
                f"source has more than {limit} labels as {images.dtype}",
                f"{cure}, or give intensities as float32 (without `source_labels`)",
            )
    return sorted(labels)


def _distinct_labels(image):
    """Return the labels of an image; counting is far faster than sorting."""
    if image.dtype.kind in "ub" or image.min() >= 0:
        integers = image.astype("int64", casting="unsafe").ravel()
        if (integers == image.ravel()).all() and integers.max() < _MAX_COUNTED_LABEL:
            return set(np.flatnonzero(np.bincount(integers)).tolist())
    return set(np.unique(image).tolist())


def refuse_unknown_labels(name: object, image: np.ndarray, labels: list[int]) -> None:
    """Refuse a segmentation with other labels."""
    if unknown := sorted(_distinct_labels(image) - set(labels)):
        raise InputError(
            f"{name} has the unknown label {unknown[0]:g}",
            f"replace it by one of {listed(labels)}",
        )


class Sources(NamedTuple):
    """Sources ``(n, *space, channels)``, read as network input."""

    images: np.ndarray
    info: Source
    size: tuple[int, ...]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read sources ``(n, *size, channels)`` by index; negative is unspecified."""
        indices = [max(0, int(number)) for number in rows]
        corners = np.zeros((len(indices), len(self.size)), int)
        scaled = self.info.scaled(
            read_patches(self.images, indices, corners, self.size)
        )
        scaled[np.asarray(rows) < 0] = UNSPECIFIED
        return scaled


class ConditioningInputs(NamedTuple):
    """Network inputs: encoded conditions ``(n, conditions)`` and source images."""

    table: np.ndarray
    sources: Sources | None = None

    @classmethod
    def of(
        cls,
        numbers: np.ndarray,
        info: Source | None,
        images: np.ndarray | None,
        factor: int,
    ) -> Self:
        """Join conditions ``(n, conditions)`` and source images, if there are any."""
        if info is None or images is None:
            return cls(numbers)
        n, size = len(numbers), patch_size(images.shape[1:-1], factor)
        rows = np.arange(n) if len(images) == n else np.zeros(n)
        table = np.column_stack([numbers, rows]).astype("float32")
        return cls(table, Sources(images, info, size))

    def take(self, indices: np.ndarray) -> Self:
        """Return a subset of the examples."""
        return self._replace(table=self.table[indices])

    def arrays(self) -> tuple:
        """Return the network inputs beside latents and times."""
        table, sources = self
        conditions = table if sources is None else table[:, :-1]
        parts = (conditions,) if conditions.shape[1] else ()
        return parts if sources is None else (*parts, sources.read(table[:, -1]))
