"""The detector finds synthetic lesions in images that it has not seen."""

import pickle

import keras
import numpy as np
import numpy.testing as npt
from processes import StopError, stop_after
import pytest

from dipy_ldm import LatentDiffusion
from dipy_ldm._utils.checks import InputError
from dipy_ldm.anomaly._lesions import add_lesions
from dipy_ldm.anomaly._training import baseline_loss, lesion_loss
from dipy_ldm.anomaly_detector import AnomalyDetector
from dipy_ldm.metrics import dice

SMALL = {"widths": (8, 8), "blocks": 1}
FIT = {"steps": 4, "batch_size": 4, "verbose": False, "precision": "float32"}


def images(rank, n=12, side=40):
    """Draw smooth images that differ, of some noise."""
    rng = np.random.default_rng(0)
    places = np.meshgrid(*(np.linspace(-1, 1, side + 3 * i) for i in range(rank)))
    distance = np.sqrt(sum(place**2 for place in places))
    size = rng.uniform(0.8, 0.95, (n, *(1,) * rank))
    brightness = rng.uniform(0.5, 0.8, size.shape) - 0.2 * distance
    clean = np.where(distance < size, brightness, 0)
    noise = 0.02 * rng.standard_normal(clean.shape)
    return np.maximum(clean + noise * (clean > 0), 0)[..., None].astype("float32")


@pytest.fixture(scope="module", params=[2, 3])
def fitted(request):
    data = images(request.param, side={2: 40, 3: 20}[request.param])
    return AnomalyDetector(**SMALL).fit(data, **FIT), data


def test_detector_finds_lesions_in_unseen_images():
    data = images(2, n=48)
    options = FIT | {"steps": 500, "batch_size": 8, "learning_rate": 5e-3}
    detector = AnomalyDetector(widths=(16, 16), blocks=1)
    detector.fit(data[8:], validation_data=data[:8], **options)
    dices = detector.history_["val_dice"]
    assert dices[-1] > 0.7 > 0.3 > dices[0]
    changed, masks = data[:8].copy(), np.zeros(data[:8].shape[:-1], "float32")
    for number, (window, mask) in enumerate(zip(changed, masks, strict=True)):
        add_lesions(window, mask, np.random.default_rng(number))
    assert dice(detector.predict(changed) > 0.5, masks > 0.5) > 0.7
    assert (detector.predict(data[:8]) > 0.5).mean() < 0.02


def test_predict_returns_probabilities_whatever_tiles_and_batches(fitted):
    detector, data = fitted
    likely = detector.predict(data)
    assert likely.shape == data.shape[:-1] and likely.dtype == np.float32
    assert 0 < likely.min() <= likely.max() < 1
    for options in ({"tile": 4}, {"batch_size": 2}):
        npt.assert_allclose(
            detector.predict(data[:3], **options), likely[:3], atol=1e-6
        )
    with pytest.raises(InputError, match="that the detector was fitted to, not"):
        detector.predict(data[:, 1:])


# What does not depend on how many dimensions images have.
of_images = pytest.mark.parametrize("fitted", [2], indirect=True)


@of_images
def test_predict_scales_images_as_in_training(fitted):
    detector, data = fitted
    likely = detector.predict(data)
    scaled = AnomalyDetector(**SMALL).fit(7 * data - 3, **FIT).predict(7 * data - 3)
    npt.assert_allclose(scaled, likely, atol=1e-4)


@of_images
def test_loaded_and_pickled_detectors_predict_the_same(fitted, tmp_path):
    detector, data = fitted
    detector.save(tmp_path / "a.safetensors")
    loaded = AnomalyDetector.load(tmp_path / "a.safetensors")
    for other in (loaded, pickle.loads(pickle.dumps(detector))):
        npt.assert_array_equal(other.predict(data), detector.predict(data))
        assert other.history_ == detector.history_


@of_images
def test_resumed_training_is_the_uninterrupted(fitted, tmp_path):
    detector, data = fitted
    options = FIT | {"checkpoint": tmp_path / "checkpoint"}
    with pytest.raises(StopError):
        AnomalyDetector(**SMALL).fit(data, **options, callbacks=[stop_after(1)])
    again = AnomalyDetector(**SMALL).fit(data, **options)
    npt.assert_allclose(again.predict(data), detector.predict(data), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps must"),
        ({"patch": 0}, "patch"),
        ({"batch_size": 50}, "fewer than a batch"),
        ({"validation_data": np.ones((2, 9, 9, 1))}, "must have the shape"),
        ({"validation_data": 255 * images(2, 2)}, "validation image 0 has values"),
    ],
)
def test_fit_and_predict_refuse(options, sentence):
    detector = AnomalyDetector(**SMALL)
    with pytest.raises(InputError, match=sentence):
        detector.fit(images(2), **FIT | options)
    with pytest.raises(InputError, match="not fitted"):
        detector.predict(images(2))


def test_baseline_loss_is_that_of_the_best_constant():
    masks = np.zeros((2, 8, 8, 1), "float32")
    masks[:, :2, :2] = 1
    masks = keras.ops.convert_to_tensor(masks)
    losses = [
        float(keras.ops.mean(lesion_loss(masks, keras.ops.full_like(masks, odds))))
        for odds in np.linspace(-5, 5, 401)
    ]
    npt.assert_allclose(min(losses), baseline_loss(4 / 64), rtol=1e-4)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="PyTorch has no XLA")
def test_fit_compiled_by_xla(compile_by_xla):
    models = compile_by_xla()
    options = FIT | {"precision": "auto", "remat": True}
    detector = AnomalyDetector(widths=(8,), blocks=1).fit(images(3, 4, 16), **options)
    assert models and all(model.jit_compile for model in models)
    assert np.isfinite(detector.history_["loss"]).all()


def test_fit_detector_adds_a_detector_to_the_model(
    diffusion, blobs, tmp_path, monkeypatch, untrained
):
    defaults = SMALL | {"seed": 0}
    monkeypatch.setattr(AnomalyDetector.__init__, "__kwdefaults__", defaults)
    model = pickle.loads(pickle.dumps(diffusion))
    model.seed = 3
    with pytest.raises(InputError, match="has no detector; train one"):
        model.detect(blobs)
    before = model.predict(2, steps=2)
    model.save(tmp_path / "without.safetensors")
    assert model.fit_detector(blobs, **FIT) is model
    assert model.detector_.seed == 3
    npt.assert_array_equal(model.predict(2, steps=2), before)
    likely = model.detect(blobs)
    for half in (False, True):
        model.save(tmp_path / "with.safetensors", half=half)
        other = LatentDiffusion.load(tmp_path / "with.safetensors")
        npt.assert_allclose(other.detect(blobs), likely, atol=1e-3 if half else 0)
    assert LatentDiffusion.load(tmp_path / "without.safetensors").detector_ is None
    model.detector_.shape_ = (9, 9, 1)
    model.save(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="the detector is for images of shape"):
        LatentDiffusion.load(tmp_path / "bad.safetensors")
    # What is learnt again is of other images, perhaps.
    model.fit(blobs, **FIT)
    assert model.detector_ is None
