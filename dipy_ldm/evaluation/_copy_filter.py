"""Fingerprints of training images, by which copies of them are known again."""

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
# Samples that are refused for each that is wanted, before there is no end to it.
_MAX_REFUSED_PER_SAMPLE = 50
# Number from which on samples in place of copies are counted.
_FIRST_NEW = 10**9
# Samples are refused that are nearer than this share of the held-out images.
QUANTILE = 0.05
# Numbers that are kept of the voxels, and what the sums are drawn from.
_PROJECTIONS, _SEED = 64, 20261126


def project_randomly(rows: np.ndarray) -> np.ndarray:
    """Project voxels randomly to ``(n, 64)``, which keeps distances but no image.

    By the lemma of Johnson and Lindenstrauss distances of 64 sums are those of all
    voxels, but for a tenth or so.
    """
    size = rows.shape[1]
    if size <= _PROJECTIONS:
        return rows
    rng = np.random.default_rng(_SEED)
    drawn = rng.standard_normal((size, _PROJECTIONS), "float32")
    return rows @ (drawn / np.float32(_PROJECTIONS**0.5))


class ReferenceSet(NamedTuple):
    """Features of training images, and the ratio below which a sample is a copy.

    ``train`` is ``(n, features)``, and ``apart`` the distance below which two training
    images count as one.
    """

    train: np.ndarray
    threshold: float
    apart: float

    @classmethod
    def of(cls, train: np.ndarray, held_out: np.ndarray) -> Self:
        """Choose the thresholds by the features of held-out images."""
        apart = separation(train, held_out)
        nearness = neighbours(held_out, train, apart).nearness
        return cls(train, float(np.quantile(nearness, QUANTILE)), apart)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Return which images are too near to one of these."""
        near = neighbours(rows, self.train, self.apart)
        equal = near.distance < COPY_RATIO * self.apart
        return (near.nearness < self.threshold) | equal


class CopyFilter(NamedTuple):
    """What knows copies of training images."""

    projection: Projection
    invariant: ReferenceSet
    voxels: ReferenceSet
    model: str

    def save(self, path: str | Path) -> None:
        """Write the fingerprints to a file."""
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
            document[f"apart{kind}"] = own.apart
        _serialization.save(path, _KIND, small, document)

    @classmethod
    def load(cls, path: str | Path, model: str) -> Self:
        """Read fingerprints."""
        tensors, document = _serialization.load(path, _KIND)
        limits = "threshold", "apart", "threshold_voxels", "apart_voxels"
        if document.get("model") != model or not document.keys() >= set(limits):
            raise InputError(
                f"{path} has the fingerprints of another model; make them for this one "
                "with dipy_audit_ldm --fingerprints."
            )
        values = [float(document[name]) for name in limits]
        return cls(
            Projection(tensors["mean"], tensors["directions"]),
            ReferenceSet(tensors["train"], *values[:2]),
            ReferenceSet(tensors["voxels"], *values[2:]),
            model,
        )

    def copies(self, images: np.ndarray, vqvae: VQVAE) -> np.ndarray:
        """Return which of the images ``(n, *space, channels)`` are near-copies."""
        images = scaled(images, vqvae)
        near = self.invariant.has(self.projection.of(images))
        near |= self.voxels.has(project_randomly(voxels().compute(images)))
        return np.flatnonzero(near)


class CopyReplacer:
    """Generates samples, and others in place of copies.

    These have numbers that no other part of the same set has.
    """

    def __init__(self, find: Callable[[np.ndarray], np.ndarray], numbers: range):
        self.find = find  # from images to the rows of copies
        self.numbers = numbers
        self.refused = 0

    def generate(
        self, generate: Callable[[list[int], int], np.ndarray], numbers: range
    ) -> tuple[np.ndarray, list[int]]:
        """Generate images ``(n, *space, channels)``; return their numbers, too."""
        places, used = list(range(len(numbers))), list(numbers)
        images = generate(places, numbers.start)
        while (bad := self.find(images[places])).size:
            places = [places[row] for row in bad]
            if self.refused + len(places) > _MAX_REFUSED_PER_SAMPLE * len(self.numbers):
                raise InputError(
                    f"{self.refused} samples in place of {len(self.numbers)} are "
                    "copies of training images: the model has memorised these; use "
                    "more images or fewer steps."
                )
            first = _FIRST_NEW + self.numbers.start * _MAX_REFUSED_PER_SAMPLE
            first += self.refused
            images[places] = generate(places, first)
            for number, place in enumerate(places, first):
                used[place] = number
            self.refused += len(places)
        return images, used
