"""What was learnt before images were memorised is kept."""

import keras
import numpy as np
import numpy.testing as npt
from processes import StopError, stop_after
import pytest

from dipy_ldm import LatentDiffusion
from dipy_ldm.denoiser import _training as diffusion
from dipy_ldm.training._checkpoint import BestWeights, TrainingRecord
from dipy_ldm.training._options import Length

LOSSES = [0.5, 0.3, 0.31, 0.4]


def dense():
    inputs = keras.Input((1,))
    network = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    (weight,) = network.trainable_variables
    return network, weight


def rounds(lowest, weight, losses=LOSSES):
    for number, loss in enumerate(losses):
        weight.assign([[float(number)]])
        lowest.on_epoch_end(number, {"val_loss": loss})
    steps = [10 * (1 + number) for number in range(len(losses))]
    return {"step": steps, "val_loss": losses}


def test_weights_of_the_lowest_loss_come_back(caplog):
    network, weight = dense()
    lowest = BestWeights("diffusion", network)
    lowest.restore_to_network(rounds(lowest, weight))
    assert keras.ops.convert_to_numpy(weight)[0, 0] == 1
    assert lowest.figures() == {"val_loss": 0.3}
    assert "rose from 0.3 after 20 steps to 0.4 after 40" in caplog.text


def test_a_loss_that_hardly_rose_is_not_spoken_of(caplog):
    network, weight = dense()
    lowest = BestWeights("diffusion", network)
    lowest.restore_to_network(rounds(lowest, weight, [0.5, 0.3, 0.301]))
    assert keras.ops.convert_to_numpy(weight)[0, 0] == 1
    assert not caplog.text


@pytest.mark.parametrize("figures", [{}, {"loss": 0.1}, {"val_loss": np.nan}])
def test_without_such_a_loss_the_last_weights_stay(figures):
    network, weight = dense()
    lowest = BestWeights("guide", network)
    weight.assign([[7.0]])
    lowest.on_epoch_end(0, figures)
    weight.assign([[8.0]])
    lowest.restore_to_network({"step": [1]})
    assert keras.ops.convert_to_numpy(weight)[0, 0] == 8
    assert lowest.figures() == {}
    assert lowest.tensors == {}


def test_a_checkpoint_of_no_round_has_none():
    network, weight = dense()
    lowest = BestWeights("diffusion", network)
    lowest.restore({"model.00000": np.zeros(1)}, {"val_loss": [0.1]})
    # All that was before is forgotten.
    lowest.on_epoch_end(1, {"val_loss": 0.2})
    assert lowest.figures() == {"val_loss": 0.2}


def test_training_creates_the_checkpoint_folder(tmp_path):
    path = tmp_path / "run" / "checkpoint"
    TrainingRecord(path, {}, Length(1, 1), BestWeights("", None))
    assert path.parent.is_dir()


@pytest.fixture
def fit(vqvae, blobs, monkeypatch, numbered_anew):
    """Return what trains for ten rounds, whose loss is lowest after the fifth."""

    def fit(*callbacks, done=0, **options):
        numbered_anew()
        losses = iter([5, 4, 3, 2, 1, 2, 3, 4, 5, 6][done:])
        validate = lambda last: {"val_loss": next(losses) / 10}  # noqa: E731
        monkeypatch.setattr(diffusion, "Validation", lambda *_: validate)
        model = LatentDiffusion(vqvae, widths=(8,), guide=False)
        given = {"batch_size": 8, "steps": 20, "verbose": False, "callbacks": callbacks}
        return model.fit(blobs[:8], validation_data=blobs[8:16], **given, **options)

    return fit


def test_a_model_is_that_of_its_lowest_loss_resumed_or_not(fit, tmp_path):
    weights, path = [], tmp_path / "ldm.ckpt"
    whole = fit(lambda model: weights.append(model.denoiser_.get_weights()))
    assert len(weights) == 10
    for found, kept in zip(whole.denoiser_.get_weights(), weights[4], strict=True):
        npt.assert_array_equal(found, kept)
    assert any((a != b).any() for a, b in zip(weights[4], weights[9], strict=True))

    with pytest.raises(StopError):
        fit(stop_after(7), checkpoint=path)
    again = fit(done=7, checkpoint=path)
    for name, figures in whole.history_.items():
        npt.assert_allclose(again.history_[name], figures, rtol=1e-5)
    both = (model.denoiser_.get_weights() for model in (again, whole))
    for found, kept in zip(*both, strict=True):
        npt.assert_allclose(found, kept, atol=1e-5)
