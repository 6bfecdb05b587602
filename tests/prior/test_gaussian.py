"""The low-rank Gaussian of latents, and the Wiener estimate of clean latents."""

import copy
from functools import partial

from batches import with_inputs
from keras import ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm.data._sources import Source
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.denoiser._training import DenoiserStage, linear_loss, noisy_latents
from dipy_ldm.denoiser._unet import LinearEstimate
from dipy_ldm.diffusion.schedules import SCHEDULES, TARGETS, rates, to_clean, to_target
from dipy_ldm.prior import _gaussian as gaussian
from dipy_ldm.prior._gaussian import Gaussian, choose_examples, is_aligned
from dipy_ldm.training import ResolvedOptions

SHAPE = (4, 5, 3)
SIZE = 60


def drawn(n, seed=0, strength=3.0):
    """Draw latents that vary along two directions, and by themselves."""
    fixed, rng = np.random.default_rng(1), np.random.default_rng(seed)
    mean = fixed.standard_normal(SIZE)
    along = np.linalg.qr(fixed.standard_normal((SIZE, 2)))[0].T
    alone = fixed.uniform(0.1, 0.3, SIZE)
    parts = rng.standard_normal((n, 2)) * [strength, strength / 2]
    rows = mean + parts @ along + alone * rng.standard_normal((n, SIZE))
    return rows.reshape(n, *SHAPE).astype("float32"), mean, along


def flat(array):
    return np.asarray(array, "float64").reshape(-1, SIZE)


@pytest.fixture(scope="module")
def fitted():
    """Return the Gaussian of 800 latents."""
    return Gaussian.learn(drawn(800)[0])


def test_learn_fits_mean_directions_and_variances(fitted):
    latents, mean, along = drawn(800)
    assert all(part.dtype == np.float32 for part in fitted)
    assert [part.shape for part in fitted] == [SHAPE, (2, *SHAPE), SHAPE]
    npt.assert_allclose(flat(fitted.mean)[0], mean, atol=0.35)
    lengths = np.linalg.norm(flat(fitted.loadings), axis=1)
    npt.assert_allclose(lengths, [3.0, 1.5], rtol=0.1)
    directions = flat(fitted.loadings) / lengths[:, None]
    npt.assert_allclose(np.abs((directions * along).sum(1)), 1, atol=0.01)
    total = flat(latents).var(0)
    variances = flat(fitted.rest)[0] + (flat(fitted.loadings) ** 2).sum(0)
    npt.assert_allclose(variances, total, rtol=0.2)
    # About the mean of each place.
    assert fitted.deviation == pytest.approx(np.sqrt(np.mean(total)), rel=0.1)


def test_relative_distances_are_1_on_average(fitted):
    latents, mean, along = drawn(800)
    distances = fitted.relative_distances(latents)
    assert distances.mean() == pytest.approx(1, rel=0.1)
    far = (mean + 12 * along[0]).reshape(1, *SHAPE)
    expected = 12**2 / SIZE / fitted.deviation**2
    assert fitted.relative_distances(far)[0] == pytest.approx(expected, rel=0.2)
    # The fewer directions, the more distances vary.
    assert 1.5 * distances.max() < fitted.max_distance < 40
    noise = np.random.default_rng(0).standard_normal((800, *SHAPE))
    white = Gaussian(np.zeros(SHAPE), np.zeros((0, *SHAPE)), np.ones(SHAPE))
    assert white.relative_distances(noise).max() < white.max_distance < 2.5


def test_times_concentrate_where_noise_equals_differences(trained):
    latents = with_inputs(np.zeros((400, *trained.latent_shape_), "float32"))
    (_, times), _ = noisy_latents(trained._denoiser, latents, 400).of(0)
    alpha, sigma = rates(trained.schedule, times)
    strength = sigma / alpha / trained.gaussian_.deviation
    assert np.mean((strength > 0.5) & (strength < 7)) > 0.8


