"""Images that a model is judged by, on its grid and with what is known of them."""

from collections.abc import Sequence
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dipy_ldm.data import load_mnist
from dipy_ldm.data.covariates import read_covariates
from dipy_ldm.data.grid import Grid, same_grid
from dipy_ldm.data.images import read_images
from dipy_ldm.data.paths import holds_volumes, listed_rows
from dipy_ldm.data.volumes import conform_volumes, plan_volumes
from dipy_ldm.validation import InputError
from dipy_ldm.workflows.volumes import known_affine

logger = logging.getLogger(__name__)


class Judged(NamedTuple):
    """Images in a drawn order, and what is to be said of them.

    ``images`` are ``(n, *space, channels)``, ``names`` say from where each is,
    ``files`` has the file of each or is None for packaged images, ``conditions`` the
    values of the model's conditions (None where they are not known), and ``notes`` are
    sentences.
    """

    images: np.ndarray
    names: list[str]
    files: list[Path] | None
    conditions: dict[str, list] | None
    notes: list[str]


def read_for(
    document: dict,
    paths: Sequence[str | Path] | None,
    option: str,
    *,
    split: str = "test",
    channels: bool = False,
) -> Judged:
    """Read images for a model.

    Parameters
    ----------
    document : dict
        What the model's file says.
    paths : sequence of str or Path or None
        What the user gave: files, or the word ``mnist``.
    option : str
        Name of the parameter that they are from.
    split : {"train", "test"}
        Which digits the word stands for.
    channels : bool
        Whether a fourth axis of volumes is one of channels.

    Returns
    -------
    Judged
        The images.

    Raises
    ------
    InputError
        If there are none, they can't be read, or are not for the model.
    """
    if not paths:
        raise InputError(f"give images to compare with: `{option}`.")
    paths = [str(path) for path in paths]
    of_volumes = len(document["shape"]) == 4
    if paths == ["mnist"] and not of_volumes:
        return _digits(document, split)
    listed_rows(paths)  # says what is not there
    if holds_volumes(paths) != of_volumes:
        kinds = "two-dimensional images", "volumes"
        raise InputError(
            f"the model is of {kinds[of_volumes]}, and `{option}` has "
            f"{kinds[not of_volumes]}; give files like those that it learnt from."
        )
    if of_volumes:
        return _volumes(document, paths, option, channels)
    return _images(document, paths, option)


def _digits(document, split):
    images, labels = load_mnist(split)
    _check_shape(document, images, "mnist")
    order = np.random.default_rng(0).permutation(len(images))
    known = {"label": labels[order].tolist()}
    conditions = known if document["conditions"].keys() == known.keys() else None
    names = [f"MNIST, {split} digit {i}" for i in order]
    return Judged(images[order], names, None, conditions, [])


def _images(document, paths, option):
    images, files = read_images(paths)
    _check_shape(document, images, f"`{option}`")
    order = np.random.default_rng(0).permutation(len(images))
    counts: dict[Path, int] = {}
    names = []
    for file in files:
        counts[file] = counts.get(file, -1) + 1
        names.append(f"{file.name}, image {counts[file]}")
    found = [files[i] for i in order]
    conditions, notes = _conditions(document, found, paths)
    return Judged(images[order], [names[i] for i in order], found, conditions, notes)


def _check_shape(document, images, option):
    shape = tuple(document["shape"])
    if images.shape[1:] != shape:
        raise InputError(
            f"the model is of images of shape {shape}, and those of {option} have "
            f"{images.shape[1:]}; give images like those that it learnt from."
        )


def _volumes(document, paths, option, channels):
    shape = document["shape"]
    grid = Grid(tuple(shape[:3]), known_affine(document["affine"]))
    plan = plan_volumes(paths, grid=grid, channels=channels, shuffle=True)
    found = plan.infos[0].channels
    if found != shape[3]:
        raise InputError(
            f"the model is of {shape[3]} channels, and the volumes of `{option}` have "
            f"{found}; give files like those that it learnt from."
        )
    other = [
        info
        for info in plan.infos
        if not same_grid(info.shape[:3], info.affine, grid.shape, grid.affine)
    ]
    notes = []
    if other:
        size = " x ".join(map(str, grid.shape))
        notes.append(
            f"{len(other)} of {len(plan.infos)} volumes of --{option} were on other "
            f"grids than the model's ({size}), and were brought to it."
        )
        logger.info("%s", notes[0])
    volumes = conform_volumes(plan, verbose=True)
    conditions, further = _conditions(document, volumes.files, paths)
    names = [Path(file).name for file in volumes.files]
    files = [Path(file) for file in volumes.files]
    return Judged(volumes.images, names, files, conditions, notes + further)


def _conditions(document, files, paths):
    """Look up the model's conditions in the tables around files."""
    names = list(document["conditions"])
    if not names:
        return None, []
    try:
        listed = listed_rows(paths)
        return read_covariates(names, files, listed).values, []
    except InputError as error:
        note = f"The conditions of the model are not known of the real images ({error})"
        return None, [note]
