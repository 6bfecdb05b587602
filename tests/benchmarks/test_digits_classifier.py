import numpy as np
import numpy.testing as npt
import pytest
import scripts

from dipy_ldm import _serialization
from dipy_ldm.evaluation import features


@pytest.fixture(scope="module")
def script():
    return scripts.load("benchmarks/digits.py")


def test_the_packaged_classifier_is_of_this_recipe(script):
    path = _serialization.find("digits-classifier")
    document = _serialization.read_document(path, "classifier")
    assert document["recipe"] == script.RECIPE


def test_a_classifier_is_written_as_it_is_read(script, monkeypatch, tmp_path, rng):
    for name, value in {"epochs": 1, "widths": [2, 2], "batch_size": 100}.items():
        monkeypatch.setitem(script.RECIPE, name, value)
    monkeypatch.setitem(script.RECIPE, "held_out", 200)
    digits = rng.random((400, 28, 28, 1), "float32"), np.arange(400) % 10
    monkeypatch.setattr(script, "load_mnist", lambda split: digits)
    path = tmp_path / "classifier.safetensors"
    script.main(["train_classifier", str(path)])
    monkeypatch.setattr(_serialization, "find", lambda name: path)
    found, probabilities = features.classifier().predict(digits[0][:10], verbose=0)
    assert found.shape == (10, 128)
    npt.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_shift_moves_whole_images(script):
    image = np.zeros((200, 9, 9, 1), np.float32)
    image[:, 4, 3] = 1
    shifted = script.shift(image, 2, np.random.default_rng(0))
    _, rows, columns, _ = np.nonzero(shifted)
    assert len(rows) == 200
    assert set(rows) == {2, 3, 4, 5, 6}
    assert set(columns) == {1, 2, 3, 4, 5}