def test_images_and_translations_use_all_times(trained, diffusion):
    translator = copy.copy(trained._denoiser)
    source = Source(1, (0.0, 1.0), [], "")
    translator.architecture = translator.architecture._replace(source=source)
    for denoiser in (diffusion._denoiser, translator):
        shape = denoiser.architecture.latent_shape
        latents = with_inputs(np.zeros((400, *shape), "float32"))
        (_, times), _ = noisy_latents(denoiser, latents, 400).of(0)
        npt.assert_allclose(np.sort(times), np.linspace(0, 1, 400), atol=0.01)


@pytest.mark.parametrize("n", [40, 200])
def test_learn_fits_variances_of_held_out_examples(n, rng):
    # Of much more numbers than examples, any directions but the first are chance.

    def examples(count):
        shared = rng.standard_normal((count, 1)) * 4 * np.sin(np.arange(900))[None] / 3
        rows = shared + rng.standard_normal((count, 900))
        return rows.reshape(count, 30, 30, 1).astype("float32")

    learnt = Gaussian.learn(examples(n))
    loadings = learnt.loadings.reshape(-1, 900)
    power = (loadings**2).sum(1)
    along = (examples(500).reshape(500, -1) - learnt.mean.ravel()) @ loadings.T
    truly = (along**2).mean(0) / power
    assert len(power) > 0
    assert truly.sum() > 0.7 * power.sum()


def test_learn_of_few_examples():
    assert len(Gaussian.learn(drawn(15)[0]).loadings) == 1
    few = Gaussian.learn(drawn(7)[0])
    assert len(few.loadings) == 0
    npt.assert_allclose(few.mean, drawn(7)[0].mean(0), rtol=1e-5)
    one = Gaussian.learn(drawn(1)[0])
    npt.assert_array_equal(one.mean, 0)
    npt.assert_array_equal(one.rest, 1)
    assert one.loadings.shape == (0, *SHAPE)
    assert one.deviation == pytest.approx(1)
    assert is_aligned(drawn(1)[0])


def test_learn_if_a_subject_has_nearly_all_examples():
    latents = drawn(100)[0]
    learnt = Gaussian.learn(latents, np.array(["sub-1"] * 95 + ["sub-2"] * 5))
    assert np.isfinite(learnt.loadings).all()


def test_learn_ends_directions_where_those_of_chance_begin(monkeypatch, rng):
    # Three in which all differ, and very many in which each does in its own way.
    strengths = np.r_[9, 8, 7, np.linspace(1, 0.1, 897)]

    def examples(n):
        rows = rng.standard_normal((n, 900)) * strengths
        return rows.reshape(n, 30, 30, 1).astype("float32")

    training, held_out = examples(120), examples(400)
    learnt = Gaussian.learn(training)
    assert len(learnt.loadings) == 3
    monkeypatch.setattr(gaussian, "MIN_RATIO", 0.0)
    assert len(Gaussian.learn(training).loadings) > 8
    # What was learnt from is estimated as well as others are.
    off = [(part - learnt.mean).reshape(-1, 900) for part in (training, held_out)]
    along = [(part @ learnt.loadings.reshape(3, -1).T).var() for part in off]
    npt.assert_allclose(*along, rtol=0.25)


@pytest.mark.parametrize("n", [2, 30])
def test_is_aligned_of_objects_in_different_places(n, rng):
    places = np.moveaxis(np.indices((12, 12, 12)), 0, -1)

    def balls(spread):
        centres = 5.5 + rng.uniform(-spread, spread, (n, 1, 1, 1, 3))
        inside = np.clip(4 - np.linalg.norm(places - centres, axis=-1), 0, 1)
        return inside[..., None].astype("float32")

    assert is_aligned(balls(0.3))
    assert not is_aligned(balls(3))
    # However bright the mean is everywhere.
    assert not is_aligned(balls(3) + 100)


