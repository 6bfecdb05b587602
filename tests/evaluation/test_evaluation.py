"""Evaluations of sets whose result is known."""

from functools import partial
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import numpy.testing as npt
import pandas as pd
import pytest
from scans import soft_balls
from scipy.ndimage import gaussian_filter

from dipy_ldm import LatentDiffusion
from dipy_ldm._conditions import Condition
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.subjects import number_subjects
from dipy_ldm.data import load_mnist
from dipy_ldm.data.channels import Channel, Labels, Map, harden
from dipy_ldm.data.volumes import Volumes
from dipy_ldm.evaluation import (
    _anatomy as anatomy,
    _condition_probe as probes,
    _fidelity as fidelity,
    _measures as report,
    _memorization as membership,
    two_sample,
)
from dipy_ldm.evaluation._condition_probe import (
    _fit_ridge as fit_ridge,
    _probe as probe,
    probe_all,
)
from dipy_ldm.evaluation._fidelity import (
    Sets,
    _distances as distances,
    compute_features,
    interior,
    measure_fidelity,
    measure_reconstruction,
    measure_sharpness,
    measure_texture,
    measure_variety,
    pair_similarity,
)
from dipy_ldm.evaluation._measures import conclude, find_worse, write_page
from dipy_ldm.evaluation.evaluate import (
    _choose_sets,
    as_json,
    choose_sample_count,
    evaluate,
    read_conditions,
    scaled,
)
from dipy_ldm.evaluation.features import (
    classify,
    digits,
    downsample,
    encoder,
    features_of,
    own,
    random_network,
    voxels,
)
from dipy_ldm.evaluation.two_sample import NetworkTest
from dipy_ldm.metrics import Interval, binomial
from dipy_ldm.prior import _ridge as regression

AGE = {"age": Condition("continuous", {}, [0.0, 50.0, 99.0])}


def balls(n, seed):
    """Draw larger balls."""
    return soft_balls(n, seed, (16, 15, 14), (3, 5))


def test_measure_channels_by_their_kinds(rng):
    channels = Labels("dseg", labels=(3, 41)), Map("FA"), Channel("T1w")
    columns = rng.uniform(size=(20, 6, 5, 4, 4)).astype("float32")
    columns = harden(columns, channels)
    none = columns.copy()
    none[..., 1] = 0
    sets = Sets(columns, columns, none, columns)
    figures = anatomy.measure_channels(channels, sets, np.diag([10, 10, 10, 1]))
    assert list(figures) == ["dseg", "FA"]
    assert figures["dseg"]["3, Dice"]["reconstructed"].value == 1
    real = columns[..., 1].sum() / len(columns)
    assert figures["dseg"]["41, ml"]["real"].value == pytest.approx(real)
    assert figures["dseg"]["41, ml"]["generated"].value == 0
    mean = figures["FA"]["mean"]["real"].value
    assert mean == pytest.approx(0.5, abs=0.05)
    half = anatomy.measure_channels(channels, sets, np.eye(4), bounds=(0.0, 0.5))
    assert half["FA"]["mean"]["real"].value == pytest.approx(mean / 2, rel=0.03)
    assert not report._differs(figures["FA"]["mean"])
    assert report._differs(figures["dseg"]["41, ml"])
    page = report._write_channels(figures, None)
    assert "41, Dice" in page


def test_anatomy_and_pictures_are_those_of_the_scan(monkeypatch):
    few = lambda volumes, empty: np.zeros((len(volumes), 3))  # noqa: E731
    monkeypatch.setattr(anatomy, "tissue_fractions", few)
    scans = balls(8, 0)
    both = np.concatenate([np.roll(scans, 3, 1) > 0.5, scans], -1)
    alone = anatomy.measure_anatomy(scans, np.eye(4))
    measured = anatomy.measure_sets(Sets(*[both] * 4), np.eye(4), 1)
    for name, values in alone.items():
        npt.assert_allclose(measured["real"][name], values)

    def look(images, channels):
        maps = np.ones((8, *images.shape[1:-1], 1))
        area = Interval(1, 1, 1)
        network = NetworkTest(area, 1.0, 7, ([], []), np.arange(8), maps)
        sets = SimpleNamespace(generated=images)
        shown = {"sets": sets, "channels": channels, "affine": np.eye(4)}
        details = {"classifier": network}
        return report.draw_saliency(SimpleNamespace(details=details, **shown))

    channels = Labels("dseg", labels=(1,)), Channel("T1w")
    npt.assert_allclose(look(both, channels), look(scans, ()))


@pytest.fixture(scope="module")
def sets():
    real = balls(40, 1)
    blurred = np.stack([gaussian_filter(x, [2, 2, 2, 0]) for x in real])
    return Sets(balls(40, 0), real, balls(40, 2), blurred)


