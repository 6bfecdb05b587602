"""Linear probe: conditions read from latents, and observation guidance."""

from functools import partial

from keras import ops
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm._conditions import ConditionBatch, learn
from dipy_ldm.denoiser._unet import linear_estimate
from dipy_ldm.diffusion.schedules import SCHEDULES, rates
from dipy_ldm.prior import _probe as readings
from dipy_ldm.prior._gaussian import Gaussian
from dipy_ldm.prior._latent_prior import LatentPrior
from dipy_ldm.prior._probe import _FIRMNESS, LinearProbe, _probe_targets

SHAPE = (4, 5, 3)
SIZE = 60


def cohort(n, effect=3.0, seed=0, **more):
    """Make latents in which an age and a sex can be read, and say what is told."""
    fixed, rng = np.random.default_rng(1), np.random.default_rng(seed)
    along = np.linalg.qr(fixed.standard_normal((SIZE, 2)))[0].T
    age, sex = rng.uniform(20, 80, n), rng.integers(0, 2, n)
    parts = effect * np.stack([(age - 50) / 30, 2 * sex - 1], -1)
    rows = 5 + parts @ along + 0.5 * rng.standard_normal((n, SIZE))
    table = {"age": age.tolist(), "sex": np.where(sex, "M", "F").tolist(), **more}
    table["age"][0] = table["sex"][1] = None
    conditions = learn(table, n)
    latents = rows.reshape(n, *SHAPE).astype("float32")
    return latents, ConditionBatch.of(conditions, table, n).numbers, conditions


def flat(array):
    return np.asarray(array, "float64").reshape(-1, SIZE)


def test_learn_estimates_errors_on_held_out_latents():
    latents, numbers, conditions = cohort(600)
    learnt = LinearProbe.learn(latents[:200], numbers[:200], conditions)
    assert learnt.weights.shape == (3, *SHAPE)
    assert all(part.dtype == np.float32 for part in learnt[1:])
    values, specified = _probe_targets(numbers[200:], conditions)
    off = ops.convert_to_numpy(learnt.predict(latents[200:])) - values
    for errors, which, claimed in zip(off.T, specified.T, learnt.errors, strict=True):
        npt.assert_allclose(errors[which].mean(), 0, atol=0.05)
        npt.assert_allclose(errors[which].std(), claimed, rtol=0.15)
        assert 0.1 < claimed < 0.3


def test_predict_is_not_nearer_to_the_mean_than_the_truth():
    latents, numbers, conditions = cohort(2000, effect=2.0)
    learnt = LinearProbe.learn(latents[:60], numbers[:60], conditions)
    values, specified = _probe_targets(numbers, conditions)
    readings = ops.convert_to_numpy(learnt.predict(latents))
    for read, value, which in zip(readings.T, values.T, specified.T, strict=True):
        slope, _ = np.polyfit(value[which], read[which], 1)
        npt.assert_allclose(slope, 1, atol=0.15)


def test_learn_reads_local_effects_locally(monkeypatch, rng):
    ages = rng.uniform(20, 80, 500)
    latents = rng.standard_normal((500, 12, 12, 3)).astype("float32")
    # Each place has something to do with its neighbours.
    latents[:, :, 1:] += latents[:, :, :-1]
    latents[:, 3:5, 6, 1] += (ages[:, None] - 50) / 10
    table = {"age": ages.tolist()}
    conditions = learn(table, 500)
    numbers = ConditionBatch.of(conditions, table, 500).numbers
    errors = []
    uniform = lambda weights, space: np.ones(weights.size, "f4")  # noqa: E731
    for relevance in (readings._relevance, uniform):
        monkeypatch.setattr(readings, "_relevance", relevance)
        learnt = LinearProbe.learn(latents[:100], numbers[:100], conditions)
        read = ops.convert_to_numpy(learnt.predict(latents[100:]))
        errors.append(np.std(read - _probe_targets(numbers[100:], conditions)[0]))
        npt.assert_allclose(errors[-1], learnt.errors[0], rtol=0.25)
    assert errors[0] < 0.75 * errors[1]


