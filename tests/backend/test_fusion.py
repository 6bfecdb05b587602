"""Training without the optimisations for TensorFlow gives the same result."""

from functools import partial

from keras import ops
import numpy.testing as npt
import pytest

from dipy_ldm import VQVAE
from dipy_ldm._backend import fusion, memory, sharing
from dipy_ldm.nn import _layers as layers

HACKS = [
    (fusion, "FUSED_LOOPS"),
    (fusion, "CACHED_TRACES"),
    (fusion, "CUSTOM_GRADIENTS"),
    (fusion, "CANONICAL_NAMES"),
    (layers, "TRANSPOSED_UPSAMPLING"),
    (memory, "RELEASES_MEMORY"),
    (sharing, "INFERS_METRIC_SHAPES"),
]


@pytest.mark.tensorflow
def test_trainings_without_optimisations_are_equal(blobs, monkeypatch):
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


@pytest.mark.tensorflow
def test_with_a_gpu_the_back_end_finds_gradients_itself(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    fusion._on_cpu.cache_clear()
    called = []
    with_gradient = partial(fusion.with_gradient, gradient=None)
    for wrap in (with_gradient, fusion.fused, fusion.cached_trace):
        wrap(called.append)("a tensor")
    fusion._on_cpu.cache_clear()
    assert called == ["a tensor"] * 3


@pytest.mark.tensorflow
def test_traced_function_is_shared_by_tensors_of_one_shape():
    import tensorflow as tf

    traced = []

    @fusion.cached_trace
    def doubled(x):
        traced.append(x.shape.as_list())
        return 2 * x

    @tf.function
    def four_times(x, y):
        return doubled(x), doubled(doubled(x)), doubled(y)

    results = four_times(tf.ones(3), tf.ones((2, 2)))
    assert [ops.convert_to_numpy(of).flat[0] for of in results] == [2, 4, 2]
    assert traced == [[3], [2, 2]]
