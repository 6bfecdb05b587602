r"""Noise schedules: signal and noise rates over time.

A schedule maps a time ``t`` in [0, 1] to a pair ``(alpha, sigma)`` with
``alpha**2 + sigma**2 = 1``. A clean latent ``z`` and standard normal noise
``eps`` are mixed to

.. math:: x = \alpha(t)\, z + \sigma(t)\, \epsilon .

``t = 0`` is (almost) clean and ``t = 1`` is (almost) pure noise: there the
signal-to-noise ratio ``alpha**2 / sigma**2`` is so small that sampling may
start from pure noise. ``lambda = log(alpha / sigma)`` is half the log-SNR.

A network learns one of three *targets*: the ``noise`` eps, the ``clean``
latent z, or the velocity ``v = alpha * eps - sigma * z``. Samplers get the clean
latent, which follows from each.

A *grid* is a decreasing sequence of times at which a sampler calls the network. It
begins at 1, or at the strength of denoising, and does not depend on the choice of
schedule.
"""

from collections.abc import Callable
from functools import lru_cache
import math
from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import choose
from dipy_ldm._utils.types import Tensor

# At t = 0 a little noise remains (sigma of about 0.01), so that lambda is finite.
_SIGMA_START = 0.01
# At t = 1 a little signal remains (SNR of 4e-5), so that a noise prediction can be
# divided by alpha; it is far too little to be detected.
_ALPHA_END = 0.0065

# Of `lognormal_times`: mean and deviation of the logarithm of noise over signal, and
# the share of times that are uniform.
_LOG_NOISE_MEAN, _LOG_NOISE_STD, _UNIFORM_SHARE = 0.6, 0.7, 0.2


def cosine(t: Tensor, xp: ModuleType = np) -> tuple[Tensor, Tensor]:
    """Mix signal and noise along a quarter of a circle.

    The schedule of :footcite:p:`Nichol2021` in continuous time, cut at both
    ends so that the log-SNR is finite.

    Parameters
    ----------
    t : array_like or tensor
        Times in [0, 1].
    xp : module
        Module of array functions: ``numpy``, or ``keras.ops`` for tensors.

    Returns
    -------
    alpha, sigma : ndarray or tensor
        Signal and noise rates, of the shape of ``t``.

    References
    ----------
    .. footbibliography::
    """
    first, last = math.asin(_SIGMA_START), math.acos(_ALPHA_END)
    angle = first + (last - first) * xp.array(t)
    return xp.cos(angle), xp.sin(angle)


def linear(t: Tensor, xp: ModuleType = np) -> tuple[Tensor, Tensor]:
    """Return the rates of linearly growing betas.

    The variance-preserving schedule of :footcite:p:`Ho2020` in the continuous
    limit of :footcite:p:`Song2021`, with rates from 0.1 to 20: for any number of
    steps, it ends at the noise level of 1,000 steps with betas from 1e-4 to 0.02.

    Parameters
    ----------
    t : array_like or tensor
        Times in [0, 1].
    xp : module
        Module of array functions: ``numpy``, or ``keras.ops`` for tensors.

    Returns
    -------
    alpha, sigma : ndarray or tensor
        Signal and noise rates, of the shape of ``t``.

    References
    ----------
    .. footbibliography::
    """
    t = 1e-3 + (1 - 1e-3) * xp.array(t)
    log_alpha = -0.25 * (20 - 0.1) * t**2 - 0.5 * 0.1 * t
    return xp.exp(log_alpha), xp.sqrt(-xp.expm1(2 * log_alpha))


SCHEDULES = {"cosine": cosine, "linear": linear}