def test_guide_by_observation_of_unreadable_conditions():
    latents, numbers, conditions = cohort(100, effect=0.0)
    learnt = LinearProbe.learn(latents, numbers, conditions)
    npt.assert_array_equal(learnt.errors, 0)
    npt.assert_array_equal(learnt.weights, 0)
    gaussian = Gaussian.learn(latents)
    assert learnt.guide_by_observation(denoise, gaussian, "cosine", numbers) is denoise


def test_learn_of_few_examples():
    latents, numbers, conditions = cohort(15)
    npt.assert_array_equal(LinearProbe.learn(latents, numbers, conditions).errors, 0)
    # One of each is missing.
    latents, numbers, conditions = cohort(17)
    assert (LinearProbe.learn(latents, numbers, conditions).errors > 0).all()


def scans(seed, effect, sessions=2):
    """Make scans of 24 subjects, who differ, and a number that each of them has.

    Then come 176 others, with a scan each.
    """
    rng = np.random.default_rng(seed)
    along = np.linalg.qr(np.random.default_rng(1).standard_normal((SIZE, 1)))[0].T
    ages = rng.uniform(20, 80, 200)
    people = rng.standard_normal((200, SIZE)) + effect * (ages[:, None] - 50) * along
    subjects = np.r_[np.repeat(np.arange(24), sessions), np.arange(24, 200)]
    rows = people[subjects] + 0.1 * rng.standard_normal((len(subjects), SIZE))
    table, n = {"age": ages[subjects].tolist()}, 24 * sessions
    conditions = learn({"age": table["age"][:n]}, n)
    numbers = ConditionBatch.of(conditions, table).numbers
    return rows.reshape(-1, *SHAPE).astype("float32"), numbers, conditions, subjects


def test_learn_of_several_scans_of_subjects():
    read, believed = [], []
    for seed in range(12):
        latents, numbers, conditions, subjects = scans(seed, effect=0.0)
        examples = latents[:48], numbers[:48], conditions
        read.append(LinearProbe.learn(*examples, subjects[:48]).errors[0] > 0)
        believed.append(LinearProbe.learn(*examples).errors[0] > 0)
    assert sum(read) <= 1
    # As images of others all, a number without any meaning is read.
    assert all(believed)


@pytest.mark.parametrize("sessions", [1, 2, 4])
def test_learn_estimates_errors_on_other_subjects(sessions):
    claimed, true = [], []
    for seed in range(8):
        latents, numbers, conditions, subjects = scans(seed, 0.2, sessions)
        n = 24 * sessions
        learnt = LinearProbe.learn(latents[:n], numbers[:n], conditions, subjects[:n])
        read = ops.convert_to_numpy(learnt.predict(latents))
        claimed.append(learnt.errors[0])
        true.append((read - _probe_targets(numbers, conditions)[0])[n:].std())
    npt.assert_allclose(np.median(claimed), np.median(true), rtol=0.3)


def test_learn_ignores_levels_that_few_have():
    sites = ["A"] * 50 + ["B"] * 46 + ["C"] * 4
    latents, numbers, conditions = cohort(100, site=sites)
    latents[50:96, 0] += 2
    latents[96:, 1] += 5
    learnt = LinearProbe.learn(latents, numbers, conditions)
    npt.assert_array_equal(learnt.errors > 0, [True] * 5 + [False])


def denoise(x, t):
    return 0.9 * ops.convert_to_tensor(x)


def test_classes_of_many_levels_are_not_read():
    latents, numbers, conditions = cohort(90, site=[f"s{i % 9}" for i in range(90)])
    probe = LinearProbe.learn(latents, numbers, conditions)
    shapes = LatentPrior.shapes({"reading.weights": ()}, SHAPE, conditions)
    assert probe.weights.shape == (3, *SHAPE) == shapes["reading.weights"]
    npt.assert_array_equal(probe._continuous(), [True, False, False])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("directions", [None, 0], ids=["all", "none"])
