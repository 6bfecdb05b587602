"""Fingerprints of training images, by which copies of them are known again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm import _serialization as persistence
from dipy_ldm._utils.checks import InputError
from dipy_ldm.evaluation._learned_features import Projection
from dipy_ldm.evaluation._memorization import CLOSE, neighbours, separation
from dipy_ldm.evaluation.evaluate import scaled
from dipy_ldm.evaluation.features import voxels

_KIND = "fingerprints"
# Samples that are refused for each that is wanted, before there is no end to it.
_MOST = 50
# Samples are refused that are nearer than this share of the held-out images.
QUANTILE = 0.05
# Numbers that are kept of the voxels, and what the sums are drawn from.
_KEPT, _SEED = 64, 20261126


def sketch(rows: np.ndarray) -> np.ndarray:
    """Take random sums of voxels, which keep distances and no image.

    By the lemma of Johnson and Lindenstrauss distances of 64 sums are those of all
    voxels, but for a tenth or so.

    Parameters
    ----------
    rows : ndarray
        Voxels, ``(n, voxels)``.

    Returns
    -------
    ndarray
        ``(n, 64)``, or all voxels if there are fewer.
    """
    size = rows.shape[1]
    if size <= _KEPT:
        return rows
    drawn = np.random.default_rng(_SEED).standard_normal((size, _KEPT), "float32")
    return rows @ (drawn / np.float32(_KEPT**0.5))


class Known(NamedTuple):
    """Features of the training images, and the nearness below which a sample is one.

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
        """Say of which images the features are too near to one of these."""
        near = neighbours(rows, self.train, self.apart)
        return (near.nearness < self.threshold) | (near.distance < CLOSE * self.apart)


class Guard(NamedTuple):
    """What knows copies of training images.

    Parameters
    ----------
    projection : Projection
        From images to features that flips and small motions do not change.
    invariant : Known
        What is known in these, 32 numbers of each training image.
    voxels : Known
        What is known by 64 sums of the voxels of each. No image can be made of these
        numbers, but they tell of an image whether it was there.
    model : str
        SHA-256 of the file of the model.
    """

    projection: Projection
    invariant: Known
    voxels: Known
    model: str

    def save(self, path: str | Path) -> None:
        """Write the fingerprints to a file.

        Parameters
        ----------
        path : str or Path
            File to write.

        Raises
        ------
        OSError
            If it can't be written.
        """
        tensors = {
            "mean": self.projection.mean,
            "directions": self.projection.directions,
            "train": self.invariant.train,
            "voxels": self.voxels.train,
        }
        small = {n: np.ascontiguousarray(x, "float32") for n, x in tensors.items()}
        document = {
            "threshold": self.invariant.threshold,
            "threshold_voxels": self.voxels.threshold,
            "apart": self.invariant.apart,
            "apart_voxels": self.voxels.apart,
            "model": self.model,
        }
        persistence.save(path, _KIND, small, document)

    @classmethod
    def load(cls, path: str | Path, model: str) -> Self:
        """Read fingerprints.

        Parameters
        ----------
        path : str or Path
            File that ``dipy_audit_ldm --fingerprints`` wrote.
        model : str
            SHA-256 of the model that generates.

        Returns
        -------
        Guard
            The fingerprints.

        Raises
        ------
        InputError
            If they are not there, or of another model.
        """
        tensors, document = persistence.load(path, _KIND)
        thresholds = {"threshold", "threshold_voxels"}
        if document.get("model") != model or not thresholds <= document.keys():
            raise InputError(
                f"{path} has the fingerprints of another model; make them for this one "
                "with dipy_audit_ldm --fingerprints."
            )
        return cls(
            Projection(tensors["mean"], tensors["directions"]),
            _known(tensors["train"], document, ""),
            _known(tensors["voxels"], document, "_voxels"),
            model,
        )

    def copies(self, images: np.ndarray, vqvae: Any) -> np.ndarray:
        """Say which images are too near to a training image.

        Parameters
        ----------
        images : ndarray
            ``(n, *space, channels)``, in the range of the training images.
        vqvae : VQVAE
            It knows that range.

        Returns
        -------
        ndarray of int
            Their rows.
        """
        images = scaled(images, vqvae)
        near = self.invariant.has(self.projection.of(images))
        near |= self.voxels.has(sketch(voxels().compute(images)))
        return np.flatnonzero(near)


def _known(train, document, end):
    """Read features and their thresholds; older files have no distance."""
    limits = document[f"threshold{end}"], document.get(f"apart{end}", 0)
    return Known(train, *map(float, limits))


def generate_new(
    generate: Callable[[list[int], int], np.ndarray],
    find: Callable[[np.ndarray], np.ndarray],
    numbers: range,
    spare: int,
    whole: range | None = None,
) -> tuple[np.ndarray, list[int], int]:
    """Generate images, and those anew that are copies.

    Parameters
    ----------
    generate : callable
        From places in ``numbers``, and the number of the first sample, to images. One
        that is made anew has the conditions of its place, and another number.
    find : callable
        From images to the rows of copies.
    numbers : range
        Of the samples.
    spare : int
        The first of the numbers that are used instead.
    whole : range, optional
        All samples that are wanted, of which these are some: fifty times as many may
        be refused, whose numbers follow on theirs. None is for no others.

    Returns
    -------
    images : ndarray
        ``(n, *space, channels)``.
    used : list of int
        Their numbers.
    spare : int
        The first number that was not used.

    Raises
    ------
    InputError
        If more were copies.
    """
    places = list(range(len(numbers)))
    images, used = generate(places, numbers.start), list(numbers)
    first, wanted = (whole.stop, len(whole)) if whole else (spare, len(numbers))
    while (bad := find(images[places])).size:
        places = [places[row] for row in bad]
        if spare + len(places) - first > _MOST * wanted:
            raise InputError(
                f"{spare - first} samples in place of {wanted} are copies of "
                "training images: the model knows these by heart; train it on more of "
                "them, or for a shorter time."
            )
        images[places] = generate(places, spare)
        for place in places:
            used[place], spare = spare, spare + 1
    return images, used, spare
