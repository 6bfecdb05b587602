"""The audit finds planted copies, and no others."""

from functools import partial
from itertools import product
import pickle
import re
from types import SimpleNamespace

import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest
from scipy import ndimage, stats

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm._conditions import Condition
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data.channels import Channel
from dipy_ldm.data.volumes import Volumes
from dipy_ldm.diffusion import schedules
from dipy_ldm.evaluation import _memorization as copies
from dipy_ldm.evaluation._audit_report import conclude, write_page, write_pairs
from dipy_ldm.evaluation.audit import (
    Pair,
    Reference,
    _infer,
    _suspicious,
    audit,
)
from dipy_ldm.evaluation.features import (
    augment,
    describe,
    fit_invariant_projection,
    invariant as as_features,
    voxels,
)
from dipy_ldm.metrics import Interval, binomial

SHAPE = (17, 16, 15)


def patients(n, seed):
    """Draw volumes that differ in more ways than in five."""
    noise = np.random.default_rng(seed).standard_normal((n, *SHAPE))
    smooth = ndimage.gaussian_filter(noise, [0, 2.5, 2.5, 2.5])
    smooth += np.indices(SHAPE)[0] / 200  # what all have in common
    low, high = (f(smooth, (1, 2, 3), keepdims=True) for f in (np.min, np.max))
    return np.float32((smooth - low) / (high - low))[..., None]


@pytest.fixture(scope="module")
def train():
    return patients(100, 0)


@pytest.fixture(scope="module")
def invariant(train):
    return as_features(fit_invariant_projection(train))


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def search(features, *sets):
    """Search training images for held-out and for generated images."""
    return copies.search(features, *map(features.compute, sets))


def change(images, kind, rng):
    """Change images as a copy might differ."""
    changes = {
        "exact": lambda x: x,
        "flipped": lambda x: x[:, ::-1],
        "shifted": lambda x: np.roll(x, 1, 2),
        "noise": lambda x: x + 0.02 * rng.standard_normal(x.shape),
        "contrast": lambda x: x**0.6,
    }
    return changes[kind](images)


def plant(train, kind, rng):
    """Draw 80 patients, and replace four of them by copies of training images."""
    generated = patients(80, 2)
    generated[[0, 3, 6, 9]] = change(train[[0, 7, 14, 21]], kind, rng)
    return generated


def is_alarm(finding):
    return finding.chance < copies.FALSE_ALARM_RATE / 3


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        *product(["invariant"], ["exact", "flipped", "shifted", "noise", "contrast"]),
        *product(["voxels"], ["exact", "noise"]),
    ],
)
def test_count_copies_of_planted_ones(train, invariant, rng, space, kind):
    features = {"invariant": invariant, "voxels": voxels()}[space]
    result = search(features, train, patients(80, 3), plant(train, kind, rng))
    finding = copies.count_copies(result)
    assert is_alarm(finding)
    assert finding.copies.low < 0.05 < finding.copies.high
    if space == "voxels":
        assert finding.copies.value == 0.05
    # And which they are.
    npt.assert_array_equal(result.generated.nearest[[0, 3, 6, 9]], [0, 7, 14, 21])


def test_count_copies_of_other_images(train, invariant):
    for features in (voxels(), invariant):
        for seed in range(10):
            sets = patients(60, 10 + seed), patients(60, 50 + seed)
            finding = copies.count_copies(search(features, train, *sets))
            assert not is_alarm(finding)
            assert finding.copies.value == 0


@pytest.mark.parametrize("n_held_out", [300, 900])
def test_p_values_by_simulation(n_held_out):
    # Of uniform numbers, some of which play the generated ones.
    rng = np.random.default_rng(0)
    lower, higher = rng.uniform(size=(4000, 300)), rng.uniform(size=(4000, n_held_out))
    counts = (lower < np.sort(higher)[:, 2:3]).sum(1)
    for count in (2, 6, 9):
        share = pytest.approx(np.mean(counts >= count), abs=0.02)
        assert copies._p_nearer(count, 300, 3, n_held_out) == share
    assert copies._p_nearer(0, 300, 3, n_held_out) == 1
    assert copies._p_copies(0, 300, n_held_out) == pytest.approx(1)
    # On average 1 / 32 of what is below the least of the others.
    mean = sum(copies._p_copies(count, 300, n_held_out) for count in range(1, 50))
    assert mean == pytest.approx(300 / (n_held_out + 1) / 32, rel=0.05)


