"""The latent prior: mean, Gaussian and probe, fitted by subject."""

import numpy as np
import numpy.testing as npt

from dipy_ldm._conditions import ConditionBatch, learn
from dipy_ldm.prior._latent_prior import LatentPrior

SHAPE = (3, 4, 5, 1)


def test_rare_levels_are_ignored(rng):
    # However many scans they have: it would be nearly one of these subjects.
    subjects = np.repeat(np.arange(40), 3)
    sites = np.array(["A"] * 20 + ["B"] * 18 + ["C"] * 2)[subjects]
    common = 8 * np.linspace(-1, 1, 60).reshape(SHAPE)
    people = common + rng.standard_normal((40, *SHAPE))
    latents = people[subjects] + 0.1 * rng.standard_normal((120, *SHAPE))
    latents[sites == "A", 0] += 2
    latents = (latents - latents.mean()).astype("float32")
    conditions = learn({"site": sites}, 120)
    numbers = ConditionBatch.of(conditions, {"site": sites}, 120).numbers
    examples = latents, numbers, conditions
    of_subjects = LatentPrior.learn(*examples, subjects, volumes=True)
    of_images = LatentPrior.learn(*examples, np.arange(120), volumes=True)
    for prior, expected in ((of_subjects, False), (of_images, True)):
        levels = prior.conditional_mean.predict(np.arange(3.0)[:, None])
        assert np.abs(levels[0] - levels[1]).max() > 1
        assert (np.abs(levels[2]).max() > 0.5) == expected
    npt.assert_array_equal(of_subjects.probe.errors > 0, [True, True, False])


def test_a_common_level_beside_a_rare_one_is_not_overestimated(rng):
    subjects = np.repeat(np.arange(12), 4)
    groups = np.array(["A"] * 9 + ["rare"] * 3)[subjects]
    latents = (
        0.5 * rng.standard_normal((48, *SHAPE))
        + (groups == "A")[:, None, None, None, None]
    )
    latents = (latents - latents.mean(0)).astype("float32")
    conditions = learn({"group": groups}, 48)
    numbers = ConditionBatch.of(conditions, {"group": groups}, 48).numbers
    prior = LatentPrior.learn(latents, numbers, conditions, subjects, volumes=False)
    mean = prior.conditional_mean.predict(numbers)
    npt.assert_array_equal(mean[groups == "rare"], 0)
    assert np.var(latents - mean) <= np.var(latents)
