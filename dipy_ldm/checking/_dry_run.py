"""Trials: a few real steps of both stages, and eight images learnt by heart."""

from collections.abc import Iterator
from contextlib import contextmanager
import logging
import time
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm import VQVAE
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._grid import Grid, conform

# Real steps of each stage at most; the first, for which networks are compiled, is none
# that counts.
_MAX_STEPS = 12
_MIN_STEPS = 4
# Images that are learnt by heart, for how many steps at most, and voxels along a side
# of volumes: what these show can be learnt in a minute of a processor.
N_OVERFIT_IMAGES = 8
_MAX_OVERFIT_STEPS = 300
_MAX_SIDE = 32


class Paces(NamedTuple):
    """How long parts of a training take, in seconds.

    ``start`` is what both stages need before their second step, ``each`` a step of each
    stage by its name, and ``encoding`` the encoding of an image.
    """

    start: float
    each: dict[str, float]
    encoding: float


class Overfit(NamedTuple):
    """What came of learning eight images by heart.

    ``steps`` is how many there were, ``mse`` the mean squared error of reconstructions
    and ``nothing`` that of the mean of all eight, both of images in [0, 1]; ``images``
    and ``made`` are those and their reconstructions, ``(n, *space, channels)``, and
    ``latents`` the latents, ``(n, *latent space, code_dim)``.
    """

    steps: int
    mse: float
    baseline_mse: float
    perplexity: float
    usage: float
    images: np.ndarray
    reconstructed: np.ndarray
    latents: np.ndarray


class _EnoughError(Exception):
    """There were enough steps, or the time is up."""


class _Until:
    """Stop a training after some steps, or some time from its first step on."""

    def __init__(self, steps: int, seconds: float, least: int = _MIN_STEPS) -> None:
        self.steps = steps
        self.seconds = seconds
        self.least = least

    def __call__(self, estimator: Any) -> None:
        """Look at how far it is, after a round."""
        # The last is the stage that goes on.
        taken = list(estimator.step_seconds_.values())[-1]
        late = sum(taken[1:]) > self.seconds and len(taken) >= self.least
        if late or len(taken) >= self.steps:
            raise _EnoughError


@contextmanager
def _cut_short(estimator: Any) -> Iterator[None]:
    """Let a training be stopped, also by itself where nothing is learnt.

    What it is worth is judged by what it has made.
    """
    judge = logging.getLogger("dipy_ldm.training._trainer")
    level = judge.level
    judge.setLevel(logging.ERROR)
    try:
        yield
    except _EnoughError:
        pass
    except InputError:
        # Of an option, or of the images, before there was a step.
        if not any(getattr(estimator, "step_seconds_", {}).values()):
            raise
    finally:
        judge.setLevel(level)


def measure_paces(
    recipe: Any, images: np.ndarray, seconds: float, **options: Any
) -> Paces:
    """Train both stages for some steps, as they will be trained.

    Shapes: images ``(batch, *space, channels)``.
    """
    begin, overrides = time.monotonic(), {"steps": _MAX_STEPS, "epochs": 1}
    until = [_Until(_MAX_STEPS, seconds)]
    with _cut_short(recipe.vqvae):
        recipe.vqvae.fit(
            images, callbacks=until, **options, **recipe.of_vqvae | overrides
        )
    with _cut_short(recipe.model):
        recipe.model.fit(images, callbacks=until, **recipe.of_model | overrides)
    taken = recipe.vqvae.step_seconds_ | recipe.model.step_seconds_
    all_steps = sum(sum(durations[1:]) for durations in taken.values())
    start = time.monotonic() - begin - all_steps
    begin = time.monotonic()
    recipe.vqvae.encode(images)
    encoding = (time.monotonic() - begin) / len(images)
    each = {
        title: float(np.median(durations[1:] or durations))
        for title, durations in taken.items()
    }
    return Paces(start, each, encoding)


def overfit(
    recipe: Any, images: np.ndarray, affine: np.ndarray | None, seconds: float
) -> Overfit:
    """Let an autoencoder learn eight images by heart: if it can't, it learns nothing.

    Shapes: images ``(n, *space, channels)``.
    """
    images = _reduced(np.asarray(images, "float32"), affine)
    vqvae = VQVAE(**recipe.vqvae.get_params())
    overrides = {
        "steps": _MAX_OVERFIT_STEPS,
        "epochs": 1,
        "accumulate": 1,
        "strategy": None,
        "batch_size": min(recipe.of_vqvae["batch_size"], len(images)),
    }
    with _cut_short(vqvae):
        until = _Until(_MAX_OVERFIT_STEPS, seconds)
        vqvae.fit(images, callbacks=[until], **recipe.of_vqvae | overrides)
    latents, (low, high) = vqvae.encode(images), vqvae.intensity_
    scale = (high - low) or 1
    finite = np.isfinite(latents).all()
    reconstructed = vqvae.decode(latents) if finite else np.full_like(images, np.nan)
    # Where training stopped in its first round there is none yet.
    history = getattr(vqvae, "history_", {"perplexity": [np.nan], "usage": [np.nan]})
    return Overfit(
        len(vqvae.step_seconds_["autoencoder"]),
        float(np.mean((reconstructed - images) ** 2) / scale**2),
        float(np.mean((images - images.mean(axis=0)) ** 2) / scale**2),
        history["perplexity"][-1],
        history["usage"][-1],
        images,
        reconstructed,
        latents,
    )


def _reduced(images, affine):
    """Bring volumes to voxels so large that few are left along each side."""
    times = max(images.shape[1:-1]) / _MAX_SIDE
    if affine is None or times <= 1:
        return images
    shape = tuple(int(np.ceil(n / times)) for n in images.shape[1:-1])
    coarse = affine @ np.diag([times, times, times, 1.0])
    coarse[:3, 3] = affine[:3, 3] + np.diag(affine)[:3] * (times - 1) / 2
    return np.stack([conform(image, affine, Grid(shape, coarse)) for image in images])
