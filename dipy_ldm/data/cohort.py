"""A cohort: images, what matters on them and where they are, and parts of it."""

import math
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm.validation import InputError


class Cohort(NamedTuple):
    """Images ``(n, *space, channels)``, and what is known of them.

    Masks ``(n, *space)``, the affine, and values of conditions by their names, in the
    order of the images; each is None where there are none.
    """

    images: np.ndarray
    masks: np.ndarray | None = None
    affine: np.ndarray | None = None
    conditions: dict[str, list] | None = None

    @property
    def shape(self):
        """Shape of all images."""
        return self.images.shape


def count_held_out(cohort: Any, share: float, batch_size: int) -> int:
    """Count the images that are held out.

    Parameters
    ----------
    cohort : Cohort or Plan
        All images, or what knows their shape and affine.
    share : float
        From 0 to below 1; at least one is held out if any.
    batch_size : int
        That what is left must suffice for.

    Returns
    -------
    int
        Number of images.

    Raises
    ------
    InputError
        If too little is left.
    """
    n = cohort.shape[0]
    count = math.ceil(share * n)
    kind = "images" if cohort.affine is None else "volumes"
    if n - count < batch_size:
        raise InputError(
            f"of {n} {kind}, {n - count} are left to learn from ({count} "
            f"held out to validate), fewer than a batch of {batch_size}; give more "
            f"{kind}, or a smaller `batch_size` and `validation`."
        )
    return count


def split(
    cohort: Cohort, share: float, seed: int, batch_size: int
) -> tuple[Cohort, Cohort | None]:
    """Hold a share of the images out.

    Parameters
    ----------
    cohort : Cohort
        All images.
    share : float
        As of :func:`count_held_out`.
    seed : int
        Of the draw. Volumes are in an order drawn at random, and the last are
        taken: drawn anew, they would have to be copied into memory.
    batch_size : int
        That what is left must suffice for.

    Returns
    -------
    train : Cohort
        What is left.
    held_out : Cohort or None
        What is held out, without masks.

    Raises
    ------
    InputError
        If too little is left.
    """
    count = count_held_out(cohort, share, batch_size)
    images, order = cohort.images, np.arange(len(cohort.images))
    if cohort.affine is None:
        order = np.random.default_rng(seed).permutation(len(images))
        # Those held out first, then the others.
        order = np.roll(order, -count)
        images = images[order]
    left = len(images) - count

    def known_of(numbers):
        return cohort.conditions and {
            name: [values[number] for number in numbers]
            for name, values in cohort.conditions.items()
        }

    masks = None if cohort.masks is None else cohort.masks[:left]
    train = cohort._replace(
        images=images[:left], masks=masks, conditions=known_of(order[:left])
    )
    if count == 0:
        return train, None
    return train, Cohort(images[left:], None, cohort.affine, known_of(order[left:]))
