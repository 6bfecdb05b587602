"""A fitted diffusion model at work: from noise, or from images, to images."""

from typing import Any

import numpy as np
import numpy.typing as npt

from dipy_ldm import _backend
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import (
    InputError,
    at_least,
    check_counts,
    check_shares,
    whole,
)
from dipy_ldm.codec import Codec
from dipy_ldm.conditions import UNSPECIFIED
from dipy_ldm.data._checks import as_fitted
from dipy_ldm.denoising import Denoising
from dipy_ldm.diffusion import samplers, schedules
from dipy_ldm.training import _memory as memory


class Generator(Denoising):
    """What generates and denoises images, once it is fitted."""

    def predict(
        self,
        n: int | None = None,
        *,
        conditions: Any = None,
        source: npt.ArrayLike | None = None,
        same_noise: bool = False,
        sampler: str = "dpm++",
        steps: int | None = None,
        eta: float = 0.0,
        guidance: float | None = None,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
        tile: int | None = None,
        strategy: Any = "auto",
        verbose: bool = False,
    ) -> np.ndarray:
        """Generate images.

        Sample ``i`` depends on ``(seed, i)``, its conditions and its source alone, not
        on the batch it is in.

        Parameters
        ----------
        n : int, optional
            Number of images. None is for as many as ``conditions`` have values, or
            there are sources, or 1.
        conditions : dict, DataFrame or object, optional
            What is asked for, by the names in ``conditions_``: one value for all
            images, or a list with one for each; of a single condition also the values
            alone. What is left out, or None, is drawn as of :meth:`draw_conditions`.
            ``"none"``, for all or as a value, leaves conditions unspecified.
        source : array_like, optional
            What images are made of, where the model has learnt from such: one for all,
            or one for each, ``(n, *space, channels)`` or ``(n, *space)``, with the
            intensities or labels of those that it has learnt from. Of three of each,
            ``np.repeat(source, 3, 0)`` makes a sample of each.
        same_noise : bool
            Make all images from the noise of the first: what differs between them is
            due to their conditions.
        sampler : {"ddpm", "ddim", "dpm++"}
            How to walk back from noise.
        steps : int, optional
            Calls of the network for each image. None is for :meth:`default_steps`.
        eta : float
            Share of fresh noise in each step of ``ddim``, from 0 to 1.
        guidance : float, optional
            How far to follow the denoiser away from its guide, a little of whose
            estimate is without conditions, or, if it has none, from what it makes where
            nothing is specified. 1 is without guidance, and faster;
            the higher, the clearer the images and the less they vary. There is guidance
            at times from 0.4 to 0.9 of the cosine schedule, and where others have the
            same noise.
            None is for :attr:`default_guidance`.
        seed : int
            Seed of the noise.
        first : int
            Number of the first sample.
        batch_size : int, optional
            Images that are generated at once; as many as memory surely allows if
            None.
        tile : int, optional
            Voxels along a side of the tiles in which large images are decoded, as
            of :meth:`dipy_ldm.VQVAE.decode`.
        strategy : str or tf.distribute.Strategy or None
            How the work is spread over devices, as of
            :func:`dipy_ldm.make_strategy`; ``"auto"`` is for this
            machine alone. The result is the same.
        verbose : bool
            Show a progress bar.

        Returns
        -------
        ndarray
            Images, float32 ``(n, *space, channels)``, in the intensity range of
            the training images.

        Raises
        ------
        InputError
            If the model is not fitted, or an option can't be used.
        """
        self._check_fitted()
        n = self._count(conditions, source) if n is None else n
        steps = self.default_steps(sampler) if steps is None else steps
        guidance = self.default_guidance if guidance is None else guidance
        chosen = self.check_sampling(
            n,
            sampler=sampler,
            steps=steps,
            eta=eta,
            guidance=guidance,
            seed=seed,
            first=first,
            batch_size=batch_size,
            tile=tile,
        )
        schedule = self._described()["schedule"]
        # The details of images are no finer than what quantisation takes anyway.
        grid = chosen.grid if self._of_images() else chosen.fine or chosen.grid
        path = schedules.path(schedule, grid(schedule, steps))
        conditions = self.draw_conditions(
            n, conditions, seed=seed, first=first, same_noise=same_noise
        )
        given = self._given(conditions, source, n)
        nothing = (given.table == UNSPECIFIED).all()
        if guidance != 1 and self.guide_ is None and nothing:
            raise InputError(
                f"this model has no guide for a guidance of {guidance}, and nothing is "
                "specified; leave it out, or give `conditions`."
            )

        def generate(numbers):
            of = np.full_like(numbers, first) if same_noise else numbers
            noise = samplers.noise_source(seed, of, self.latent_shape_)
            told = given.take(numbers - first)
            denoise, start = self._denoiser(guidance, told), noise()
            # Of all that latents have in common, hardly any signal is still some.
            start += np.float32(path[0][1][0]) * self._mean(told)
            latents = samplers.sample(denoise, start, path, chosen.step, noise)
            return self.vqvae_.decode(self._unscaled(latents), tile=tile)

        numbers = np.arange(first, first + n)
        title = "generate" if verbose else None
        batch_size = self._batch(batch_size)
        strategy = _backend.make_strategy(strategy, alone=True)
        with _backend.spread(strategy):
            return _backend.in_batches(generate, numbers, batch_size, title)

    def check_sampling(
        self,
        n=1,
        *,
        sampler="dpm++",
        steps=20,
        eta=0.0,
        guidance=1.0,
        seed=0,
        first=0,
        batch_size=None,
        tile=None,
    ) -> Any:
        """Refuse options with which nothing could be generated.

        Parameters
        ----------
        n, sampler, steps, eta, guidance, seed, first, batch_size, tile
            As of :meth:`predict`.

        Returns
        -------
        Sampler
            Step function and grids.

        Raises
        ------
        InputError
            If there is no such sampler, or a number makes no sense.
        """
        check_counts(n=n, steps=steps, batch_size=batch_size, tile=tile)
        at_least("guidance", guidance, 0)
        told = bool(self.conditions_) or self.source_ is not None
        if guidance != 1 and self.guide_ is None and not told:
            raise InputError(
                f"this model has no guide for a guidance of {guidance}; leave it out, "
                "or train with conditions or guide=True."
            )
        whole("first", first, 0)
        whole("seed", seed, 0)
        return samplers.make_sampler(sampler, eta)

    def denoise(
        self,
        images: npt.ArrayLike,
        *,
        conditions: Any = None,
        source: npt.ArrayLike | None = None,
        strength: float = 0.1,
        sampler: str = "dpm++",
        steps: int | None = None,
        eta: float = 0.0,
        seed: int = 0,
        first: int = 0,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Noise the latents of images to a level, and walk back from there.

        The more noise, the more is made up anew; after :footcite:p:`Meng2022`. There
        is no guidance: what is wanted is the likely image, not a clear one.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of the shape of the training images.
        conditions : dict, DataFrame or object, optional
            What the images shall look like, as of :meth:`predict`; what is left out is
            not specified.
        source : array_like, optional
            As of :meth:`predict`.
        strength : float
            Time in [0, 1] to which the latents are noised. At 0 the result is the
            autoencoder's reconstruction, at 1 nothing of the image is left.
        sampler : {"ddpm", "ddim", "dpm++"}
            How to walk back.
        steps : int, optional
            Calls of the network on the way from ``strength`` to clean latents. None is
            for :meth:`default_denoising_steps`: one at the default strength.
        eta : float
            Share of fresh noise in each step of ``ddim``, from 0 to 1.
        seed : int
            Seed of the noise.
        first : int
            Number of the first image's noise; others give other results.
        batch_size : int, optional
            Images that are denoised at once; as many as memory surely allows if
            None.
        tile : int, optional
            Voxels along a side of the tiles in which large images are worked on, as
            of :meth:`dipy_ldm.VQVAE.decode`.

        Returns
        -------
        ndarray
            Images, float32, of the shape of ``images``.

        Raises
        ------
        InputError
            If the model is not fitted, or an argument can't be used.

        References
        ----------
        .. footbibliography::
        """
        self._check_fitted()
        images = self._check_images(images, self.vqvae_)
        given = self._given(conditions, source, len(images))
        check_shares(strength=strength)
        if steps is None:
            steps = self.default_denoising_steps(sampler, strength)
        step, grid, _ = self.check_sampling(
            sampler=sampler,
            steps=steps,
            eta=eta,
            seed=seed,
            first=first,
            batch_size=batch_size,
            tile=tile,
        )
        schedule = self._described()["schedule"]
        path = schedules.path(schedule, grid(schedule, steps, strength))
        alpha, sigma = path[0][1]
        at_once = self._coded_at_once(batch_size)
        encoded = self.vqvae_.encode(images, batch_size=at_once, tile=tile)

        def walk(numbers):
            if strength == 0:
                # As they are: scaled there and back, rounding chooses between codes
                # that are as near.
                return self.vqvae_.decode(encoded[numbers], tile=tile)
            denoise = self._denoiser(1.0, given.take(numbers))
            noise = samplers.noise_source(seed, first + numbers, self.latent_shape_)
            x = alpha * self._scaled(encoded[numbers]) + sigma * noise()
            clean = samplers.sample(denoise, x, path, step, noise)
            return self.vqvae_.decode(self._unscaled(clean), tile=tile)

        numbers = np.arange(len(images))
        return _backend.in_batches(walk, numbers, self._batch(batch_size))

    def needed_memory(
        self, batch_size: int | None = None, tile: int | None = None
    ) -> float:
        """Estimate what generating or denoising takes, given as of :meth:`predict`.

        Returns
        -------
        float
            Bytes, beside the images.
        """
        self._check_fitted()
        at_once = self._coded_at_once(batch_size)
        coding = self.vqvae_.needed_memory(batch_size=at_once, tile=tile)
        batch_size = self._batch(batch_size)
        unets = [net for net in (self.denoiser_, self.guide_) if net is not None]
        return memory.estimate_sampling(unets, batch_size, max(coding))

    def check_memory(
        self, batch_size: int | None = None, tile: int | None = None, strategy=None
    ) -> None:
        """Refuse to generate or denoise what would not fit into the memory.

        For a new process: what can be used again of earlier work counts as taken.

        Parameters
        ----------
        batch_size, tile : int, optional
            As of :meth:`predict`.
        strategy : tf.distribute.Strategy or None
            Devices that it is done on.

        Raises
        ------
        InputError
            If it needs more than is free.
        """
        cure = "`tile` (64, say)" if batch_size == 1 else "`batch_size`"
        needed = self.needed_memory(batch_size, tile)
        memory.check("the work on images", needed, f"a smaller {cure}", strategy)

    def _batch(self, batch_size):
        space = self.vqvae_.shape_[:-1]
        return batch_size or tiles.safe_batch(space, tiles.SAFE_LATENTS)

    def _coded_at_once(self, batch_size):
        """Say how many images are encoded or decoded at once, of those of a batch."""
        space = self.vqvae_.shape_[:-1]
        return min(self._batch(batch_size), tiles.safe_batch(space))

    def _check_images(self, images: npt.ArrayLike, vqvae: Codec) -> np.ndarray:
        """Return images as an array, of the shape that the autoencoder knows."""
        vqvae._check_fitted()
        return as_fitted(images, vqvae.shape_, "autoencoder")
