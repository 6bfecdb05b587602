"""A cohort: images, what matters on them and where they are, and parts of it."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple, Self

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import take_rows


class Cohort(NamedTuple):
    """Images ``(n, *space, channels)`` and their metadata.

    Masks ``(n, *space)``, the affine, values of conditions by their names, and the
    subjects, both in the order of the images; each is None where there are none. Units
    of conditions, and what their levels mean, are by the names of the conditions. The
    suffix is BIDS' word for what kind of scans they are, such as T1w. Sources are the
    source images, ``(n, *space, channels)``, and channels say what those of the
    images are, where they have names, and source_channels those of sources.
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

    def take_metadata(self, numbers: Iterable[int]) -> Self:
        """Return the metadata of a subset; arrays stay."""
        numbers = list(numbers)
        subjects = self.subjects and [self.subjects[i] for i in numbers]
        conditions = take_rows(self.conditions, numbers)
        return self._replace(conditions=conditions, subjects=subjects)


def draw_order(subjects: Sequence, seed: int) -> list[int]:
    """Draw an order in which the images of each subject are neighbours."""
    order = np.random.default_rng(seed).permutation(len(subjects)).tolist()
    # One image stands for each subject: the first of many would come too early.
    last = {subject: i for i, subject in enumerate(subjects)}
    place = {subjects[i]: n for n, i in enumerate(order) if last[subjects[i]] == i}
    return sorted(order, key=lambda i: place[subjects[i]])


def split(
    cohort: Cohort, share: float, seed: int, batch_size: int
) -> tuple[Cohort, Cohort | None]:
    """Hold a share of the images out, and with an image all others of its subject.

    Volumes must be in an order of :func:`draw_order`: the last are taken. Drawn again,
    they would have to be copied into memory.
    """
    n, images = len(cohort.images), cohort.images
    subjects = range(n) if cohort.subjects is None else cohort.subjects
    if cohort.affine is None:
        drawn = draw_order(subjects, seed)
        owners = [subjects[i] for i in drawn]
        count = _count_held_out(owners, share, batch_size, "images")
        # Those held out first, then the others.
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
    """Count the first images that are a share of all, of whole subjects."""
    n, count = len(subjects), 0
    for _, images in groupby(subjects):
        if count >= share * n:
            break
        count += len(list(images))
    if n - count < batch_size:
        raise InputError(
            f"of {n} {kind}, {n - count} are left to learn from ({count} held out to "
            f"validate), fewer than a batch of {batch_size}; add {kind}, or lower "
            "`batch_size` or `validation`."
        )
    return count


def _part(cohort, images, order, part):
    """Take a part of images, in their order, with what belongs to them."""
    arrays = {"masks": cohort.masks, "sources": cohort.sources}
    arrays = {name: x if x is None else x[part] for name, x in arrays.items()}
    return cohort.take_metadata(order[part])._replace(images=images[part], **arrays)
