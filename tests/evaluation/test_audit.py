"""Copies that were planted are found, and among others none are."""

from functools import partial
import pickle
import re
from types import SimpleNamespace

import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest
from scipy import ndimage, stats

from dipy_ldm import VQVAE, LatentDiffusion, _serialization, plots
from dipy_ldm._conditions import Condition
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data.channels import Channel
from dipy_ldm.data.volumes import Volumes
from dipy_ldm.diffusion import schedules
from dipy_ldm.evaluation import _memorization as copies, _memorization as membership
from dipy_ldm.evaluation._audit_report import conclude, write_page, write_pairs
from dipy_ldm.evaluation._copy_filter import (
    CopyFilter,
    CopyReplacer,
    ReferenceSet,
    project_randomly,
)
from dipy_ldm.evaluation.audit import (
    Pair,
    Reference,
    _count,
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
from dipy_ldm.workflows._reports import make_copy_filter

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


def look(features, train, held_out, generated):
    rows = (features.compute(images) for images in (train, held_out, generated))
    return copies.search(features, *rows)


def planted(train, n, kind, rng):
    """Draw n patients, and plant 5 % copies of training images among them."""
    changes = {
        "exact": lambda x: x,
        "flipped": lambda x: x[::-1],
        "shifted": lambda x: np.roll(x, 1, 1),
        "noise": lambda x: x + 0.02 * rng.standard_normal(x.shape),
        "contrast": lambda x: x**0.6,
    }
    generated = patients(n, 2)
    for i in range(n // 20):
        generated[3 * i] = changes[kind](train[7 * i])
    return generated


@pytest.mark.parametrize("kind", ["exact", "flipped", "shifted", "noise", "contrast"])
def test_planted_copies_are_counted(train, invariant, rng, kind):
    n = 80
    found = look(invariant, train, patients(n, 3), planted(train, n, kind, rng))
    finding = copies.count_copies(found)
    assert finding.copies.low < 0.05 < finding.copies.high
    assert finding.chance < copies.FALSE_ALARM_RATE / 3
    # And which they are.
    npt.assert_array_equal(found.generated.nearest[[0, 3, 6, 9]], [0, 7, 14, 21])


@pytest.mark.parametrize("kind", ["exact", "noise"])
def test_unmoved_copies_are_detected_in_voxels(train, rng, kind):
    found = look(voxels(), train, patients(80, 3), planted(train, 80, kind, rng))
    assert copies.count_copies(found).copies.value == 0.05
    assert copies.count_copies(found).chance < copies.FALSE_ALARM_RATE / 3


def test_held_out_images_give_no_alarm_in_ten_repetitions(train, invariant):
    for features in (voxels(), invariant):
        rows = features.compute(train)
        for seed in range(10):
            sets = patients(60, 10 + seed), patients(60, 50 + seed)
            distances = copies.search(features, rows, *map(features.compute, sets))
            finding = copies.count_copies(distances)
            assert finding.chance > copies.FALSE_ALARM_RATE / 3
            assert finding.copies.value == 0


@pytest.mark.parametrize("others", [300, 900])
def test_the_chance_is_the_chance(others):
    # Of uniform numbers, some of which play the generated ones.
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(4000):
        a, b = rng.uniform(size=300), rng.uniform(size=others)
        counts.append(np.sum(a < np.sort(b)[2]))
    for count in (2, 6, 9):
        wanted = np.mean(np.array(counts) >= count)
        assert copies._p_nearer(count, 300, 3, others) == pytest.approx(
            wanted, abs=0.02
        )
    assert copies._p_nearer(0, 300, 3, others) == 1
    assert copies._p_copies(0, 300, others) == pytest.approx(1)
    # On average 1 / 32 of what is below the least of the others.
    mean = sum(copies._p_copies(count, 300, others) for count in range(1, 50))
    assert mean == pytest.approx(300 / (others + 1) / 32, rel=0.05)


def test_copies_of_one_class_are_counted_as_its_own(train, invariant, rng):
    n = 80
    generated = planted(train, n, "exact", rng)
    found = look(invariant, train, patients(n, 3), generated)
    # Copies are every third of the first twelve, and those were asked to be 10.
    asked = [10.0 if i in (0, 3, 6, 9, 20) else "b" if i % 2 else 2 for i in range(n)]
    asked[1] = None
    levels = copies.count_copies_by_level({"invariant": found}, asked)
    assert list(levels) == ["2", "10", "b"]
    assert [level.n for level in levels.values()] == [37, 5, 37]
    shares = [level.copies["invariant"].value for level in levels.values()]
    assert shares == [0, 0.8, 0]
    assert levels["10"].nearer["invariant"].value >= 0.8
    assert levels["10"].copies["invariant"].low < 0.5


def repeated(k, rng):
    """Draw features of which one training image is there k times, and half copies."""
    base = rng.standard_normal((300, 60))
    scans = base[:1] + 0.02 * rng.standard_normal((k, 60))
    copied = base[:1] + 0.02 * rng.standard_normal((50, 60))
    others = rng.standard_normal((150, 60))
    train = np.concatenate([scans, base[1:]])
    return train, others[:100], np.concatenate([copied, others[100:]])


@pytest.mark.parametrize("k", [1, 9, 10, 12, 30])
def test_copies_of_repeated_training_images_are_detected(rng, k):
    train, held_out, generated = repeated(k, rng)
    finding = copies.count_copies(copies.search(voxels(), train, held_out, generated))
    assert finding.copies.value == 0.5
    assert finding.share.value >= 0.5
    assert finding.chance < copies.FALSE_ALARM_RATE / 3
    refused = ReferenceSet.of(train, held_out).has(generated)
    assert refused[:50].all()
    assert refused[50:].mean() < 0.2


def test_copies_are_detected_among_near_identical_training_images(rng):
    # Each has many neighbours: the ratio misses copies, and the distance does not.
    base = rng.standard_normal((300, 60))
    train = np.repeat(base[:20], 15, 0) + 0.5 * rng.standard_normal((300, 60))
    generated = np.concatenate([train[:10], base[100:150]])
    found = copies.search(voxels(), train, base[150:], generated)
    assert copies.count_copies(found).copies.value == pytest.approx(10 / 60)
    alone = np.repeat(base[:1], 12, 0)
    near = copies.neighbours(base[:2], alone, 1.0)
    npt.assert_allclose(near.ratio, [0, 1], atol=1e-6)


def test_copies_by_their_distance_are_suspicious_first():
    generated = np.array([10.0, 0.1]), np.array([0.5, 0.9]), np.array([3, 4])
    held_out = np.array([5.0, 6]), np.array([0.8, 0.9]), np.array([0, 1])
    both = copies.Neighbours(*generated), copies.Neighbours(*held_out)
    pairs = _suspicious({"voxels": copies.Search(voxels(), *both, (None, None))})
    assert [(p.generated, p.train, p.distance) for p in pairs] == [
        (1, 4, 0.1),
        (0, 3, 10),
    ]


@pytest.mark.parametrize("repeats", [1, 15])
def test_repeated_images_give_no_alarm(repeats):
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        base = np.repeat(rng.standard_normal((300 // repeats, 12)), repeats, 0)
        train = base + 0.05 * rng.standard_normal(base.shape)
        held_out, others = rng.standard_normal((2, 60, 12))
        found = copies.search(voxels(), train, held_out, others)
        alarms += copies.count_copies(found).chance < copies.FALSE_ALARM_RATE / 3
    assert alarms <= 2


def test_typical_samples_are_no_copies(train):
    # Near to the mean of all, as guidance makes them, they are near to each image.
    typical = patients(60, 4) * 0.5 + train.mean(0) * 0.5
    finding = copies.count_copies(look(voxels(), train, patients(60, 5), typical))
    assert finding.by_distance.value > 0.5
    assert finding.share.value < 0.1
    assert finding.chance > copies.FALSE_ALARM_RATE / 3


def test_mirror_images_are_described_alike(train):
    npt.assert_allclose(describe(train), describe(train[:, ::-1]), atol=1e-5)
    images = train[:, :, :, 0]
    npt.assert_allclose(describe(images), describe(images[:, :, ::-1]), atol=1e-5)
    # So are brighter ones.
    npt.assert_allclose(describe(train), describe(train / 2 + 0.1), atol=1e-4)


def test_changed_copies_keep_their_place_and_range(train, rng):
    assert augment(train[0], rng).shape == train[0].shape
    flat = augment(np.full((9, 8, 1), 0.5, "float32"), rng)
    assert 0.2 < flat.mean() < 0.8


def test_duplicates_of_training_images_are_detected(train):
    prints = copies.fingerprints(train)
    saved_again = np.round(train[[5, 9]] * 4095) / 4095
    others = copies.fingerprints(np.concatenate([patients(3, 8), saved_again]))
    assert copies.duplicates(prints, others) == [(3, 5), (4, 9)]


def test_too_few_are_refused():
    for train, held_out, generated, kind in (
        (30, 19, 19, "20 held-out images, not 19"),
        (10, 20, 20, "11 training images, not 10"),
        (30, 20, 19, "20 generated images, not 19"),
    ):
        with pytest.raises(InputError, match=f"an audit needs {kind}; give more"):
            _count(train, held_out, range(generated), None)


def test_fewest_detectable_copies():
    assert copies.fewest_detectable(80, 80) == 2
    assert copies.fewest_detectable(20, 20) < 5
    # The more held-out images there are, the less chance has to say.
    assert copies.fewest_detectable(20, 600) == 1


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_losses_are_of_the_same_noise_whatever_the_schedule(schedule):
    spreads = []

    class Model:
        """Of latents that are 0, so that all is noise."""

        vqvae_ = SimpleNamespace(encode=lambda images: images)

        def _scaled(self, latents):
            return latents

        _schedule = schedule

        def denoiser(self, conditions, source):
            return lambda x, t: spreads.append(x.std()) or 0 * x

    membership.denoising_losses(Model(), np.zeros((2, 200, 200, 1)))
    wanted = schedules.rates("cosine", membership._TIMES)[1]
    npt.assert_allclose(spreads[::2], wanted, rtol=0.02)


def test_losses_are_mean_squared_errors_with_the_source_of_each_image(rng):
    images, sources = rng.random((2, 8, 200, 200, 1)).astype("float32")
    requested = []

    class Model:
        """Takes sources for what is denoised, and shifts what is encoded."""

        vqvae_ = SimpleNamespace(encode=lambda x: x, predict=lambda x: x + 0.5)
        _schedule = "cosine"

        def _scaled(self, latents):
            return latents

        def denoiser(self, conditions, source):
            requested.append(conditions)
            return lambda x, t: source

    errors = np.mean((sources - images) ** 2, (1, 2, 3))
    losses = membership.denoising_losses(Model(), images, source=sources)
    npt.assert_allclose(losses, errors, rtol=1e-5)
    assert requested == [None, None]
    membership.denoising_losses(Model(), images, 0, sources, {"age": range(8)})
    assert requested[2:] == [{"age": [0, 1, 2, 3, 4, 5]}, {"age": [6, 7]}]
    losses = membership.reconstruction_losses(Model(), images)
    npt.assert_allclose(losses, 0.25, rtol=1e-5)


def test_infer_membership_of_normal_losses(rng):
    others = rng.standard_normal(300)
    same = membership.infer_membership(rng.standard_normal(300), others)
    assert same.auc.low < 0.5 < same.auc.high
    assert same.true_positive_rate.low < same.false_rate == 3 / 301
    lower = membership.infer_membership(others - 1.5, others)
    # Of two normal distributions.
    assert lower.auc.value == pytest.approx(stats.norm.cdf(1.5 / 2**0.5), abs=0.03)
    assert lower.true_positive_rate.low > 0.05
    few = membership.infer_membership(others[:99], others[:99])
    assert few.true_positive_rate is None
    apart = membership.infer_membership(others[:30] - 99, others)
    assert apart.auc.value == apart.true_positive_rate.value == 1
    assert apart.auc.low == apart.true_positive_rate.low == binomial(30, 30).low
    assert membership.area_under_curve(np.zeros(3), np.zeros(4)) == 0.5
    assert membership.area_under_curve(np.zeros(3), np.ones(4)) == 1


def test_scans_of_a_training_subject_count_as_one_of_the_members(rng):
    whose = np.repeat(np.arange(10), 30)
    losses = rng.standard_normal(10)[whose] + 0.3 * rng.standard_normal(300)
    both = losses, rng.standard_normal(60)
    owners = None, whose, 0 * whose
    by_scan, by_subject, of_one = (
        membership.infer_membership(*both, subjects=(own, None)).auc for own in owners
    )
    assert by_scan.value == by_subject.value == of_one.value
    assert by_subject.high - by_subject.low > 1.5 * (by_scan.high - by_scan.low)
    assert (of_one.low, of_one.high) == (0, 1)


def test_guessing_finds_as_many_members_as_it_accuses(monkeypatch):
    # Of which nothing is asked here, and which takes most of the time.
    monkeypatch.setattr(membership, "area_under_curve", lambda *losses: losses[0][0])
    rng = np.random.default_rng(0)
    draws = (map(rng.standard_normal, (200, 100)) for _ in range(100))
    members = [membership.infer_membership(*x, seed) for seed, x in enumerate(draws)]
    mean = np.mean([one.true_positive_rate.value for one in members])
    assert mean == pytest.approx(2 / 101, rel=0.25)
    assert members[0].false_rate == 2 / 101
    # Both sets are drawn: the limit is not known. By the count alone, 12 % were.
    assert sum(one.true_positive_rate.low > one.false_rate for one in members) <= 9


def test_losses_of_a_model_are_the_same_each_time(diffusion, blobs):
    losses = membership.denoising_losses(diffusion, blobs[:8])
    assert losses.shape == (8,)
    again = membership.denoising_losses(diffusion, blobs[:8])
    npt.assert_allclose(losses, again, rtol=1e-5)
    assert (membership.reconstruction_losses(diffusion, blobs[:4]) > 0).all()


def test_an_audit_of_copies(diffusion, blobs):
    train, held_out = blobs[:36], blobs[36:]
    generated = np.concatenate([train[:14], held_out[:14]])
    with pytest.raises(InputError, match="14 of the generated images are real ones"):
        audit(diffusion, train, held_out, generated)
    generated[14:] += 1e-3
    found = audit(diffusion, train, held_out, generated)
    assert (found.n, found.n_held_out) == (28, 28)
    losses = found.members["denoiser"]
    assert (len(losses.train), len(losses.held_out)) == (36, 28)
    # As many held-out ones as there are, whatever is generated.
    fewer = audit(diffusion, train, held_out, generated[:20])
    assert (fewer.n, fewer.n_held_out) == (20, 28)
    assert "voxels" in fewer.spaces_with_copies
    assert "voxels" in found.spaces_with_copies
    assert found.findings["voxels"].copies.value >= 0.5
    copied = {pair.generated: pair.train for pair in found.pairs[:6]}
    assert all(i == row for i, row in copied.items())
    assert conclude(found)[0][1] == "bad"
    names = {pair.train: f"image {pair.train}" for pair in found.pairs}
    html = write_page(found, {"model": "tiny"})
    assert "A pass proves nothing" in html
    assert "<img" not in html
    html = write_pairs(found, lambda i: train[i], names, None, {"model": "tiny"})
    assert "Keep it as confidential as the data" in html
    first = found.pairs[0]
    assert f"Sample {first.generated} and image {first.train}: " in html
    widths = [int(width) for width in re.findall(r'<img[^>]* width="(\d+)"', html)]
    assert len(widths) == len(found.pairs) and min(widths) >= 320
    samples = [f"sample-{i}.png" for i in range(28)]
    html = write_pairs(found, lambda i: train[i], names, None, {}, samples)
    assert f"sample-{first.generated}.png and image {first.train}: " in html


def test_pairs_show_channels_in_colours(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "pictures", lambda *x: shown.append(x) or x[0])
    pair = Pair(0, 0, 0.1, 0.2, "voxels")
    result = SimpleNamespace(pairs=[pair], generated=np.zeros((1, 8, 8, 2)))
    channels = Channel("T1w"), Channel("T2w")
    how = {0: "a"}, None, {}, (), channels
    write_pairs(result, lambda i: np.zeros((8, 8, 2)), *how)
    ((_, _, passed),) = shown
    assert passed == channels


def test_copies_are_replaced_by_samples_of_other_numbers():
    new = 10**9 + 2 * 50

    def generate(places, first):
        # Numbers that end in 3 are copies, and each sample is its number.
        return np.arange(first, first + len(places))

    def find(images):
        return np.flatnonzero((images % 10 == 3) | (images == new + 1))

    replacer = CopyReplacer(find, range(2, 12))
    images, used = replacer.generate(generate, range(2, 12))
    # No other part of the set has the number that replaces 3.
    assert used == images.tolist() == [2, new, *range(4, 12)]
    assert replacer.refused == 1
    # The next one is a copy, too.
    assert replacer.generate(generate, range(3, 4))[1] == [new + 2]
    assert replacer.refused == 3
    endless = CopyReplacer(lambda x: np.arange(len(x)), range(5))
    with pytest.raises(InputError, match="the model has memorised these"):
        endless.generate(generate, range(5))
    # One after the other, they may be as many in all.
    replacer = CopyReplacer(lambda x: np.flatnonzero(x < 10**9 + 90), range(2))
    assert replacer.generate(generate, range(1))[0].tolist() == [10**9 + 90]
    replacer.find = lambda x: 0 * x
    with pytest.raises(InputError, match="100 samples for 2 requested are"):
        replacer.generate(generate, range(1, 2))


def test_fingerprints_know_copies(train, diffusion, tmp_path):
    projection = fit_invariant_projection(train)
    seen = project_randomly(voxels().compute(train))
    features = ReferenceSet(projection.of(train), 0.5, 0.0)
    known = CopyFilter(projection, features, ReferenceSet(seen, 0.5, 0.0), "a" * 64)
    known.save(tmp_path / "guard.safetensors")
    again = CopyFilter.load(tmp_path / "guard.safetensors", "a" * 64)
    vqvae = SimpleNamespace(intensity_=(0.0, 1.0))
    images = np.concatenate([patients(3, 6), train[[5], ::-1], patients(2, 7)])
    npt.assert_array_equal(again.copies(images, vqvae), [3])
    # What is known by its voxels alone is known, too, and mirror images are not.
    blind = again._replace(invariant=again.invariant._replace(threshold=0.0))
    npt.assert_array_equal(blind.copies(images, vqvae), [])
    npt.assert_array_equal(blind.copies(train[:2] ** 1.05, vqvae), [0, 1])
    with pytest.raises(InputError, match="of another model; create new ones"):
        CopyFilter.load(tmp_path / "guard.safetensors", "b" * 64)
    diffusion.save(tmp_path / "ldm.safetensors")
    with pytest.raises(InputError, match="not fingerprints of training images; choose"):
        CopyFilter.load(tmp_path / "ldm.safetensors", "a" * 64)


@pytest.mark.parametrize(
    ("others", "than", "expected"),
    [(20, "any held-out image", "4.8"), (200, "99 % of held-out images", "1.0")],
)
def test_conclude_names_the_share_expected_by_chance(train, others, than, expected):
    found = look(voxels(), train, patients(others, 3), patients(40, 4))
    finding = copies.count_copies(found)
    members = {"denoiser": SimpleNamespace(auc=Interval(0.5, 0.4, 0.6))}
    told = {"findings": {"voxels": finding}, "members": members, "n": 40}
    told |= {"spaces_with_copies": [], "n_held_out": others}
    ((sentence, how),) = conclude(SimpleNamespace(**told))
    assert how == "good"
    assert sentence.startswith("Voxels: ")
    assert f"than {than} ({expected} % expected; p = " in sentence
    assert sentence.endswith(": not significant).")


def test_a_reference_that_tells_as_much_is_no_leak():
    def of(value):
        interval = Interval(value, value - 0.05, value + 0.05)
        nothing = np.zeros(2)
        return membership.Membership(interval, interval, 0.01, nothing, nothing)

    def said(**members):
        return conclude(SimpleNamespace(findings={}, members=members))

    assert said(denoiser=of(0.52)) == []
    for members, kind, words in (
        ({"denoiser": of(0.8)}, "bad", ": a leak, though not a copy."),
        ({"denoiser": of(0.8), "reference": of(0.75)}, "plain", "no leak is shown."),
        (
            {"denoiser": of(0.8), "reference": of(0.5)},
            "bad",
            "not trained on them (0.5): a leak",
        ),
        (
            {"denoiser": of(0.52), "reference": of(0.8), "autoencoder": of(0.7)},
            "bad",
            "the reconstruction error of the autoencoder separates training images",
        ),
    ):
        ((sentence, how),) = said(**members)
        assert how == kind and words in sentence


def test_thresholds_are_those_of_a_twentieth_of_held_out_images(train):
    rows = [project_randomly(voxels().compute(x)) for x in (train, patients(100, 3))]
    known = ReferenceSet.of(*rows)
    assert known.has(rows[1]).sum() == 5
    assert known.has(rows[0]).all()


def test_sketches_keep_distances_and_no_image(train):
    rows = voxels().compute(train)
    small = project_randomly(rows)
    assert small.shape == (100, 64)
    npt.assert_allclose(project_randomly(rows[3:5]), small[3:5], atol=1e-4)
    far, near = (np.linalg.norm(x[1:] - x[0], axis=1) for x in (rows, small))
    assert np.abs(near / far - 1).max() < 0.4
    assert np.abs(near / far - 1).mean() < 0.12
    npt.assert_array_equal(project_randomly(rows[:, :64]), rows[:, :64])


def test_an_audit_that_generates(diffusion, blobs):
    found = audit(diffusion, blobs[:40], blobs[40:], n=20, steps=2)
    assert "Audit of a latent diffusion model" in found.to_html()
    assert "held-out" in repr(found)
    assert pickle.loads(pickle.dumps(found)).conclusions() == found.conclusions()
    assert found.n == len(found.generated) == found.n_held_out == 20
    assert set(found.members) == {"denoiser", "autoencoder"}
    train, held_out = sets = np.split(blobs, [40])
    refuse = partial(audit, diffusion)
    many = np.concatenate([blobs] * 4)
    for call, message in (
        (lambda: refuse(*sets, train, seed=-1), "seed must be a whole number from 0"),
        (lambda: refuse(*sets, train, steps=2), "`steps` has no effect on images that"),
        (
            lambda: refuse(*sets, requested={"age": [1]}),
            "`requested` describes `generated",
        ),
        (lambda: refuse(*sets, conditions={"age": [1]}), "trained without conditions"),
        (lambda: refuse(train, held_out[:19]), "needs 20 held-out images, not 19"),
        (lambda: refuse(train[:20], many, train[:20]), "differ less than tenfold"),
        (
            lambda: refuse(train, blobs[16:40], held_out),
            r"24 of the held-out .* too: 0 \(16\), 1 \(",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_an_audit_knows_whose_images_are(diffusion, blobs, tmp_path, monkeypatch):
    sets = np.split(blobs, [40])
    for folder, images in zip(("train", "held_out"), sets, strict=True):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            np.save(tmp_path / folder / f"sub-{i}_slice.npy", image[None])
    files = [f"sub-{i}_T1w.nii" for i in range(40)]
    named = [Volumes(x, None, np.eye(4), files[: len(x)]) for x in sets]
    for given in ([tmp_path / "train", tmp_path / "held_out"], named):
        with pytest.raises(InputError, match=r"share subjects \(sub-0, sub-1, "):
            audit(diffusion, *given)
    conditions_of_model = {"age": Condition("continuous", {}, [0.0, 1.0])}
    monkeypatch.setattr(diffusion, "conditions_", conditions_of_model)
    table = pd.DataFrame({"age": [0.5]}, index=["sub-0"])
    with pytest.raises(InputError, match="39 of 40 images have no row in the condit"):
        audit(diffusion, tmp_path / "train", blobs[40:], conditions=table)


def pictures(n, seed):
    """Draw smooth images."""
    noise = np.random.default_rng(seed).standard_normal((n, 16, 16))
    smooth = ndimage.gaussian_filter(noise, [0, 2, 2])
    low, high = (f(smooth, (1, 2), keepdims=True) for f in (np.min, np.max))
    return np.float32((smooth - low) / (high - low))[..., None]


def test_overfitted_model_is_detected():
    train, held_out = pictures(20, 0), pictures(60, 1)
    vqvae = VQVAE(widths=(8, 16), blocks=1, n_codes=64, code_dim=3)
    vqvae.fit(train, steps=100, batch_size=20, verbose=False)
    model = LatentDiffusion(vqvae, widths=(32,), blocks=1, guide=False)
    model.fit(train, steps=450, batch_size=20, verbose=False)
    found = audit(model, train, held_out, steps=10)
    assert "voxels" in found.spaces_with_copies
    assert found.findings["voxels"].share.value > 0.5
    assert found.members["denoiser"].auc.low > 0.8
    # What its fingerprints leave is clean, in what they look at.
    copy_filter = make_copy_filter(found, "a" * 64)

    def generate(places, first):
        return model.predict(len(places), first=first, steps=10)

    replacer = CopyReplacer(lambda x: copy_filter.copies(x, vqvae), range(20))
    images, _ = replacer.generate(generate, range(20))
    assert replacer.refused > 20
    again = audit(model, train, held_out, images)
    assert not {"voxels", "invariant"} & set(again.spaces_with_copies)


def test_fingerprints_without_a_limit_are_refused(tmp_path):
    rows = np.random.default_rng(0).standard_normal((30, 4)).astype("float32")
    tensors = {"mean": rows[0], "directions": rows[:2], "train": rows, "voxels": rows}
    document = {"threshold": 0.5, "threshold_voxels": 0.25, "model": "a" * 64}
    path = tmp_path / "guard.safetensors"
    _serialization.save(path, "fingerprints", tensors, document)
    with pytest.raises(InputError, match="create new ones with"):
        CopyFilter.load(path, "a" * 64)


def test_conditions_of_which_most_would_be_clipped_are_left_out():
    known = {n: Condition("continuous", {}, [20.0, 40.0]) for n in ("age", "dose")}
    model = SimpleNamespace(conditions_=known)
    train = {"age": [30.0] * 4, "dose": [30.0] * 4}
    held_out = {"age": [70.0, 70.0, 70.0, 30.0], "dose": [30.0, 30.0, 30.0, 70.0]}
    sets = Reference(model, None, None, conditions=(train, held_out))
    assert list(sets.with_shared_conditions().conditions[1]) == ["dose"]
    # Nor are there two that are out of range for others each, but for most together.
    held_out = {"age": [30.0] * 3 + [70.0] * 2, "dose": [70.0] * 2 + [30.0] * 3}
    sets = Reference(model, None, None, conditions=(train, held_out))
    assert list(sets.with_shared_conditions().conditions[1]) == ["age"]


def test_membership_is_inferred_of_images_of_all_subjects(monkeypatch):
    monkeypatch.setattr("dipy_ldm.evaluation.audit._MAX_MEMBERSHIP_IMAGES", 40)
    whose = np.repeat(np.arange(10), 20)
    sets = whose[:, None], np.arange(100)[:, None]
    scored = []

    def losses(model, images, *_):
        scored.append(images.ravel())
        return images.ravel() / 100

    model = SimpleNamespace(conditions_={})
    _infer(losses, Reference(model, *sets, subjects=whose), 0)
    assert set(scored[0]) == set(whose.tolist())
    npt.assert_array_equal(scored[1], np.arange(40))
