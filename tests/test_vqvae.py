"""VQVAE: an estimator that reconstructs, keeps its codes alive, saves and resumes."""

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm import VQVAE
from dipy_ldm.validation import InputError

TINY = {"widths": (8, 8), "blocks": 1, "n_codes": 16, "code_dim": 2}
FIT = {"epochs": 2, "batch_size": 16, "verbose": False}


def weights(vqvae):
    return vqvae.encoder_.get_weights() + vqvae.decoder_.get_weights()


def assert_same(first, second):
    for a, b in zip(weights(first), weights(second), strict=True):
        npt.assert_array_equal(a, b)
    npt.assert_array_equal(first.codebook_, second.codebook_)


def test_fit_returns_self_and_keeps_hyperparameters():
    vqvae = VQVAE(**TINY)
    images = np.random.default_rng(0).random((16, 8, 8, 1))
    assert vqvae.fit(images, **FIT) is vqvae
    assert {name: getattr(vqvae, name) for name in TINY} == TINY


def test_history_has_every_epoch(vqvae):
    for name in ("loss", "mse", "perplexity", "usage", "revived"):
        assert len(vqvae.history_[name]) == 2, name
    assert 1 <= vqvae.history_["perplexity"][-1] <= 16
    assert 0 < vqvae.history_["usage"][-1] <= 1


def test_shapes_and_range(vqvae, blobs):
    latents = vqvae.encode(blobs[:5])
    assert latents.shape == (5, 4, 3, 2)
    images = vqvae.predict(blobs[:5])
    assert images.shape == (5, 13, 10, 1)
    assert images.dtype == np.float32
    assert images.min() >= blobs.min()
    assert images.max() <= blobs.max()
    assert vqvae.codes(latents).shape == (5, 4, 3)


def test_other_sizes_come_back_in_their_own(vqvae):
    images = np.zeros((2, 9, 22, 1))
    assert vqvae.predict(images).shape == images.shape


def test_decode_quantises_first(vqvae, blobs):
    latents = vqvae.encode(blobs[:4])
    codes = vqvae.codebook_[vqvae.codes(latents)]
    npt.assert_allclose(vqvae.decode(latents), vqvae.decode(codes), atol=1e-5)


def test_batch_size_does_not_matter(vqvae, blobs):
    npt.assert_allclose(
        vqvae.encode(blobs[:7], batch_size=2), vqvae.encode(blobs[:7]), atol=1e-5
    )


def test_three_dimensions_and_channels():
    images = np.random.default_rng(0).random((8, 6, 5, 7, 2))
    vqvae = VQVAE(**TINY).fit(images, epochs=1, batch_size=4, verbose=False)
    assert vqvae.encode(images).shape == (8, 2, 2, 2, 2)
    assert vqvae.predict(images[:2]).shape == (2, 6, 5, 7, 2)


def test_overfits_eight_images(blobs):
    vqvae = VQVAE(widths=(16, 16), n_codes=64, code_dim=4)
    images = np.tile(blobs[:8], (8, 1, 1, 1))
    vqvae.fit(images, epochs=40, batch_size=8, learning_rate=5e-3, verbose=False)
    error = np.mean((vqvae.predict(blobs[:8]) - blobs[:8]) ** 2)
    assert error < 0.02 * blobs[:8].var()


def test_fitting_again_starts_afresh(blobs):
    vqvae = VQVAE(**TINY).fit(blobs, **FIT)
    first = VQVAE(**TINY).fit(blobs, **FIT)
    assert_same(vqvae.fit(blobs, **FIT), first)


def test_dead_codes_are_revived(blobs):
    # Far more codes than these images need: without revival most stay unused.
    options = TINY | {"n_codes": 64}
    vqvae = VQVAE(**options).fit(blobs, epochs=6, batch_size=16, verbose=False)
    assert sum(vqvae.history_["revived"]) > 0
    assert vqvae.history_["revived"][-1] == 0