def test_fewest_detectable():
    assert copies.fewest_detectable(80, 80) == 2
    assert copies.fewest_detectable(20, 20) < 5
    # The more held-out images there are, the less chance has to say.
    assert copies.fewest_detectable(20, 600) == 1


def test_count_copies_by_level(train, invariant, rng):
    # Copies are every third of the first twelve, and those were requested as 10.
    requested = ["b" if i % 2 else 2 for i in range(80)]
    for i in (0, 3, 6, 9, 20):
        requested[i] = 10.0
    requested[1] = None
    result = search(invariant, train, patients(80, 3), plant(train, "exact", rng))
    levels = copies.count_copies_by_level({"invariant": result}, requested)
    assert list(levels) == ["2", "10", "b"]
    assert [level.n for level in levels.values()] == [37, 5, 37]
    shares = [level.copies["invariant"].value for level in levels.values()]
    assert shares == [0, 0.8, 0]
    assert levels["10"].nearer["invariant"].value >= 0.8
    assert levels["10"].copies["invariant"].low < 0.5


@pytest.mark.parametrize("k", [1, 9, 10, 30])
def test_copies_of_repeated_training_images(rng, k):
    base = rng.standard_normal((300, 60))
    repeated, copied = (base[:1] + 0.02 * rng.standard_normal((n, 60)) for n in (k, 50))
    unseen = rng.standard_normal((150, 60))
    train, held_out = np.concatenate([repeated, base[1:]]), unseen[:100]
    generated = np.concatenate([copied, unseen[100:]])
    finding = copies.count_copies(copies.search(voxels(), train, held_out, generated))
    assert finding.copies.value == 0.5
    assert finding.share.value >= 0.5
    assert is_alarm(finding)


def test_copies_of_near_identical_training_images(rng):
    # Each has many neighbours: the ratio misses copies, and the distance does not.
    base = rng.standard_normal((300, 60))
    train = np.repeat(base[:20], 15, 0) + 0.5 * rng.standard_normal((300, 60))
    generated = np.concatenate([train[:10], base[100:150]])
    result = copies.search(voxels(), train, base[150:], generated)
    assert copies.count_copies(result).copies.value == pytest.approx(10 / 60)
    near = copies.neighbours(base[:2], np.repeat(base[:1], 12, 0), 1.0)
    npt.assert_allclose(near.ratio, [0, 1], atol=1e-6)


def test_suspicious_pairs_begin_with_copies_by_distance():
    generated = np.array([10.0, 0.1]), np.array([0.5, 0.9]), np.array([3, 4])
    held_out = np.array([5.0, 6]), np.array([0.8, 0.9]), np.array([0, 1])
    both = copies.Neighbours(*generated), copies.Neighbours(*held_out)
    pairs = _suspicious({"voxels": copies.Search("", *both)})
    rows = [(p.generated, p.train, p.distance) for p in pairs]
    assert rows == [(1, 4, 0.1), (0, 3, 10)]


