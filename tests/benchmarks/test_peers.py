from functools import partial
import importlib
import json
import sys
from types import SimpleNamespace

import keras
from keras import layers
import numpy as np
from processes import run_python
import pytest
import scripts

from dipy_ldm import VQVAE
from dipy_ldm.autoencoder import _network as autoencoder_network
from dipy_ldm.denoiser._unet import LinearEstimate
from dipy_ldm.nn._layers import Sum
from dipy_ldm.nn._normalization import Activated, GroupScale

CPU_INFO = """processor\t: 0
model name\t: A Processor: 2 GHz
flags\t\t: fpu sse2 avx avx2 avx512f avx512_bf16 amx_bf16 amx_tile
bugs\t\t:

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


@pytest.fixture(scope="module")
def peers():
    return scripts.load("benchmarks/peers.py")


@pytest.fixture(scope="module")
def ours():
    # It asks for a bar that is drawn after each step; other tests' bars shall not be.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_MININTERVAL", "0.1")
        yield scripts.load("benchmarks/peers_ours.py")


def test_processor_has_a_name_and_its_vector_units(peers):
    assert peers.read_processor(CPU_INFO) == {
        "processor": "A Processor: 2 GHz",
        "flags": ["amx_bf16", "amx_tile", "avx", "avx2", "avx512_bf16", "avx512f"],
    }


def test_processor_of_another_kind_is_named_too(peers):
    found = peers.read_processor("Features\t: fp asimd sve\n")
    assert found["flags"] == ["asimd", "sve"]
    assert found["processor"]


def test_ratios_are_those_of_rounds(peers):
    ours = [{"step": [9.0, 2, 2], "peak_gib": 3.0}, {"step": [6, 6], "peak_gib": 1.0}]
    theirs = [{"step": [1.0, 1, 7], "peak_gib": 2.0}, {"step": [3], "peak_gib": 2.0}]
    assert peers.ratios(ours, theirs, "step") == [2, 2]
    assert peers.ratios(ours, theirs, "peak_gib") == [1.5, 0.5]


def test_spread_is_short(peers):
    assert peers.spread([3.000049, 1, 200_000.4]) == [1, 3, 200_000]


def test_line_has_both_sides_and_their_ratios(peers):
    common = {"gflop": 5.0, "weights": 7, "peak_gib": 1.0, "first_step": 1.0}
    ours = [{"step": [1.0, 2.0, 3.0], **common}, {"step": [2.0], **common}]
    theirs = [{"step": [4.0], **common}, {"step": [1.0], **common}]
    line = peers.summarise(ours, theirs, "monai", peak=10.0)
    assert line["ratios"]["step"] == [0.5, 1.25, 2]
    assert "decode" not in line["ratios"]
    assert line["dipy_ldm"]["step"] == [1, 2, 3]
    assert line["dipy_ldm"]["weights"] == 7
    # 5 of 20 in two seconds.
    assert line["dipy_ldm"]["share_of_peak"] == 0.25
    json.dumps(line)


def test_sides_are_measured_in_turn(peers, monkeypatch, capsys):
    calls = []

    def run(command, **how):
        task = json.loads(command[-1])
        calls.append((task.get("library"), task["batch_size"]))
        return SimpleNamespace(returncode=0, stdout='{"step": [1.0]}')

    monkeypatch.setattr(peers.subprocess, "run", run)
    options = peers.make_parser().parse_args(["--rounds", "2", "--batch_size", "8"])
    sides = ("dipy_ldm", "diffusers", "monai")
    figures = peers.measure_rounds(sides, "unet2d", options)
    assert calls == 2 * [(None, 8), ("diffusers", 8), ("monai", 8)]
    assert [len(rounds) for rounds in figures.values()] == [2, 2, 2]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "unet4d"], "invalid choice: 'unet4d'"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--python_peers", "nowhere"], "there is no nowhere; run make peers"),
    ],
)
def test_bad_arguments_get_one_sentence(peers, capsys, arguments, message):
    assert message in scripts.refusal(peers.main, arguments, capsys)


def test_a_side_that_fails_is_named(peers, monkeypatch, capsys):
    failed = SimpleNamespace(returncode=1, stderr="no such module", stdout="")
    monkeypatch.setattr(peers.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(SystemExit):
        peers.main(["--python_peers", sys.executable])
    said = capsys.readouterr().err
    assert "no such module" in said
    assert "dipy_ldm failed with a product of matrices" in said


def test_steps_are_separated_from_time_between_epochs(ours):
    # Epochs of 5 steps; the sixth step takes 4 seconds, the others 1.
    moments = {n: float(n + 3 * (n > 5)) for n in range(11)}
    assert ours.split_steps(moments, 5) == ([1] * 6, [4])


@pytest.mark.parametrize("steps", [1, 2, 7, 8])
def test_epochs_have_the_requested_steps(ours, steps):
    each = ours.steps_an_epoch(steps)
    moments = dict.fromkeys(range(ours.EPOCHS * each + 1), 0.0)
    measured, between = ours.split_steps(moments, each)
    assert len(measured) in (steps, steps + 1)
    assert len(between) == ours.EPOCHS - 1


def test_steps_are_read_off_the_bar(ours):
    watch = ours.Watch()
    watch.write("\r  0%|          | 0/4 [00:00<?, ?step/s]")
    for text in ("1/4 [00:01<00:03, 1.00step/s]", "2/4 [00:02<00:02, loss=2/3]"):
        watch.write(f"\rdiffusion, epoch 1/2:  25%|## | {text}")
    assert list(watch.times) == ["diffusion"]
    assert list(watch.times["diffusion"]) == [1, 2]


def test_the_bar_of_fit_names_every_step(ours, blobs, monkeypatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    tqdm = importlib.import_module("tqdm").tqdm
    bar_of = importlib.import_module("dipy_ldm.training._trainer")
    # As in the benchmark's process, where the variable is set before tqdm is imported.
    monkeypatch.setattr(bar_of, "tqdm", partial(tqdm, mininterval=0))
    vqvae = VQVAE(widths=(4,), n_codes=8)
    watch = ours.watch_fit(vqvae, blobs, batch_size=16)
    times = watch.times["autoencoder"]
    assert sorted(times) == list(range(1, 9))  # none before the first step
    assert sorted(times.values()) == [times[step] for step in sorted(times)]


def test_operations_are_those_of_the_layers(ours):
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)(images)
    x = layers.RMSNormalization()(x)
    inner = keras.Model(images, x)
    network = keras.Model(images, layers.Dense(7)(inner(images)))
    first = 2 * (4 * 4) * (3 * 3) * 3 * 5
    assert ours.count_flop(inner) == first
    assert ours.count_flop(network) == first + 2 * (4 * 4) * 5 * 7
    assert ours.count_flop(network, first=True) == first


def test_scaling_and_linear_estimate_count_no_operations(ours):
    latents, times = keras.Input((4, 4, 2)), keras.Input(())
    _, clean, *_ = LinearEstimate(1, "cosine", "v")(latents, times)
    x = Activated()([clean, *GroupScale(1)(clean)])
    network = keras.Model([latents, times], layers.Dense(3)(x))
    assert ours.count_flop(network) == 2 * 16 * 2 * 3


def test_operations_of_a_sum_are_those_of_its_networks(ours):
    images = keras.Input((8, 8, 3))
    halved = layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)(images)
    fine = layers.Conv2D(4, 3, padding="same", use_bias=False)(images)
    halved, fine = (
        keras.Model(images, layers.Conv2D(1, 1, use_bias=False)(x))
        for x in (halved, layers.AveragePooling2D(2)(fine))
    )
    network = keras.Model(images, Sum([halved, fine])(images))
    assert ours.count_flop(network) == ours.count_flop(halved) + ours.count_flop(fine)
    assert ours.count_flop(network, first=True) == 2 * 27 * (16 * 5 + 64 * 4)


def test_operations_of_attention_are_its_projections(ours):
    tokens = keras.Input((6, 64))
    network = keras.Model(tokens, layers.MultiHeadAttention(2, 32)(tokens, tokens))
    assert ours.count_flop(network) == 4 * 2 * 6 * 64 * 64


def test_operations_of_a_whole_network_are_counted(ours):
    options = {"widths": (4, 8), "blocks": 1, "code_dim": 2}
    small, large = (
        ours.count_flop(autoencoder_network.encoder((side, side, side), 1, **options))
        for side in (8, 16)
    )
    assert large == 8 * small > 0


def test_images_are_of_the_size(ours):
    images = ours.draw_images(2, (9, 6, 4), 3)
    assert images.shape == (2, 9, 6, 4, 3)
    assert images.dtype == np.float32
    assert 0 <= images.min() < images.max() <= 1


def test_shared_module_imports_no_framework():
    code = "import sys, peers_common; sys.exit('keras' in sys.modules)"
    run_python("-c", code, cwd=scripts.ROOT / "benchmarks")
