"""Training of the denoiser and its autoguidance model."""

from types import SimpleNamespace

from batches import draw_batches, with_inputs
import keras
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._backend import distribute_batches, make_strategy
from dipy_ldm._conditions import UNSPECIFIED
from dipy_ldm.data._sources import Source, Sources
from dipy_ldm.denoiser._networks import Architecture, Parameters
from dipy_ldm.denoiser._training import Validation, guide_batches, noisy_batches
from dipy_ldm.diffusion import schedules
from dipy_ldm.prior._latent_prior import LatentPrior


def noisy(n_batches, batch_size=4, first_step=0, **kwargs):
    latents = np.random.default_rng(0).standard_normal((8, 3, 2)).astype("float32")
    options = {"schedule": "cosine", "target": "noise", "seed": 1} | kwargs
    data = noisy_batches(with_inputs(latents), batch_size, **options)
    drawn = draw_batches(data, n_batches, first_step)
    parts = zip(*((x, t, y) for (x, t), y in drawn), strict=True)
    return [np.concatenate(part) for part in parts]


def test_noise_does_not_depend_on_the_batch():
    for large, small in zip(noisy(4, 4), noisy(8, 2), strict=True):
        npt.assert_allclose(large, small, rtol=1e-6)


def test_noise_can_be_entered_in_the_middle_of_training():
    for whole, later in zip(noisy(6), noisy(3, first_step=3), strict=True):
        npt.assert_array_equal(whole[12:], later)


def test_times_follow_a_distribution():
    _, alike, _ = noisy(4)
    x, times, noise = noisy(4, times=lambda shares: shares**2)
    npt.assert_allclose(times, alike**2, rtol=1e-6)
    assert x.dtype == times.dtype == noise.dtype == np.float32


@pytest.fixture
def batches():
    latents = np.random.default_rng(0).standard_normal((13, 2, 1)).astype("float32")
    # A condition, and the number of the source.
    images, table = latents[:, :1], np.arange(13, dtype="float32").repeat(2)
    sources = Sources(images, Source(1, (-2.0, 2.0), [], ""), (4,))
    latents = with_inputs(latents, table.reshape(13, 2), sources)
    return noisy_batches(latents, 4, schedule="cosine", target="v", seed=1)


@pytest.mark.tensorflow
@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_datasets_have_each_batch_whole_and_with_its_shapes(strategy, batches):
    strategy = make_strategy(strategy, ["CPU:0"])
    dataset = distribute_batches(batches, 7, strategy)
    shapes = [tuple(x.shape) for x in keras.tree.flatten(dataset.element_spec)]
    # Noisy latents, times, conditions, sources and targets.
    assert shapes == [(4, 2, 1), (4,), (4, 1), (4, 4, 1), (4, 2, 1)]
    for step, batch in zip(range(7, 12), dataset, strict=False):
        expected = keras.tree.flatten(batches.of(step))
        for part, whole in zip(keras.tree.flatten(batch), expected, strict=True):
            npt.assert_array_equal(part, whole)


def test_draw_of_parts_equals_the_batch(batches):
    for step in range(6):
        pieces = [batches.draw(step, range(first, first + 2)) for first in (0, 2)]
        joined = keras.tree.map_structure(lambda *x: np.concatenate(x), *pieces)
        keras.tree.map_structure(npt.assert_array_equal, joined, batches.of(step))


def test_noise_is_new_every_epoch_and_standard_normal():
    _, _, noise = noisy(400)
    assert len(np.unique(noise)) > 0.99 * noise.size
    npt.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.02)


CONDITIONS = np.arange(24, dtype="float32").reshape(8, 3)


