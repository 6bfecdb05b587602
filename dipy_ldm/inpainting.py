r"""Inpainting: make a hole in an image anew, so that it fits what is around.

Where latents are known, the denoiser is not asked: :func:`inpainted` puts them into its
estimate, and a sampler that walks with it keeps them, noised to each level, and learns
from them what fits between. That is not enough by itself. What is made near a known
latent was begun before it heard of it; so each step is taken several times, with the
noise that it has removed put back between (:footcite:p:`Lugmayr2022`):

.. math::

    x_t = \frac{\alpha_t}{\alpha_s} x_s
          + \sqrt{\sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2} \sigma_s^2}\; \epsilon .

References
----------
.. footbibliography::
"""

from collections.abc import Callable
from itertools import pairwise
import math
from typing import Any

from keras import ops
import numpy as np
import numpy.typing as npt

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError, check_counts
from dipy_ldm.diffusion import masks as holes, samplers, schedules
from dipy_ldm.generation import Generator

# Calls of the network, and how often each is made. With these the distribution of what
# is missing of a Gaussian is met, and more of either brought nothing.
STEPS, RESAMPLINGS = 10, 5
# Time to which latents are made anew, by the share of their place that is in a hole:
# those of which half is are made anew from noise. At the least, so that samples differ
# in small holes too, and the last steps of every grid are taken. These are times
# of the cosine schedule, and stand for its noise.
_FREEDOM, _LEAST = 2.0, 0.25


def inpainted(denoise: Callable, known: np.ndarray, freedom: np.ndarray) -> Callable:
    """Put what is known into what a denoiser estimates.

    A latent may be known in part: then it is held at first, while coarse things are
    settled, and set free below a time (:footcite:p:`Levin2023`).

    Parameters
    ----------
    denoise : callable
        ``denoise(x, t)``, as of :mod:`dipy_ldm.diffusion.guidance`.
    known : ndarray
        Clean latents, ``(batch, *space, channels)``.
    freedom : ndarray
        Time up to which each is made anew, ``(batch, *space, 1)``: 0 where it is known,
        and 1 where nothing of it is.

    Returns
    -------
    callable
        ``denoise(x, t)``.

    References
    ----------
    .. footbibliography::
    """
    return lambda x, t: ops.where(t <= freedom, denoise(x, t), known)


def walk(
    denoise: Callable,
    x: np.ndarray,
    path: list[tuple],
    step: Callable,
    noise: Callable,
    resamplings: int,
) -> np.ndarray:
    """Walk from the first level of a path to its last, each step several times.

    Parameters
    ----------
    denoise : callable
        As of :func:`inpainted`.
    x : ndarray
        Latents at the first level, ``(batch, *space, channels)``.
    path : list of tuple
        As of :func:`dipy_ldm.diffusion.schedules.path`.
    step : callable
        The step function of a sampler.
    noise : callable
        Draws standard normal numbers of the shape of ``x``.
    resamplings : int
        How often each step is taken.

    Returns
    -------
    ndarray
        Latents at the last level.
    """
    x, before = ops.convert_to_tensor(x), None
    noise = samplers.on_device(noise, x.dtype)
    for (t, now), (_, after) in pairwise(path):
        for again in range(resamplings):
            if again:
                x = renoised(x, after, now, noise)
            # What a sampler remembers is of the level before, whatever was tried here.
            x, state = step(x, denoise(x, t), now, after, noise, before)
        before = state
    return ops.convert_to_numpy(x)


def renoised(
    x: np.ndarray, now: tuple[float, ...], before: tuple[float, ...], noise: Callable
) -> np.ndarray:
    """Put noise back.

    Parameters
    ----------
    x : ndarray
        Latents, ``(batch, *space, channels)``.
    now, before : tuple of float
        ``(alpha, sigma)`` of ``x`` and of the result, which has more noise.
    noise : callable
        Draws standard normal numbers of the shape of ``x``.

    Returns
    -------
    ndarray
        Latents at the level ``before``.
    """
    share = before[0] / now[0]
    missing = max(before[1] ** 2 - (share * now[1]) ** 2, 0.0)
    return share * x + math.sqrt(missing) * noise()