def rates(schedule: str, t: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate a schedule in double precision.

    Parameters
    ----------
    schedule : str
        Name of a schedule.
    t : array_like
        Times in [0, 1].

    Returns
    -------
    alpha, sigma : ndarray
        Signal and noise rates, float64, of the shape of ``t``.
    """
    return choose("schedule", schedule, SCHEDULES)(np.asarray(t, "float64"))


def lognormal_times(
    schedule: str, quantiles: npt.ArrayLike, deviation: float
) -> np.ndarray:
    """Map uniform numbers to times at which the training is most effective.

    With far less noise than the deviation of latents, denoising is trivial, and with
    far more it is impossible. At most times, noise over signal is log-normal about
    slightly more than that, as in :footcite:p:`Karras2022`; a fifth of times are
    uniform.

    Shapes: quantiles of any shape, from 0 to 1, result the same.

    References
    ----------
    .. footbibliography::
    """
    from scipy.special import ndtri

    quantiles = np.asarray(quantiles, "float64")
    # Below 0 for uniform times.
    normal_quantiles = (quantiles - _UNIFORM_SHARE) / (1 - _UNIFORM_SHARE)
    normal = ndtri(np.clip(normal_quantiles, 1e-6, 1 - 1e-6))
    log_noise = math.log(deviation) + _LOG_NOISE_MEAN + _LOG_NOISE_STD * normal
    fine, _, increasing = _noise_table(schedule)
    lognormal = np.interp(log_noise, increasing, fine)
    uniform = quantiles / _UNIFORM_SHARE
    return np.where(quantiles < _UNIFORM_SHARE, uniform, lognormal)


def baseline_loss(
    schedule: str,
    target: str,
    spreads: npt.ArrayLike = (1.0,),
    times: Callable | None = None,
) -> float:
    """Return the loss of the best denoiser of latents that are white noise.

    It uses only the mean and the variance of each channel. ``times`` maps uniform
    numbers from 0 to 1 to times. Default: identity.

    Shapes: spreads ``(channels,)``.
    """
    numbers = np.linspace(0, 1, 1001)
    alpha, sigma = rates(schedule, numbers if times is None else times(numbers))
    power = np.square(np.asarray(spreads, "float64"))[:, None]
    rest = power / (alpha**2 * power + sigma**2)
    errors = {"v": rest, "noise": rest * alpha**2, "clean": rest * sigma**2}
    return float(choose("target", target, errors).mean())


def times_of_equal_noise(schedule: str, times: npt.ArrayLike) -> np.ndarray:
    """Return the times at which a schedule has the noise of the cosine schedule.

    Noise levels are specified as times of the cosine schedule. Time 1 stays 1.

    Shapes: times of any shape, result the same.
    """
    times = np.asarray(times, "float64")
    if schedule == "cosine":
        return times
    fine, _, increasing = _noise_table(schedule)
    equal = np.interp(-half_log_snr(*cosine(times)), increasing, fine)
    return np.where(times < 1, equal, 1.0)


def half_log_snr(
    alpha: float | np.ndarray, sigma: float | np.ndarray
) -> float | np.ndarray:
    """Return lambda = log(alpha / sigma), infinite where there is no noise.

    Parameters
    ----------
    alpha, sigma : float or ndarray
        Signal and noise rates.

    Returns
    -------
    float or ndarray
        Half the logarithm of the signal-to-noise ratio.
    """
    with np.errstate(divide="ignore"):
        return np.log(alpha) - np.log(sigma)


def _noise_table(schedule: str):
    """Tabulate times, noise rates, and logarithms of noise over signal."""
    return _tabulate(choose("schedule", schedule, SCHEDULES))


# Cached by function, since the function of a name may be replaced.
@lru_cache(maxsize=8)
def _tabulate(mix: Callable):
    fine = np.linspace(0, 1, 10_001)
    alpha, sigma = mix(fine)
    return fine, sigma, -half_log_snr(alpha, sigma)


def uniform_time(schedule: str, steps: int, start: float = 1.0) -> np.ndarray:
    """Space times evenly.

    Parameters
    ----------
    schedule : str
        Not used.
    steps : int
        Number of times.
    start : float
        The first time.

    Returns
    -------
    ndarray
        Decreasing times, shape ``(steps,)``.
    """
    return np.linspace(start, 0, steps, endpoint=False)


def uniform_log_snr(
    schedule: str, steps: int, start: float = 1.0, end: float = 0.2
) -> np.ndarray:
    """Space times so that the log-SNR grows evenly.

    Parameters
    ----------
    schedule : str
        Name of a schedule.
    steps : int
        Number of times.
    start : float
        The first time.
    end : float
        Noise rate of the last time, from which the sampler steps to the clean latent.
        It is at most four fifths of the noise rate at the start.

    Returns
    -------
    ndarray
        Decreasing times, shape ``(steps,)``.
    """
    fine, sigma, increasing = _noise_table(schedule)
    end = max(sigma[0], min(end, 0.8 * np.interp(start, fine, sigma)))
    stop = -half_log_snr(math.sqrt(1 - end**2), end)
    first = np.interp(start, fine, increasing)
    return np.interp(np.linspace(first, stop, steps), increasing, fine)


def path(schedule: str, times: np.ndarray) -> list[tuple]:
    """Pair each time with its rates, and append the level without noise.

    Parameters
    ----------
    schedule : str
        Name of a schedule.
    times : ndarray
        Decreasing times, shape ``(steps,)``.

    Returns
    -------
    list of tuple
        ``(t, (alpha, sigma))``, ``steps + 1`` of them, the last without noise.
    """
    levels = zip(*(rate.tolist() for rate in rates(schedule, times)))
    return [*zip(np.asarray(times).tolist(), levels), (0.0, (1.0, 0.0))]


def to_target(
    target: str, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Return the network's target.

    Parameters
    ----------
    target : {"v", "noise", "clean"}
        Kind of prediction; ``v`` is due to :footcite:p:`Salimans2022`.
    clean, noise : tensor
        Clean latents and the noise mixed into them.
    alpha, sigma : tensor
        Rates, broadcast against ``clean``.

    Returns
    -------
    tensor
        The target, of the shape of ``clean``.

    References
    ----------
    .. footbibliography::
    """
    return choose("target", target, TARGETS).make(clean, noise, alpha, sigma)


def to_clean(
    target: str, prediction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Return the estimate of the clean latent from the network's prediction.

    Parameters
    ----------
    target : {"v", "noise", "clean"}
        Kind of prediction.
    prediction : tensor
        Output of the network.
    x : tensor
        Noisy latent, the network's input.
    alpha, sigma : tensor
        Rates, broadcast against ``x``.

    Returns
    -------
    tensor
        The clean latent, of the shape of ``x``.
    """
    return choose("target", target, TARGETS).undo(prediction, x, alpha, sigma)


class Target(NamedTuple):
    """A prediction target: functions from clean latents to it, and back."""

    make: Callable
    undo: Callable


TARGETS = {
    "v": Target(
        lambda clean, noise, alpha, sigma: alpha * noise - sigma * clean,
        lambda v, x, alpha, sigma: alpha * x - sigma * v,
    ),
    "noise": Target(
        lambda clean, noise, alpha, sigma: noise,
        lambda eps, x, alpha, sigma: (x - sigma * eps) / alpha,
    ),
    "clean": Target(
        lambda clean, noise, alpha, sigma: clean, lambda clean, x, alpha, sigma: clean
    ),
}