@pytest.mark.parametrize("order", [np.repeat, np.tile])
def test_learn_of_several_scans_of_subjects(rng, order):
    # What tells subjects apart is found all the same, and no more of it is claimed
    # than other subjects have: each direction of ten subjects in 60 dimensions has 4
    # and more, if their scans bear each other witness.
    subjects = order(np.arange(10), 4)
    scans = rng.standard_normal((10, SIZE))[subjects]
    scans += 0.01 * rng.standard_normal(scans.shape)
    latents = scans.reshape(-1, *SHAPE).astype("float32")
    learnt = (Gaussian.learn(latents, ids) for ids in (subjects, None))
    grouped, ungrouped = ((flat(x.loadings) ** 2).sum(1).max(initial=0) for x in learnt)
    assert grouped < 3
    # Neighbours may be of one subject even if none is known.
    assert (ungrouped < 3) == (order is np.repeat)
    # Of one subject nothing is known of how others differ.
    assert len(Gaussian.learn(latents, 0 * subjects).loadings) == 0


@pytest.mark.parametrize("n", [2, 40])
def test_learn_of_equal_examples(n):
    latents = np.repeat(drawn(1)[0], n, axis=0)
    learnt = Gaussian.learn(latents)
    npt.assert_allclose(learnt.mean, latents[0], rtol=1e-5)
    assert np.isfinite(learnt.rest).all()
    assert (learnt.rest > 0).all()


def test_choose_examples(monkeypatch):
    npt.assert_array_equal(choose_examples((3, *SHAPE)), range(3))
    many = choose_examples((5000, *SHAPE))
    assert (len(many), many[0], many[-1]) == (1024, 0, 4999)
    assert set(np.diff(many)) == {4, 5}
    monkeypatch.setattr(gaussian, "MAX_VALUES", 10 * SIZE)
    assert len(choose_examples((5000, *SHAPE))) == 10
    monkeypatch.setattr(gaussian, "MAX_VALUES", 1)
    npt.assert_array_equal(choose_examples((9, *SHAPE)), [0, 8])


def outputs(learnt, x, times, schedule="cosine", target="v"):
    config = LinearEstimate(len(learnt.loadings), schedule, target).get_config()
    layer = LinearEstimate.from_config(config)
    layer.build((None, *SHAPE), (None,))
    layer.set_prior(learnt)
    inputs = x.astype("float32"), np.array(times, "float32")
    return [ops.convert_to_numpy(part) for part in layer(*inputs)]


def estimate(learnt, x, times, schedule="cosine", target="v"):
    prediction = outputs(learnt, x, times, schedule, target)[2]
    levels = [rate.reshape(-1, 1, 1, 1) for rate in rates(schedule, times)]
    return to_clean(target, prediction, x, *levels)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
def test_linear_estimate_is_the_wiener_estimate(fitted, schedule, target):
    # Where what remains is the same everywhere, nothing is approximated.
    learnt = fitted._replace(rest=np.full(SHAPE, 0.05, "float32"))
    directions = flat(learnt.loadings)
    units = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    covariance = directions.T @ directions + 0.05 * (np.eye(SIZE) - units.T @ units)
    times = np.array([0.0, 0.2, 0.6, 0.9], "float32")
    x = np.random.default_rng(2).standard_normal((4, *SHAPE)).astype("float32")
    clean = estimate(learnt, x, times, schedule, target)
    mean = flat(learnt.mean)[0]
    for estimated, at, a, s in zip(clean, x, *rates(schedule, times), strict=True):
        noisy = a**2 * covariance + s**2 * np.eye(SIZE)
        off = flat(at)[0] - a * mean
        best = mean + a * covariance @ np.linalg.solve(noisy, off)
        npt.assert_allclose(flat(estimated)[0], best, atol=2e-3)