def test_classify_digits():
    images, labels = load_mnist("test")
    assert np.mean(classify(images[:2000]).argmax(1) == labels[:2000]) > 0.985
    assert digits().compute(images[:3]).shape == (3, 128)


def test_random_network_of_volumes(rng):
    images = rng.uniform(size=(3, 12, 11, 10, 2)).astype("float32")
    rows = random_network(images.shape[1:]).compute(images)
    assert rows.shape == (3, 112)
    again = random_network(images.shape[1:]).compute(images)
    npt.assert_allclose(again, rows, rtol=1e-4)


def test_random_network_detects_blur(sets):
    features = random_network(sets.real.shape[1:])
    figures = measure_fidelity(compute_features(sets, features))
    blurred = figures | {"generated": figures["reconstructed"]}
    assert "kernel" in find_worse(blurred)
    assert figures["reconstructed"]["kernel"].low > figures["real"]["kernel"].high
    assert "kernel" not in find_worse(figures)


def test_random_network_has_the_same_weights_as_ever():
    image = np.linspace(0, 1, 16**2).reshape(1, 16, 16, 1).astype("float32") ** 2
    features = random_network((16, 16, 1))
    assert features.version == 1
    first = features.compute(image)[0, [0, 20, 60, 111]]
    # Numbers of an earlier run: other features need another version.
    npt.assert_allclose(first, [0.04456, 0.13222, 0.16147, 0.14650], rtol=1e-3)


def test_downsample(rng):
    images = rng.uniform(size=(2, 33, 16, 8, 1))
    small = downsample(images, 4096)
    assert small.shape == (2, 16, 8, 4, 1)
    assert small[0, 0, 0, 0, 0] == pytest.approx(images[0, :2, :2, :2].mean(), rel=1e-5)
    assert voxels().compute(images[:, :4, :4, :4]).shape == (2, 64)
    mirrored = downsample(images[:, ::-1], 4096, symmetric=True)
    npt.assert_allclose(mirrored[:, ::-1], downsample(images, 4096, symmetric=True))


def test_encoder_is_that_of_the_model(diffusion, blobs):
    low, high = diffusion.vqvae_.intensity_
    rows = encoder(diffusion).compute((blobs - low) / (high - low))
    assert [x.independent for x in features_of(diffusion)] == [True, True, False]
    assert own(np.ravel, "encoder").independent
    latents = diffusion._scaled(diffusion.vqvae_.encode(blobs))
    npt.assert_allclose(rows, latents.reshape(len(blobs), -1), atol=1e-4)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.mean(), "must be \\(n, \\*shape\\) for n images, not \\(\\)"),
        (lambda x: x[:2], "for 3"),
        (lambda x: np.full((3, 2), np.nan), "NaN"),
    ],
    ids=["number", "fewer", "not finite"],
)
def test_own_features_are_checked(function, message):
    with pytest.raises(InputError, match=message):
        own(function).compute(np.zeros((3, 4, 4, 1)))


def test_distances_of_gaussians(rng):
    a, b, c = rng.standard_normal((3, 300, 6))
    floor = distances(a, c)

    def worse(generated):
        return set(find_worse({"generated": distances(a, generated), "real": floor}))

    assert distances(a, b)["frechet"].value == pytest.approx(0.2, abs=0.2)
    assert worse(b) == set()
    assert distances(a, b + 1)["frechet"].value == pytest.approx(6, rel=0.15)
    assert worse(b + 1) >= {"kernel", "precision"}
    narrow = worse(b / 3)
    assert narrow >= {"recall", "coverage"} and "precision" not in narrow


def test_shares_of_few_are_as_uncertain_as_their_number(rng):
    repeated = np.repeat(np.arange(16), 10)
    for n, scans, subjects in ((20, 20, None), (16, 160, repeated)):
        figures = distances(*rng.standard_normal((2, scans, 4)), 0, (None, subjects))
        for name in ("precision", "recall", "coverage"):
            share = figures[name]
            _, low, high = binomial(round(share.value * n), n)
            assert share.low <= low and high <= share.high


def test_frechet_distance_of_few(rng):
    assert distances(*rng.standard_normal((2, 30, 40)))["frechet"] is None
    # Subjects may have unequal numbers of images.
    subjects = np.repeat(np.arange(20), np.arange(20) % 3 + 1)
    rows = rng.standard_normal((2, len(subjects), 36))
    assert len(subjects) == 39
    distance = fidelity._frechet(*rows, seed=0, subjects=(subjects, subjects))
    assert distance.low < distance.value


