import json

import numpy as np
from processes import skipped_training
import pytest
from scans import soft_balls, write_volumes
import scripts

import dipy_ldm
from dipy_ldm._utils.checks import InputError

pytestmark = pytest.mark.usefixtures("no_real_cache")
AFFINE = np.diag([2.0, 2, 2, 1])


@pytest.fixture(scope="module")
def quality():
    return scripts.load("benchmarks/volumes.py")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return folders of 16 held-out and of 24 training volumes."""
    place = tmp_path_factory.mktemp("volumes")
    real, train = soft_balls(16, 1), soft_balls(24, 2)
    folders = {place / "real": real, place / "train": train}
    return [str(write_volumes(f, images, AFFINE)) for f, images in folders.items()]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """Return the file of a model whose autoencoder knows the training volumes."""
    images = soft_balls(24, 2)
    vqvae = dipy_ldm.VQVAE(widths=(4, 4), blocks=1, n_codes=8, code_dim=2)
    vqvae.fit(images, affine=AFFINE, epochs=1, batch_size=8, verbose=False)
    model = dipy_ldm.LatentDiffusion(vqvae, widths=(4,), blocks=1, guide=False)
    with skipped_training("latent_diffusion"):
        model.fit(images, verbose=False)
    path = tmp_path_factory.mktemp("model") / "ldm.safetensors"
    model.save(path)
    return str(path)


def test_one_line_of_json_and_a_picture(quality, model_file, folders, tmp_path, capsys):
    picture, (real, train) = tmp_path / "volumes.png", folders
    options = ["--n_samples", "10", "--steps", "2", "--montage", str(picture)]
    quality.main(["score", model_file, "--real", real, "--train", train, *options])
    scores = json.loads(capsys.readouterr().out)
    assert (scores["n_compared"], scores["n_train"]) == (10, 24)
    assert (scores["sampler"], scores["steps"], scores["seed"]) == ("dpm++", 2, 0)
    assert scores["energy_ratio"] == scores["energy"] / scores["energy_floor"]
    # Of noise that was never learnt to be removed.
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


def test_held_out_volumes_that_were_trained_on_are_refused(quality):
    train = soft_balls(5, 2)
    with pytest.raises(InputError, match="3 volumes of --real are in --train, too"):
        quality.measure_novelty(train[:3], train)
