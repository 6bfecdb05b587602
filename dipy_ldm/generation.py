"""A fitted diffusion model at work: from noise, or from images, to images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dipy_ldm import denoisers, distribution, memory, samplers, schedules, tiles
from dipy_ldm.codec import Codec
from dipy_ldm.data.arrays import as_array
from dipy_ldm.estimators import Estimator
from dipy_ldm.validation import InputError, at_least, check_counts, check_shares, whole

# Times at which the guide guides: before and after, samples are better without.
_GUIDED = (0.2, 0.95)


class Generator(Estimator):
    """What generates and denoises images, once it is fitted.

    Attributes
    ----------
    vqvae_ : Codec
        From latents to images, and back.
    denoiser_, guide_ : keras.Model
        The U-Nets; no guide is None.
    latent_mean_, latent_scale_ : ndarray
        Mean of each channel of the latents, and what each is divided by.
    latent_shape_ : tuple of int
        Shape of a latent, ``(*space, channels)``.
    """

    vqvae_: Codec
    denoiser_: Any
    guide_: Any
    latent_mean_: np.ndarray
    latent_scale_: np.ndarray
    latent_shape_: tuple[int, ...]
    # Compiled: noisy latents and their times to what a network predicts.
    _predict: Callable
    _predict_guide: Callable

    def predict(
        self,
        n: int = 1,
        *,
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

        Sample ``i`` depends on ``(seed, i)`` alone, not on the batch it is in.

        Parameters
        ----------
        n : int
            Number of images.
        sampler : {"ddpm", "ddim", "dpm++"}
            How to walk back from noise.
        steps : int, optional
            Calls of the network for each image. None is for :meth:`default_steps`.
        eta : float
            Share of fresh noise in each step of ``ddim``, from 0 to 1.
        guidance : float, optional
            How far to follow the denoiser away from its guide. 1 is without a guide,
            and faster; the higher, the clearer the images and the less they vary. It
            guides at times from 0.2 to 0.95.
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
            :func:`dipy_ldm.distribution.make_strategy`; ``"auto"`` is for this
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
        steps = self.default_steps(sampler) if steps is None else steps
        guidance = self.default_guidance if guidance is None else guidance
        step, grid = self.check_sampling(
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
        path = schedules.path(schedule, grid(schedule, steps))
        denoise = self.denoiser(guidance)

        def generate(numbers):
            noise = samplers.noise_of(seed, numbers, self.latent_shape_)
            latents = samplers.sample(denoise, noise(), path, step, noise)
            return self.vqvae_.decode(self._unscaled(latents), tile=tile)

        numbers = np.arange(first, first + n)
        title = "generate" if verbose else None
        batch_size = self._batch(batch_size)
        strategy = distribution.make_strategy(strategy, alone=True)
        with distribution.spread(strategy):
            return distribution.in_batches(generate, numbers, batch_size, title)

    @property
    def default_guidance(self):
        """The guidance that was measured to be best: 2 for images, 1 for volumes."""
        return 2.0 if self._of_images() and self.guide_ else 1.0

    def default_steps(self, sampler: str) -> int:
        """Return how many steps suffice, as was measured on digits and volumes.

        Parameters
        ----------
        sampler : str
            Name of the sampler.

        Returns
        -------
        int
            10 of ``dpm++``, 20 for volumes; 50 of the others.
        """
        if sampler != "dpm++":
            return 50
        return 10 if self._of_images() else 20

    def default_denoising_steps(self, sampler: str, strength: float) -> int:
        """Return how many steps suffice to walk back from a strength.

        Parameters
        ----------
        sampler : str
            Name of the sampler.
        strength : float
            As of :meth:`denoise`.

        Returns
        -------
        int
            As many as 20 steps on the whole way from 1 have from there on; with
            ``dpm++`` 1 up to a strength of about 0.1, 3 at 0.2 and 5 at 0.4. More were
            not measured to come nearer to the truth.
        """
        schedule = self._described()["schedule"]
        times = samplers.make_sampler(sampler).grid(schedule, 20)
        return 1 + int(np.sum(times < strength - 1e-6))

    def denoiser(self, guidance: float = 1.0) -> Callable:
        """Return what samplers walk with.

        Parameters
        ----------
        guidance : float
            As of :meth:`predict`.

        Returns
        -------
        callable
            ``denoise(x, t)``: from latents of unit variance with noise,
            ``(batch, *space, channels)``, and their time to an estimate of the clean
            ones, as of :mod:`dipy_ldm.denoisers`.
        """
        self._check_fitted()
        chosen = self._described()
        strong, weak = (
            denoisers.from_network(predict, chosen["schedule"], chosen["target"])
            for predict in (self._predict, self._predict_guide)
        )
        return denoisers.guided(strong, weak, guidance, _GUIDED)

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
            Step function and grid.

        Raises
        ------
        InputError
            If there is no such sampler, or a number makes no sense.
        """
        check_counts(n=n, steps=steps, batch_size=batch_size, tile=tile)
        at_least("guidance", guidance, 0)
        if guidance != 1 and self.guide_ is None:
            raise InputError(
                f"this model has no guide for a guidance of {guidance}; leave it out, "
                "or train with guide=True."
            )
        whole("first", first, 0)
        whole("seed", seed, 0)
        return samplers.make_sampler(sampler, eta)

    def denoise(
        self,
        images: npt.ArrayLike,
        *,
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
        check_shares(strength=strength)
        if steps is None:
            steps = self.default_denoising_steps(sampler, strength)
        step, grid = self.check_sampling(
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
        encoded = self.vqvae_.encode(images, batch_size=batch_size, tile=tile)
        latents = self._scaled(encoded)
        denoise = self.denoiser()

        def walk(numbers):
            clean = latents[numbers]
            if strength > 0:
                noise = samplers.noise_of(seed, first + numbers, self.latent_shape_)
                x = alpha * clean + sigma * noise()
                clean = samplers.sample(denoise, x, path, step, noise)
            return self.vqvae_.decode(self._unscaled(clean), tile=tile)

        numbers = np.arange(len(images))
        return distribution.in_batches(walk, numbers, self._batch(batch_size))

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
        batch_size = self._batch(batch_size)
        coding = self.vqvae_.needed_memory(batch_size=batch_size, tile=tile)
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
        return batch_size or tiles.safe_batch(self.vqvae_.shape_[:-1])

    def _is_fitted(self):
        return hasattr(self, "denoiser_")

    def _check_images(self, images: npt.ArrayLike, vqvae: Codec) -> np.ndarray:
        """Return images as an array, of the shape that the autoencoder knows."""
        vqvae._check_fitted()
        images = as_array(images)
        if images.shape[1:] != tuple(vqvae.shape_):
            raise InputError(
                f"images must have the shape {vqvae.shape_} of those that the "
                f"autoencoder was fitted to, not {images.shape[1:]}."
            )
        return images

    def _of_images(self):
        """Say whether it is of images, not of volumes."""
        return len(self.latent_shape_) == 3

    def _scaled(self, latents):
        """Bring each channel to mean 0 and variance 1."""
        return (latents - self.latent_mean_) / self.latent_scale_

    def _unscaled(self, latents):
        return latents * self.latent_scale_ + self.latent_mean_
