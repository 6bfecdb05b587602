"""JAX and PyTorch, without TensorFlow, give the same results and pass the tests."""

from importlib.util import find_spec
import os
from pathlib import Path

import keras
import numpy as np
import numpy.testing as npt
from processes import run_python, with_all
import pytest

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError

FOLDER = Path(__file__).parent
TESTS = FOLDER.parent
skipif = pytest.mark.skipif
OTHER_BACKENDS = [
    pytest.param(name, marks=skipif(not find_spec(name), reason="not installed"))
    for name in ("jax", "torch")
]
STEPS = 20
# Of what lies next to a back-end, and takes little time.
SELECTED = (
    "backend/test_backend_others.py",
    "diffusion/test_denoisers.py",
    "nn/test_layers.py",
    "training/test_optimizer.py::test_non_finite_gradients_are_skipped",
)


def run(backend, *arguments):
    env = with_all(os.environ) if backend == "jax" else dict(os.environ)
    # JAX compiles for longer than it computes.
    env |= {"KERAS_BACKEND": backend, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = run_python(*arguments, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with what TensorFlow learnt and made, and its model files."""
    folder = tmp_path_factory.mktemp("backends")
    run("tensorflow", FOLDER / "train_on_backend.py", STEPS, folder)
    return folder


@pytest.mark.tensorflow
@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_losses_and_samples_are_those_of_tensorflow(trained, backend):
    run(backend, FOLDER / "train_on_backend.py", STEPS, trained)
    with (
        np.load(trained / "tensorflow.npz") as expected,
        np.load(trained / f"{backend}.npz") as results,
    ):
        for rank in (2, 3):
            for stage in ("vqvae", "ldm"):
                name = f"{stage}{rank}"
                assert len(results[name]) == 5  # rounds
                npt.assert_allclose(results[name], expected[name], rtol=1e-3)
            for output in ("samples", "denoised"):
                name = f"{output}{rank}"
                npt.assert_allclose(results[name], expected[name], atol=1e-4)


@pytest.mark.tensorflow
@pytest.mark.parametrize("backend", OTHER_BACKENDS)
def test_other_tests_pass_with_this_backend(backend):
    tests = [TESTS / name for name in SELECTED]
    output = run(backend, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert " passed" in output


without_tensorflow = skipif(
    keras.config.backend() == "tensorflow", reason="it has strategies"
)


@without_tensorflow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "mirrored"}, "the strategy mirrored needs TensorFlow"),
        ({"name": "multi_worker"}, "the strategy multi_worker needs TensorFlow"),
        ({"name": "x"}, "auto, none, mirrored, multi_worker"),
        ({"devices": ["GPU:0"]}, "devices can only be chosen with TensorFlow"),
        ({"name": object()}, "object at .* needs TensorFlow, but Keras"),
    ],
)
def test_strategies_are_refused_without_tensorflow(options, sentence):
    with pytest.raises(InputError, match=sentence):
        _backend.make_strategy(**options)


@without_tensorflow
def test_make_strategy_refuses_several_tasks(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(InputError, match="several tasks were started"):
        _backend.make_strategy()
    assert _backend.make_strategy(alone=True) is None
    assert _backend.make_strategy("none") is None


@pytest.mark.skipif(keras.config.backend() != "jax", reason="of JAX alone")
def test_compiled_serves_smaller_batches_by_one_program():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    traced = []

    def function(x):
        traced.append(x.shape)
        return layer(x)

    apply = _backend.compiled(function, [keras.Input((3,))], [layer])
    x = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
    for n in (8, 5, 2, 1):
        npt.assert_allclose(apply(x[:n]), layer(x[:n]), rtol=1e-6, atol=1e-6)
    assert traced == [(8, 3), (1, 3)]
    layer.set_weights([np.ones((3, 2)), np.zeros(2)])
    npt.assert_allclose(apply(x)[:, 0], x.sum(1), rtol=1e-5)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="of PyTorch alone")
def test_gpu_memory_of_pytorch_counts_its_cache_as_free(monkeypatch):
    cuda = {"is_available": True, "mem_get_info": (30, 80)}
    cuda |= {"memory_reserved": 40, "memory_allocated": 15}
    for name, value in cuda.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda value=value: value)
    assert _backend.free_memory() == 55