@pytest.mark.parametrize("repeats", [1, 15])
def test_count_copies_of_other_images_than_repeated_ones(repeats):
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        base = np.repeat(rng.standard_normal((300 // repeats, 12)), repeats, 0)
        train = base + 0.05 * rng.standard_normal(base.shape)
        sets = rng.standard_normal((2, 60, 12))
        alarms += is_alarm(copies.count_copies(copies.search(voxels(), train, *sets)))
    assert alarms <= 2


def test_count_copies_of_typical_samples(train):
    # Near to the mean of all, as guidance makes them, they are near to each image.
    typical = patients(60, 4) * 0.5 + train.mean(0) * 0.5
    result = search(voxels(), train, patients(60, 5), typical)
    finding = copies.count_copies(result)
    assert finding.by_distance.value > 0.5
    assert finding.share.value < 0.1
    assert not is_alarm(finding)


def test_describe_is_invariant_to_mirroring_and_brightness(train):
    descriptors = describe(train)
    npt.assert_allclose(descriptors, describe(train[:, ::-1]), atol=1e-5)
    npt.assert_allclose(descriptors, describe(train / 2 + 0.1), atol=1e-4)
    images = train[:, :, :, 0]
    npt.assert_allclose(describe(images), describe(images[:, :, ::-1]), atol=1e-5)


def test_augment_keeps_place_and_range(train, rng):
    assert augment(train[0], rng).shape == train[0].shape
    flat = augment(np.full((9, 8, 1), 0.5, "float32"), rng)
    assert 0.2 < flat.mean() < 0.8


def test_duplicates(train):
    saved_again = np.round(train[[5, 9]] * 4095) / 4095
    candidates = np.concatenate([patients(3, 8), saved_again])
    prints = map(copies.fingerprints, (train, candidates))
    assert copies.duplicates(*prints) == [(3, 5), (4, 9)]


def fake_model(denoiser, schedule="cosine"):
    """Return a model whose latents are its images."""
    vqvae = SimpleNamespace(encode=lambda x: x, predict=lambda x: x + 0.5)
    parts = {"vqvae_": vqvae, "_scaled": lambda x: x, "_schedule": schedule}
    return SimpleNamespace(denoiser=denoiser, **parts)


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_denoising_losses_are_of_the_same_noise_whatever_the_schedule(schedule):
    noises = []

    def denoiser(conditions, source):
        return lambda x, t: noises.append(x) or 0 * x

    # All is noise.
    latents = np.zeros((2, 200, 200, 1))
    model = fake_model(denoiser, schedule)
    for seed in (0, 0, 1):
        copies.denoising_losses(model, latents, seed)
    spreads = np.std(noises[:8], (1, 2, 3, 4))
    expected = schedules.rates("cosine", copies._TIMES)[1]
    npt.assert_allclose(spreads[::2], expected, rtol=0.02)
    first, again, other = np.reshape(noises, (3, -1))
    npt.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_losses_are_mean_squared_errors(rng):
    images, sources = rng.random((2, 8, 200, 200, 1)).astype("float32")
    requested = []

    def denoiser(conditions, source):
        requested.append(conditions)
        return lambda x, t: source

    model = fake_model(denoiser)
    errors = np.mean((sources - images) ** 2, (1, 2, 3))
    losses = copies.denoising_losses(model, images, source=sources)
    npt.assert_allclose(losses, errors, rtol=1e-5)
    assert requested == [None, None]
    copies.denoising_losses(model, images, 0, sources, {"age": range(8)})
    assert requested[2:] == [{"age": [0, 1, 2, 3, 4, 5]}, {"age": [6, 7]}]
    losses = copies.reconstruction_losses(model, images)
    npt.assert_allclose(losses, 0.25, rtol=1e-5)


def test_infer_membership_of_normal_losses(rng):
    held_out = rng.standard_normal(300)
    same = copies.infer_membership(rng.standard_normal(300), held_out)
    assert same.auc.low < 0.5 < same.auc.high
    assert same.true_positive_rate.low < same.false_rate == 3 / 301
    lower = copies.infer_membership(held_out - 1.5, held_out)
    # Of two normal distributions.
    assert lower.auc.value == pytest.approx(stats.norm.cdf(1.5 / 2**0.5), abs=0.03)
    assert lower.true_positive_rate.low > 0.05
    few = copies.infer_membership(held_out[:99], held_out[:99])
    assert few.true_positive_rate is None
    apart = copies.infer_membership(held_out[:30] - 99, held_out)
    assert apart.auc.value == apart.true_positive_rate.value == 1
    assert apart.auc.high == apart.true_positive_rate.high == 1
    assert apart.auc.low == apart.true_positive_rate.low == binomial(30, 30).low
    assert copies.area_under_curve(np.zeros(3), np.zeros(4)) == 0.5
    assert copies.area_under_curve(np.zeros(3), np.ones(4)) == 1


def test_infer_membership_by_subject(rng):
    subjects = np.repeat(np.arange(10), 30)
    losses = rng.standard_normal(10)[subjects] + 0.3 * rng.standard_normal(300)
    both = losses, rng.standard_normal(60)
    by_scan, by_subject, of_one = (
        copies.infer_membership(*both, subjects=(ids, None)).auc
        for ids in (None, subjects, 0 * subjects)
    )
    assert by_scan.value == by_subject.value == of_one.value
    assert by_subject.high - by_subject.low > 1.5 * (by_scan.high - by_scan.low)
    assert (of_one.low, of_one.high) == (0, 1)


def test_infer_membership_by_guessing(monkeypatch):
    # Of which nothing is asked here, and which takes most of the time.
    monkeypatch.setattr(copies, "area_under_curve", lambda *losses: losses[0][0])
    rng = np.random.default_rng(0)
    draws = (map(rng.standard_normal, (200, 100)) for _ in range(100))
    members = [copies.infer_membership(*x, seed) for seed, x in enumerate(draws)]
    mean = np.mean([one.true_positive_rate.value for one in members])
    assert mean == pytest.approx(2 / 101, rel=0.25)
    assert members[0].false_rate == 2 / 101
    # Both sets are drawn: the limit is not known. By the count alone, 12 % were.
    assert sum(one.true_positive_rate.low > one.false_rate for one in members) <= 9


def test_audit_of_copies(diffusion, blobs):
    train, held_out = blobs[:36], blobs[36:]
    generated = np.concatenate([train[:10], held_out[:10]])
    with pytest.raises(InputError, match="10 of the generated images are real ones"):
        audit(diffusion, train, held_out, generated)
    generated[10:] += 1e-3
    result = audit(diffusion, train, held_out, generated)
    # As many held-out ones as there are, whatever is generated.
    assert (result.n, result.n_held_out) == (20, 28)
    losses = result.members["denoiser"]
    assert (len(losses.train), len(losses.held_out)) == (36, 28)
    assert "voxels" in result.spaces_with_copies
    assert result.findings["voxels"].copies.value >= 0.5
    assert all(pair.generated == pair.train for pair in result.pairs[:6])
    assert conclude(result)[0][1] == "bad"
    names = {pair.train: f"image {pair.train}" for pair in result.pairs}
    html = write_page(result, {"model": "tiny"})
    assert "A pass proves nothing" in html
    assert "<img" not in html
    html = write_pairs(result, lambda i: train[i], names, None, {"model": "tiny"})
    assert "Keep it as confidential as the data" in html
    first = result.pairs[0]
    assert f"Sample {first.generated} and image {first.train}: " in html
    widths = [int(width) for width in re.findall(r'<img[^>]* width="(\d+)"', html)]
    assert len(widths) == len(result.pairs) and min(widths) >= 320
    samples = [f"sample-{i}.png" for i in range(20)]
    html = write_pairs(result, lambda i: train[i], names, None, {}, samples)
    assert f"sample-{first.generated}.png and image {first.train}: " in html


def test_write_pairs_passes_channels(monkeypatch):
    shown = []

    def pictures(*arguments):
        shown.append(arguments)
        return arguments[0]

    monkeypatch.setattr("dipy_ldm.evaluation._audit_report.pictures", pictures)
    pair = Pair(0, 0, 0.1, 0.2, "voxels")
    result = SimpleNamespace(pairs=[pair], generated=np.zeros((1, 8, 8, 2)))
    channels = Channel("T1w"), Channel("T2w")
    options = {0: "a"}, None, {}, (), channels
    write_pairs(result, lambda i: np.zeros((8, 8, 2)), *options)
    ((_, _, passed),) = shown
    assert passed == channels


@pytest.mark.parametrize(
    ("n_held_out", "than", "expected"),
    [(20, "any held-out image", "4.8"), (200, "99 % of held-out images", "1.0")],
)
def test_conclude_names_the_share_expected_by_chance(train, n_held_out, than, expected):
    result = search(voxels(), train, patients(n_held_out, 3), patients(40, 4))
    findings = {"voxels": copies.count_copies(result)}
    sizes = {"n": 40, "n_held_out": n_held_out}
    unsuspicious = {"members": {}, "spaces_with_copies": [], **sizes}
    ((sentence, kind),) = conclude(SimpleNamespace(findings=findings, **unsuspicious))
    assert kind == "good"
    assert sentence.startswith("Voxels: ")
    assert f"than {than} ({expected} % expected; p = " in sentence
    assert sentence.endswith(": not significant).")


@pytest.mark.parametrize(
    ("areas", "kind", "message"),
    [
        ({"denoiser": 0.8}, "bad", ": a leak, though not a copy."),
        ({"denoiser": 0.8, "reference": 0.75}, "plain", "no leak is shown."),
        ({"denoiser": 0.8, "reference": 0.5}, "bad", "not trained on them (0.5): a l"),
        (
            {"denoiser": 0.52, "reference": 0.8, "autoencoder": 0.7},
            "bad",
            "the reconstruction error of the autoencoder separates training images",
        ),
        ({"denoiser": 0.52}, None, None),
    ],
)
def test_conclude_membership(areas, kind, message):
    members = {
        name: SimpleNamespace(auc=Interval(value, value - 0.05, value + 0.05))
        for name, value in areas.items()
    }
    sentences = conclude(SimpleNamespace(findings={}, members=members))
    assert [how for _, how in sentences] == [kind] * (kind is not None)
    assert all(message in sentence for sentence, _ in sentences)


def test_audit_that_generates(diffusion, blobs):
    result = audit(diffusion, blobs[:40], blobs[40:], n=20, steps=2)
    assert "Audit of a latent diffusion model" in result.to_html()
    assert "held-out" in repr(result)
    assert pickle.loads(pickle.dumps(result)).conclusions() == result.conclusions()
    assert result.n == len(result.generated) == result.n_held_out == 20
    assert set(result.members) == {"denoiser", "autoencoder"}


def test_audit_refuses_arguments_that_do_not_fit(diffusion, blobs):
    sets = train, held_out = np.split(blobs, [40])
    refuse = partial(audit, diffusion)
    many = np.concatenate([blobs] * 4)
    for call, message in (
        (lambda: refuse(*sets, train, steps=2), "`steps` has no effect on images that"),
        (lambda: refuse(*sets, requested={"age": [1]}), "`requested` describes `gener"),
        (lambda: refuse(train, held_out[:19]), "needs 20 held-out images, not 19"),
        (lambda: refuse(train[:10], held_out), "needs 11 training images, not 10"),
        (lambda: refuse(*sets, train[:19]), "needs 20 generated images, not 19; give"),
        (lambda: refuse(train[:20], many, train[:20]), "differ less than tenfold"),
        (
            lambda: refuse(train, blobs[16:40]),
            r"24 of the held-out .* 0 \(16\), 1 \(",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_audit_by_subject(diffusion, blobs, tmp_path, monkeypatch):
    sets = np.split(blobs, [40])
    files = [f"sub-{i}_T1w.nii" for i in range(40)]
    named = [Volumes(x, None, np.eye(4), files[: len(x)]) for x in sets]
    with pytest.raises(InputError, match=r"share subjects \(sub-0, sub-1, "):
        audit(diffusion, *named)
    for i, image in enumerate(sets[0]):
        np.save(tmp_path / f"sub-{i}_slice.npy", image[None])
    age = Condition("continuous", {}, [0.0, 1.0])
    monkeypatch.setattr(diffusion, "conditions_", {"age": age})
    table = pd.DataFrame({"age": [0.5]}, index=["sub-0"])
    with pytest.raises(InputError, match="39 of 40 images have no row in the condit"):
        audit(diffusion, tmp_path, sets[1], conditions=table)


def pictures(n, seed):
    """Draw smooth images."""
    noise = np.random.default_rng(seed).standard_normal((n, 16, 16))
    smooth = ndimage.gaussian_filter(noise, [0, 2, 2])
    low, high = (f(smooth, (1, 2), keepdims=True) for f in (np.min, np.max))
    return np.float32((smooth - low) / (high - low))[..., None]


def test_audit_of_an_overfitted_model():
    train, held_out = pictures(20, 0), pictures(60, 1)
    vqvae = VQVAE(widths=(8, 16), blocks=1, n_codes=64, code_dim=3)
    vqvae.fit(train, steps=100, batch_size=20, verbose=False)
    model = LatentDiffusion(vqvae, widths=(32,), blocks=1, guide=False)
    model.fit(train, steps=450, batch_size=20, verbose=False)
    result = audit(model, train, held_out, steps=10)
    assert "voxels" in result.spaces_with_copies
    assert result.findings["voxels"].share.value > 0.5
    assert result.members["denoiser"].auc.low > 0.8


def test_with_shared_conditions_leaves_out_those_of_which_most_would_be_clipped():
    conditions = {n: Condition("continuous", {}, [20.0, 40.0]) for n in ("age", "dose")}
    model = SimpleNamespace(conditions_=conditions)
    train = {"age": [30.0] * 4, "dose": [30.0] * 4}
    for held_out, shared in (
        ({"age": [70.0] * 3 + [30.0], "dose": [30.0] * 3 + [70.0]}, "dose"),
        # Nor two that are out of range for others each, but for most together.
        ({"age": [30.0] * 3 + [70.0] * 2, "dose": [70.0] * 2 + [30.0] * 3}, "age"),
    ):
        sets = Reference(model, None, None, conditions=(train, held_out))
        assert list(sets.with_shared_conditions().conditions[1]) == [shared]


def test_infer_of_images_of_all_subjects(monkeypatch):
    monkeypatch.setattr("dipy_ldm.evaluation.audit._MAX_MEMBERSHIP_IMAGES", 40)
    subjects = np.repeat(np.arange(10), 20)
    sets = subjects[:, None], np.arange(100)[:, None]
    scored = []

    def losses(model, images, *_):
        scored.append(images.ravel())
        return images.ravel() / 100

    model = SimpleNamespace(conditions_={})
    _infer(losses, Reference(model, *sets, subjects=subjects), 0)
    assert set(scored[0]) == set(subjects.tolist())
    npt.assert_array_equal(scored[1], np.arange(40))
