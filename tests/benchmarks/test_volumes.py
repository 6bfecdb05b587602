import json
from types import SimpleNamespace

import numpy as np
import numpy.testing as npt
import pytest
from scans import soft_balls, write_volumes
import scripts

import dipy_ldm
from dipy_ldm._utils.checks import InputError
from dipy_ldm.metrics import Interval

AFFINE = np.diag([2.0, 2, 2, 1])


@pytest.fixture(scope="module")
def quality():
    return scripts.load("benchmarks/volumes.py")


@pytest.fixture(autouse=True)
def no_real_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return folders of 16 held-out and of 24 training volumes."""
    place = tmp_path_factory.mktemp("volumes")
    real, train = soft_balls(16, 1), soft_balls(24, 2)
    folders = {place / "real": real, place / "train": train}
    return [str(write_volumes(f, images, AFFINE)) for f, images in folders.items()]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """Return the file of a model fitted to the training volumes."""
    images = soft_balls(24, 2)
    vqvae = dipy_ldm.VQVAE(widths=(4, 4), blocks=1, n_codes=8, code_dim=2)
    vqvae.fit(images, affine=AFFINE, epochs=1, batch_size=8, verbose=False)
    model = dipy_ldm.LatentDiffusion(vqvae, widths=(4,), blocks=1, guide=False)
    model.fit(images, epochs=1, batch_size=8, verbose=False)
    path = tmp_path_factory.mktemp("model") / "ldm.safetensors"
    model.save(path)
    return str(path)


def command(model, folders, *further):
    real, train = folders
    return ["score", model, "--real", real, "--train", train, *further]


def test_one_line_of_json_and_a_picture(quality, model_file, folders, tmp_path, capsys):
    picture = tmp_path / "volumes.png"
    options = ["--n_samples", "10", "--steps", "2", "--montage", str(picture)]
    quality.main(command(model_file, folders, *options))
    scores = json.loads(capsys.readouterr().out)
    assert (scores["n_compared"], scores["n_train"]) == (10, 24)
    assert (scores["sampler"], scores["steps"], scores["seed"]) == ("dpm++", 2, 0)
    assert scores["energy_ratio"] == scores["energy"] / scores["energy_floor"]
    # A model of one epoch.
    assert scores["energy_ratio"] > 2
    assert scores["nearest_median"] > scores["nearest_median_real"]
    assert scores["ms_ssim_excess"] == scores["ms_ssim"] - scores["ms_ssim_real"]
    assert 0 <= scores["vqvae_ms_ssim"] < 1
    assert scores["vqvae_psnr"] > 0
    assert -1 < scores["vqvae_detail_correlation"] < 1
    assert len(scores["octaves"]) == len(scores["vqvae_octaves"])
    assert len(scores["bands"]) == len(scores["vqvae_bands"]) == 4
    assert scores["vqvae_mae"] ** 2 <= scores["vqvae_mse"] < 1
    assert 1 <= scores["codes_used"] <= scores["n_codes"] == 4 * 8
    assert scores["seconds"] > 0
    assert picture.stat().st_size > 0


def score(quality, generated):
    """Score volumes as if they were generated."""
    held_out, train = soft_balls(40, 1), soft_balls(60, 2)
    novelty = quality.measure_novelty(held_out, train)
    return {
        **quality.score_distribution(generated, held_out, train),
        **quality.score_novelty(generated, train, novelty),
        **quality.score_diversity(generated, held_out),
    }


def test_further_real_volumes_score_as_real_ones(quality):
    scores = score(quality, soft_balls(40, 3))
    assert 0.5 < scores["energy_ratio"] < 2
    medians = scores["nearest_median"], scores["nearest_median_real"]
    assert medians[0] == pytest.approx(medians[1], rel=0.3)
    # A minimum is a matter of chance.
    assert 0.3 < scores["nearest_min_ratio"] < 3
    assert scores["ms_ssim_excess"] == pytest.approx(0, abs=0.05)


def test_copies_of_training_volumes_are_detected(quality):
    scores = score(quality, soft_balls(60, 2)[:40])
    assert scores["energy_ratio"] == pytest.approx(1, abs=0.5)
    assert scores["nearest_median"] == scores["nearest_min_ratio"] == 0
    assert scores["nearest_median_real"] >= scores["nearest_min_real"] > 0


def test_compared_sets_have_equal_sizes(quality, monkeypatch, model_file, folders):
    compared = []
    keep = lambda a, b: compared.append((a, b)) or 1.0  # noqa: E731
    monkeypatch.setattr(quality, "energy_distance", keep)
    options = quality.make_parser(quality.__doc__, quality.MEASURES).parse_args(
        command(model_file, folders, "--n_samples", "20", "--steps", "1")
    )
    assert quality.measure(options)["n_compared"] == 16
    assert {len(x) for pair in compared for x in pair} == {16}
    # 13 x 12 x 11, halved.
    assert compared[0][0].shape[1:] == (6, 6, 5, 1)


def test_held_out_volumes_that_were_trained_on_are_refused(quality):
    both = soft_balls(5, 2)
    with pytest.raises(InputError, match="3 volumes of --real are in --train too"):
        quality.measure_novelty(both[:3], both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--real", "r", "--train", "t"], "nowhere"),
        (["mnist", "--real", "r"], "required: --train"),
        (["mnist", "--sampler", "magic"], "invalid choice: 'magic'"),
        (["mnist", "--montage", "volumes.txt"], "must end in .png"),
    ],
)
def test_bad_arguments_get_one_sentence(quality, capsys, arguments, message):
    assert message in scripts.refusal(quality.main, ["score", *arguments], capsys)


@pytest.mark.parametrize("shape", [(28, 28, 1), (13, 12, 11, 1)])
def test_models_of_something_else_are_refused(quality, monkeypatch, shape):
    vqvae = SimpleNamespace(shape_=shape, affine_=None)
    model = SimpleNamespace(vqvae=vqvae)
    monkeypatch.setattr(dipy_ldm.LatentDiffusion, "load", lambda path: model)
    with pytest.raises(InputError, match="digits is no model of volumes"):
        quality.load_model("digits")


def test_too_few_volumes_are_refused(quality, capsys, model_file, folders):
    with pytest.raises(SystemExit):
        quality.main(command(model_file, folders, "--n_samples", "1"))
    assert "at least 2, not 1" in capsys.readouterr().err


def test_volumes_are_recognised(quality, monkeypatch, model_file, folders, capsys):
    compared = []

    def test(real, generated, seed):
        compared.append((real, generated))
        return SimpleNamespace(auc=Interval(0.5, 0.4, 0.6), learnt=0.9, rounds=3)

    monkeypatch.setattr(quality, "network_test", test)
    monkeypatch.setattr(quality, "check_count", lambda n: None)
    real, _ = folders
    quality.main(["recognise", model_file, "--real", real, "--steps", "1"])
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    names = [line["volumes"] for line in lines]
    assert names[:2] == ["held-out", "reconstructed"]
    assert names[-1] == "generated, 10 steps" and len(names) == 16
    assert all(line["n_compared"] == 8 and line["auc"] == 0.5 for line in lines)
    for sides in compared:
        assert all(x.shape == (8, 13, 12, 11, 1) for x in sides)
        assert all(0 <= x.min() and x.max() <= 1 for x in sides)
    by_name = dict(zip(names, compared, strict=True))
    both = sum(by_name[f"generated, {place}"][1] for place in ("inside", "rim"))
    npt.assert_array_equal(both, by_name["generated"][1])
