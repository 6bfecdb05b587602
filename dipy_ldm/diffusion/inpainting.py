"""Inpainting: sample what lies in a hole, so that it fits what is around it.

Where latents are known, :func:`dipy_ldm.diffusion.guidance.pinned` puts them into a
denoiser's estimate; a sampler that walks with it keeps them, noised to each level, and
learns from them what fits between. That is not enough by itself: what is sampled near a
known latent was begun before it was influenced by it. So each step is taken several
times, with the noise that it has removed put back between
(:func:`dipy_ldm.diffusion.samplers.sample`, after :footcite:p:`Lugmayr2022`).

References
----------
.. footbibliography::
"""

import numpy as np

from dipy_ldm.diffusion import schedules

# Steps, and how often each is taken. With these the distribution of what is missing of
# a Gaussian is met, and more of either brought nothing.
STEPS, RESAMPLINGS = 10, 5
# Time up to which latents are sampled, by the share of their place that is in a hole:
# those of which half is are sampled from pure noise. At the least, so that samples
# differ in small holes too, and the last steps of every grid are taken. These are times
# of the cosine schedule, and stand for its noise.
_RELEASE_SLOPE, _MIN_RELEASE = 2.0, 0.25


def release_times(shares: np.ndarray, schedule: str) -> np.ndarray:
    """Return the time up to which each latent is sampled; 0 for those not touched.

    Parameters
    ----------
    shares : ndarray
        How much of the place of each latent is in a hole, as of
        :func:`dipy_ldm.diffusion.masks.hole_shares`.
    schedule : str
        Name of the schedule.

    Returns
    -------
    ndarray
        Times, of the shape of ``shares``.
    """
    times = np.clip(_RELEASE_SLOPE * shares, _MIN_RELEASE, 1)
    return np.where(shares > 0, schedules.times_of_equal_noise(schedule, times), 0)
