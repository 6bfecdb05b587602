r"""Samplers: denoise latents step by step.

The step function of a sampler is

``step(x, clean, now, after, noise, state) -> (x, state)``

that takes the noisy latent ``x`` at the level ``now = (alpha, sigma)`` to the
lower level ``after``, by the network's estimate ``clean`` of the clean latent.
``noise()`` draws standard normal numbers of the shape of ``x``; ``state`` is
what the sampler passes to its next step, None at first. One loop,
:func:`sample`, serves all samplers, and calls the network once per step: a
method with two calls takes them in two steps, by ``state`` and a grid that
repeats times. Steps only use arithmetic, so that arrays and tensors both work.

With ``eps = (x - alpha * clean) / sigma`` and levels ``t`` (now) and ``s``
(after), DDIM :footcite:p:`Song2021ddim` is

.. math::

    x_s = \alpha_s z + \sigma_s \sqrt{1 - \tau}\, \epsilon
          + \sigma_s \sqrt{\tau}\, \epsilon', \qquad
    \tau = \eta^2 \left(1 - \frac{\alpha_t^2 \sigma_s^2}
                                 {\alpha_s^2 \sigma_t^2}\right)

and DDPM :footcite:p:`Ho2020` is DDIM with ``eta = 1``. DPM-Solver++(2M)
:footcite:p:`Lu2022` integrates the same equation to second order in
``lambda = log(alpha / sigma)``, and with ``eta = 1`` the stochastic one.

References
----------
.. footbibliography::
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
import math
from typing import Any, NamedTuple

from keras import ops
import numpy as np

from dipy_ldm._utils.checks import InputError, at_least, check_shares, choose
from dipy_ldm.diffusion.schedules import half_log_snr, uniform_log_snr, uniform_time


def ddim(
    x: np.ndarray,
    clean: np.ndarray,
    now: tuple[float, ...],
    after: tuple[float, ...],
    noise: Callable,
    state: None,
    eta: float = 0.0,
) -> tuple[np.ndarray, None]:
    """Step to a lower noise level, with a share of fresh noise.

    Parameters
    ----------
    x, clean : ndarray
        Noisy latent and estimate of the clean one, ``(batch, *space, channels)``.
    now, after : tuple of float
        ``(alpha, sigma)`` of ``x`` and of the result.
    noise : callable
        Draws standard normal numbers of the shape of ``x``.
    state : None
        Not used.
    eta : float
        Share of fresh noise: none at 0 (deterministic), all of it at 1 (DDPM).

    Returns
    -------
    x : ndarray
        Latent at the level ``after``.
    state : None
        Always None.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = now, after
    tau = eta**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)
    eps = (x - alpha_t * clean) / sigma_t
    x = alpha_s * clean + sigma_s * math.sqrt(1 - tau) * eps
    return (x + sigma_s * math.sqrt(tau) * noise() if tau > 0 else x), state


def dpm_solver(
    x: np.ndarray,
    clean: np.ndarray,
    now: tuple[float, ...],
    after: tuple[float, ...],
    noise: Callable,
    state: tuple | None,
    eta: float = 0.0,
) -> tuple[np.ndarray, tuple]:
    """Step with DPM-Solver++(2M): second order, one network call per step.

    Parameters
    ----------
    x, clean : ndarray
        Noisy latent and estimate of the clean one, ``(batch, *space, channels)``.
    now, after : tuple of float
        ``(alpha, sigma)`` of ``x`` and of the result.
    noise : callable
        Draws standard normal numbers of the shape of ``x``.
    state : tuple or None
        Estimate and lambda of the previous step.
    eta : float
        Share of fresh noise: none at 0 (deterministic), all of it at 1, which is
        SDE-DPM-Solver++(2M).

    Returns
    -------
    x : ndarray
        Latent at the level ``after``.
    state : tuple
        This step's estimate and lambda.
    """
    (_, sigma_t), (alpha_s, sigma_s) = now, after
    lambda_t, width = half_log_snr(*now), half_log_snr(*after) - half_log_snr(*now)
    slope = 0.0
    # The last step goes to lambda = infinity, where only the first order is defined.
    if state is not None and math.isfinite(width):
        clean_before, lambda_before = state
        slope = 0.5 * width / (lambda_t - lambda_before) * (clean - clean_before)
    kept, fresh = sigma_s / sigma_t, 0.0
    if eta > 0:  # 0 times the infinite width of the last step is not a number
        kept *= math.exp(-eta * width)
        fresh = sigma_s * math.sqrt(-math.expm1(-2 * eta * width)) * noise()
    x = kept * x - alpha_s * math.expm1(-(1 + eta) * width) * (clean + slope) + fresh
    return x, (clean, lambda_t)