def test_linear_estimate_without_directions():
    learnt = Gaussian.learn(drawn(6)[0])
    x = np.random.default_rng(2).standard_normal((1, *SHAPE))
    alpha, sigma = rates("cosine", 0.5)
    share = alpha * learnt.rest / (alpha**2 * learnt.rest + sigma**2)
    best = learnt.mean + share * (x[0] - alpha * learnt.mean)
    npt.assert_allclose(estimate(learnt, x, [0.5])[0], best, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_linear_estimate_scales_to_unit_variance(fitted, target):
    held_out, rng = drawn(300, seed=5)[0], np.random.default_rng(2)
    noise = rng.standard_normal(held_out.shape)
    for t in (0.1, 0.5, 0.9):
        alpha, sigma = rates("cosine", t)
        x, times = alpha * held_out + sigma * noise, np.full(300, t)
        noisy, clean, prediction, spread = outputs(fitted, x, times, target=target)
        assert spread.shape == (300, 1, 1, 1)
        npt.assert_allclose(noisy.mean(), 0, atol=0.1)
        npt.assert_allclose(noisy.var(), 1, rtol=0.1)
        assert 0.01 < clean.var() < 1.1
        # But along the directions, of which there is more the more noise there is.
        truth = to_target(target, held_out, noise, alpha, sigma)
        assert 0.8 < ((truth - prediction) / spread).var() < 2 + 10 * t


def test_linear_estimate_of_constant_latents():
    latents = drawn(40)[0]
    latents[:, 0] = 2
    learnt = Gaussian.learn(latents)
    other = latents[:1].copy()
    other[:, 0] = 3
    noisy, _, _, spread = outputs(learnt, other, [0.0])
    assert np.abs(noisy).max() < 20
    assert spread.min() > 0.1


def test_linear_estimate_beats_simpler_ones(fitted):
    held_out, *_ = drawn(300, seed=5)
    none, variances = fitted.loadings[:0], drawn(800)[0].var(0)
    alone = fitted._replace(loadings=none, rest=variances)
    white = Gaussian(0 * fitted.mean, none, 0 * fitted.rest + 1)
    for t in (0.3, 0.6, 0.9):
        alpha, sigma = rates("cosine", t)
        noise = np.random.default_rng(2).standard_normal(held_out.shape)
        x, times = alpha * held_out + sigma * noise, np.full(300, t)
        estimates = (estimate(prior, x, times) for prior in (fitted, alone, white))
        errors = [np.mean((clean - held_out) ** 2) for clean in estimates]
        assert errors == sorted(errors)
        assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("target", TARGETS)
def test_linear_estimate_is_that_of_an_untrained_network(target):
    learnt = Gaussian.learn(drawn(40)[0])
    options = {"widths": (8, 8), "blocks": 1, "attention": (False, True)}
    settings = (len(learnt.loadings), "cosine", target)
    network = unet_network.unet(SHAPE, **options, estimate=settings)
    unet_network.set_prior(network, learnt)
    x = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype("float32")
    times = np.array([0.1, 0.5, 0.9], "float32")
    output = ops.convert_to_numpy(network([x, times]))
    expected = outputs(learnt, x, times, "cosine", target)[2]
    npt.assert_allclose(output, expected, atol=1e-5)
    # What is known is not trained.
    assert len(network.weights) == len(network.trainable_weights) + 3


@pytest.fixture(scope="module")
def volumes():
    rng = np.random.default_rng(0)
    places = np.moveaxis(np.indices((8, 8, 8)), 0, -1)
    centres = rng.uniform(3.3, 3.7, (16, 1, 1, 1, 3))
    widths = rng.uniform(2.5, 3.5, (16, 1, 1, 1))
    balls = np.clip(widths - np.linalg.norm(places - centres, axis=-1), 0, 1)
    return balls[..., None].astype("float32")


@pytest.fixture(scope="module")
def trained(volumes):
    options = {"batch_size": 4, "verbose": False}
    vqvae = VQVAE(widths=(8,), n_codes=16, code_dim=2)
    vqvae.fit(volumes, epochs=10, **options)
    model = LatentDiffusion(vqvae, widths=(8,), guide=False)
    return model.fit(volumes, epochs=3, **options)


def test_training_begins_with_the_loss_of_the_linear_estimate(trained, volumes):
    assert trained.gaussian_.loadings.shape[1:] == trained.latent_shape_
    assert len(trained.gaussian_.loadings) <= 2
    latents = trained._scaled(trained.vqvae_.encode(volumes))
    npt.assert_allclose(trained.gaussian_.mean, latents.mean(0), atol=1e-5)
    # White noise of unit variance, which a network without it begins with, has 1.
    assert trained.history_["loss"][0] < 0.8


def test_images_unlike_those_of_the_training_are_named(trained, volumes, caplog):
    trained.denoise(volumes, strength=0)
    assert not caplog.records
    unlike = np.concatenate([volumes[:2], 1 - volumes[:1]])
    trained.denoise(unlike, strength=0)
    (record,) = caplog.records
    assert record.message.startswith("image 2 is unlike the training images (")
    trained.inpaint(1 - volumes[0:1], np.eye(8)[..., None] * np.ones(8), steps=1)
    assert "the image is unlike" in caplog.records[-1].message


def test_images_have_no_gaussian_and_no_probe_without_conditions(trained, diffusion):
    assert diffusion.gaussian_ is None
    assert trained.probe_ is diffusion.probe_ is None


def test_volumes_that_are_not_aligned_have_no_gaussian(
    trained, volumes, rng, untrained
):
    moved = [np.roll(v, rng.integers(0, 8, 3), (0, 1, 2)) for v in volumes]
    model = LatentDiffusion(trained.vqvae_, widths=(8,), guide=False)
    model.fit(np.stack(moved), epochs=1, batch_size=4, verbose=False)
    assert model.gaussian_ is None
    assert model.predict(1, steps=2).shape == (1, 8, 8, 8, 1)


def copied(model):
    """Return the model again, its denoiser not built yet."""
    return LatentDiffusion.from_saved(model.to_tensors(), model.to_document())


def test_samples_begin_with_the_common_signal(trained, undecoded):
    untrained = copied(trained)
    # A large mean, as brains have, along the direction in which they vary.
    along = trained.gaussian_.loadings[0]
    mean = 150 * along / np.linalg.norm(along)
    untrained.gaussian_ = trained.gaussian_._replace(mean=mean)
    untrained._build()
    sample_mean = untrained._scaled(untrained.predict(300, seed=0)).mean(0)
    off = ((sample_mean - mean) * along).sum() / (along**2).sum()
    assert abs(off) < 0.25  # of a standard deviation; 1 from pure noise


def test_loss_of_the_linear_estimate_matches_the_network(trained, volumes):
    encoded = trained.vqvae_.encode(np.repeat(volumes, 9, 0))
    latents = with_inputs(trained._scaled(encoded))
    untrained = copied(trained)
    untrained._build()
    linear = linear_loss(untrained._denoiser, latents)
    (x, times), targets = noisy_latents(trained._denoiser, latents, 144).of(7)
    predicted = ops.convert_to_numpy(untrained.denoiser_([x, times]))
    npt.assert_allclose(np.mean((predicted - targets) ** 2), linear, rtol=0.2)


def test_failure_of_a_denoiser_no_better_than_the_linear_estimate():
    stage = object.__new__(DenoiserStage)
    stage.baseline, stage.white_baseline = 0.08, 0.9
    failure = stage.failure
    assert failure({"loss": 0.07}) is failure({"loss": 0.07, "val_loss": 0.2}) is None
    assert "learnt nothing of the images (its loss is 0.08" in failure({"loss": 0.08})
    late = failure({"loss": 0.01, "val_loss": 0.95})
    assert "(its val_loss is 0.95, and 0.9 without training)" in late


def test_kernels_over_voxels_learn_slower_with_more_inputs(trained, diffusion):
    # At the full rate, what is the same everywhere grew a thousandfold in 200 steps.
    fan_ins = []
    for model in (trained, diffusion):
        latents = with_inputs(np.zeros((64, *model.latent_shape_), "float32"))
        options = ResolvedOptions(steps=600)
        make = partial(DenoiserStage, model._denoiser, latents, options)
        network = make(settings={}, baselines=(0.1, 1.0)).build()
        fan_ins.append(network.optimizer.base_fan_in)
        paths = set(network.optimizer.unnormalised)
        kernels = [w for w in network.trainable_weights if w.path in paths]
        # The first and the last, and two from one level to the next.
        assert len(kernels) == len(paths) == 2 * len(model.widths)
    assert fan_ins == [288, None]