def draw_conditions(n_batches, conditions=CONDITIONS, sources=None, **options):
    """Return which latents are drawn, and all that belongs to them."""
    latents = np.repeat(np.arange(8, dtype="float32"), 2).reshape(8, 2, 1)
    first_step = options.pop("first_step", 0)
    options = {"schedule": "cosine", "target": "clean", "seed": 1} | options
    latents = with_inputs(latents, conditions, sources)
    data = noisy_batches(latents, 4, **options)
    drawn = draw_batches(data, n_batches, first_step)
    inputs, clean = (list(part) for part in zip(*drawn, strict=True))
    inputs = [np.concatenate(part) for part in zip(*inputs, strict=True)]
    return np.concatenate(clean)[:, 0, 0].astype(int), *inputs


def test_conditions_are_those_of_the_latents():
    which, *_, drawn = draw_conditions(20, dropped=0.0)
    npt.assert_array_equal(drawn, CONDITIONS[which])


def test_conditions_are_dropped_together_and_alone():
    which, *_, drawn = draw_conditions(1000)
    dropped = drawn == UNSPECIFIED
    npt.assert_array_equal(drawn[~dropped], CONDITIONS[which][~dropped])
    alone = 0.1
    npt.assert_allclose(dropped.mean(0), 0.1 + 0.9 * alone, atol=0.02)
    npt.assert_allclose(dropped.all(1).mean(), 0.1 + 0.9 * alone**3, atol=0.02)
    single = draw_conditions(1000, CONDITIONS[:, :1])[-1] == UNSPECIFIED
    npt.assert_allclose(single.mean(), 0.1, atol=0.02)


def test_dropped_conditions_follow_from_the_step():
    *whole, drawn = draw_conditions(6)
    npt.assert_array_equal(draw_conditions(3, first_step=3)[-1], drawn[12:])
    assert (draw_conditions(6, seed=2)[-1] != drawn).any()
    # And what is noise, and of which time, is the same without conditions.
    without = draw_conditions(6, CONDITIONS[:, :0])
    for part, expected in zip(without, whole, strict=True):
        npt.assert_array_equal(part, expected)


def test_sources_match_latents_and_are_dropped_with_conditions():
    images = (10 + np.arange(8.0)).reshape(8, 1, 1)
    table = np.column_stack([CONDITIONS, np.arange(8)]).astype("float32")
    sources = Sources(images, Source(1, (10.0, 17.0), [], ""), (4,))
    which, _, _, conditions, drawn = draw_conditions(500, table, sources)
    assert conditions.shape == (2000, 3)
    assert drawn.shape == (2000, 4, 1)
    dropped = drawn[:, 0, 0] == UNSPECIFIED
    npt.assert_allclose(dropped.mean(), 0.19, atol=0.03)
    assert (drawn[dropped] == UNSPECIFIED).all()
    npt.assert_allclose(drawn[~dropped, 3, 0], which[~dropped] / 7, rtol=1e-6)


def test_each_batch_has_its_share_of_every_time():
    _, times, _ = noisy(100, 8)
    assert ((times >= 0) & (times < 1)).all()
    gaps = np.diff(np.sort(times.reshape(100, 8)), axis=1)
    # Drawn independently, the largest of seven gaps would often be above 0.3.
    assert gaps.max() < 0.25


@pytest.mark.parametrize("target", schedules.TARGETS)
def test_noisy_latents_and_targets_agree(target):
    x, times, expected = noisy(2, target=target)
    alpha, sigma = (rate[:, None, None] for rate in schedules.rates("cosine", times))
    clean = schedules.to_clean(target, expected, x, alpha, sigma)
    latents = np.random.default_rng(0).standard_normal((8, 3, 2)).astype("float32")
    # The low rates at high noise magnify rounding when noise is divided out.
    distances = np.abs(clean[:, None] - latents).max((2, 3)).min(1)
    npt.assert_array_less(distances, 1e-2)


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
    latents = with_inputs(np.ones((17, *shape), "float32"))
    Validation(denoiser, latents, batch_size=64)(last=True)
    assert max(sizes) == largest
    # Few are measured with several noises.
    assert sum(sizes) == 34


def test_the_guide_is_trained_for_as_many_steps_however_many_batches_each_has():
    for steps in (100, 2000, 16000):
        assert guide_batches(8 * steps, 8) == 8 * guide_batches(steps, 1)
