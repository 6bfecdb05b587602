"""Validation of an autoencoder: its figures, and what is wrong with it."""

import math
from typing import Any

import numpy as np

from dipy_ldm import _backend
from dipy_ldm._utils import tiling as tiles
from dipy_ldm.autoencoder import _sharpening as sharpening
from dipy_ldm.data._checks import Survey
from dipy_ldm.metrics import detail_correlation

# With less perplexity all latents have one code, and nearly so with little more.
MIN_PERPLEXITY = 1.5
# Voxels that are measured at once: so few that the training before took more memory.
MAX_MEASURED_VOXELS = 2**18


def limit_validation_images(
    images: np.ndarray, size: tuple[int, ...], training: Any, length: Any
) -> np.ndarray:
    """Keep so many images that to validate takes a tenth of a round's time, about.

    Of all the time there is, where a training ends before its first round does.

    Shapes: images ``(n, *space, channels)``.
    """
    learnt = length.end(0) * training.batch_size * math.prod(size)
    # A step takes as long as three reconstructions.
    most = 0.1 * 3 * learnt / math.prod(images.shape[1:-1])
    return images[: max(1, math.ceil(most))]


def score(vqvae: Any, images: np.ndarray) -> dict[str, float]:
    """Measure how near reconstructions come to images.

    Shapes: images ``(n, *space, channels)``.
    """
    axes = tuple(range(1, images.ndim))

    def scores(piece, reconstructed):
        detail = np.zeros(len(piece))
        # In an image of one value there is none.
        varied = np.ptp(piece, axes) > 0
        if varied.any():
            detail[varied] = detail_correlation(reconstructed[varied], piece[varied])
        squares = np.mean((reconstructed - piece) ** 2, axes, dtype="float64")
        return np.stack([squares, detail], -1)

    figures = _of_each(scores, vqvae, images)
    mse, detail = figures.mean(axis=0)
    low, high = vqvae.intensity_
    return {"mse": float(mse / ((high - low) ** 2 or 1)), "detail": float(detail)}


def _of_each(measure, vqvae, images):
    """Measure images beside their reconstructions, few at once."""

    def measured(numbers):
        piece = np.asarray(images[numbers], "float32")
        return measure(piece, vqvae.predict(piece))

    batch = tiles.safe_batch(images.shape[1:-1], MAX_MEASURED_VOXELS)
    return _backend.in_batches(measured, np.arange(len(images)), batch)


def missing_detail(vqvae: Any, images: np.ndarray) -> float:
    """Measure by which gain reconstructions should be sharpened.

    Shapes: images ``(n, *space, channels)``.
    """
    figures = _of_each(sharpening.measure_detail, vqvae, images)
    return sharpening.sharpening_gain(figures.sum(axis=0))


def verdict(
    vqvae: Any,
    summary: Survey,
    images: np.ndarray,
    in_parts: bool,
    figures: dict[str, float],
) -> str | None:
    """Return what is wrong with a trained autoencoder, if anything."""
    if figures["perplexity"] < MIN_PERPLEXITY:
        return (
            f"nearly all latents have the same code (perplexity "
            f"{figures['perplexity']:.1f}): nothing of the images is left in them; "
            "train for more steps, or with a lower learning rate."
        )
    # Not by the figures of the last round, which are means over all its steps.
    mse = score(vqvae, images)["mse"]
    # Where images hardly differ, their mean is hard to beat, and need not be.
    mean = max(summary.spread, 0.05 * summary.variance) / summary.scale**2
    if mse < mean:
        return None
    # What is learnt from windows of a few voxels, which are border all around, does not
    # hold for whole images.
    larger = "with larger patches, " if in_parts else ""
    return (
        f"the autoencoder's reconstructions are no nearer to the images than the "
        f"mean of all images is (mean squared error {mse:.3g} and {mean:.3g}); "
        f"train for more steps, {larger}or with another learning rate (0.001 to "
        "0.002 for volumes)."
    )