def test_measure_variety_of_nearly_constant_sets(sets):
    same = sets._replace(generated=np.repeat(sets.generated[:2], 20, 0))
    similarity = measure_variety(same)
    assert similarity["generated"].low > similarity["real"].high


def test_pair_similarity_is_as_uncertain_as_draws_differ(monkeypatch, rng):
    # Each pair is as alike as its two images are large.
    alike = fidelity, "multiscale_ssim", lambda a, b: a.mean((1, 2)) + b.mean((1, 2))
    monkeypatch.setattr(*alike)
    intervals = [
        pair_similarity(rng.normal(0.2, 0.05, (60, 1, 1)), i) for i in range(100)
    ]
    claimed = np.mean([one.high - one.low for one in intervals]) / 2 / 1.96
    # By pairs that share images it was 0.7 of it.
    assert claimed == pytest.approx(np.std([one.value for one in intervals]), rel=0.2)
    few = [pair_similarity(rng.normal(0.2, 0.05, (8, 1, 1)), i) for i in range(300)]
    covered = np.mean([one.low <= 0.4 <= one.high for one in few])
    assert 0.86 < covered < 0.98


def test_intervals_of_shares_are_shares(rng):
    # So few are among the others that recall would go below 0, and precision above 1.
    real, fake = rng.standard_normal((24, 3)), 0.2 * rng.standard_normal((24, 3))
    figures = distances(real, fake)
    for name in ("precision", "recall", "density", "coverage"):
        _, low, high = figures[name]
        assert 0 <= low <= high
        assert name == "density" or high <= 1
    assert figures["frechet"].low >= 0
    assert Interval(0.1, -0.4, 0.6).within(0, 1) == Interval(0.1, 0, 0.6)
    requested = np.arange(9)
    agreement = probes.measure_agreement(
        requested, requested + 0.01 * rng.standard_normal(9)
    )
    assert agreement["r"].high <= 1
    members = membership.infer_membership(np.arange(120.0), np.arange(120) + 100.0)
    assert members.auc.high <= 1 and members.true_positive_rate.high <= 1


def test_all_intervals_depend_on_the_seed(rng):
    images = np.float32(rng.uniform(0, 1, (24, 16, 16, 1)))
    sets = Sets(images, images[::-1], images, gaussian_filter(images, (0, 1, 1, 0)))
    vqvae = SimpleNamespace(intensity_=(0.0, 1.0), codebook_=np.zeros(2))
    vqvae.encode, vqvae.codes = lambda x: x, lambda x: (x > 0.5).astype(int)
    vqvae._parameters = lambda: SimpleNamespace(n_codebooks=1)
    measured = {name: {"a": x[:, 0, 0, 0]} for name, x in sets.by_name.items()}
    measures = (
        lambda seed: measure_sharpness(sets, seed)["true"][0],
        lambda seed: measure_sharpness(sets, seed)["generated"][0],
        lambda seed: measure_reconstruction(vqvae, sets, seed)["mse"],
        lambda seed: measure_reconstruction(vqvae, sets, seed)["ms_ssim"],
        lambda seed: anatomy.compare_anatomy(measured, sets, seed)["real"]["a"],
    )
    for measure in measures:
        assert measure(0) == measure(0) != measure(1)


def test_measure_sharpness_of_blurred_images(rng):
    texture = rng.standard_normal((4, 20, 24, 24, 1))
    texture[3] = gaussian_filter(texture[1], [0, 1, 1, 0])
    energies = measure_sharpness(Sets(*texture))
    assert energies["reconstructed"][0].value < 0.5 * energies["real"][0].low
    assert energies["true"][0].value > 0.6
    small = Sets(*np.zeros((4, 20, 7, 9, 1)))
    assert measure_sharpness(small) == {}


def test_measure_texture_of_patches(rng):
    heads = np.zeros((4, 20, 24, 24, 24, 1))
    heads[:, :, 3:-3, 3:-3, 3:-3] = 0.6
    heads += 0.05 * rng.standard_normal(heads.shape)
    patches = np.kron(rng.standard_normal((20, 6, 6, 6, 1)), np.ones((1, 4, 4, 4, 1)))
    heads[2] += 0.15 * patches
    energies = measure_texture(Sets(*heads))
    assert energies["generated"][1].low > 2 > 1.2 > energies["real"][1].high
    assert interior(np.zeros((9, 9, 9, 1))).all()
    assert interior(heads[0, 0]).sum() < 18**3