class Inpainter(Generator):
    """What makes parts of images anew, once it is fitted."""

    def inpaint(
        self,
        images: npt.ArrayLike,
        masks: npt.ArrayLike,
        *,
        conditions: Any = None,
        source: npt.ArrayLike | None = None,
        n_samples: int | None = None,
        sampler: str = "dpm++",
        steps: int = STEPS,
        resamplings: int = RESAMPLINGS,
        eta: float = 0.0,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Make anew what lies in masks, so that it fits what is around.

        What images have in their masks is never looked at. Latents whose place lies in
        a mask are made anew from noise, or from less noise where it is less than half
        of it, and the others held; what is decoded is put into the masks alone, without
        a seam.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of the shape of the training images.
        masks : array_like
            Where they are made anew: ``(n, *space)`` or, for all of them, ``(*space)``;
            everything above 0 is inside.
        conditions : dict, DataFrame or object, optional
            What the images shall look like, as of :meth:`predict`; what is left out is
            not specified.
        source : array_like, optional
            As of :meth:`predict`: one for all images, or one for each.
        n_samples : int, optional
            How many ways each image is filled in. None is for one, without an axis for
            it.
        sampler : {"ddpm", "ddim", "dpm++"}
            How to walk back from noise.
        steps : int
            Levels of noise on the way.
        resamplings : int
            How often each step is taken, with the noise put back between. The network
            is called ``steps * resamplings`` times.
        eta : float
            Share of fresh noise in each step of ``ddim``, from 0 to 1.
        seed : int
            Seed of the noise.
        first : int
            Number of the first sample's noise: those of image ``i`` are
            ``first + i * n_samples`` and on.
        batch_size : int, optional
            Samples that are made at once; as many as memory surely allows if None.
        tile : int, optional
            Voxels along a side of the tiles in which large images are worked on, as
            of :meth:`dipy_ldm.VQVAE.decode`.

        Returns
        -------
        ndarray
            Images, float32 of the shape of ``images`` or, with ``n_samples``,
            ``(n, n_samples, *space, channels)``. Outside of the masks they are equal
            to ``images`` in float32, to the bit.

        Raises
        ------
        InputError
            If the model is not fitted, an argument can't be used, or a mask is empty or
            leaves nothing to go by.
        """
        self._check_fitted()
        images = self._check_images(images, self.vqvae_)
        given = self._given(conditions, source, len(images))
        check_counts(n_samples=n_samples, resamplings=resamplings)
        step, grid, _ = self.check_sampling(
            sampler=sampler,
            steps=steps,
            eta=eta,
            seed=seed,
            first=first,
            batch_size=batch_size,
            tile=tile,
        )
        inside = holes.check_masks(masks, images.shape[:-1])
        shares = holes.hole_shares(inside, self.vqvae_.factor)[..., None]
        _refuse_nothing_known(shares)
        schedule = self._described()["schedule"]
        freedom = _freedom(shares, schedule)
        path = schedules.path(schedule, grid(schedule, steps))
        filled = holes.fill(images, inside)
        at_once = self._coded_at_once(batch_size)
        encoded = self.vqvae_.encode(filled, batch_size=at_once, tile=tile)
        known = self._scaled(encoded)
        alpha, sigma = path[0][1]

        def make(numbers):
            image = numbers // (n_samples or 1)
            noise = samplers.noise_source(seed, first + numbers, self.latent_shape_)
            x = alpha * known[image] + sigma * noise()
            denoise = self._denoiser(1.0, given.take(image))
            fitting = inpainted(denoise, known[image], freedom[image])
            clean = walk(fitting, x, path, step, noise, resamplings)
            made = self.vqvae_.decode(self._unscaled(clean), tile=tile)
            return holes.blend(images[image], made, inside[image])

        numbers = np.arange(len(images) * (n_samples or 1))
        made = _backend.in_batches(make, numbers, self._batch(batch_size))
        return (
            made if n_samples is None else made.reshape(-1, n_samples, *made.shape[1:])
        )


def _freedom(shares, schedule):
    """Return the time up to which each latent is made anew; 0 for those not touched."""
    times = np.clip(_FREEDOM * shares, _LEAST, 1)
    return np.where(shares > 0, schedules.times_of_equal_noise(schedule, times), 0)


def _refuse_nothing_known(shares):
    covered = (shares > 0).all(tuple(range(1, shares.ndim)))
    if covered.any():
        raise InputError(
            f"mask {covered.argmax()} covers all of its image, as coarsely as latents "
            "are, and leaves nothing to go by; give a smaller one."
        )
