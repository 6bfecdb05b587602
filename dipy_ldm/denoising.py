"""A fitted denoiser with all that tells it where to go: conditions and guidance."""

from collections.abc import Callable
from functools import partial
import logging
from typing import Any

import numpy as np

from dipy_ldm import _backend
from dipy_ldm._base import Estimator
from dipy_ldm.codec import Codec
from dipy_ldm.conditions import UNSPECIFIED, Condition, Told
from dipy_ldm.data import _sources as sources
from dipy_ldm.data._sources import ConditioningInputs, Source, prepare_sources
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.denoiser._unet import build_denoisers, prior_options
from dipy_ldm.diffusion import guidance as denoisers, samplers, schedules
from dipy_ldm.nn import building
from dipy_ldm.prior._conditional_mean import ConditionalMean
from dipy_ldm.prior._gaussian import Gaussian
from dipy_ldm.prior._population import Population, draw
from dipy_ldm.prior._probe import LinearProbe

logger = logging.getLogger(__name__)

# Times at which the guide guides, by the noise that the cosine schedule has then:
# before and after, samples are better without.
_GUIDED = (0.4, 0.9)
# Share of the guide's estimate without conditions: what is made is surer to be what was
# asked for than where the guide is told all (doc/decisions/digits.md).
_UNTOLD = 0.1


def _telling(predict, told, x, *given):
    """Let a network predict, told the same of all latents or something of each."""
    each = (np.broadcast_to(some, (len(x), *some.shape[1:])) for some in told)
    return predict(x, *given, *each)


def _compiled(unet):
    return _backend.compiled(lambda *given: unet([*given]), unet.inputs, [unet])


