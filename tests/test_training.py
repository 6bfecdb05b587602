"""Training: what both stages share."""

import keras
import numpy as np
import pytest

from dipy_ldm import persistence
from dipy_ldm.optimizers import FlatAdam
from dipy_ldm.training.checkpoint import Record
from dipy_ldm.training.run import Progress
from dipy_ldm.validation import InputError


def test_the_bar_says_what_goes_on_before_the_first_step(capsys):
    bar = Progress("autoencoder", 0)
    bar.set_params({"steps": 2, "epochs": 1})
    bar.on_epoch_begin(0)
    assert "autoencoder: preparing the first step" in capsys.readouterr().err
    for batch in range(2):
        bar.on_train_batch_end(batch, {"loss": 1.0})
    bar.on_train_end()
    last = capsys.readouterr().err.rpartition("\r")[2]
    assert last.startswith("autoencoder, epoch 1/1")
    assert "loss=1.0000" in last


def test_checkpoints_of_other_optimizers_are_refused(tmp_path):
    path = tmp_path / "checkpoint"
    document = {"settings": {}, "steps": 3, "history": {}}
    persistence.save(path, "checkpoint", {"model.00000": np.zeros(2)}, document)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(FlatAdam(), "mse")
    with pytest.raises(InputError, match="earlier version"):
        Record(path, {}).restore(model)
