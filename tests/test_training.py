"""Training: what both stages share."""

import keras
import numpy as np
import pytest

from dipy_ldm import persistence, training
from dipy_ldm.validation import InputError


def test_checkpoints_of_other_optimizers_are_refused(tmp_path):
    path = tmp_path / "checkpoint"
    document = {"settings": {}, "steps": 3, "history": {}}
    persistence.save(path, "checkpoint", {"model.00000": np.zeros(2)}, document)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(training.make_optimizer(1e-3, 10, "float32", 1), "mse")
    with pytest.raises(InputError, match="earlier version"):
        training.Record(path, {}).restore(model)
