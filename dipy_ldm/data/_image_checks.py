"""Arrays of images: what they must be, and what is to be known of them."""

from collections.abc import Sequence
from contextlib import suppress
import hashlib
import json
import logging
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import MAX_ABSOLUTE_VALUE, InputError, check_shares
from dipy_ldm._utils.files import replacing
from dipy_ldm._utils.progress import tqdm
from dipy_ldm.data import _cache as cache

logger = logging.getLogger(__name__)

# Of two-dimensional images: three of colours, and transparency.
_MAX_USUAL_CHANNELS = 4
# Values that are looked at together.
_CHUNK_VALUES = 2**17
# Share of an image that may lie outside of a model's range, and how far beyond it, in
# widths of the range, values may lie without being counted: noise and interpolation do.
_MAX_SHARE_OUTSIDE, _MARGIN = 0.01, 0.25


def as_array(images: npt.ArrayLike, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return images ``(n, *space, channels)``, or raise why they are invalid.

    Where the shape of each, ``(*space, channels)``, is known, they have as many axes.
    """
    images = np.asarray(images)
    # One dimension is refused: two-dimensional images without channels look like it.
    ranks = (2, 3) if shape is None else (len(shape) - 1,)
    if images.ndim - 2 not in ranks or 0 in images.shape:
        space = " or ".join({2: "h, w", 3: "x, y, z"}[r] for r in ranks)
        raise InputError(
            f"images must have the shape (n, {space}, channels), not {images.shape}"
            f"{_cure(images.shape, shape)}."
        )
    if images.dtype.kind not in "biuf":
        raise InputError(f"images must be real numbers, not {images.dtype}.")
    return images


def _cure(got, shape):
    """Say how missing axes are added: those of channels, or of one image alone."""
    if shape is None or len(got) == len(shape) and got[-1] != shape[-1]:
        return "; add the channels with images[..., None]"
    alone = {len(shape): "images[None]", len(shape) - 1: "images[None, ..., None]"}
    return f"; give one image as {alone[len(got)]}" if len(got) in alone else ""


def warn_of_channels(shape: tuple[int, ...]) -> None:
    """Warn of images with so many channels that they may be volumes without any."""
    n, *space, channels = shape
    if len(space) == 2 and channels > _MAX_USUAL_CHANNELS:
        text = (
            "images of shape %s are taken for %d two-dimensional images of %d x %d "
            "pixels with %d channels; if they are volumes, give images[..., None]."
        )
        logger.warning(text, shape, n, *space, channels)


class Survey(NamedTuple):
    """Statistics of images that training needs."""

    fingerprint: str
    low: float
    high: float
    variance: float
    spread: float

    @property
    def scale(self):
        """From the lowest to the highest value; 1 if they are the same."""
        return self.high - self.low or 1.0


def survey(images: np.ndarray, name: str = "image", verbose: bool = False) -> Survey:
    """Compute statistics of images ``(n, *space, channels)``, one image at a time.

    What is found of volumes that are kept in the cache is kept beside them: they may
    be thousands, and training, resuming and every worker ask for it.
    """
    file = cache.name_beside(images, "survey")
    if file is not None:
        with suppress(OSError, ValueError, TypeError):
            return Survey(**json.loads(file.read_text("utf-8")))
    result = _look(images, name, verbose)
    if file is not None:
        # What belongs to others may be used, and not changed.
        with suppress(OSError), replacing(file) as partial:
            partial.write_text(json.dumps(result._asdict()), "utf-8")
    return result


def identify(images: np.ndarray | None) -> str | None:
    """Return shape and fingerprint of images; None if there are none."""
    if images is None:
        return None
    return f"{images.shape} ({survey(images).fingerprint[:16]})"


def _look(images, name, verbose):
    digest = hashlib.sha256(str(images.shape).encode())
    total, square = np.zeros(images.shape[1:]), 0.0
    low, high, bad = np.inf, -np.inf, []
    # Small ones together: each call of numpy has a price of its own.
    together = max(1, _CHUNK_VALUES // total.size)
    with tqdm(total=len(images), desc="survey", disable=not verbose) as progress:
        for first in range(0, len(images), together):
            chunk = np.ascontiguousarray(images[first : first + together], "float32")
            progress.update(len(chunk))
            digest.update(chunk.data)
            lowest, highest = chunk.min(), chunk.max()
            if not np.isfinite([lowest, highest]).all():
                finite = np.isfinite(chunk.reshape(len(chunk), -1)).all(1)
                bad += [first + int(i) for i in np.flatnonzero(~finite)]
                continue
            total += chunk.sum(0, dtype="float64")
            square += np.square(chunk, dtype="float64").sum()
            low, high = min(low, lowest), max(high, highest)
    if bad:
        raise InputError(
            f"{name} {bad[0]} has NaN or infinite values ({len(bad)} of {len(images)} "
            f"{name}s have); remove or replace them."
        )
    n = len(images)
    mean = total / n
    square /= images.size
    # By the images themselves the mean is found too near to them: (n - 1) / n of the
    # variance away instead of (n + 1) / n.
    spread = (square - np.square(mean).mean()) * (n + 1) / max(n - 1, 1)
    variance = square - mean.mean() ** 2
    return Survey(digest.hexdigest(), *map(float, (low, high, variance, spread)))


def check_trainable(images: np.ndarray, name: str = "image") -> Survey:
    """Survey images, and refuse those of which nothing can be learnt."""
    summary = survey(images, name)
    if summary.low == summary.high:
        raise InputError(
            f"all values of all {name}s are {summary.low:g}, and there is nothing to "
            "learn; look at how they were read."
        )
    if max(-summary.low, summary.high) > MAX_ABSOLUTE_VALUE:
        raise InputError(
            f"{name}s have intensities from {summary.low:g} to {summary.high:g}, "
            f"beyond {MAX_ABSOLUTE_VALUE:g}; divide them by a number."
        )
    return summary


def check_finite(
    images: np.ndarray, numbers: Sequence[int] | range, name: str = "image"
) -> np.ndarray:
    """Refuse images ``(n, *space, channels)`` that are not finite."""
    good = np.isfinite(images).all(tuple(range(1, images.ndim)))
    if not good.all():
        raise InputError(
            f"{name} {numbers[good.argmin()]} has NaN or infinite values; remove or "
            "replace them."
        )
    return images


def check_range(
    images: np.ndarray,
    bounds: Sequence[float],
    numbers: Sequence[int] | range,
    name: str = "image",
) -> np.ndarray:
    """Refuse ``(n, *space, channels)`` on another scale than the training images."""
    check_finite(images, numbers, name)
    low, high = bounds
    margin = _MARGIN * (high - low or 1)
    outside = (images < low - margin) | (images > high + margin)
    shares = outside.mean(tuple(range(1, images.ndim)))
    if shares.max(initial=0) > _MAX_SHARE_OUTSIDE:
        i = int(shares.argmax())
        raise InputError(
            f"{name} {numbers[i]} has values from {images[i].min():g} to "
            f"{images[i].max():g}, {shares[i]:.0%} of them outside of the {low:g} to "
            f"{high:g} that the model was fitted to; scale {name}s as those of the "
            f"training were, or clip them with np.clip(images, {low:g}, {high:g})."
        )
    return images


def check_ranges(images: np.ndarray, bounds: Sequence[float], name: str) -> None:
    """Refuse images on another scale, one by one: a file may exceed the memory."""
    for number, image in enumerate(images):
        check_range(image[None], bounds, [number], name)


def as_fitted(
    images: npt.ArrayLike,
    shape: Sequence[int],
    whose: str = "that the autoencoder was fitted to",
    name: str = "images",
) -> np.ndarray:
    """Return images as an array, if each has a known shape, ``(*space, channels)``."""
    images = as_array(images, tuple(shape))
    if images.shape[1:] != tuple(shape):
        raise InputError(
            f"{name} must have the shape {('n', *shape)} {whose}, not {images.shape}."
        )
    return images


def check_channels(name: str, array: npt.ArrayLike, channels: int) -> None:
    """Refuse ``(n, *space, channels)`` of other channels than an autoencoder knows."""
    if np.shape(array)[-1:] != (channels,):
        raise InputError(
            f"{name} must have {channels} channels, along the last axis, not the shape "
            f"{np.shape(array)}."
        )


def check_latents(
    latents: npt.ArrayLike, shape: tuple[int, ...], space: tuple[int, ...]
) -> np.ndarray:
    """Return latents ``(n, *shape)``, or raise why they can't be decoded."""
    latents = np.asarray(latents)
    if len(latents) == 0 or latents.shape[1:] != shape:
        raise InputError(
            f"latents of images of the size {space} have the shape {('n', *shape)}, "
            f"not {latents.shape}; give what encode returned, and the size of the "
            "images."
        )
    if not np.isfinite(latents).all():
        raise InputError("latents have NaN or infinite values; encode them again.")
    return latents


def check_validation(images: npt.ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Return held-out ``(n, *space, channels)``, or raise why they are invalid."""
    images = as_fitted(images, shape[1:], "of the images", "validation_data")
    survey(images, "validation image")
    return images


def check_masks(
    masks: npt.ArrayLike | None, background: float, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Return masks ``(n, *space, 1)``, or raise why ``(n, *space)`` are invalid."""
    check_shares(background=background)
    if masks is None:
        return None
    if np.shape(masks) != shape:
        raise InputError(
            f"masks must have the shape {shape} of the images, not {np.shape(masks)}."
        )
    if background == 1:
        raise InputError(
            "masks make no difference with a background of 1; lower it, to 0.1 say."
        )
    return np.asarray(masks)[..., None]