class Denoising(Estimator):
    """What estimates clean latents, once it is fitted.

    Attributes
    ----------
    vqvae_ : Codec
        From latents to images, and back.
    denoiser_, guide_ : keras.Model
        The U-Nets; no guide is None.
    conditions_ : dict of str to Condition
        What is known of each condition.
    population_ : Population or None
        How often conditions came together.
    source_ : Source or None
        What is known of sources.
    expectation_ : ConditionalMean or None
        What is to be expected of latents, by what is told.
    gaussian_ : Gaussian or None
        What they are like beside that.
    readings_ : LinearProbe or None
        What is read in them of what is told.
    latent_mean_, latent_scale_ : ndarray
        Mean of each channel of the latents, and what each is divided by.
    latent_shape_ : tuple of int
        Shape of a latent, ``(*space, channels)``.
    """

    vqvae_: Codec
    denoiser_: Any
    guide_: Any
    conditions_: dict[str, Condition]
    population_: Population | None
    source_: Source | None
    expectation_: ConditionalMean | None
    gaussian_: Gaussian | None
    readings_: LinearProbe | None
    latent_mean_: np.ndarray
    latent_scale_: np.ndarray
    latent_shape_: tuple[int, ...]
    # Compiled: noisy latents, their times and what is told of each to what a network
    # predicts.
    _predict: Callable
    _predict_guide: Callable

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
            10 of ``dpm++``, 50 of the others.
        """
        return 10 if sampler == "dpm++" else 50

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

    def denoiser(
        self, guidance: float = 1.0, conditions: Any = None, source: Any = None
    ) -> Callable:
        """Return what samplers walk with.

        Parameters
        ----------
        guidance : float
            As of :meth:`predict`.
        conditions : dict, DataFrame or object, optional
            As of :meth:`predict`, for all latents, or with one value for each of those
            that are denoised together; what is left out is not specified.
        source : array_like, optional
            As of :meth:`predict`, one for all latents, or one for each.

        Returns
        -------
        callable
            ``denoise(x, t)``: from latents of unit variance with noise,
            ``(batch, *space, channels)``, and their time to an estimate of the clean
            ones, as of :mod:`dipy_ldm.diffusion.guidance`.
        """
        given = self._given(conditions, source, self._count(conditions, source))
        return self._denoiser(guidance, given)

    def _denoiser(self, guidance, given):
        """Return what samplers walk with where the networks are told this."""
        chosen, told = self._described(), given.arrays()
        expected = self._expected(given)

        def of(predict, told, expected):
            if told:
                predict = partial(_telling, predict, told)
            trained = chosen["schedule"], chosen["target"]
            return denoisers.from_network(predict, *trained, expected)

        untold = None if expected is None else 0 * expected
        if self.guide_ is None:
            nothing = [np.full_like(some, UNSPECIFIED) for some in told]
            weak = of(self._predict, nothing, untold)
        else:
            weak = of(self._predict_guide, told, expected)
        if self.guide_ is not None and self._specified(given):
            less = (np.full_like(told[0], UNSPECIFIED), *told[1:])
            other = of(self._predict_guide, less, untold)
            weak = denoisers.mixed(weak, other, _UNTOLD)
        strong = of(self._predict, told, expected)
        interval = schedules.times_of_equal_noise(chosen["schedule"], _GUIDED)
        denoise = denoisers.guided(strong, weak, guidance, tuple(interval))
        if self.readings_ is None or self.gaussian_ is None:
            return denoise
        known = self.gaussian_, chosen["schedule"], given.table
        return self.readings_.guide_by_observation(denoise, *known)

    def _specified(self, given):
        """Return whether any condition is specified."""
        return (given.table[:, : len(self.conditions_)] != UNSPECIFIED).any()

    def _expected(self, given):
        """Return what is to be expected where this is told; None if nothing is."""
        known = self.expectation_
        return None if known is None else known.predict(given.table)

    def _mean(self, given):
        """Return the mean of latents of which this is told; 0 where it is not known."""
        if self.gaussian_ is None:
            return 0
        expected = self._expected(given)
        return self.gaussian_.mean + (0 if expected is None else expected)

    def check_conditions(self, conditions: Any, n: int | None = None) -> list[str]:
        """Refuse conditions that the model does not know.

        Parameters
        ----------
        conditions : dict, DataFrame or object
            As of :meth:`predict`.
        n : int, optional
            Number of images. None is for as many as there are values.

        Returns
        -------
        list of str
            A sentence on each number that lies outside of those of the training.

        Raises
        ------
        InputError
            If a name or a level is unknown (the sentence lists the known ones), or
            there are more or fewer values than images.
        """
        self._check_fitted()
        return Told.of(self.conditions_, conditions, n).surprises

    def draw_conditions(
        self,
        n: int,
        conditions: Any = None,
        *,
        seed: int = 0,
        first: int = 0,
        same_noise: bool = False,
    ) -> Any:
        """Draw the conditions that are not given, as :meth:`predict` does.

        They come from the distribution of the training images: of several conditions
        together where enough images had them, and such as go with what is given.

        Parameters
        ----------
        n : int
            Number of images.
        conditions, seed, first, same_noise
            As of :meth:`predict`.

        Returns
        -------
        dict of str to list, str or None
            A value of each condition for each image; ``"none"`` if that was given, and
            None of a model without conditions.

        Raises
        ------
        InputError
            If a name or a level is unknown, or there are more or fewer values than
            images.
        """
        self._check_fitted()
        asked = self.conditions_, self.population_, conditions, n
        return draw(*asked, seed=seed, first=first, same=same_noise)

    def check_source(self, source: Any, n: int | None = None) -> np.ndarray | None:
        """Refuse sources that are not like those that the model has learnt from.

        Parameters
        ----------
        source : array_like or None
            As of :meth:`predict`.
        n : int, optional
            Number of images. None is for any.

        Returns
        -------
        ndarray or None
            ``(n, *space, channels)`` or ``(1, *space, channels)``; None where the model
            knows of none.

        Raises
        ------
        InputError
            If there is one and the model knows of none, or the reverse, or it is of
            another size or number, has other channels or labels, or is not finite.
        """
        self._check_fitted()
        return sources.check(self.source_, source, self.vqvae_.shape_[:-1], n=n)

    def _count(self, conditions, source):
        """Count the images that conditions and sources are for."""
        self._check_fitted()
        images = self.check_source(source)
        seen = 1 if images is None else len(images)
        return max(seen, len(Told.of(self.conditions_, conditions).numbers))

    def _given(self, conditions, source, n):
        """Return what the networks are told of so many images."""
        images = self.check_source(source, n)
        told = Told.of(self.conditions_, conditions, n)
        for sentence in told.surprises:
            logger.warning("%s", sentence)
        seen = prepare_sources(self.source_, images, self.vqvae_.factor)
        return ConditioningInputs.of(told.numbers, seen)

    def _networks(self):
        both = [("denoiser", self.denoiser_), ("guide", self.guide_)]
        return [(name, network) for name, network in both if network is not None]

    def _make_unets(self, **knows):
        """Build the denoiser and, if there shall be one, its guide."""
        told = self.conditions_, self.source_, self.vqvae_.factor
        given = self._described(), self.latent_shape_, *told
        return build_denoisers(*given, **knows)

    def _build(self):
        """Make the networks that generate, in full precision."""
        with building.precision("float32"):
            made = self._make_unets(**prior_options(self.expectation_, self.gaussian_))
        for network in made.values():
            unet_network.set_prior(network, self.gaussian_)
        self.denoiser_, self.guide_ = made["denoiser"], made.get("guide")
        self._predict = _compiled(self.denoiser_)
        self._predict_guide = self.guide_ and _compiled(self.guide_)

    def _is_fitted(self):
        return hasattr(self, "denoiser_")

    def _of_images(self):
        """Say whether it is of images, not of volumes."""
        return len(self.latent_shape_) == 3

    def _scaled(self, latents):
        """Bring latents to mean 0 and variance 1."""
        return (latents - self.latent_mean_) / self.latent_scale_

    def _unscaled(self, latents):
        return latents * self.latent_scale_ + self.latent_mean_
