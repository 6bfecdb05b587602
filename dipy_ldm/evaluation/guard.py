"""Fingerprints of training images, by which copies of them are known again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm import persistence
from dipy_ldm.evaluation.copies import neighbours
from dipy_ldm.evaluation.evaluate import scaled
from dipy_ldm.evaluation.invariant import Projection
from dipy_ldm.validation import InputError

_KIND = "fingerprints"
# Samples that are refused for each that is wanted, before there is no end to it.
_MOST = 50


class Guard(NamedTuple):
    """What knows copies of training images.

    Parameters
    ----------
    projection : Projection
        From images to features that flips and small motions do not change.
    train : ndarray
        Features of the training images, ``(n, 32)``: no image can be made of them, but
        they tell of an image whether it was there.
    threshold : float
        Nearness of the nearest hundredth of held-out images.
    model : str
        SHA-256 of the file of the model.
    """

    projection: Projection
    train: np.ndarray
    threshold: float
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
            "train": self.train,
        }
        small = {n: np.ascontiguousarray(x, "float32") for n, x in tensors.items()}
        document = {"threshold": self.threshold, "model": self.model}
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
        if document.get("model") != model:
            raise InputError(
                f"{path} has the fingerprints of another model; make them for this one "
                "with dipy_audit_ldm --fingerprints."
            )
        projection = Projection(tensors["mean"], tensors["directions"])
        return cls(projection, tensors["train"], float(document["threshold"]), model)

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
        rows = self.projection.of(scaled(images, vqvae))
        return np.flatnonzero(neighbours(rows, self.train).nearness < self.threshold)


def generate_new(
    generate: Callable[[list[int], int], np.ndarray],
    find: Callable[[np.ndarray], np.ndarray],
    numbers: range,
    spare: int,
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
        If fifty times as many as are wanted were copies.
    """
    places = list(range(len(numbers)))
    images, used = generate(places, numbers.start), list(numbers)
    first = spare
    while (bad := find(images[places])).size:
        places = [places[row] for row in bad]
        if spare + len(places) - first > _MOST * len(numbers):
            raise InputError(
                f"{spare - first} samples in place of {len(numbers)} are copies of "
                "training images: the model knows these by heart; train it on more of "
                "them, or for a shorter time."
            )
        images[places] = generate(places, spare)
        for place in places:
            used[place], spare = spare, spare + 1
    return images, used, spare