def test_masks_of_signed_maps_are_about_their_background():
    scans = balls(4, 0)
    npt.assert_array_equal(
        anatomy.foreground(scans[0] / 2), anatomy.foreground((1 - scans[0]) / 2, 0.5)
    )
    npt.assert_array_equal(
        interior(scans[0] / 2), interior((1 - scans[0]) / 2, np.array([0.5]))
    )
    alone = anatomy.measure_anatomy(scans / 2, np.eye(4))
    signed = anatomy.measure_anatomy((1 - scans) / 2, np.eye(4), 0.5)
    npt.assert_array_equal(signed["foreground"], alone["foreground"])
    npt.assert_allclose(signed["symmetry"], alone["symmetry"], rtol=1e-5)
    npt.assert_allclose(signed["intensity"], 0.5 - alone["intensity"], rtol=1e-5)


def test_texture_of_a_signed_map_is_that_inside(rng):
    heads = np.full((4, 20, 24, 24, 24, 1), 0.5)
    inside = (..., *[slice(3, -3)] * 3, slice(None))
    heads[inside] += 0.1 * rng.standard_normal(heads[inside].shape)
    energies = [
        [own.value for own in measure_texture(Sets(*sets), 0, empty)["real"]]
        for sets, empty in ((heads - 0.5, 0.0), (heads, 0.5))
    ]
    npt.assert_allclose(*energies, rtol=1e-4)


def test_measure_anatomy_of_a_ball():
    volume = np.zeros((30, 20, 20, 1), "float32")
    place = np.indices(volume.shape[:3])
    radius = np.linalg.norm(place - np.array([18, 10, 10])[:, None, None, None], axis=0)
    volume[radius < 6] = 1
    volume[(radius < 3) & (place[0] > 18)] = 0.5
    measured = anatomy.measure_anatomy(volume[None], np.diag([2, 2, 2, 1]))
    inside = np.count_nonzero(radius < 6)
    assert measured["foreground"] == pytest.approx([inside * 8 / 1000])
    assert 0.9 < measured["intensity"][0] < 1
    # Not in the middle of the grid, and not quite symmetric.
    assert 0.8 < measured["symmetry"][0] < 0.999
    assert anatomy.symmetry(np.zeros((4, 4, 4, 1))) == 0


def test_tissue_fractions(rng):
    volume = np.zeros((24, 24, 24, 1))
    for first, end, value in ((2, 12, 0.3), (12, 17, 0.6), (17, 22, 0.9)):
        volume[first:end, 2:22, 2:22] = value
    volume += 0.06 * rng.standard_normal(volume.shape)
    shares = anatomy.tissue_fractions(np.clip(volume, 0, 1)[None])
    npt.assert_allclose(shares, [[0.5, 0.25, 0.25]], atol=0.05)
    nothing = anatomy.tissue_fractions(np.zeros((2, 8, 8, 8, 1)))
    assert nothing.shape == (2, 3)
    assert np.isnan(nothing).all()
    values = np.array([np.nan, 1.0, 2.0, 3.0])
    subjects = np.array([0, 1, 1, 2])

    def compare(values, subjects):
        names = "reference", "real", "generated", "reconstructed"
        sets = Sets(*[values] * 4, dict.fromkeys(names, subjects))
        return anatomy.compare_anatomy(dict.fromkeys(names, {"a": values}), sets)

    assert compare(values, subjects)["real"]["a"].value == 0
    assert compare(values, subjects) == compare(values[1:], subjects[1:])
    assert fidelity.finite_mean([np.nan, 3.0, 4.0], np.array([0, 1, 1]), 0) is None


