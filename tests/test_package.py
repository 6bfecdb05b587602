import inspect
import os
from pathlib import Path
import re

import jedi
import keras
from processes import run_python, with_all
import pytest

import dipy_ldm
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import load_volumes

ROOT = Path(__file__).parents[1]
ESTIMATORS = {"VQVAE": "dipy_ldm.vqvae", "LatentDiffusion": "dipy_ldm.latent_diffusion"}


def test_import_leaves_keras_and_tensorflow_alone():
    code = "import sys, dipy_ldm; print({'keras', 'tensorflow'} & set(sys.modules))"
    assert run_python("-c", code).stdout.strip() == "set()"


TENSORFLOW_FIRST = """
import tensorflow
from tensorflow.python.util import _pywrap_util_port
# As on a processor on which TensorFlow leaves oneDNN off.
_pywrap_util_port.IsMklEnabled = lambda: False
"""
IMPORT = """
import dipy_ldm._backend
from tensorflow.python.util import _pywrap_util_port
print(_pywrap_util_port.IsMklEnabled())
"""


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("before", "setting", "enabled", "warned"),
    [
        ("", None, "True", False),
        ("", "0", "False", False),  # the user's word
        (TENSORFLOW_FIRST, None, "False", True),
    ],
)
def test_onednn_is_on_for_any_processor(before, setting, enabled, warned):
    environment = os.environ.copy()
    environment.pop("TF_ENABLE_ONEDNN_OPTS", None)
    if setting:
        environment["TF_ENABLE_ONEDNN_OPTS"] = setting
    run = run_python("-c", before + IMPORT, env=environment)
    assert run.stdout.strip() == enabled
    assert ("import dipy_ldm first" in run.stderr) is warned


def test_the_public_names_and_no_others_are_attributes():
    further = {"AnomalyDetector", "InputError", "load_volumes", "make_strategy"}
    assert set(dipy_ldm.__all__) == {*ESTIMATORS, *further, "__version__"}
    assert dipy_ldm.load_volumes is load_volumes
    assert set(dipy_ldm.__all__) <= set(dir(dipy_ldm))
    for name, module in ESTIMATORS.items():
        assert getattr(dipy_ldm, name).__module__ == module
    with pytest.raises(AttributeError, match="no attribute 'GAN'"):
        dipy_ldm.GAN  # noqa: B018


def test_the_changelog_knows_this_version():
    assert f"## [{dipy_ldm.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


OTHER_BACKEND = """
import sys
if sys.argv[1:] == ["without"]:
    sys.modules["jax"] = None  # as if it were not installed
from dipy_ldm._utils.checks import InputError
try:
    from dipy_ldm import _backend
except InputError as error:
    print(error)
"""


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        ("jax", "in sys.modules); install what is missing, or choose 'tensorflow', "),
        ("numpy", "the backend 'numpy', but dipy_ldm needs 'tensorflow', 'jax' or"),
        ("foo", "backend : foo); install what is missing, or choose 'tensorflow', "),
    ],
)
def test_other_backends_are_refused(backend, sentence):
    if backend == "numpy":
        pytest.importorskip("jax")  # which Keras' numpy needs
    without = ["without"] if backend == "jax" else []
    env = with_all(os.environ) | {"KERAS_BACKEND": backend}
    assert sentence in run_python("-c", OTHER_BACKEND, *without, env=env).stdout


@pytest.mark.parametrize(
    ("setting", "value", "good"),
    [
        ("image_data_format", "channels_first", "channels_last"),
        ("floatx", "float16", "float32"),
    ],
)
def test_other_settings_of_keras_are_refused(setting, value, good, blobs, monkeypatch):
    monkeypatch.setattr(keras.config, setting, lambda: value)
    for use in (
        lambda: dipy_ldm.LatentDiffusion.load("mnist"),
        lambda: dipy_ldm.VQVAE().fit(blobs),
    ):
        # Not that the file is damaged.
        chosen = f"^Keras is set to the {setting} {value!r}"
        with pytest.raises(InputError, match=f"{chosen}, but dipy_ldm needs {good!r}"):
            use()


QUIET = "import dipy_ldm; dipy_ldm.LatentDiffusion.load('mnist').predict(1, steps=1)"


def test_import_and_first_use_print_nothing():
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    run = run_python("-c", QUIET, env=environment, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


USER = """
from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm.data import load_mnist

digits, labels = load_mnist("train")
vqvae = VQVAE(n_codes=64).fit(digits, epochs=2)
reveal_type(vqvae)
model = LatentDiffusion(vqvae).fit(digits, labels, steps=100)
reveal_type(model)
reveal_type(model.predict(4, conditions=7, seed=1))
model.fit(digits, epoch=1)  # wrong
model.predict(4, step=2)  # wrong
"""


def test_type_checkers_know_estimators_and_options(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    # With the settings and the cache of `make lint`.
    how = {"cwd": ROOT, "env": with_all(os.environ), "check": False}
    run = run_python("-m", "mypy", tmp_path / "user.py", **how)
    revealed = re.findall(r'Revealed type is "([\w.]+)', run.stdout)
    estimators = [f"{module}.{name}" for name, module in ESTIMATORS.items()]
    assert revealed == [*estimators, "numpy.ndarray"]
    # The two that have a wrong option, and no others.
    lines = re.findall(r"user.py:(\d+): error", run.stdout)
    wrong = [n for n, line in enumerate(USER.split("\n"), 1) if "# wrong" in line]
    assert lines == [*map(str, wrong)], run.stdout
    assert (ROOT / "dipy_ldm/py.typed").exists()


@pytest.mark.parametrize("name", ["VQVAE", "LatentDiffusion"])
def test_editors_complete_models_that_were_loaded(name):
    code = f"from dipy_ldm import {name}\nmodel = {name}.load('a')\nmodel."
    completed = {completion.name for completion in jedi.Script(code).complete(3, 6)}
    assert completed >= {"fit", "predict", "save"}


def test_notebooks_show_the_options_of_fit():
    shown = inspect.signature(dipy_ldm.VQVAE.fit).parameters
    assert {"images", "patch", "epochs", "learning_rate"} <= set(shown)
    assert "options" not in shown
