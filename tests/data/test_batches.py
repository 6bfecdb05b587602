"""Batches: functions of seed, epoch and example."""

from itertools import islice

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm import schedules
from dipy_ldm.data.batches import batches, noised

IMAGES = np.arange(10, dtype="float32").reshape(10, 1, 1)


def order(n_batches, **kwargs):
    data = batches(IMAGES, 3, **kwargs)
    return [x.ravel().tolist() for x, _ in islice(data.as_numpy_iterator(), n_batches)]


def test_an_epoch_has_every_image_at_most_once():
    epochs = np.array(order(30, seed=0)).reshape(10, 9)
    for epoch in epochs:
        assert len(set(epoch)) == 9
    # What is left out, and the order, change from epoch to epoch.
    assert len({45 - epoch.sum() for epoch in epochs}) > 2
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_an_epoch_can_be_entered_in_the_middle_of_training():
    assert order(12, seed=4)[6:] == order(6, seed=4, first_epoch=2)
    assert order(6, seed=4) != order(6, seed=5)


def noisy(n_batches, batch_size=4, **kwargs):
    latents = np.random.default_rng(0).standard_normal((8, 3, 2)).astype("float32")
    options = {"schedule": "cosine", "target": "noise", "seed": 1} | kwargs
    data = noised(latents, batch_size, **options)
    return [
        np.concatenate(part)
        for part in zip(
            *((x, t, y) for (x, t), y in islice(data.as_numpy_iterator(), n_batches))
        )
    ]


def test_noise_does_not_depend_on_the_batch():
    for large, small in zip(noisy(4, 4), noisy(8, 2)):
        npt.assert_allclose(large, small, rtol=1e-6)


def test_noise_can_be_entered_in_the_middle_of_training():
    for whole, later in zip(noisy(6), noisy(2, first_epoch=2)):
        npt.assert_array_equal(whole[16:], later)


def test_noise_is_new_every_epoch_and_standard_normal():
    _, _, noise = noisy(400)
    assert len(np.unique(noise)) > 0.99 * noise.size
    npt.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.02)


def test_each_batch_has_its_share_of_every_time():
    _, times, _ = noisy(100, 8)
    assert ((times >= 0) & (times < 1)).all()
    gaps = np.diff(np.sort(times.reshape(100, 8)), axis=1)
    # Drawn independently, the largest of seven gaps would often be above 0.3.
    assert gaps.max() < 0.25


@pytest.mark.parametrize("target", schedules.TARGETS)
def test_mixture_and_target_agree(target):
    x, times, wanted = noisy(2, target=target)
    alpha, sigma = (rate[:, None, None] for rate in schedules.rates("cosine", times))
    clean = schedules.to_clean(target, wanted, x, alpha, sigma)
    latents = np.random.default_rng(0).standard_normal((8, 3, 2)).astype("float32")
    # The low rates at high noise magnify rounding when noise is divided out.
    found = np.abs(clean[:, None] - latents).max((2, 3)).min(1)
    npt.assert_array_less(found, 1e-2)
