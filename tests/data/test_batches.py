"""Batches: functions of seed, epoch and example."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._backend import distribute_batches, make_strategy
from dipy_ldm._conditions import UNSPECIFIED
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._batches import Augmentation, batches, read_whole, read_windows
from dipy_ldm.data._sources import Source, Sources
from dipy_ldm.denoiser._noising import noisy_batches
from dipy_ldm.diffusion import schedules

IMAGES = np.arange(10, dtype="float32").reshape(10, 1, 1)


def order(n_batches, first_step=0, **kwargs):
    data = batches(IMAGES, 3, **kwargs)
    return [x.ravel().tolist() for x, _ in some(data, n_batches, first_step)]


def some(data, n_batches, first_step=0):
    return [data.of(first_step + step) for step in range(n_batches)]


def test_an_epoch_has_every_image_at_most_once():
    epochs = np.array(order(30, seed=0)).reshape(10, 9)
    for epoch in epochs:
        assert len(set(epoch)) == 9
    # What is left out, and the order, change from epoch to epoch.
    assert len({45 - epoch.sum() for epoch in epochs}) > 2
    assert len({tuple(epoch) for epoch in epochs}) == 10


def test_training_can_be_entered_in_the_middle_of_an_epoch():
    assert order(12, seed=4)[7:] == order(5, seed=4, first_step=7)
    assert order(6, seed=4) != order(6, seed=5)


def noisy(n_batches, batch_size=4, first_step=0, **kwargs):
    latents = np.random.default_rng(0).standard_normal((8, 3, 2)).astype("float32")
    options = {"schedule": "cosine", "target": "noise", "seed": 1} | kwargs
    data = noisy_batches(latents, batch_size, **options)
    drawn = some(data, n_batches, first_step)
    parts = zip(*((x, t, y) for (x, t), y in drawn), strict=True)
    return [np.concatenate(part) for part in parts]


def test_noise_does_not_depend_on_the_batch():
    for large, small in zip(noisy(4, 4), noisy(8, 2), strict=True):
        npt.assert_allclose(large, small, rtol=1e-6)


def test_noise_can_be_entered_in_the_middle_of_training():
    for whole, later in zip(noisy(6), noisy(3, first_step=3), strict=True):
        npt.assert_array_equal(whole[12:], later)


def test_times_follow_the_given_distribution():
    _, alike, _ = noisy(4)
    x, times, noise = noisy(4, times=lambda shares: shares**2)
    npt.assert_allclose(times, alike**2, rtol=1e-6)
    assert x.dtype == times.dtype == noise.dtype == np.float32


@pytest.mark.tensorflow
@pytest.mark.parametrize("strategy", [None, "mirrored"])
def test_datasets_have_each_batch_whole_and_with_its_shapes(strategy):
    if strategy:
        strategy = make_strategy("mirrored", ["CPU:0"])
    latents = np.random.default_rng(0).standard_normal((13, 2, 1)).astype("float32")
    data = noisy_batches(latents, 4, schedule="cosine", target="v", seed=1)
    dataset = distribute_batches(data, 7, strategy)
    (x, times), target = dataset.element_spec
    assert (x.shape, times.shape, target.shape) == ((4, 2, 1), (4,), (4, 2, 1))
    for step, ((x, times), target) in zip(range(7, 12), dataset, strict=False):
        (right, at), wanted = data.of(step)
        npt.assert_array_equal(x, right)
        npt.assert_array_equal(times, at)
        npt.assert_array_equal(target, wanted)


def test_pieces_put_together_are_the_batch():
    latents = np.random.default_rng(0).standard_normal((13, 2, 1)).astype("float32")
    data = noisy_batches(latents, 4, schedule="cosine", target="v", seed=1)
    for step in range(6):
        (x, times), target = data.of(step)
        parts = (data.draw(step, range(first, first + 2)) for first in (0, 2))
        parts = zip(*((p, at, wanted) for (p, at), wanted in parts), strict=True)
        for pieces, whole in zip(parts, (x, times, target), strict=True):
            npt.assert_array_equal(np.concatenate(pieces), whole)


def test_noise_is_new_every_epoch_and_standard_normal():
    _, _, noise = noisy(400)
    assert len(np.unique(noise)) > 0.99 * noise.size
    npt.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.02)


TOLD = np.arange(24, dtype="float32").reshape(8, 3)


def told(n_batches, conditions=TOLD, first_step=0, **kwargs):
    latents = np.repeat(np.arange(8, dtype="float32"), 2).reshape(8, 2, 1)
    options = {"schedule": "cosine", "target": "clean", "seed": 1} | kwargs
    data = noisy_batches(latents, 4, conditions=conditions, **options)
    drawn = some(data, n_batches, first_step)
    which = np.concatenate([clean[:, 0, 0] for _, clean in drawn]).astype(int)
    return which, np.concatenate([given[2] for given, _ in drawn])


def test_conditions_are_those_of_the_latents():
    which, found = told(20, dropped=0.0)
    npt.assert_array_equal(found, TOLD[which])


def test_conditions_are_dropped_together_and_alone():
    which, found = told(1000)
    left_out = found == UNSPECIFIED
    npt.assert_array_equal(found[~left_out], TOLD[which][~left_out])
    alone = 0.1
    npt.assert_allclose(left_out.mean(0), 0.1 + 0.9 * alone, atol=0.02)
    npt.assert_allclose(left_out.all(1).mean(), 0.1 + 0.9 * alone**3, atol=0.02)
    single = told(1000, TOLD[:, :1])[1] == UNSPECIFIED
    npt.assert_allclose(single.mean(), 0.1, atol=0.02)


def test_dropped_conditions_follow_from_the_step():
    whole = told(6)[1]
    npt.assert_array_equal(told(3, first_step=3)[1], whole[12:])
    assert (told(6, seed=2)[1] != whole).any()
    # And what is noise, and of which time, is the same without conditions.
    options = {"schedule": "cosine", "target": "v", "seed": 1}
    plain = noisy_batches(TOLD[..., None], 4, **options)
    also = noisy_batches(TOLD[..., None], 4, conditions=TOLD, **options)
    for (a, b), (c, d) in zip(some(plain, 2), some(also, 2), strict=True):
        npt.assert_array_equal(a[0], c[0])
        npt.assert_array_equal(a[1], c[1])
        npt.assert_array_equal(b, d)


def test_sources_match_latents_and_are_dropped_with_conditions():
    latents = np.repeat(np.arange(8, dtype="float32"), 2).reshape(8, 2, 1)
    images = (10 + np.arange(8.0)).reshape(8, 1, 1)
    table = np.column_stack([TOLD, np.arange(8)]).astype("float32")
    sources = Sources(images, Source(1, (10.0, 17.0), [], ""), (4,))
    options = {"schedule": "cosine", "target": "clean", "seed": 1}
    data = noisy_batches(latents, 4, conditions=table, sources=sources, **options)
    drawn = some(data, 500)
    which = np.concatenate([clean[:, 0, 0] for _, clean in drawn])
    told, read = (np.concatenate([given[i] for given, _ in drawn]) for i in (2, 3))
    assert told.shape == (2000, 3)
    assert read.shape == (2000, 4, 1)
    left_out = read[:, 0, 0] == UNSPECIFIED
    npt.assert_allclose(left_out.mean(), 0.19, atol=0.03)
    assert (read[left_out] == UNSPECIFIED).all()
    npt.assert_allclose(read[~left_out, 3, 0], which[~left_out] / 7, rtol=1e-6)
    (*_, part), _ = data.draw(0, range(2, 4))
    npt.assert_array_equal(part, drawn[0][0][-1][2:])


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


def pieces(images, n_batches=20, batch_size=4, **kwargs):
    data = batches(images, batch_size, seed=0, **kwargs)
    return zip(*some(data, n_batches), strict=True)


def test_patches_are_pieces_from_everywhere():
    images = np.arange(8 * 6 * 5, dtype="float32").reshape(8, 6, 5, 1)
    found, wanted = map(np.concatenate, pieces(images, size=(3, 2)))
    npt.assert_array_equal(found, wanted)
    corners = found[:, 0, 0, 0].astype(int)
    assert len(set(corners % 30)) == 4 * 4
    # Each is a piece of one image.
    flat = images.reshape(8, 30)
    rows = corners[:, None, None] + 5 * np.arange(3)[:, None] + np.arange(2)
    npt.assert_array_equal(found[..., 0], flat.ravel()[rows])


def test_a_window_larger_than_the_image_starts_with_it():
    images = np.random.default_rng(0).random((8, 6, 5, 1))
    found, _ = map(np.concatenate, pieces(images, size=(8, 8)))
    assert found.shape[1:] == (8, 8, 1)
    firsts = {round(float(x), 6) for x in images[:, 0, 0, 0]}
    assert {round(float(x), 6) for x in found[:, 0, 0, 0]} == firsts


def test_intensities_are_brought_to_bounds():
    images = np.random.default_rng(0).uniform(-5, 20, (8, 6, 5, 1))
    found, _ = map(np.concatenate, pieces(images, bounds=(-5.0, 20.0)))
    assert 0 <= found.min() < 0.05
    assert 0.95 < found.max() <= 1


@pytest.mark.parametrize(("space", "axis"), [((6, 5), 2), ((4, 5, 3), 1)])
def test_augmentation_mirrors_half_of_the_images(space, axis):
    images = np.random.default_rng(0).random((1, *space, 1)).repeat(8, 0)
    found, _ = pieces(images, 50, augment=Augmentation(flip=True))
    found = np.concatenate(found).astype("float64")
    off = (found - image for image in (images[:1], np.flip(images[:1], axis)))
    same, mirrored = (np.abs(x).reshape(len(x), -1).max(1) < 1e-6 for x in off)
    assert (same | mirrored).all()
    assert 0.4 < same.mean() < 0.6


def test_shifts_are_as_small_as_promised_and_of_any_size():
    images = np.zeros((8, 9, 9, 1), "float32")
    images[:, 4, 4] = 1
    found, _ = pieces(images, 50, augment=Augmentation(shift=2))
    _, rows, columns, _ = np.nonzero(np.concatenate(found))
    assert set(rows) == set(columns) == {2, 3, 4, 5, 6}


def test_intensities_change_a_little_and_stay_in_range():
    images = np.linspace(0, 1, 11, dtype="float32").reshape(1, 11, 1, 1).repeat(8, 0)
    found, _ = pieces(images, 50, augment=Augmentation(intensity=0.1))
    found = np.concatenate(found)
    assert 0 <= found.min()
    assert found.max() <= 1
    assert 0.02 < np.abs(found - images[:1]).max() < 0.15
    assert (np.diff(found, axis=1) >= 0).all()


def test_augmentation_noise_is_in_the_input_only():
    images = np.full((8, 30, 30, 1), 0.5, "float32")
    augment = Augmentation(noise=0.1)
    found, wanted = map(np.concatenate, pieces(images, 50, augment=augment))
    npt.assert_array_equal(wanted, 0.5)
    spread = found.std((1, 2, 3))
    assert spread.min() < 0.01
    assert 0.09 < spread.max() < 0.11
    assert 0.04 < spread.mean() < 0.06
    # Of each epoch and image another, and the same in any batch.
    assert len({round(float(x), 7) for x in spread}) == len(spread)
    halves, _ = map(np.concatenate, pieces(images, 100, 2, augment=augment))
    npt.assert_array_equal(halves, found)


def test_weights_follow_the_masks():
    images = np.random.default_rng(0).random((8, 6, 5, 1)).astype("float32")
    masks = images > 0.5
    options = {"augment": Augmentation(flip=True, shift=1), "size": (4, 4)}
    found, wanted = pieces(images, masks=masks, background=0.25, **options)
    found, wanted = np.concatenate(found), np.concatenate(wanted)
    npt.assert_array_equal(wanted[..., :1], found)
    weights = wanted[..., 1:]
    assert len(np.unique(weights[found > 0.5])) == 1
    npt.assert_array_equal(weights[found <= 0.5], weights[found > 0.5][0] / 4)


def test_without_masks_the_darkest_is_background():
    images = np.zeros((8, 6, 5, 1), "float32")
    images[:, :3] = 1
    _, wanted = pieces(images, background=0.5)
    # Of mean 1.
    npt.assert_allclose(np.concatenate(wanted)[:, :3, :, 1], 4 / 3, rtol=1e-6)
    npt.assert_allclose(np.concatenate(wanted)[:, 3:, :, 1], 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("size", "shift"), [((4, 4), 0), ((3, 9), 2), ((20, 20), 1)])
def test_background_patches_weigh_as_background(masked, size, shift):
    # In one corner, so that some pieces have nothing of it and others nothing else.
    images = np.zeros((40, 12, 10, 1), "float32")
    images[:, :5, :4] = np.linspace(0.2, 1, 40).reshape(-1, 1, 1, 1)
    options = {"masks": images > 0.5} if masked else {}
    augment = Augmentation(flip=True, shift=shift)
    options |= {"background": 0.1, "size": size, "augment": augment}
    _, wanted = map(np.concatenate, pieces(images, 800, **options))
    weights = wanted[..., 1]
    light, heavy = np.unique(weights)
    npt.assert_allclose(light, heavy / 10, rtol=1e-6)
    npt.assert_allclose(weights.mean(), 1, atol=0.05)


def test_nothing_but_background_without_weight_is_refused():
    with pytest.raises(InputError, match="nothing of the images lies inside"):
        pieces(np.zeros((8, 6, 5, 1), "float32"), background=0.0)


@pytest.mark.parametrize("space", [(9, 7), (5, 6, 8)])
def test_a_window_inside_is_a_piece_of_the_image(space):
    images = np.random.default_rng(0).integers(0, 255, (3, *space, 2), "uint8")
    size = (3,) * len(space)
    corners = np.array([(1,) * len(space), (2,) * len(space)])
    first, second = read_windows(images, [2, 0], corners, size)
    assert first.dtype == np.float32
    npt.assert_array_equal(first, images[(2, *(slice(1, 4),) * len(space))])
    npt.assert_array_equal(second, images[(0, *(slice(2, 5),) * len(space))])


@pytest.mark.parametrize("space", [(6,), (4, 6), (3, 4, 5)])
def test_windows_anywhere_hold_the_nearest_voxels(space, rng):
    images = rng.random((2, *space, 2))
    for _ in range(100):
        size = tuple(rng.integers(1, 9, len(space)))
        corner = rng.integers(-12, 13, len(space))
        (window,) = read_windows(images, [1], corner[None], size)
        nearest = [
            np.clip(np.arange(first, first + length), 0, end - 1)
            for first, length, end in zip(corner, size, space, strict=True)
        ]
        npt.assert_array_equal(window, images[1][np.ix_(*nearest)].astype("float32"))


def test_a_whole_image_is_copied_at_once(monkeypatch):
    monkeypatch.setattr(np, "pad", None)
    images = np.random.default_rng(0).random((2, 5, 7, 1), "float32")
    npt.assert_array_equal(read_whole(images, (5, 7)), images)


def test_the_whole_is_filled_up_at_its_end():
    images = np.random.default_rng(0).random((2, 5, 7, 1))
    whole = read_whole(images, (8, 8))
    npt.assert_allclose(whole[:, :5, :7], images, rtol=1e-6)
    npt.assert_array_equal(whole[:, 5:, :7], whole[:, 4:5, :7].repeat(3, 1))
