"""What a training gets: images or volumes, and the options that suit them."""

from collections.abc import Callable
from functools import partial
import math
from typing import NamedTuple

import numpy as np

from dipy_ldm.data import arrays, load_images, load_mnist
from dipy_ldm.data.paths import holds_volumes
from dipy_ldm.data.volumes import conform_volumes, plan_volumes
from dipy_ldm.validation import InputError


class Data(NamedTuple):
    """Images ``(n, *space, channels)``, masks ``(n, *space)`` and the affine.

    Masks and affine are None where there are none.
    """

    images: np.ndarray
    masks: np.ndarray | None = None
    affine: np.ndarray | None = None

    @property
    def shape(self):
        """Shape of all images."""
        return self.images.shape


class Plan(NamedTuple):
    """What the inputs are, before volumes are read.

    ``shape`` is that of all images, ``affine`` is None for images, and
    ``load`` takes the further arguments of
    :func:`dipy_ldm.data.volumes.conform_volumes` and returns the :class:`Data`.
    """

    shape: tuple
    affine: np.ndarray | None
    load: Callable


class Settings(NamedTuple):
    """Options whose default depends on the data."""

    epochs_vqvae: int
    epochs_ldm: int
    steps_vqvae: int | None
    steps_ldm: int | None
    batch_size: int
    widths_vqvae: tuple
    widths_ldm: tuple
    loss: str

    def length(self, stage):
        """Say how long a stage is trained, as its ``fit`` takes it."""
        names = ("epochs", "steps")
        return {name: getattr(self, f"{name}_{stage}") for name in names}


def plan(input_files, **options):
    """Find out what the inputs are: digits, images of one's own, or volumes.

    Of volumes only the headers are read, images are read at once.

    Parameters
    ----------
    input_files : list of str
        What the user gave.
    **options
        As of :func:`dipy_ldm.data.volumes.plan_volumes`.

    Returns
    -------
    Plan
        Shape and affine, and what loads them.

    Raises
    ------
    InputError
        If they can't be read, or an option is not for them.
    """
    if input_files != ["mnist"] and holds_volumes(input_files):
        # In the order of the files, those held out could be all of one site.
        planned = plan_volumes(input_files, shuffle=True, **options)
        return Plan(planned.shape, planned.affine, partial(_load, planned))
    for name, value in options.items():
        if value:
            raise InputError(f"--{name} is for volumes; leave it out for images.")
    mnist = input_files == ["mnist"]
    data = Data(load_mnist("train")[0] if mnist else load_images(input_files))
    return Plan(data.shape, None, lambda **options: data)


def _load(planned, **options):
    volumes = conform_volumes(planned, **options)
    return Data(volumes.images, volumes.masks, volumes.affine)


def count_held_out(data, share, batch_size):
    """Count the images that are held out.

    Parameters
    ----------
    data : Data or Plan
        All images.
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
    n = data.shape[0]
    count = math.ceil(share * n)
    kind = "images" if data.affine is None else "volumes"
    if n - count < batch_size:
        raise InputError(
            f"of {n} {kind}, {n - count} are left to learn from ({count} "
            f"held out to validate), fewer than a batch of {batch_size}; give more "
            f"{kind}, or a smaller --batch_size and --validation."
        )
    return count


def split(data, share, seed, batch_size):
    """Hold a share of the images out.

    Parameters
    ----------
    data : Data
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
    train : Data
        What is left.
    held_out : ndarray or None
        Images.

    Raises
    ------
    InputError
        If too little is left.
    """
    count = count_held_out(data, share, batch_size)
    images, left = data.images, len(data.images) - count
    if data.affine is None:
        order = np.random.default_rng(seed).permutation(len(images))
        # Those held out first, then the others.
        images = images[np.roll(order, -count)]
    masks = None if data.masks is None else data.masks[:left]
    held_out = images[left:] if count else None
    return data._replace(images=images[:left], masks=masks), held_out


def survey(data):
    """Look at volumes for all workers, who find beside them what the chief found.

    Parameters
    ----------
    data : Data
        What is learnt from.
    """
    if data.affine is not None:
        arrays.survey(data.images)


def settle(data, **given):
    """Choose what the user did not.

    Parameters
    ----------
    data : Data or Plan
        What is trained on.
    **given
        The user's settings, None for those to be chosen.

    Returns
    -------
    Settings
        All of them.

    Raises
    ------
    InputError
        If a length is given in epochs and in steps.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if data.affine is None:
        chosen = Settings(5, 10, None, None, 64, (32, 64), (128, 128), "squared")
    else:
        large = max(data.shape[1:4]) > 128
        levels = (32, 64, 128) if large else (32, 64)
        # Steps, since sets of volumes are of very different sizes.
        chosen = Settings(1, 1, 2000, 6000, 4, levels, (64, 128, 256), "spectral")
    for stage in ("vqvae", "ldm"):
        epochs, steps = f"epochs_{stage}", f"steps_{stage}"
        if epochs in given and steps in given:
            raise InputError(f"give --{epochs} or --{steps}, not both.")
        if epochs in given:
            chosen = chosen._replace(**{steps: None})
    return chosen._replace(**given)
