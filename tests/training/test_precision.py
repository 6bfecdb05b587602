"""Precision: the fastest that is accurate on a machine; others are refused."""

from functools import partial
import os
from unittest import mock

import keras
import numpy as np
from processes import run_python
import pytest

from dipy_ldm import VQVAE, LatentDiffusion, _backend
from dipy_ldm._utils.checks import InputError
from dipy_ldm.training import _precision as precision
from dipy_ldm.training._precision import Precision, choose_precision


def pretend_processor(seconds, monkeypatch):
    """Stand in for a processor on which bfloat16 takes so many times as long."""

    def convolution_timer(name, rank):
        def time():
            if name == "bfloat16" and seconds is None:
                raise RuntimeError("there is no such convolution")
            return 1 if name == "float32" else seconds

        return time

    precision._cpu_precisions.cache_clear()
    monkeypatch.setattr(precision, "_convolution_timer", convolution_timer)
    pretend_gpus(monkeypatch=monkeypatch)


def pretend_gpus(*capabilities, monkeypatch):
    monkeypatch.setattr(_backend, "gpu_capabilities", lambda strategy: capabilities)


@pytest.fixture(autouse=True)
def _clear_cache():
    yield
    precision._cpu_precisions.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "name", "reason"),
    [
        (0.6, "bfloat16", "takes 0.6 times as long"),
        (0.95, "float32", "takes 0.9 times as long"),  # not worth it
        (10, "float32", "takes 10.0 times as long"),
        (None, "float32", "does not support"),
    ],
)
def test_choose_precision_times_a_processor(monkeypatch, seconds, name, reason):
    pretend_processor(seconds, monkeypatch)
    settled = choose_precision("auto", 3)
    assert settled.name == name
    assert reason in settled.reason


@pytest.mark.parametrize(
    ("capabilities", "name"),
    [
        ([(8, 0)], "bfloat16"),
        ([(9, 0), (7, 5)], "float16"),  # the one that can do the least
        ([(7, 0)], "float16"),
        ([(6, 1)], "float32"),
    ],
)
def test_choose_precision_by_the_compute_capability_of_gpus(
    monkeypatch, capabilities, name
):
    pretend_gpus(*capabilities, monkeypatch=monkeypatch)
    assert choose_precision("auto", 2).name == name


@pytest.mark.parametrize(
    ("pretend", "supported", "unsupported", "choices"),
    [
        (partial(pretend_gpus, (7, 5)), "float16", "bfloat16", "float32, float16"),
        (partial(pretend_processor, 2), "bfloat16", "float16", "float32, bfloat16"),
        (partial(pretend_processor, None), "float32", "bfloat16", "float32"),
    ],
)
def test_unsupported_precision_is_refused(
    monkeypatch, pretend, supported, unsupported, choices
):
    pretend(monkeypatch=monkeypatch)
    chosen = choose_precision(supported, 3)
    assert chosen == Precision(supported, "as requested")
    with pytest.raises(InputError, match=rf"choose one of auto, {choices}\."):
        choose_precision(unsupported, 3)
    resumed = choose_precision("auto", 3, saved=supported)
    assert resumed == Precision(supported, "as in the checkpoint")
    sentence = f"began in {unsupported}, which this machine"
    with pytest.raises(InputError, match=sentence):
        choose_precision("auto", 3, saved=unsupported)


def test_machines_of_different_kinds_train_together(monkeypatch):
    pretend_processor(0.5, monkeypatch)
    other = [["float32"], "float32"]
    monkeypatch.setattr(_backend, "gather_from_workers", lambda facts: [facts, other])
    assert choose_precision("auto", 3).name == "float32"
    with pytest.raises(InputError, match="choose one of auto, float32"):
        choose_precision("bfloat16", 3)


def test_a_processor_without_avx512_trains_in_float32():
    code = (
        "from dipy_ldm.training._precision import choose_precision\n"
        "print(choose_precision('auto', 3).name)"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert run_python("-c", code, env=environment).stdout.strip() == "float32"


def test_a_training_goes_on_in_the_precision_that_it_began_with(monkeypatch, tmp_path):
    stop = mock.Mock(side_effect=KeyboardInterrupt)
    images = np.random.default_rng(0).random((16, 8, 8, 1), "float32")
    fit = {"batch_size": 8, "epochs": 2, "verbose": False}
    fit |= {"checkpoint": tmp_path / "checkpoint"}
    tiny = {"widths": (8,), "n_codes": 8, "code_dim": 2}
    pretend_processor(10, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        VQVAE(**tiny).fit(images, callbacks=[stop], **fit)
    pretend_processor(0.5, monkeypatch)
    vqvae = VQVAE(**tiny).fit(images, **fit)
    assert vqvae.precision_ == Precision("float32", "as in the checkpoint")
    vqvae.save(tmp_path / "vqvae.safetensors")
    assert VQVAE.load(tmp_path / "vqvae.safetensors").precision_ == vqvae.precision_
    with pytest.raises(InputError, match="precision was float32 and is bfloat16"):
        VQVAE(**tiny).fit(images, precision="bfloat16", **fit)


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="JAX needs a GPU for attention in float16"
)
@pytest.mark.skipif(
    "ONEDNN_MAX_CPU_ISA" in os.environ,
    reason="TensorFlow takes oneDNN's float16 by what the processor has, which oneDNN "
    "is told not to use",
)
def test_float16_trains(monkeypatch):
    # A processor computes it as well, slowly.
    pretend_gpus((7, 5), monkeypatch=monkeypatch)
    images = np.random.default_rng(0).random((16, 8, 6, 7, 1), "float32")
    fit = {"epochs": 2, "batch_size": 8, "precision": "auto", "verbose": False}
    vqvae = VQVAE(widths=(8,), n_codes=8, code_dim=2).fit(images, **fit)
    model = LatentDiffusion(vqvae, widths=(8,), guide=False).fit(images, **fit)
    assert vqvae.precision_.name == model.precision_.name == "float16"
    for trained in (vqvae, model):
        assert np.isfinite(trained.history_["loss"]).all()
    assert {w.dtype for w in model.denoiser_.weights} == {"float32"}
    assert np.abs(model.denoiser_.trainable_variables[-2]).max() > 0
