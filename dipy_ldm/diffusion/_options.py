"""Sampling options, as passed and as resolved."""

from collections.abc import Callable
from typing import NamedTuple, TypedDict

import numpy as np

from dipy_ldm._utils.checks import check_counts, whole
from dipy_ldm.diffusion import samplers, schedules


class SamplingOptions(TypedDict, total=False):
    """Options of all methods that sample latents.

    Parameters
    ----------
    sampler : {"dpm++", "ddim", "ddpm"}
        Sampler, from noise to latents. Default: ``"dpm++"``.
    steps : int, optional
        Network calls per image. Default: 10 for ``dpm++``, 50 for the others, which
        were measured to suffice for digits and volumes.
    eta : float
        Share of fresh noise in each step of ``dpm++`` or ``ddim``, from 0 to 1.
        Default: 0.
    seed : int
        Seed of the noise. Default: 0.
    first : int
        Number of the first sample. Default: 0.
    batch_size : int, optional
        Images per batch. Default: as many as safely fit into memory.
    tile : int, optional
        Side length in voxels of the tiles in which large images are encoded and
        decoded, as in :meth:`dipy_ldm.VQVAE.decode`.
    """

    sampler: str
    steps: int | None
    eta: float
    seed: int
    first: int
    batch_size: int | None
    tile: int | None


class Sampling(NamedTuple):
    """Sampling options, with defaults filled in."""

    sampler: str = "dpm++"
    steps: int | None = None
    eta: float = 0.0
    seed: int = 0
    first: int = 0
    batch_size: int | None = None
    tile: int | None = None

    @property
    def step_function(self):
        """The step of the sampler, with `eta`."""
        return samplers.make_sampler(self.sampler, self.eta).step

    def path(self, schedule: str, start: float = 1.0, fine: bool = False) -> list:
        """Return times and noise levels from a start on, optionally to fine details."""
        sampler = samplers.SAMPLERS[self.sampler]
        grid = (sampler.fine if fine else None) or sampler.grid
        where = () if start == 1 else (start,)
        return schedules.path(schedule, grid(schedule, self.steps, *where))

    def noise(self, numbers: np.ndarray, shape: tuple[int, ...]) -> Callable:
        """Return the noise source of samples, whose numbers count from the first."""
        return samplers.noise_source(self.seed, self.first + numbers, shape)


def resolve(options: SamplingOptions) -> Sampling:
    """Resolve sampling options, and refuse invalid ones."""
    sampling = Sampling(**options)
    sampler = samplers.make_sampler(sampling.sampler, sampling.eta)
    if sampling.steps is None:
        sampling = sampling._replace(steps=sampler.default_steps)
    check_counts(
        steps=sampling.steps, batch_size=sampling.batch_size, tile=sampling.tile
    )
    whole("first", sampling.first, 0)
    whole("seed", sampling.seed, 0)
    return sampling
