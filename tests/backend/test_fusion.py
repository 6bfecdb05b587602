"""Trainings without the hacks for TensorFlow come to the same."""

import numpy.testing as npt
import pytest

from dipy_ldm import VQVAE
from dipy_ldm._backend import fusion, memory, sharing
from dipy_ldm.nn import _layers as layers

HACKS = [
    (fusion, "FUSED_LOOPS"),
    (fusion, "CACHED_TRACES"),
    (fusion, "OWN_GRADIENTS"),
    (fusion, "CANONICAL_NAMES"),
    (layers, "TRANSPOSED_UPSAMPLING"),
    (memory, "RELEASES_MEMORY"),
    (sharing, "INFERS_METRIC_SHAPES"),
]


@pytest.mark.tensorflow
def test_trainings_without_hacks_are_equal(blobs, monkeypatch):
    from dipy_ldm._backend import arrays

    def fit():
        tiny = {"widths": (8,), "blocks": 1, "n_codes": 8, "code_dim": 1}
        options = {"steps": 2, "batch_size": 8, "precision": "float32"}
        model = VQVAE(**tiny).fit(blobs, verbose=False, **options)
        return model.to_tensors(), model.history_["mse"]

    expected, losses = fit()
    for module, hack in [*HACKS, (arrays, "TWO_AT_A_TIME")]:
        monkeypatch.setattr(module, hack, False)
    tensors, plain_losses = fit()
    npt.assert_allclose(plain_losses, losses, rtol=1e-4)
    for name, tensor in tensors.items():
        npt.assert_allclose(tensor, expected[name], atol=1e-4, err_msg=name)
