"""The dipy_ldm side of ``peers.py``, run in a new process for each network.

Everything is measured through ``fit``, ``predict`` and ``decode`` as a user calls
them. The progress bar of ``fit`` shows when each step ended.
"""

import contextlib
import io
import math
from multiprocessing import get_context
import os
from pathlib import Path
import re
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Draw the bar after each step.
os.environ["TQDM_MININTERVAL"] = "0"
from peers_common import ABSENT  # noqa: E402

if __name__ == "__main__":
    # As if only the package were installed.
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from peers_common import (  # noqa: E402
    CODE_DIM,
    N_CODES,
    SIDE,
    WARM_UP,
    answer,
    cores,
    draw_images,
    memory_since,
    peak_gib,
    speed_of_product,
    time_calls,
)

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm.autoencoder._network import encoder_and_decoder  # noqa: E402
from dipy_ldm.denoiser._unet import LinearEstimate  # noqa: E402
from dipy_ldm.nn._layers import CONVOLUTIONS, Sum  # noqa: E402

EPOCHS = 2


class Watch(io.TextIOBase):
    """A stream that records when a progress bar reached each step."""

    BAR = re.compile(r"(\w+), epoch \d+/\d+:.*?(\d+)/\d+ \[")

    def __init__(self):
        self.times, self.used = {}, {}

    def write(self, text):
        """Record the time of the step in a progress bar."""
        for title, step in self.BAR.findall(text):
            self.times.setdefault(title, {}).setdefault(int(step), time.perf_counter())
            self.used.setdefault(title, {}).setdefault(int(step), time.process_time())
        return len(text)

    def busy(self, title):
        """Return the share of the cores' time that training used after the warm-up."""
        wall, used = (
            noted[title][max(noted[title])] - noted[title][WARM_UP]
            for noted in (self.times, self.used)
        )
        return used / wall / cores()


def watch_fit(estimator, images, **options):
    """Fit an estimator, and record when each step ended.

    Shapes: images ``(n, *space, channels)``.
    """
    watch = Watch()
    start = time.perf_counter()
    with contextlib.redirect_stderr(watch):
        estimator.fit(images, epochs=EPOCHS, strategy="none", verbose=True, **options)
    for moments in watch.times.values():
        for step in moments:
            moments[step] -= start
    return watch


def split_steps(moments, each):
    """Split seconds of steps from seconds between epochs."""
    steps: list[float] = []
    between: list[float] = []
    for step in range(WARM_UP + 1, max(moments) + 1):
        seconds = moments[step] - moments[step - 1]
        (between if step % each == 1 else steps).append(seconds)
    return steps, between


def summarise_training(watch, title, each):
    """Return the times of the steps of a training."""
    steps, between = split_steps(watch.times[title], each)
    # Extra time of the first step of an epoch.
    extra = max(0.0, float(np.median(between) - np.median(steps)))
    return {"step": steps, "busy": watch.busy(title), "between_epochs": extra}


def steps_an_epoch(steps):
    """Return the steps of an epoch that are needed to measure so many steps."""
    return math.ceil((steps + WARM_UP + EPOCHS - 1) / EPOCHS)


def measure_autoencoder(network, batch_size, steps, precision):
    """Train an autoencoder, and decode."""
    each = steps_an_epoch(steps)
    images = draw_images(each * batch_size, network.space, network.channels)
    start = peak_gib()
    vqvae = VQVAE(widths=network.widths, n_codes=N_CODES, code_dim=CODE_DIM)
    watch = watch_fit(vqvae, images, batch_size=batch_size, precision=precision)
    figures = summarise_training(watch, "autoencoder", each)
    figures["first_step"] = watch.times["autoencoder"][1]
    figures |= memory_since(start)
    shape = vqvae.latent_shape(images.shape[1:])
    latents = np.random.default_rng(0).normal(size=(batch_size, *shape))
    latents = latents.astype("float32")
    figures["decode"] = time_calls(lambda: vqvae.decode(latents), 5)
    parts = {"widths": network.widths, "blocks": 1, "code_dim": CODE_DIM, "seed": 0}
    encoder, decoder = encoder_and_decoder(network.space, network.channels, **parts)
    flop = count_flop(encoder) + count_flop(decoder)
    # The search of nearest codes has no gradient.
    search = 2 * math.prod(shape) * N_CODES
    total = 3 * flop - count_flop(encoder, first=True) + search
    weights = encoder.count_params() + decoder.count_params() + N_CODES * CODE_DIM
    return figures | {"gflop": round(batch_size * total / 1e9, 3), "weights": weights}