def test_guide_by_observation_is_exact_for_a_joint_gaussian(schedule, directions):
    latents, numbers, conditions = cohort(400)
    learnt = LinearProbe.learn(latents, numbers, conditions)
    gaussian = Gaussian.learn(latents)
    gaussian = gaussian._replace(loadings=gaussian.loadings[:directions])
    # Where what remains is the same everywhere, nothing is approximated.
    gaussian = gaussian._replace(rest=np.full(SHAPE, 0.25, "float32"))
    directions = flat(gaussian.loadings)
    units = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    prior = directions.T @ directions + 0.25 * (np.eye(SIZE) - units.T @ units)
    mean, t = flat(gaussian.mean)[0], 0.7
    alpha, sigma = map(float, rates(schedule, t))

    def wiener(x, t):
        off = flat(x) - alpha * mean
        noisy = alpha**2 * prior + sigma**2 * np.eye(SIZE)
        clean = mean + alpha * off @ np.linalg.solve(noisy, prior)
        return ops.convert_to_tensor(clean.reshape(x.shape).astype("float32"))

    table = np.array([[0.9, 1], [0.1, -1], [-1, -1]], "float32")
    x = np.random.default_rng(2).standard_normal((3, *SHAPE)).astype("float32")
    held = learnt.guide_by_observation(wiener, gaussian, schedule, table)
    estimates = ops.convert_to_numpy(held(ops.convert_to_tensor(x), t))
    # Noisy latents and what is read of clean ones, observed together.
    weights = flat(learnt.weights)
    columns = [[0, 2], [0], []]
    values = [[0.8, 1.0], [-0.8], []]
    for one, at, which, value in zip(estimates, x, columns, values, strict=True):
        maps = np.concatenate([alpha * np.eye(SIZE), weights[which]])
        powers = np.r_[np.full(SIZE, sigma**2), learnt.errors[which] ** 2 / _FIRMNESS]
        observed = np.r_[flat(at)[0], value - learnt.offsets[which]]
        whole = maps @ prior @ maps.T + np.diag(powers)
        best = mean + prior @ maps.T @ np.linalg.solve(whole, observed - maps @ mean)
        npt.assert_allclose(flat(one)[0], best, atol=2e-3)


@pytest.fixture(scope="module")
def hold():
    """Return what holds the denoiser to a table of conditions."""
    latents, numbers, conditions = cohort(100)
    learnt = LinearProbe.learn(latents, numbers, conditions)
    gaussian = Gaussian.learn(latents)
    return partial(learnt.guide_by_observation, denoise, gaussian, "cosine")


def test_guide_by_observation_by_one_row_of_conditions(hold, rng):
    x = rng.standard_normal((3, *SHAPE)).astype("float32")
    one = np.array([[0.3, 1]], "float32")
    # Further columns say where sources are.
    tables = one, np.repeat(one, 3, 0), np.c_[one, [[7]]]
    held = [ops.convert_to_numpy(hold(table)(x, 0.6)) for table in tables]
    for other in held[1:]:
        npt.assert_allclose(other, held[0], atol=1e-5)


def test_guide_by_observation_changes_less_with_less_noise(hold, rng):
    x = rng.standard_normal((1, *SHAPE)).astype("float32")
    held = hold(np.array([[0.3, 1]], "float32"))
    changed = (held(x, t) - denoise(x, t) for t in (0.0, 0.2, 0.5, 1.0))
    changes = [np.abs(ops.convert_to_numpy(part)).max() for part in changed]
    assert changes == sorted(changes)
    assert changes[0] < 0.05 * changes[-1]


@pytest.fixture(scope="module")
def balls():
    rng = np.random.default_rng(0)
    places = np.moveaxis(np.indices((8, 8, 8)), 0, -1)
    centres = rng.uniform(3.3, 3.7, (32, 1, 1, 1, 3))
    widths = rng.uniform(2.0, 3.5, (32, 1, 1, 1))
    balls = np.clip(widths - np.linalg.norm(places - centres, axis=-1), 0, 1)
    return balls[..., None].astype("float32"), {"width": widths.ravel().tolist()}


