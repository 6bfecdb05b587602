"""Fingerprints of training images, to filter copies of them from samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.evaluation._memorization import COPY_RATIO, neighbours, separation
from dipy_ldm.evaluation.evaluate import scaled
from dipy_ldm.evaluation.features import Projection, voxels
from dipy_ldm.vqvae import VQVAE

_KIND = "fingerprints"
# Refused samples per requested one, after which generation is aborted.
_MAX_REFUSED_PER_SAMPLE = 50
# First index of the samples that replace copies.
_FIRST_REPLACEMENT = 10**9
# Samples are refused below this quantile of the ratios of held-out images.
QUANTILE = 0.05
# Random projections of the voxels, and their seed.
_PROJECTIONS, _SEED = 64, 20261126


def project_randomly(rows: np.ndarray) -> np.ndarray:
    """Project voxels randomly to ``(n, 64)``, which preserves distances to about 10 %.

    By the Johnson-Lindenstrauss lemma; images cannot be reconstructed from these.
    """
    size = rows.shape[1]
    if size <= _PROJECTIONS:
        return rows
    rng = np.random.default_rng(_SEED)
    drawn = rng.standard_normal((size, _PROJECTIONS), "float32")
    return rows @ (drawn / np.float32(_PROJECTIONS**0.5))


class ReferenceSet(NamedTuple):
    """Features ``(n, features)`` of training images, and thresholds for copies.

    ``threshold`` is of the nearest-neighbour ratio; training images that are closer
    than ``min_distance`` count as one.
    """

    train: np.ndarray
    threshold: float
    min_distance: float

    @classmethod
    def of(cls, train: np.ndarray, held_out: np.ndarray) -> Self:
        """Set the thresholds by the features of held-out images."""
        min_distance = separation(train, held_out)
        ratio = neighbours(held_out, train, min_distance).ratio
        return cls(train, float(np.quantile(ratio, QUANTILE)), min_distance)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Return which images ``(n, features)`` are copies, as a mask ``(n,)``."""
        near = neighbours(rows, self.train, self.min_distance)
        equal = near.distance < COPY_RATIO * self.min_distance
        return (near.ratio < self.threshold) | equal


class CopyFilter(NamedTuple):
    """Detector of samples that are copies of training images."""

    projection: Projection
    invariant: ReferenceSet
    voxels: ReferenceSet
    model: str

    def save(self, path: str | Path) -> None:
        """Save the fingerprints to a file that only the user can read."""
        tensors = {
            "mean": self.projection.mean,
            "directions": self.projection.directions,
            "train": self.invariant.train,
            "voxels": self.voxels.train,
        }
        small = {n: np.ascontiguousarray(x, "float32") for n, x in tensors.items()}
        document: dict[str, Any] = {"model": self.model}
        for kind, own in (("", self.invariant), ("_voxels", self.voxels)):
            document[f"threshold{kind}"] = own.threshold
            document[f"apart{kind}"] = own.min_distance
        _serialization.save(path, _KIND, small, document, private=True)

    @classmethod
    def load(cls, path: str | Path, model: str) -> Self:
        """Load fingerprints of a model."""
        tensors, document = _serialization.load(path, _KIND)
        limits = "threshold", "apart", "threshold_voxels", "apart_voxels"
        if document.get("model") != model or not document.keys() >= set(limits):
            raise InputError(
                f"{path} has the fingerprints of another model",
                "create new ones with dipy_audit_ldm --fingerprints",
            )
        values = [float(document[name]) for name in limits]
        return cls(
            Projection(tensors["mean"], tensors["directions"]),
            ReferenceSet(tensors["train"], *values[:2]),
            ReferenceSet(tensors["voxels"], *values[2:]),
            model,
        )

    def copies(self, images: np.ndarray, vqvae: VQVAE) -> np.ndarray:
        """Return the indices of near-copies among ``(n, *space, channels)``."""
        images = scaled(images, vqvae)
        near = self.invariant.has(self.projection.of(images))
        near |= self.voxels.has(project_randomly(voxels().compute(images)))
        return np.flatnonzero(near)


class CopyReplacer:
    """Generates samples, and replaces copies by samples with indices of their own."""

    def __init__(self, find: Callable[[np.ndarray], np.ndarray], numbers: range):
        self.find = find  # from images to the indices of copies
        self.numbers = numbers
        self.refused = 0

    def generate(
        self, generate: Callable[[list[int], int], np.ndarray], numbers: range
    ) -> tuple[np.ndarray, list[int]]:
        """Return images ``(n, *space, channels)`` without copies, and their indices."""
        places, used = list(range(len(numbers))), list(numbers)
        images = generate(places, numbers.start)
        while (bad := self.find(images[places])).size:
            places = [places[row] for row in bad]
            if self.refused + len(places) > _MAX_REFUSED_PER_SAMPLE * len(self.numbers):
                raise InputError(
                    f"{self.refused} samples for {len(self.numbers)} requested are "
                    "copies of training images: the model has memorised these",
                    "train on more images or for fewer steps",
                )
            first = _FIRST_REPLACEMENT + self.numbers.start * _MAX_REFUSED_PER_SAMPLE
            first += self.refused
            images[places] = generate(places, first)
            for number, place in enumerate(places, first):
                used[place] = number
            self.refused += len(places)
        return images, used
