"""Subjects of images: all images of a subject stay on one side of a split."""

import hashlib
from typing import Any

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import is_many, level_of, listed, values_of


def number_subjects(subjects: Any, n: int, name: str = "subjects") -> np.ndarray:
    """Return the number of each image's subject, ``(n,)``."""
    if subjects is None:
        return np.arange(n)
    names = values_of(name, subjects) if is_many(subjects) else []
    if len(names) != n:
        raise InputError(
            f"`{name}` must have a subject for each of {n} images, such as 'sub-01', "
            f"and has {len(names)}; use None where it is unknown."
        )
    numbers: dict[Any, int] = {}
    keys = ((i,) if own is None else own for i, own in enumerate(names))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def number_both(
    learnt: tuple[int, Any], held_out: tuple[int, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers of subjects, of images and of held-out ones, who must differ."""
    sets = ("subjects", *learnt), ("validation_subjects", *held_out)
    first, second = (number_subjects(own, n, name) for name, n, own in sets)
    # Categories have become text.
    names = [
        {level_of(value) for value in values_of(name, own) if value is not None}
        for name, _, own in sets
    ]
    if both := names[0] & names[1]:
        raise InputError(
            f"{listed(both)} are in both `subjects` and "
            "`validation_subjects`; leave them out of one."
        )
    return first, second


def refuse_same_subjects(train: Any, held_out: Any) -> None:
    """Refuse an audit with a subject among training and held-out images.

    Another scan of a training subject is near to it: copies of training images would
    be no nearer than held-out images are.
    """
    first, second = (set() if own is None else set(own) for own in (train, held_out))
    if both := first & second - {None}:
        raise InputError(
            f"training and held-out images are of the same subjects "
            f"({listed(sorted(map(str, both)))}), which hides copies of them; leave "
            "these out of `held_out` or, if they are other people of the same names, "
            "rename them."
        )


def fingerprint(subjects: np.ndarray) -> str | None:
    """Return a fingerprint of which images are of one subject; None if none are."""
    count = len(np.unique(subjects))
    if count == len(subjects):
        return None
    digest = hashlib.sha256(subjects.astype("int64").tobytes()).hexdigest()
    return f"{count} of {len(subjects)} images ({digest[:16]})"


def blocks(subjects: np.ndarray) -> list[np.ndarray]:
    """Gather the images of each subject, as arrays ``(subjects, images of each)``."""
    _, groups, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    order = np.argsort(groups, kind="stable")
    sizes = counts[groups[order]]
    return [order[sizes == size].reshape(-1, size) for size in np.unique(sizes)]
