r"""Denoisers: estimate the clean latents behind noisy ones.

A denoiser is one function

``denoise(x, t) -> clean``

of noisy latents ``x``, ``(batch, *space, channels)``, at the time ``t`` in [0, 1]. It
hides networks, targets and guidance from samplers.
"""

from collections.abc import Callable

from keras import ops
import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.types import Tensor
from dipy_ldm.diffusion.schedules import rates, to_clean


def from_network(
    predict: Callable, schedule: str, target: str, expected: npt.ArrayLike | None = None
) -> Callable:
    """Make a denoiser from a network of residuals about an expected mean.

    Shapes: expected is broadcast against ``(batch, *space, channels)``.
    """

    def denoise(x: Tensor, t: float):
        x = ops.convert_to_tensor(x)
        times = np.full(len(x), t, "float32")
        alpha, sigma = map(float, rates(schedule, t))

        def estimate(x: Tensor, *mean):
            prediction = ops.cast(predict(x, times, *mean), x.dtype)
            return to_clean(target, prediction, x, alpha, sigma)

        if expected is None:
            return estimate(x)
        mean = ops.convert_to_tensor(expected, x.dtype)
        mean = ops.broadcast_to(mean, ops.shape(x))
        return mean + estimate(x - alpha * mean, alpha * mean)

    return denoise


def guided(
    strong: Callable,
    weak: Callable,
    weight: float,
    interval: tuple[float, ...] = (0.0, 1.0),
) -> Callable:
    """Extrapolate from a weak denoiser beyond a strong one :footcite:p:`Karras2024`.

    A weight of 1 gives the strong one, larger weights extrapolate, only in an interval
    of times :footcite:p:`Kynkaanniemi2024`; elsewhere it is the strong one.
    """
    first, last = interval

    def denoise(x: Tensor, t: float):
        clean = strong(x, t)
        if weight == 1 or not first <= t <= last:
            return clean
        poor = weak(x, t)
        return poor + weight * (clean - poor)

    return denoise


def interpolated(first: Callable, second: Callable, share: float) -> Callable:
    """Return the weighted mean of two denoisers."""
    return lambda x, t: (1 - share) * first(x, t) + share * second(x, t)


def pinned(denoise: Callable, latents: np.ndarray, release: np.ndarray) -> Callable:
    """Replace a denoiser's estimate outside holes by the known latents.

    A latent partly in a hole is fixed at first, while the coarse structure forms, and
    released below a time :footcite:p:`Levin2023`: 0 outside holes, and 1 inside.

    Shapes: latents ``(batch, *space, channels)``, release ``(batch, *space, 1)``.
    """
    return lambda x, t: ops.where(t <= release, denoise(x, t), latents)
