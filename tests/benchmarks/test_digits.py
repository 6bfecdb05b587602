import json

import numpy as np
import pytest
import scripts

import dipy_ldm
from dipy_ldm import _serialization


@pytest.fixture(scope="module")
def quality():
    return scripts.load("benchmarks/digits.py")


def draw_digits(n, seed):
    """Draw something that a classifier of brightness tells apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 10
    noise = rng.uniform(-0.05, 0.05, (n, 28, 28, 1))
    return np.float32((labels[:, None, None, None] + 0.5) / 10 + noise), labels


class Brightness:
    """A classifier that needs no training."""

    def predict(self, images, batch_size, verbose):
        features = images.reshape(len(images), -1)[:, :128]
        digit = np.clip(images.mean(axis=(1, 2, 3)) * 10, 0, 9).astype(int)
        return features, np.eye(10)[digit]


class FakeVQVAE:
    n_codes = 16

    def predict(self, images):
        return images + np.float32(0.1)

    def encode(self, images):
        return images[:, :7, :7]

    def codes(self, latents):
        return np.int64(latents[..., 0] * 10)


class FakeModel:
    vqvae = FakeVQVAE()
    default_guidance = 2.0
    conditions_: dict = {}

    @classmethod
    def load(cls, path):
        return cls()

    def predict(self, n, *, seed, **ignored):
        print("libraries may print")
        return draw_digits(n, seed + 1)[0]


@pytest.fixture(autouse=True)
def small_world(quality, monkeypatch):
    """Use few digits, and a model and a classifier that need no training."""
    splits = {"train": draw_digits(400, 10), "test": draw_digits(300, 11)}
    monkeypatch.setattr(quality, "load_mnist", splits.get)
    monkeypatch.setattr(dipy_ldm, "LatentDiffusion", FakeModel, raising=False)
    monkeypatch.setattr(quality, "HELD_OUT", 200)
    monkeypatch.setattr(quality.features, "classifier", Brightness)


def test_score_writes_one_line_of_json_and_a_picture(quality, tmp_path, capsys):
    picture = tmp_path / "samples.png"
    quality.main(["score", "fake", "--n_samples", "150", "--montage", str(picture)])
    scores = json.loads(capsys.readouterr().out)
    assert scores["classifier_accuracy"] == scores["confident"] == 1
    assert scores["frechet_ratio"] == scores["frechet"] / scores["frechet_floor"]
    assert scores["class_shares"] == pytest.approx([0.1] * 10)
    # Reconstructions are 0.1 brighter in each of the 128 features.
    assert scores["frechet_ceiling"] == pytest.approx(1.28, rel=1e-3)
    assert scores["vqvae_mse"] == pytest.approx(0.01, rel=1e-3)
    assert (scores["codes_used"], scores["n_codes"]) == (10, 16)
    assert (scores["n_samples"], scores["steps"]) == (150, 10)
    assert scores["seconds"] > 0
    assert picture.stat().st_size > 0


class ObedientModel(FakeModel):
    """A model that does what it is asked for, but for the first sample."""

    conditions_ = {"label": None}

    def draw_conditions(self, n, *, seed):
        return {"label": [str(i % 10) for i in range(n)]}

    def predict(self, n, *, conditions, **ignored):
        if conditions == "none":
            return draw_digits(n, 1)[0]
        images, labels = draw_digits(10 * n, 1)
        places = np.array(conditions["label"], int) + 10 * np.arange(n)
        places[0] += 3
        return images[places]


def test_score_compares_samples_with_requested_labels(quality, monkeypatch, capsys):
    monkeypatch.setattr(dipy_ldm, "LatentDiffusion", ObedientModel)
    monkeypatch.setattr(quality, "FEATURES", 25)
    # Of thirty of each digit no covariance of 128 features can be told.
    monkeypatch.setattr(quality, "frechet_distance", lambda a, b: len(a) - len(b))
    quality.main(["score", "fake", "--n_samples", "300"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["as_asked"] == pytest.approx(299 / 300)
    of_classes = scores["as_asked_of_classes"]
    assert of_classes == [pytest.approx(29 / 30), *[1] * 9]
    assert scores["frechet_of_classes"] == [0] * 10
    # Of twenty not even that.
    assert scores["frechet_floor_of_classes"] == [None] * 10
    quality.main(["score", "fake", "--n_samples", "300", "--unspecified"])
    assert "as_asked" not in json.loads(capsys.readouterr().out)


def test_samples_in_a_file_are_scored_without_a_model(quality, tmp_path, capsys):
    path = tmp_path / "samples.npz"
    np.savez(path, images=draw_digits(150, 12)[0][..., 0])
    quality.main(["score", str(path)])
    scores = json.loads(capsys.readouterr().out)
    assert scores["n_samples"] == 150
    assert not {"vqvae_mse", "frechet_ceiling", "seconds"} & set(scores)


def test_the_packaged_classifier_is_of_this_recipe(quality):
    path = _serialization.find("digits-classifier")
    document = _serialization.read_document(path, "classifier")
    assert document["recipe"] == quality.RECIPE