def test_reload_is_exact(vqvae, blobs, tmp_path):
    vqvae.save(tmp_path / "a.safetensors")
    loaded = VQVAE.load(tmp_path / "a.safetensors")
    assert_same(vqvae, loaded)
    assert loaded.history_ == vqvae.history_
    npt.assert_array_equal(loaded.predict(blobs), vqvae.predict(blobs))


class StopError(Exception):
    """Stands for a kill after an epoch."""


def stop_after(epochs):
    def callback(estimator):
        if len(estimator.history_["loss"]) == epochs:
            raise StopError

    return callback


def test_resumed_training_is_the_uninterrupted(blobs, tmp_path):
    fit = FIT | {"epochs": 4, "validation_data": blobs[:3]}
    whole = VQVAE(**TINY).fit(blobs, **fit)
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(StopError):
        VQVAE(**TINY).fit(
            blobs, checkpoint=checkpoint, callbacks=[stop_after(2)], **fit
        )
    resumed = VQVAE(**TINY).fit(blobs, checkpoint=checkpoint, **fit)
    assert_same(resumed, whole)
    assert resumed.history_ == whole.history_


def test_checkpoint_of_another_training_is_refused(blobs, tmp_path):
    VQVAE(**TINY).fit(blobs, checkpoint=tmp_path / "c", **FIT)
    with pytest.raises(InputError, match="seed was 0 and is 1"):
        VQVAE(**TINY, seed=1).fit(blobs, checkpoint=tmp_path / "c", **FIT)


def test_bfloat16_trains(blobs):
    vqvae = VQVAE(**TINY).fit(blobs, precision="bfloat16", **FIT)
    assert {w.dtype for w in vqvae.encoder_.weights} == {"float32"}
    assert vqvae.encoder_.compute_dtype == "float32"
    assert np.isfinite(vqvae.predict(blobs[:2])).all()


def test_constant_images_are_no_trouble():
    vqvae = VQVAE(**TINY).fit(np.full((16, 8, 8, 1), 3.0), **FIT)
    npt.assert_array_equal(vqvae.predict(np.full((1, 8, 8, 1), 3.0)), 3)


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        (np.zeros((16, 8, 8)), {}, "images\\[..., None\\]"),
        (np.full((16, 8, 8, 1), np.nan), {}, "image 0 has NaN"),
        (np.zeros((0, 8, 8, 1)), {}, "must have the shape"),
        (np.zeros((8, 8, 8, 1)), {}, "fewer than a batch of 16"),
        (np.zeros((16, 8, 8, 1)), {"epochs": 0}, "epochs must be at least 1"),
        (np.zeros((16, 8, 8, 1)), {"learning_rate": -1}, "above 0"),
        (np.zeros((16, 8, 8, 1)), {"precision": "float8"}, "float32, bfloat16"),
        (
            np.zeros((16, 8, 8, 1)),
            {"validation_data": np.zeros((2, 8, 8))},
            "\\(n, h, w",
        ),
    ],
)
def test_bad_input_is_answered_with_its_cure(images, options, sentence):
    with pytest.raises(InputError, match=sentence):
        VQVAE(**TINY).fit(images, **(FIT | options))


def test_a_loss_that_explodes_stops_the_training(blobs):
    with pytest.raises(InputError, match="lower the learning rate"):
        VQVAE(**TINY).fit(blobs, learning_rate=1e30, **FIT)


@pytest.mark.parametrize("call", ["predict", "encode", "decode", "codes", "save"])
def test_unfitted_names_the_call_to_make(call):
    with pytest.raises(InputError, match="call fit"):
        getattr(VQVAE(), call)(np.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"widths": ()}, "length of widths must be at least 1"),
        ({"widths": (8, 0)}, "widths must be at least 1"),
        ({"n_codes": 0}, "n_codes must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_hyperparameters_are_answered_with_their_cure(options, sentence):
    with pytest.raises(InputError, match=sentence):
        VQVAE(**(TINY | options)).fit(np.zeros((16, 8, 8, 1)), **FIT)