class Sampler(NamedTuple):
    """A step function, its best time grid and its default number of steps.

    ``grid(schedule, steps)`` returns times from 1 on, and ``grid(schedule, steps,
    start)``, for denoising, from ``start`` on. ``fine(schedule, steps)`` is the grid
    for samples with fine details, if it differs. The default number of steps was
    measured to suffice. ``takes_eta`` says whether ``step`` has a share of fresh noise.
    """

    step: Callable
    grid: Callable
    fine: Callable | None = None
    default_steps: int = 50
    takes_eta: bool = False


# Last noise rate for samples with fine details: with one scale for all channels of
# latents, the last ones of volumes have a tenth of its deviation.
_FINE_END = 0.02

SAMPLERS = {
    "ddpm": Sampler(partial(ddim, eta=1.0), uniform_time),
    "ddim": Sampler(ddim, uniform_time, takes_eta=True),
    "dpm++": Sampler(
        dpm_solver,
        uniform_log_snr,
        partial(uniform_log_snr, end=_FINE_END),
        default_steps=10,
        takes_eta=True,
    ),
}


def make_sampler(name: str, eta: float = 0.0) -> Sampler:
    """Return the sampler of a name.

    Parameters
    ----------
    name : str
        A key of ``SAMPLERS``.
    eta : float
        Share of fresh noise in [0, 1], for samplers that take one.

    Returns
    -------
    Sampler
        Step function, with ``eta``, and grids.

    Raises
    ------
    InputError
        If there is no such sampler, it takes no ``eta``, or that is invalid.
    """
    sampler = choose("sampler", name, SAMPLERS)
    check_shares(eta=eta)
    if eta == 0:
        return sampler
    if not sampler.takes_eta:
        raise InputError(f"the sampler {name} takes no `eta`", "leave it out")
    return sampler._replace(step=partial(sampler.step, eta=eta))


def sample(
    denoise: Callable,
    x: np.ndarray,
    path: list[tuple],
    step: Callable,
    noise: Callable | None = None,
    resamplings: int = 1,
) -> np.ndarray:
    """Sample latents along a path, from its first level to its last.

    Parameters
    ----------
    denoise : callable
        ``denoise(x, t)`` estimates the clean latent from ``x`` at time ``t``.
    x : ndarray
        Latents at the first level, ``(batch, *space, channels)``.
    path : list of tuple
        ``(t, (alpha, sigma))`` with decreasing noise, as in
        :func:`dipy_ldm.diffusion.schedules.path`.
    step : callable
        The step function of a sampler.
    noise : callable, optional
        Draws standard normal numbers of the shape of ``x``; deterministic
        samplers need none.
    resamplings : int
        How often each step is taken, with its noise added again in between; more than
        once for inpainting :footcite:p:`Lugmayr2022`.

    Returns
    -------
    ndarray
        Latents at the last level.

    References
    ----------
    .. footbibliography::
    """
    x, state = ops.convert_to_tensor(x), None
    draw: Any = noise
    dtype = x.dtype

    def fresh():
        return ops.cast(draw(), dtype)

    for (t, now), (_, after) in pairwise(path):
        # Every repetition starts from the state of the previous level.
        before = state
        for again in range(resamplings):
            if again:
                x = renoised(x, after, now, fresh)
            x, state = step(x, denoise(x, t), now, after, fresh, before)
    return ops.convert_to_numpy(x)


def renoised(
    x: np.ndarray, now: tuple[float, ...], before: tuple[float, ...], noise: Callable
) -> np.ndarray:
    """Add noise up to the previous level.

    Shapes: x ``(batch, *space, channels)``.
    """
    share = before[0] / now[0]
    missing = max(before[1] ** 2 - (share * now[1]) ** 2, 0.0)
    return share * x + math.sqrt(missing) * noise()


def noise_source(seed: int, numbers: Iterable[int], shape: tuple[int, ...]) -> Callable:
    """Return a source of noise with a separate random stream for each sample.

    The noise of sample ``i`` depends only on ``(seed, i)`` and on the number of
    earlier draws, not on its batch or on other samples.

    Parameters
    ----------
    seed : int
        Seed, at least 0.
    numbers : iterable of int
        Numbers of the samples.
    shape : tuple of int
        Shape of one sample, ``(*space, channels)``.

    Returns
    -------
    callable
        Each call draws new numbers, float32 ``(len(numbers), *shape)``.
    """
    at_least("seed", seed, 0)
    streams = [np.random.default_rng([seed, number]) for number in numbers]

    def draw():
        return np.stack([s.standard_normal(shape, "float32") for s in streams])

    return draw
