"""Random numbers: estimators have their own, and leave others' alone."""

from concurrent.futures import ThreadPoolExecutor
import random
import sys

import keras
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm._backend import fusion
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.nn import _building as building

# None with another back-end.
tf = sys.modules["tensorflow"]
TINY = {"widths": (8,), "n_codes": 8, "code_dim": 1}
FIT = {"epochs": 1, "batch_size": 16, "verbose": False}


def draw():
    """Draw from all that a user may draw from."""
    return [
        random.random(),
        np.random.random(),
        *([] if tf is None else _of_tensorflow()),
        float(keras.random.uniform(())),
    ]


def _of_tensorflow():
    own = tf.random.get_global_generator()
    return float(tf.random.uniform(())), float(own.uniform(()))


def drawn_after(call):
    # Before 3.13, Keras keeps its generator whatever seed is set.
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    if tf is not None:
        tf.random.set_global_generator(tf.random.Generator.from_seed(3))
    keras.random.uniform(())  # which makes the generator of Keras
    call()
    return draw()


def fit_all(blobs):
    vqvae = VQVAE(**TINY).fit(blobs, validation_data=blobs[:3], **FIT)
    model = LatentDiffusion(vqvae, widths=(8,), guide=False).fit(blobs, **FIT)
    model.predict(2, steps=2, sampler="ddpm")
    model.denoise(blobs[:2], steps=4)


def load(blobs):
    LatentDiffusion.load("mnist")


def check(blobs):
    VQVAE(**TINY).check(blobs.shape)


@pytest.mark.parametrize("call", [fit_all, load, check])
def test_estimators_leave_global_generators_alone(blobs, call):
    assert drawn_after(lambda: call(blobs)) == drawn_after(lambda: None)


def unet(seed=None):
    options = {"widths": (32,), "blocks": 1, "attention": [True]}
    if seed is None:
        return unet_network.unet((4, 4, 32), **options)
    with building.seeded(seed):
        return unet_network.unet((4, 4, 32), **options)


def test_weights_follow_from_the_seed_and_the_place():
    first, again, other = unet(1), unet(1), unet(2)
    for a, b in zip(first.weights, again.weights, strict=True):
        npt.assert_array_equal(a, b)
    random_ones = 0
    seen = set()
    for a, b in zip(first.weights, other.weights, strict=True):
        if np.ptp(a) > 0:
            random_ones += 1
            assert not np.array_equal(a, b), a.path
            # Those of one shape are drawn one by one: queries are not keys.
            assert float(np.ravel(a)[0] / np.ptp(a)) not in seen
            seen.add(float(np.ravel(a)[0] / np.ptp(a)))
    assert random_ones > 10


def test_without_a_seed_weights_are_drawn_as_keras_does():
    weights = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        weights.append(unet().get_weights())
    npt.assert_array_equal(weights[0][0], weights[1][0])
    assert not np.array_equal(weights[0][0], weights[2][0])


def test_precision_is_of_one_thread():
    with building.precision("bfloat16"), ThreadPoolExecutor(1) as pool:
        policy = pool.submit(keras.config.dtype_policy).result()
    assert policy.name == "float32"


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
