"""What was learnt before images were learnt by heart is kept."""

import keras
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm import LatentDiffusion
from dipy_ldm.training.lowest import Lowest

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
    lowest = Lowest("diffusion", network)
    lowest.give_back(rounds(lowest, weight))
    assert float(weight[0, 0]) == 1
    assert lowest.figures() == {"val_loss": 0.3}
    assert "rose from 0.3 after 20 steps to 0.4 after 40" in caplog.text


def test_a_loss_that_hardly_rose_is_not_spoken_of(caplog):
    network, weight = dense()
    lowest = Lowest("diffusion", network)
    lowest.give_back(rounds(lowest, weight, [0.5, 0.3, 0.301]))
    assert float(weight[0, 0]) == 1
    assert not caplog.text


@pytest.mark.parametrize("figures", [{}, {"loss": 0.1}, {"val_loss": np.nan}])
def test_without_such_a_loss_the_last_weights_stay(figures):
    network, weight = dense()
    lowest = Lowest("guide", network)
    weight.assign([[7.0]])
    lowest.on_epoch_end(0, figures)
    weight.assign([[8.0]])
    lowest.give_back({"step": [1]})
    assert float(weight[0, 0]) == 8
    assert lowest.figures() == {}
    assert lowest.to_tensors() == {}


def test_a_checkpoint_of_an_earlier_version_has_none():
    network, weight = dense()
    lowest = Lowest("diffusion", network)
    lowest.restore({"model.00000": np.zeros(1)}, {"val_loss": [0.1]})
    # All that was before is forgotten.
    lowest.on_epoch_end(1, {"val_loss": 0.2})
    assert lowest.figures() == {"val_loss": 0.2}


@pytest.fixture(scope="module")
def too_long(vqvae, blobs, tmp_path_factory):
    """Learn six images by heart; return the model, and what was kept after rounds."""
    weights, path = [], tmp_path_factory.mktemp("lowest") / "ldm.ckpt"

    def fit(*callbacks, **more):
        model = LatentDiffusion(vqvae, widths=(16,), guide=False)
        given = {"batch_size": 6, "verbose": False, "learning_rate": 0.01}
        options = given | {"steps": 600, "callbacks": callbacks} | more
        return model.fit(blobs[:6], validation_data=blobs[32:], **options)

    model = fit(lambda model: weights.append(model.denoiser_.get_weights()))
    return model, weights, fit, path


def test_a_model_is_that_of_its_lowest_loss(too_long):
    model, weights, *_ = too_long
    losses = model.history_["val_loss"]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1
    for found, kept in zip(model.denoiser_.get_weights(), weights[best], strict=True):
        npt.assert_array_equal(found, kept)


def test_what_was_kept_is_in_the_checkpoint(too_long, numbered_anew):
    whole, _, fit, path = too_long
    best = int(np.argmin(whole.history_["val_loss"]))
    after = whole.history_["step"][best + 1]

    def stop(model):
        if model.history_["step"][-1] == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(stop, checkpoint=path)
    numbered_anew()
    again = fit(checkpoint=path)
    assert again.history_["step"] == whole.history_["step"]
    pairs = zip(again.denoiser_.get_weights(), whole.denoiser_.get_weights())
    for found, kept in pairs:
        npt.assert_allclose(found, kept, atol=1e-5)
