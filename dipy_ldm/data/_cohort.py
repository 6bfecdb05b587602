"""A cohort: images with masks and metadata, and its validation split."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple, Self

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import take_rows


class Cohort(NamedTuple):
    """Images ``(n, *space, channels)`` and their metadata; None where there is none.

    ``masks`` are ``(n, *space)``, ``sources`` ``(n, *space, channels)``. ``conditions``
    (by name) and ``subjects`` are in the order of the images. ``units``, and
    ``meanings`` of levels, are by condition. ``suffix`` is the BIDS suffix, such as
    T1w. ``channels`` and ``source_channels`` are records of named channels.
    """

    images: np.ndarray
    masks: np.ndarray | None = None
    affine: np.ndarray | None = None
    conditions: dict[str, list] | None = None
    subjects: Sequence | None = None
    units: dict[str, str] | None = None
    meanings: dict[str, dict[str, str]] | None = None
    suffix: str | None = None
    sources: np.ndarray | None = None
    channels: Sequence = ()
    source_channels: Sequence = ()

    @property
    def shape(self):
        """Shape of all images."""
        return self.images.shape

    def take_metadata(self, indices: Iterable[int]) -> Self:
        """Return the cohort with the metadata of a subset; arrays stay whole."""
        indices = list(indices)
        subjects = self.subjects and [self.subjects[i] for i in indices]
        conditions = take_rows(self.conditions, indices)
        return self._replace(conditions=conditions, subjects=subjects)


def draw_order(subjects: Sequence, seed: int) -> list[int]:
    """Draw a random order that keeps the images of each subject together."""
    order = np.random.default_rng(seed).permutation(len(subjects)).tolist()
    # One fixed image places each subject: the first drawn would favour large ones.
    last = {subject: i for i, subject in enumerate(subjects)}
    place = {subjects[i]: n for n, i in enumerate(order) if last[subjects[i]] == i}
    return sorted(order, key=lambda i: place[subjects[i]])


def split(
    cohort: Cohort, share: float, seed: int, batch_size: int
) -> tuple[Cohort, Cohort | None]:
    """Hold out a share of the images for validation, by whole subjects.

    Of volumes, the last are taken, so that none is copied into memory: they must be in
    an order of :func:`draw_order`.
    """
    n, images = len(cohort.images), cohort.images
    subjects = range(n) if cohort.subjects is None else cohort.subjects
    if cohort.affine is None:
        drawn = draw_order(subjects, seed)
        owners = [subjects[i] for i in drawn]
        count = _count_held_out(owners, share, batch_size, "images")
        # The first that were drawn are held out, and moved to the end.
        order = np.roll(drawn, -count)
        images = images[order]
    else:
        count = _count_held_out(subjects[::-1], share, batch_size, "volumes")
        order = np.arange(n)
    train = _part(cohort, images, order, slice(n - count))
    if count == 0:
        return train, None
    held_out = _part(cohort, images, order, slice(n - count, None))
    return train, held_out._replace(masks=None)


def _count_held_out(subjects, share, batch_size, kind):
    """Count the first images that make up a share of all, in whole subjects."""
    n, count = len(subjects), 0
    for _, images in groupby(subjects):
        if count >= share * n:
            break
        count += len(list(images))
    if n - count < batch_size:
        raise InputError(
            f"of {n} {kind}, {n - count} remain for training ({count} held out for "
            f"validation), fewer than a batch of {batch_size}",
            f"add {kind}, or lower `batch_size` or `validation`",
        )
    return count


def _part(cohort, images, order, part):
    """Return part of a cohort, whose images were reordered."""
    arrays = {"masks": cohort.masks, "sources": cohort.sources}
    arrays = {name: x if x is None else x[part] for name, x in arrays.items()}
    return cohort.take_metadata(order[part])._replace(images=images[part], **arrays)
