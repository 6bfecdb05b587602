"""How the denoiser and its guide are trained."""

from types import SimpleNamespace

import numpy as np
import pytest

from dipy_ldm.denoiser._conditioning import Latents
from dipy_ldm.denoiser._networks import Architecture, Parameters
from dipy_ldm.denoiser._training import Validation, guide_batches
from dipy_ldm.prior._latent_prior import LatentPrior


@pytest.mark.parametrize(
    ("space", "largest"), [((7, 7), 34), ((40, 40, 40), 1), ((20, 20, 20), 8)]
)
def test_validation_is_of_as_many_as_memory_allows(space, largest):
    sizes = []

    def predict(noisy, times):
        sizes.append(len(noisy))
        return np.zeros_like(noisy)

    shape = (*space, 1)
    parameters = Parameters([4], 1, None, "cosine", "v", False, 0)
    denoiser = SimpleNamespace(
        architecture=Architecture(parameters, shape, 4),
        prior=LatentPrior(),
        predict=predict,
    )
    latents = Latents(np.ones((17, *shape), "float32"))
    Validation(denoiser, latents, batch_size=64)(last=True)
    assert max(sizes) == largest
    # Few are measured with several noises.
    assert sum(sizes) == 34


def test_the_guide_is_trained_for_as_many_steps_however_many_batches_each_has():
    for steps in (100, 2000, 16000):
        assert guide_batches(8 * steps, 8) == 8 * guide_batches(steps, 1)