def test_measure_agreement(rng):
    requested = rng.uniform(20, 80, 200)
    measured = 50 + 0.5 * (requested - 50) + rng.standard_normal(200)
    agreement = probes.measure_agreement(requested, measured)
    assert agreement["slope"].low < 0.5 < agreement["slope"].high
    assert agreement["r"].value > 0.98
    error = np.abs(0.5 * (requested - 50)).mean()
    assert agreement["error"].value == pytest.approx(error, 0.1)
    nothing = probes.measure_agreement(requested, rng.uniform(20, 80, 200))
    assert nothing["r"].low < 0 < nothing["r"].high
    pairs = requested[:20].repeat(10), rng.uniform(20, 80, 20).repeat(10)
    narrow, wide = (
        probes.measure_agreement(*pairs, subjects=ids)["r"]
        for ids in (None, np.arange(20).repeat(10))
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize(
    ("requested", "measured", "message"),
    [
        ([1, 2, np.nan], [1, 2, 3], "at least 4, not 2"),
        ([1, 1, 1, 1], [1, 2, 3, 4], "all requested values are equal"),
        ([1, 2, 3, 4], [1, 1, 1, 1], "have the same measured value"),
    ],
)
def test_measure_agreement_refuses_values_without_any(requested, measured, message):
    with pytest.raises(InputError, match=message):
        probes.measure_agreement(requested, measured)


def test_class_accuracy():
    assert probes.class_accuracy([1, "b"], ["1", "c"]).value == 0.5
    assert probes.class_accuracy([7.0, "7"], np.array([7, 7])).value == 1
    # Of two subjects little is known, however many images they have.
    many, subjects = list("ab") * 50, np.arange(100) // 50
    narrow, wide = (probes.class_accuracy(many, many, ids) for ids in (None, subjects))
    assert narrow.value == wide.value == 1
    assert wide.low < 0.5 < 0.9 < narrow.low


def test_fit_ridge_predicts_held_out_values(rng):
    rows = rng.standard_normal((60, 8)) * [5, 1, 1, 1, 1, 1, 1, 0]
    slopes = rng.standard_normal((8, 2))
    targets = rows @ slopes + 3
    explained, predict = fit_ridge(rows, targets + 0.01 * rng.standard_normal((60, 2)))
    assert explained > 0.999
    held_out = rng.standard_normal((5, 8)) * ([1] * 7 + [0])
    npt.assert_allclose(predict(held_out), held_out @ slopes + 3, atol=0.05)
    # Of noise, in more features than there are samples, nothing is predicted.
    wide, _ = fit_ridge(rng.standard_normal((40, 300)), rng.standard_normal((40, 1)))
    assert -0.2 < wide < 0.3
    _, predict = fit_ridge(np.ones((9, 3)), np.arange(9.0)[:, None])
    assert predict(np.ones((2, 3))).tolist() == [[4], [4]]


def test_probe_by_subject(sizes, monkeypatch):
    rows, conditions = sizes
    fit = create_autospec(regression.fit_ridge, side_effect=regression.fit_ridge)
    monkeypatch.setattr(probes.regression, "fit_ridge", fit)
    subjects = np.arange(60) // 2
    by_pairs = probe("continuous", rows, conditions, subjects={"reference": subjects})
    # Nothing is known of the fourth.
    *_, fitted_subjects = fit.call_args_list[0].args
    npt.assert_array_equal(fitted_subjects, number_subjects(np.delete(subjects, 3), 59))
    of_pairs = probe("continuous", rows, conditions, subjects={"real": subjects})
    narrow, wide = (p.figures["real"]["error"] for p in (by_pairs, of_pairs))
    assert narrow.value == wide.value
    assert narrow != wide


def test_choose_sets_keeps_subjects_on_one_side():
    subjects = np.r_[np.repeat(np.arange(15), 3), np.arange(15, 20)]
    first, second, third = _choose_sets(subjects, 25)
    assert len(first) == len(second) >= 23
    assert not set(subjects[first]) & set(subjects[second])
    npt.assert_array_equal(third, second)
    first, second, _ = _choose_sets(np.arange(50), 25)
    npt.assert_array_equal(np.concatenate([first, second]), range(50))
    for few in (np.repeat([0, 1, 2], 30), np.zeros(60, int)):
        with pytest.raises(InputError, match="needs 20 images of 4 subjects or more"):
            _choose_sets(few, 30)


def test_choose_sets_as_large_as_subjects_allow(rng):
    subjects = number_subjects(
        rng.permutation(np.repeat(np.arange(30), 20)).tolist(), 600
    )
    first, second, _ = _choose_sets(subjects, 300)
    assert len(first) == len(second) == 300
    assert not set(subjects[first]) & set(subjects[second])
    # Whoever has many images is as likely in one half as in the other.
    shares = []
    for _ in range(20):
        people = rng.permutation(np.r_[np.repeat(np.arange(20), 5), np.arange(20, 40)])
        rows = _choose_sets(number_subjects(people.tolist(), 120), 60)
        shares.append([np.mean(people[half] < 20) for half in rows[:2]])
    npt.assert_allclose(*np.mean(shares, 0), atol=0.1)


def test_evaluate_leaves_out_samples_of_subjects_of_the_reference(diffusion, blobs):
    people = [f"sub-{i}" for i in range(64)]
    options = {"features": iter([own(lambda x: x[:, ::4, ::4])]), "subjects": people}
    # All are compared with those of whom there are none.
    options["subjects_generated"] = [*people[:16], *people[34:50] * 2, *[None] * 16]
    evaluation = evaluate(diffusion, blobs, np.float32(blobs + 1e-3), **options)
    assert len(evaluation.figures["features"]) == 1
    of_samples = evaluation.sets.subjects["generated"]
    npt.assert_array_equal(of_samples, [*range(16), *range(34, 50)])
    assert not {*of_samples} & {*evaluation.sets.subjects["reference"]}
    assert evaluation.notes[0].startswith(
        "Of 64 real images, 32 are the reference of all"
    )
    assert evaluation.notes[1] == "Of 64 generated images, 32 are compared."
    # Two of each source count as one.
    for n in (20, 32):
        assert _choose_sets(np.arange(64), 32, np.arange(n).repeat(2)).shape == (3, 32)
    assert _choose_sets(np.arange(64), 32, np.arange(64)).shape == (3, 32)
    with pytest.raises(InputError, match="must be of subjects outside the first half"):
        _choose_sets(np.arange(40), 20, np.arange(40) // 20)


def test_choose_sets_of_few_subjects_by_another_draw():
    subjects = np.repeat(np.arange(8), (5, 11, 8, 9, 9, 10, 4, 8))
    rows = _choose_sets(subjects, 32)
    assert rows.shape[1] >= 20
    assert not {*subjects[rows[0]]} & {*subjects[rows[1]]}


def test_figures_are_those_of_subjects(sets):
    subjects = {"real": np.arange(40) // 2, "reconstructed": np.arange(40) // 2}
    of_pairs = sets._replace(subjects=subjects)
    for measure in (measure_variety, measure_sharpness, measure_texture):
        alone, by_subject = measure(sets), measure(of_pairs)
        assert by_subject["generated"] == alone["generated"]
        assert by_subject["real"] != alone["real"]
    rows = compute_features(sets, random_network(sets.real.shape[1:]))
    one, other = (measure_fidelity(rows, 0, who) for who in ({}, subjects))
    assert one["generated"] == other["generated"]
    assert one["real"]["density"] != other["real"]["density"]


@pytest.fixture
def sizes(rng):
    """Return features of four sets that tell sizes, and sizes; some are missing."""
    names = ("reference", "real", "reconstructed", "generated")
    conditions = {name: rng.uniform(10, 20, 60).tolist() for name in names}
    conditions["reference"][3] = conditions["generated"][0] = None
    rows = {
        name: np.nan_to_num(np.array(values, float))[:, None]
        + 0.3 * rng.standard_normal((60, 3))
        for name, values in conditions.items()
    }
    noise = {name: rng.standard_normal((60, 4)) for name in names}
    return {"noise": noise, "size": rows}, conditions


def test_probe_compares_requested_numbers(sizes):
    rows, conditions = sizes
    result = probe("continuous", rows, conditions)
    assert (result.features, result.n) == ("size", 59)
    assert (
        len(result.requested["generated"]) == len(result.predicted["generated"]) == 59
    )
    assert result.figures["generated"]["r"].value > 0.99
    assert result.figures["real"]["error"].value < 0.3
    # A model that does not listen.
    conditions["generated"] = conditions["generated"][::-1]
    assert probe("continuous", rows, conditions).figures["generated"]["r"].low < 0.2


def test_probe_compares_requested_classes(sizes):
    rows, conditions = sizes
    conditions = {
        of: [v if v is None else "large" if v > 15 else 7.0 for v in values]
        for of, values in conditions.items()
    }
    result = probe("class", rows, conditions)
    assert set(result.predicted["generated"]) == {"7", "large"}
    assert result.figures["real"]["right"].value > 0.9
    assert result.figures["generated"]["right"].value > 0.9
    assert 0.5 <= result.guessing["real"] < 0.7
    assert result.as_figures()["guessing"] == result.guessing
    # Whoever says "7" of all is right as often as that is requested.
    conditions["generated"] = [7.0] * 45 + ["large"] * 15
    assert probe("class", rows, conditions).guessing["generated"] == 0.75


def test_probe_all_of_unreadable_conditions(sizes):
    rows, conditions = sizes

    def probe_sizes(kind, columns, rows=rows):
        labels = {of: v and {"size": v} for of, v in columns.items()}
        return probe_all({"size": kind}, labels, rows)

    all_of = partial(dict.fromkeys, conditions)
    few = {of: [None] * 50 + v[50:] for of, v in conditions.items()}
    unasked = all_of(list("FM") * 30) | {"generated": [None] * 60}
    for kind, columns, sentence in (
        ("continuous", few, "No probe of size: only 10 real"),
        ("continuous", all_of([5.0] * 60), "half have the same value"),
        ("class", all_of(["F"] * 60), "half have the same value"),
        ("class", unasked, "with a class must be at least 1"),
        ("direction", all_of([(0.0, 0.6, 0.8)] * 60), "not directions"),
    ):
        probes, (note,) = probe_sizes(kind, columns)
        assert probes == {} and sentence in note
    # The model's own encoder, which is left out, may be all there is.
    _, (note,) = probe_sizes("continuous", conditions, {})
    assert "no features are independent of the model's own encoder" in note
    # And nothing where nothing was asked for.
    assert probe_sizes("continuous", conditions | {"generated": None}) == ({}, [])


def test_conclude_whether_a_model_follows_conditions():
    def conclude_probe(real, generated, kind="continuous", key="r", chance=0.7):
        intervals = {
            of: {key: Interval(v, v - 0.1, v + 0.1)}
            for of, v in (("real", real), ("generated", generated))
        }
        guessing = {"real": 0.5, "generated": chance}
        probe = {"kind": kind, "guessing": guessing, "figures": intervals}
        alike = {"generated": Interval(0, 0, 0), "real": Interval(0, 0, 0)}
        figures = {"n": 9, "features": {}, "variety": alike, "probes": {"age": probe}}
        ((sentence, verdict),) = conclude(figures)
        assert "age" in sentence
        return verdict, sentence

    assert conclude_probe(0.8, 0.75)[0] == "good"
    verdict, sentence = conclude_probe(0.8, 0.4)
    assert verdict == "bad"
    assert ", but less than for real images (0.4; real images 0.8)." in sentence
    assert "only by chance" in conclude_probe(0.8, 0.05)[1]
    assert conclude_probe(0.05, 0.8)[0] == "plain"
    assert "only by chance" in conclude_probe(0.9, 0.75, "class", "right")[1]
    assert conclude_probe(0.9, 0.85, "class", "right")[0] == "good"
    verdict, sentence = conclude_probe(0.9, 1.0, "class", "right", chance=1.0)
    assert (verdict, "the same age" in sentence) == ("plain", True)


def test_choose_sample_count():
    assert choose_sample_count(100) == 50
    assert choose_sample_count(100, 30) == 30
    assert choose_sample_count(100, None, 20) == 20
    assert choose_sample_count(100_000) == 5000
    for numbers, message in (
        ((39,), "needs 40"),
        ((100, 19), "needs 20 generated images, not 19"),
        ((100, None, 5), "^n must be at least 20"),
    ):
        with pytest.raises(InputError, match=message):
            choose_sample_count(*numbers)


def test_evaluate_images(diffusion, blobs, tmp_path, monkeypatch):
    evaluation = evaluate(diffusion, blobs, steps=2)
    figures = evaluation.figures
    assert "In the features" in repr(evaluation)
    assert evaluation._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    monkeypatch.setenv("HOME", str(tmp_path))
    evaluation.save_as_html("~/page.html")
    assert "Fidelity and variety" in (tmp_path / "page.html").read_text("utf-8")
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    evaluation.open_in_browser()
    assert opened[0].endswith("report.html")
    assert figures["n"] == 32 == len(evaluation.sets.generated)
    assert list(figures["features"]) == [f.name for f in features_of(diffusion)]
    assert "anatomy" not in figures
    kernel = as_json(figures)["features"]["voxels"]["figures"]["real"]["kernel"]
    assert set(kernel) == {"value", "low", "high"}
    html = write_page(evaluation, {"model": "tiny"})
    assert conclude(figures)[0][0] in html
    assert "Anatomy" not in html
    # A model of two epochs.
    assert any(kind == "bad" for _, kind in conclude(figures))


def test_evaluate_real_images_as_samples(diffusion, blobs, rng):
    real = np.concatenate([blobs] * 2)[rng.permutation(128)]
    features = [own(lambda x: x[:, ::4, ::4])]
    with pytest.raises(InputError, match="32 of the generated images are real ones"):
        evaluate(diffusion, real[:96], real[:32], features=features)
    samples = real[96:] + np.float32(1e-3)
    evaluation = evaluate(diffusion, real[:96], samples, features=features)
    assert [verdict for _, verdict in conclude(evaluation.figures)] == ["good"]
    assert list(evaluation.figures["features"]) == ["own"]


def test_evaluate_with_classifiers(diffusion, blobs, monkeypatch):
    def test(real, generated, subjects, seed):
        maps = np.ones((8, *real.shape[1:-1], 1))
        auc = Interval(0.5, 0.4, 0.6) if generated.std() > 0.1 else Interval(1, 1, 1)
        return NetworkTest(auc, 1.0, 7, ([], []), np.arange(8), maps)

    monkeypatch.setattr(two_sample, "network_test", test)
    # One alone: to choose takes most of the time.
    monkeypatch.setattr(two_sample, "_PENALTIES", np.array([0.01]))
    real = np.concatenate([blobs, blobs[:32] + 0.1])
    features = [own(lambda x: x[:, ::4, ::4])]
    options = {"features": features, "classifier": True}
    evaluation = evaluate(diffusion, real, 0 * real[:48], **options)
    figures = evaluation.figures
    areas = figures["classifier"]
    assert areas["network"]["generated"].value == 1
    assert set(areas["features"]) == {"own", "grey levels"}
    assert areas["features"]["grey levels"]["generated"].value > 0.99
    (sentence,) = (s for s, _ in conclude(figures) if "A network" in s)
    assert "can distinguish generated images from real ones (AUC 1;" in sentence
    html = write_page(evaluation, {})
    assert "area under the curve" in html and "7 rounds" in html
    alike = {name: Interval(0.5, 0.4, 0.6) for name in areas["network"]}
    for share, kind in ((0.95, "good"), (0.6, "plain")):
        learnt = {"network": alike, "learnt": {"generated": share}}
        sentences = conclude(figures | {"classifier": learnt})
        assert [k for s, k in sentences if "A network" in s] == [kind]
    with pytest.raises(InputError, match="needs 40 generated and as many .* not 32"):
        evaluate(diffusion, blobs, **options)


def test_evaluate_refuses_conditions_that_do_not_fit(diffusion, blobs, monkeypatch):
    refuse = partial(evaluate, diffusion, blobs)
    with pytest.raises(InputError, match="this model was trained without conditions"):
        refuse(conditions={"age": range(64)})
    monkeypatch.setattr(diffusion, "conditions_", AGE)
    for call, message in (
        (lambda: refuse(conditions={"Age": range(64)}), "unknown condition 'Age'; cho"),
        (lambda: refuse(conditions={"age": range(63)}), "`conditions` must have 64 va"),
        (
            lambda: refuse(blobs[:40], requested={"age": range(64)}),
            "`requested` must have 40 values of age",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_evaluate_leaves_out_unknown_levels(diffusion, blobs, monkeypatch, caplog):
    def stop(model, rows, conditions, *_):
        assert conditions == {"site": ["A", None] * 32}
        raise InputError("so far, so good")

    site = Condition("class", {"A": 9, "B": 9}, [])
    monkeypatch.setattr(diffusion, "conditions_", {"site": site})
    monkeypatch.setattr("dipy_ldm.evaluation.evaluate.generate", stop)
    with pytest.raises(InputError, match="so good"):
        evaluate(diffusion, blobs, conditions={"site": ["A", "C"] * 32})
    sentence = "32 real images: site C is an unknown level, and ignored."
    assert caplog.messages == [sentence]


def test_evaluate_refuses_arguments_that_do_not_fit(diffusion, vqvae, blobs):
    refuse = partial(evaluate, diffusion)
    broken, few = blobs.copy(), blobs[:40]
    broken[3, 5, 5] = np.nan
    files = [f"sub-{i // 16}_T1w.nii" for i in range(64)]
    named = Volumes(blobs, None, np.eye(4), files)
    same = [own(lambda x: x[:, ::4, ::4]), own(lambda x: x[:, ::2, ::2])]
    unfitted = LatentDiffusion(vqvae)
    for call, message in (
        (lambda: refuse(blobs, few, step=2), "`step` has no effect on images that are"),
        (
            lambda: refuse(blobs, requested={"age": [1]}),
            "`requested` describes `generated",
        ),
        (lambda: evaluate("mnist", blobs), r", not 'mnist'; .*LatentDiffusion.load"),
        (lambda: evaluate(unfitted, blobs), "this LatentDiffusion is not fitted"),
        (lambda: refuse(named), "the real images are of 4 subjects"),
        (lambda: refuse(blobs, few, seed=-1), "seed must be a whole number from 0"),
        (lambda: refuse(broken, few), "real image 3 has NaN or infinite values"),
        (lambda: refuse(blobs, broken[:40]), "generated image 3 has NaN"),
        (lambda: scaled(broken, diffusion.vqvae_), "^image 3 has NaN"),
        (lambda: refuse(blobs, features=same), "names, not own, own; name yours"),
        (
            lambda: refuse(np.repeat(blobs, 7, 0), few),
            "448 real and 40 generated .*tenfold, .* `n`",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_read_conditions_of_pandas():
    read = partial(read_conditions, SimpleNamespace(conditions_=AGE), "conditions")
    frame = pd.DataFrame({"age": [1.5, 2.5, 3.5]}, index=[2, 0, 1])
    for table in (frame, dict(frame), [1.5, 2.5, 3.5]):
        assert read(table, 3) == {"age": [1.5, 2.5, 3.5]}
    named = frame.set_index(pd.Index(["sub-3", "sub-1", "sub-2"]))
    subjects = ["sub-1", "sub-2", "sub-3"]
    joined = read(named, 3, subjects)
    assert joined == {"age": [2.5, 3.5, 1.5]}
    with pytest.raises(InputError, match="and drop the names"):
        read(named, 3)
    assert read(None, 3) is None


def test_as_json_of_nested_records():
    record = as_json({"a": [Interval(1, 0, 2), np.float32(0.5)], "b": (np.arange(2),)})
    assert record == {"a": [{"value": 1, "low": 0, "high": 2}, 0.5], "b": [[0, 1]]}
