"""Subjects of images, which keep all images of a subject on one side of a split."""

import hashlib
from typing import Any

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import Values, is_many, level_of, listed, values_of


def number_subjects(subjects: Values, n: int, name: str = "subjects") -> np.ndarray:
    """Return the index of each image's subject, ``(n,)``; without subjects, its own."""
    if subjects is None:
        return np.arange(n)
    names = values_of(name, subjects) if is_many(subjects) else []
    if len(names) != n:
        raise InputError(
            f"`{name}` must have a subject for each of {n} images, such as 'sub-01', "
            f"but has {len(names)}",
            "use None if it is unknown",
        )
    numbers: dict[Any, int] = {}
    keys = ((i,) if name is None else name for i, name in enumerate(names))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def number_disjoint(
    train: tuple[int, Any], held_out: tuple[int, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return subject indices of training and held-out images; refuse shared ones."""
    (n, subjects), (n_held_out, held_out_subjects) = train, held_out
    first = number_subjects(subjects, n)
    second = number_subjects(held_out_subjects, n_held_out, "validation_subjects")
    # Compared as text, since categories become text.
    names, held_out_names = (
        {level_of(value) for value in values_of("subjects", s) if value is not None}
        for s in (subjects, held_out_subjects)
    )
    if shared := names & held_out_names:
        raise InputError(
            f"{listed(shared)} are in both `subjects` and `validation_subjects`",
            "leave them out of one",
        )
    return first, second


def refuse_same_subjects(train: Values | None, held_out: Values | None) -> None:
    """Refuse an audit with the same subject in training and held-out images.

    Other scans of training subjects are close to training images, so copies would be no
    closer than held-out images.
    """
    in_both = set() if train is None or held_out is None else {*train} & {*held_out}
    if shared := in_both - {None}:
        raise InputError(
            "training and held-out images share subjects "
            f"({listed(sorted(map(str, shared)))}), which hides copies",
            "leave these out of `held_out` or, if they are different people of the "
            "same name, rename them",
        )


def fingerprint(subjects: np.ndarray) -> str | None:
    """Return a fingerprint of the grouping by subject; None if no images share one."""
    count = len(np.unique(subjects))
    if count == len(subjects):
        return None
    digest = hashlib.sha256(subjects.astype("int64").tobytes()).hexdigest()
    return f"{count} of {len(subjects)} images ({digest[:16]})"


def blocks(subjects: np.ndarray) -> list[np.ndarray]:
    """Group images by subject, in one array ``(subjects, size)`` per group size."""
    _, groups, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    order = np.argsort(groups, kind="stable")
    sizes = counts[groups[order]]
    return [order[sizes == size].reshape(-1, size) for size in np.unique(sizes)]
