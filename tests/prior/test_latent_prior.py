"""All that linear functions know of latents, learnt of subjects."""

import numpy as np
import numpy.testing as npt

from dipy_ldm._conditions import ConditionBatch, learn
from dipy_ldm.prior._latent_prior import LatentPrior

SHAPE = (3, 4, 5, 1)


def test_rare_levels_are_ignored(rng):
    # However many scans they have: it would be nearly one of these subjects.
    whose = np.repeat(np.arange(40), 3)
    sites = np.array(["A"] * 20 + ["B"] * 18 + ["C"] * 2)[whose]
    common = 8 * np.linspace(-1, 1, 60).reshape(SHAPE)
    people = common + rng.standard_normal((40, *SHAPE))
    latents = people[whose] + 0.1 * rng.standard_normal((120, *SHAPE))
    latents[sites == "A", 0] += 2
    latents = (latents - latents.mean()).astype("float32")
    known = learn({"site": sites}, 120)
    numbers = ConditionBatch.of(known, {"site": sites}, 120).numbers
    given = latents, numbers, known
    of_subjects = LatentPrior.learn(*given, volumes=True, subjects=whose)
    of_images = LatentPrior.learn(*given, volumes=True)
    for found, expected in ((of_subjects, False), (of_images, True)):
        levels = found.conditional_mean.predict(np.arange(3.0)[:, None])
        assert np.abs(levels[0] - levels[1]).max() > 1
        assert (np.abs(levels[2]).max() > 0.5) == expected
    npt.assert_array_equal(of_subjects.probe.errors > 0, [True, True, False])
