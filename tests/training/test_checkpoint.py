"""Checkpoints and the weights with the lowest validation loss."""

import keras
import numpy as np
import numpy.testing as npt
from processes import StopError, stop_after
import pytest

from dipy_ldm import LatentDiffusion
from dipy_ldm.denoiser import _training as diffusion
from dipy_ldm.training._checkpoint import BestWeights, TrainingRecord
from dipy_ldm.training._options import Length


@pytest.mark.parametrize(
    ("losses", "best", "warning"),
    [
        (
            [0.5, 0.3, 0.31, 0.4],
            1,
            "rose from 0.3 after 20 steps to 0.4 after 40",
        ),
        ([0.5, 0.3, 0.301], 1, ""),  # it hardly rose
        ([None, np.nan], None, ""),
    ],
)
def test_best_weights_are_restored(losses, best, warning, caplog):
    inputs = keras.Input((1,))
    network = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    lowest = BestWeights("diffusion", network)
    for number, loss in enumerate(losses):
        network.set_weights([np.full((1, 1), number)])
        figures = {"loss": 0.1} if loss is None else {"val_loss": loss}
        lowest.on_epoch_end(number, figures)
    steps = [10 * (1 + number) for number in range(len(losses))]
    history = {"step": steps} | ({} if best is None else {"val_loss": losses})
    lowest.restore_to_network(history)
    (weight,) = network.get_weights()
    assert weight == (len(losses) - 1 if best is None else best)
    assert lowest.figures() == ({} if best is None else {"val_loss": losses[best]})
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)


def test_best_weights_are_dropped_if_the_checkpoint_has_none():
    lowest = BestWeights("diffusion", None)
    lowest.restore({"model.00000": np.zeros(1)}, {"val_loss": [0.1]})
    assert (lowest.tensors, lowest.loss) == ({}, np.inf)


def test_training_creates_the_checkpoint_folder(tmp_path):
    path = tmp_path / "run" / "checkpoint"
    TrainingRecord(path, {}, Length(1, 1), BestWeights("", None))
    assert path.parent.is_dir()


def test_fit_keeps_the_best_weights_also_if_resumed(
    vqvae, blobs, monkeypatch, reset_layer_names, tmp_path
):
    def fit(*callbacks, done=0, **options):
        """Train for ten rounds, whose loss is lowest after the fifth."""
        reset_layer_names()
        losses = iter([5, 4, 3, 2, 1, 2, 3, 4, 5, 6][done:])
        validate = lambda last: {"val_loss": next(losses) / 10}  # noqa: E731
        monkeypatch.setattr(diffusion, "Validation", lambda *_: validate)
        options |= {"batch_size": 8, "steps": 20, "verbose": False}
        model = LatentDiffusion(vqvae, widths=(8,), guide=False)
        data = {"validation_data": blobs[8:16], "callbacks": callbacks}
        return model.fit(blobs[:8], **data, **options)

    weights, path = [], tmp_path / "ldm.ckpt"
    whole = fit(lambda model: weights.append(model.denoiser_.get_weights()))
    assert len(weights) == 10
    for weight, best in zip(whole.denoiser_.get_weights(), weights[4], strict=True):
        npt.assert_array_equal(weight, best)
    assert any((a != b).any() for a, b in zip(weights[4], weights[9], strict=True))

    with pytest.raises(StopError):
        fit(stop_after(7), checkpoint=path)
    resumed = fit(done=7, checkpoint=path)
    for name, figures in whole.history_.items():
        npt.assert_allclose(resumed.history_[name], figures, rtol=1e-5)
    pair = (model.denoiser_.get_weights() for model in (resumed, whole))
    for weight, expected in zip(*pair, strict=True):
        npt.assert_allclose(weight, expected, atol=1e-5)
