"""Validate and summarise image arrays."""

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

# Of two-dimensional images: RGB and transparency.
_MAX_USUAL_CHANNELS = 4
_CHUNK_VALUES = 2**17
# Share of an image that may lie outside a model's range by more than the margin, in
# widths of the range, which allows for noise and interpolation.
_MAX_SHARE_OUTSIDE, _MARGIN = 0.01, 0.25
# Share of a model's range below which images have another scale, as after / 255.
_MIN_SHARE_OF_RANGE = 0.02


def as_array(images: npt.ArrayLike, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return images as an array ``(n, *space, channels)``, or refuse them.

    If the shape of each, ``(*space, channels)``, is known, they have as many axes.
    """
    images = np.asarray(images)
    # Never one-dimensional: two-dimensional images without channels look like it.
    ranks = (2, 3) if shape is None else (len(shape) - 1,)
    if images.ndim - 2 not in ranks or 0 in images.shape:
        space = " or ".join({2: "h, w", 3: "x, y, z"}[r] for r in ranks)
        raise InputError(
            f"images must have the shape (n, {space}, channels), not "
            f"{images.shape}{_cure(images.shape, shape)}"
        )
    if images.dtype.kind not in "biuf":
        raise InputError(f"images must be real numbers, not {images.dtype}")
    return images


def refuse_masked(images: object, name: str = "images") -> None:
    """Refuse an array, or a list of arrays, with masked values."""
    if any(map(np.ma.is_masked, images if isinstance(images, list) else [images])):
        raise InputError(
            f"there are masked values in {name}, whose masks would be lost",
            "replace them, with .filled(0) say",
        )


def _cure(got: tuple[int, ...], shape: tuple[int, ...] | None):
    """Return how to add a missing axis of channels or images."""
    if shape is None or len(got) == len(shape) and got[-1] != shape[-1]:
        return "; add the channels with images[..., None]"
    hints = {len(shape): "images[None]", len(shape) - 1: "images[None, ..., None]"}
    return f"; give one image as {hints[len(got)]}" if len(got) in hints else ""


def warn_of_channels(shape: tuple[int, ...]) -> None:
    """Warn of images with so many channels that they may be volumes without them."""
    n, *space, channels = shape
    if len(space) == 2 and channels > _MAX_USUAL_CHANNELS:
        text = (
            "images of shape %s are treated as %d two-dimensional images of %d x %d "
            "pixels with %d channels; if they are volumes, give images[..., None]."
        )
        height, width = space
        logger.warning(text, shape, n, height, width, channels)


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
    """Return statistics of images ``(n, *space, channels)``, read in chunks.

    Those of cached volumes are saved beside them: training, resuming and every worker
    need them.
    """
    file = cache.path_beside(images, "survey")
    if file is not None:
        with suppress(OSError, ValueError, TypeError):
            return Survey(**json.loads(file.read_text("utf-8")))
    result = _compute_survey(images, name, verbose)
    if file is not None:
        # A cache of another user may be read-only.
        with suppress(OSError), replacing(file) as partial:
            partial.write_text(json.dumps(result._asdict()), "utf-8")
    return result


def identify(images: np.ndarray | None) -> str | None:
    """Return shape and fingerprint of images; None if there are none."""
    if images is None:
        return None
    return f"{images.shape} ({survey(images).fingerprint[:16]})"


def _compute_survey(images: np.ndarray, name: str, verbose: bool):
    digest = hashlib.sha256(str(images.shape).encode())
    total, square = np.zeros(images.shape[1:]), 0.0
    low, high, bad = np.inf, -np.inf, []
    # Several small images at once, as each call of NumPy has an overhead.
    chunk_size = max(1, _CHUNK_VALUES // total.size)
    with tqdm(total=len(images), desc="survey", disable=not verbose) as progress:
        for first in range(0, len(images), chunk_size):
            chunk = np.ascontiguousarray(images[first : first + chunk_size], "float32")
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
            f"{name}s do)",
            "remove or replace them",
        )
    n = len(images)
    mean = total / n
    square /= images.size
    # As of new images: around their own mean, the squared deviation of images is
    # (n - 1) / n of the variance; that of new images is (n + 1) / n.
    spread = (square - np.square(mean).mean()) * (n + 1) / max(n - 1, 1)
    variance = square - mean.mean() ** 2
    return Survey(digest.hexdigest(), *map(float, (low, high, variance, spread)))


def trainable_survey(images: np.ndarray, name: str = "image") -> Survey:
    """Return statistics of images, or refuse those that can't be learnt."""
    summary = survey(images, name)
    if summary.low == summary.high:
        raise InputError(
            f"all {name}s are constant ({summary.low:g})", "check how they were read"
        )
    if max(-summary.low, summary.high) > MAX_ABSOLUTE_VALUE:
        raise InputError(
            f"{name}s have intensities from {summary.low:g} to {summary.high:g}, "
            f"beyond {MAX_ABSOLUTE_VALUE:g}",
            "scale them down",
        )
    return summary


def check_finite(
    images: np.ndarray, numbers: Sequence[int] | np.ndarray, name: str = "image"
) -> None:
    """Refuse images ``(n, *space, channels)`` with NaN or infinite values."""
    good = np.isfinite(images).all(tuple(range(1, images.ndim)))
    if not good.all():
        raise InputError(
            f"{name} {numbers[good.argmin()]} has NaN or infinite values",
            "remove or replace them",
        )


def check_range(
    images: np.ndarray,
    bounds: Sequence[float],
    numbers: Sequence[int] | np.ndarray,
    name: str = "image",
) -> None:
    """Refuse images ``(n, *space, channels)`` on another scale than in training."""
    check_finite(images, numbers, name)
    low, high = bounds
    margin = _MARGIN * (high - low or 1)
    outside = (images < low - margin) | (images > high + margin)
    shares = outside.mean(tuple(range(1, images.ndim)))
    if shares.max(initial=0) > _MAX_SHARE_OUTSIDE:
        i = int(shares.argmax())
        raise InputError(
            f"{name} {numbers[i]} has values from {images[i].min():g} to "
            f"{images[i].max():g}, {shares[i]:.0%} of them outside the {low:g} to "
            f"{high:g} that the model was fitted to",
            f"scale {name}s like those of the training, or clip them with "
            f"np.clip(images, {low:g}, {high:g})",
        )


def check_ranges(images: np.ndarray, bounds: Sequence[float], name: str) -> None:
    """Refuse images on another scale; they are read one by one, to save memory."""
    for number, image in enumerate(images):
        check_range(image[None], bounds, [number], name)


def warn_of_small_values(images: np.ndarray, bounds: Sequence[float]) -> None:
    """Warn of images ``(n, *space, channels)`` in a tiny part of a model's range."""
    (low, high), lowest, highest = bounds, float(images.min()), float(images.max())
    # Empty images have no scale.
    if 0 < highest - lowest < _MIN_SHARE_OF_RANGE * (high - low):
        text = "images have values from %g to %g only, and the model was fitted to %g "
        text += "to %g; scale them like those of the training."
        logger.warning(text, lowest, highest, low, high)


def validated_images(
    images: npt.ArrayLike,
    shape: Sequence[int],
    whose: str = "that the autoencoder was fitted to",
    name: str = "images",
) -> np.ndarray:
    """Return images as an array, or refuse another shape ``(*space, channels)``."""
    images = as_array(images, tuple(shape))
    if images.shape[1:] != tuple(shape):
        raise InputError(
            f"{name} must have the shape {('n', *shape)} {whose}, not {images.shape}"
        )
    return images


def check_channels(name: str, array: npt.ArrayLike, channels: int) -> None:
    """Refuse ``(n, *space, channels)`` with another number of channels."""
    if np.shape(array)[-1:] != (channels,):
        raise InputError(
            f"{name} must have {channels} channels along the last axis, not the shape "
            f"{np.shape(array)}"
        )


def validated_latents(
    latents: npt.ArrayLike, shape: tuple[int, ...], space: tuple[int, ...]
) -> np.ndarray:
    """Return latents ``(n, *shape)``, or refuse those that can't be decoded."""
    latents = np.asarray(latents)
    if len(latents) == 0 or latents.shape[1:] != shape:
        raise InputError(
            f"latents of images of the size {space} have the shape {('n', *shape)}, "
            f"not {latents.shape}",
            "give what encode returned, and the size of the images",
        )
    if not np.isfinite(latents).all():
        raise InputError("latents have NaN or infinite values", "encode them again")
    return latents


def validated_held_out(images: npt.ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Return held-out images ``(n, *space, channels)``, or refuse them."""
    images = validated_images(images, shape[1:], "of the images", "validation_data")
    survey(images, "validation image")
    return images


def validated_masks(
    masks: npt.ArrayLike | None, background: float, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Return masks ``(n, *space)`` as ``(n, *space, 1)``, or refuse them."""
    check_shares(background=background)
    if masks is None:
        return None
    if np.shape(masks) != shape:
        raise InputError(
            f"masks must have the shape {shape} of the images, not {np.shape(masks)}"
        )
    if background == 1:
        raise InputError(
            "masks have no effect with a background of 1", "lower it, to 0.1 say"
        )
    return np.asarray(masks)[..., None]
