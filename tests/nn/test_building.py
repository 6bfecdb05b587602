"""Random numbers: estimators use their own, and leave the caller's state alone."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
import random
import sys

import keras
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm._backend import fusion
from dipy_ldm._utils.checks import InputError
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.nn import _building as building

# None with another back-end.
tf = sys.modules["tensorflow"]
TINY = {"widths": (8,), "n_codes": 8, "code_dim": 1}
FIT = {"epochs": 1, "batch_size": 16, "verbose": False}


def drawn_after(call):
    """Call something, and draw from all that a user may draw from."""
    # Before 3.13, Keras keeps its generator whatever seed is set.
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    if tf is not None:
        tf.random.set_global_generator(tf.random.Generator.from_seed(3))
    keras.random.uniform(())  # which makes the generator of Keras
    call()
    numbers = [random.random(), np.random.random(), float(keras.random.uniform(()))]
    if tf is not None:
        own = tf.random.get_global_generator()
        numbers += [float(tf.random.uniform(())), float(own.uniform(()))]
    return numbers


def fit_all(blobs):
    vqvae = VQVAE(**TINY).fit(blobs, validation_data=blobs[:3], **FIT)
    model = LatentDiffusion(vqvae, widths=(8,), guide=False).fit(blobs, **FIT)
    model.predict(2, steps=2, sampler="ddpm")
    model.denoise(blobs[:2], steps=4)


@pytest.mark.parametrize(
    "call",
    [
        fit_all,
        lambda blobs: LatentDiffusion.load("mnist"),
        lambda blobs: VQVAE(**TINY).check(blobs.shape),
    ],
    ids=["fit", "load", "check"],
)
def test_estimators_leave_global_generators_alone(blobs, call):
    assert drawn_after(lambda: call(blobs)) == drawn_after(lambda: None)


def unet(seed=None):
    options = {"widths": (32,), "blocks": 1, "attention": [True]}
    with nullcontext() if seed is None else building.seeded(seed):
        return unet_network.unet((4, 4, 32), **options)


def test_weights_follow_from_the_seed_and_the_place():
    first, again, other = unet(1), unet(1), unet(2)
    for a, b in zip(first.weights, again.weights, strict=True):
        npt.assert_array_equal(a, b)
    first_numbers = []
    for a, b in zip(first.weights, other.weights, strict=True):
        if np.ptp(a) > 0:
            assert not np.array_equal(a, b), a.path
            first_numbers.append(float(np.ravel(a)[0] / np.ptp(a)))
    # Those of one shape are drawn one by one: queries are not keys.
    assert len(set(first_numbers)) == len(first_numbers) > 10


def test_without_a_seed_weights_are_drawn_as_keras_does():
    weights = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        weights.append(unet().get_weights())
    npt.assert_array_equal(weights[0][0], weights[1][0])
    assert not np.array_equal(weights[0][0], weights[2][0])


def test_precision_is_of_one_thread_and_restored():
    with building.precision("bfloat16"), ThreadPoolExecutor(1) as pool:
        assert keras.config.dtype_policy().compute_dtype == "bfloat16"
        assert pool.submit(keras.config.dtype_policy).result().name == "float32"
        network = unet(1)
    assert keras.config.dtype_policy().name == "float32"
    assert {weight.dtype for weight in network.weights} == {"float32"}
    assert network.outputs[0].dtype == "float32"
    with pytest.raises(InputError, match="float32, bfloat16"):
        with building.precision("float8"):
            pass


def test_fits_in_threads_are_equal(blobs):
    # As in a new process, where both threads trace what no other test has.
    fusion._traced.cache_clear()

    def fit(_):
        vqvae = VQVAE(**TINY).fit(blobs, **FIT)
        model = LatentDiffusion(vqvae, widths=(8,), guide=False).fit(blobs, **FIT)
        return model.to_tensors()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fit, range(2))
    for name, tensor in first.items():
        npt.assert_array_equal(second[name], tensor, err_msg=name)