@pytest.fixture(scope="module")
def trained(balls):
    images, table = balls
    options = {"batch_size": 4, "verbose": False}
    vqvae = VQVAE(widths=(8,), n_codes=16, code_dim=2)
    vqvae.fit(images, epochs=10, **options)
    model = LatentDiffusion(vqvae, widths=(8,), guide=False)
    return model.fit(images, table, epochs=3, **options)


def test_samples_follow_the_requested_conditions(trained, monkeypatch, undecoded):
    learnt = trained.probe_
    assert 0 < learnt.errors[0] < 0.3
    # Otherwise a network that was hardly trained makes it, too.
    expected = trained.conditional_mean_
    nothing = expected._replace(weights=0 * expected.weights)
    requested = {"width": np.linspace(2.1, 3.4, 24).tolist()}
    targets = 2 * ConditionBatch.of(trained.conditions_, requested, 24).numbers - 1
    off = []
    for probe in (learnt, None):
        prior = trained._denoiser.prior._replace(conditional_mean=nothing, probe=probe)
        monkeypatch.setattr(trained._denoiser, "prior", prior)
        latents = trained._scaled(trained.predict(conditions=requested))
        read = ops.convert_to_numpy(learnt.predict(latents))
        off.append(np.abs(read - targets).mean())
    assert off[0] < 0.85 * off[1]


@pytest.mark.parametrize("half", [False, True])
def test_a_model_file_has_gaussian_and_probe(trained, tmp_path, half, undecoded):
    trained.save(tmp_path / "m", half=half)
    loaded = LatentDiffusion.load(tmp_path / "m")
    parts = ((*model.gaussian_, *model.probe_[1:]) for model in (loaded, trained))
    for one, other in zip(*parts, strict=True):
        assert one.dtype == "float32"  # in 16 bits sums of squares are infinite
        npt.assert_allclose(one, other, atol=2e-3 * half, rtol=2e-3 * half)
    layer = linear_estimate(loaded.denoiser_)
    for weight, part in zip(layer.weights, loaded.gaussian_, strict=True):
        npt.assert_array_equal(ops.convert_to_numpy(weight), part)
    options = {"conditions": {"width": 3.0}, "steps": 3}
    samples = (model.predict(2, **options) for model in (loaded, trained))
    npt.assert_allclose(*samples, atol=5e-3 * half)


def test_a_model_without_directions_is_saved_and_guided(trained, tmp_path):
    model = LatentDiffusion.from_saved(trained.to_tensors(), trained.to_document())
    model.gaussian_ = model.gaussian_._replace(loadings=model.gaussian_.loadings[:0])
    model._build()
    model.save(tmp_path / "m", half=True)
    loaded = LatentDiffusion.load(tmp_path / "m")
    assert len(loaded.gaussian_.loadings) == 0
    assert loaded.probe_.errors[0] > 0
    sample = loaded.predict(conditions={"width": 3.0}, steps=2)
    assert np.isfinite(sample).all()


@pytest.mark.parametrize("parts", [["probe_"], ["probe_", "gaussian_"]])
def test_models_without_probe_or_gaussian_are_read(trained, tmp_path, parts):
    older = LatentDiffusion.from_saved(trained.to_tensors(), trained.to_document())
    for part in parts:
        setattr(older, part, None)
    older._build()
    older.save(tmp_path / "m")
    again = LatentDiffusion.load(tmp_path / "m")
    assert all(getattr(again, part) is None for part in parts)
    options = {"conditions": {"width": 3.0}, "steps": 2}
    npt.assert_array_equal(again.predict(**options), older.predict(**options))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("gaussian.mean", lambda x: x[..., :1]),
        ("gaussian.loadings", lambda x: x[0, 0]),
        ("gaussian.rest", None),
        ("reading.weights", lambda x: x[:0]),
        ("reading.offsets", None),
        ("reading.errors", lambda x: x[:0]),
    ],
)
def test_load_refuses_parts_of_wrong_shapes(trained, assert_unreadable, part, change):
    tensors = trained.to_tensors()
    tensor = tensors.pop(part)
    tensors |= {part: change(tensor)} if change else {}
    assert_unreadable(tensors, trained.to_document(), "is damaged")