def measure_unet(network, batch_size, steps, precision):
    """Train a denoiser, and generate.

    The peers have no autoencoder: ours is as small as possible, to take no time, and
    trained in another process, to take no memory.
    """
    each = steps_an_epoch(steps)
    space = tuple(2 * size for size in network.space)
    images = draw_images(each * batch_size, space, 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vqvae.safetensors"
        child = get_context("spawn").Process(
            target=train_smallest, args=(images, network.channels, file)
        )
        child.start()
        child.join()
        vqvae = VQVAE.load(file)
    start = peak_gib()
    model = LatentDiffusion(vqvae, widths=network.widths)
    options = {"batch_size": batch_size, "precision": precision}
    watch = watch_fit(model, images, **options)
    figures = summarise_training(watch, "diffusion", each)
    figures["first_step"] = watch.times["diffusion"][1]
    if guide := watch.times.get("guide"):
        # Include the guide's first step, but not its others.
        figures["first_step"] -= guide[max(guide)] - guide[1]
        figures["guide_step"] = split_steps(guide, len(guide))[0]
    figures |= memory_since(start)
    figures |= time_sampling(model, batch_size)
    flop = 3 * count_flop(model.denoiser_) - count_flop(model.denoiser_, first=True)
    weights = model.denoiser_.count_params()
    return figures | {"gflop": round(batch_size * flop / 1e9, 3), "weights": weights}


def train_smallest(images, code_dim, file):
    """Train the smallest possible autoencoder, for one batch.

    Shapes: images ``(n, *space, channels)``.
    """
    vqvae = VQVAE(widths=(2,), n_codes=16, code_dim=code_dim)
    vqvae.fit(images, epochs=1, batch_size=len(images), verbose=False)
    vqvae.save(file)


def time_sampling(model, n):
    """Time ``predict`` at its defaults, without decoding."""
    latents = np.zeros((n, *model.latent_shape_), "float32")
    decode = min(time_calls(lambda: model.vqvae.decode(latents), 3))
    model.predict(n, batch_size=n)
    start = time.perf_counter()
    model.predict(n, batch_size=n)
    seconds = time.perf_counter() - start - decode
    steps = model.check_sampling().steps
    return {"sample_step": seconds / steps, "samples_a_second": n / seconds}


def count_flop(network, first=False):
    """Count the floating point operations of a call, for one example.

    It counts convolutions, dense layers and the projections of attention, without its
    products of queries and keys, and of weights and values. A multiply-add counts as
    two.
    """
    total = 0
    for layer in network.layers:
        if isinstance(layer, Sum):
            total += sum(count_flop(part, first) for part in layer.networks)
        elif isinstance(layer, keras.Model):
            total += count_flop(layer, first)
        elif kernels := _kernels(layer):
            positions = math.prod(layer.output.shape[1:-1])
            flop = 2 * positions * sum(map(math.prod, kernels))
            kinds: tuple[Any, ...] = tuple(CONVOLUTIONS.values())
            if isinstance(layer, kinds) and layer.transposed(layer.input.shape):
                # Two of three products along each axis remain.
                flop = flop * 2**layer.rank // 3**layer.rank
            total += flop
        if first and total:
            break
    return total


def _kernels(layer):
    """Return the shapes of the kernels of a layer."""
    if isinstance(layer, LinearEstimate):
        return []
    kernels = [w.shape for w in layer.weights if len(w.shape) > 1]
    if isinstance(layer, keras.layers.MultiHeadAttention):
        kernels = [shape for shape in kernels if len(shape) > 2]
    return kernels


def measure_machine(network, precision, **options):
    """Return the speed of matrix products, and versions."""
    import tensorflow as tf

    a = tf.cast(tf.random.normal((SIDE, SIDE)), precision)
    multiply = tf.function(tf.matmul)
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    speed = speed_of_product(lambda: multiply(a, a).numpy())
    return {"gflop_a_second": speed, "versions": versions, "threads": cores()}


if __name__ == "__main__":
    answer(autoencoder=measure_autoencoder, unet=measure_unet, machine=measure_machine)
