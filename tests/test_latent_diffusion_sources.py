"""Models with source images: training, samples, saved models, resumed training."""

from functools import partial
import logging
import pickle
from unittest import mock

import numpy as np
import numpy.testing as npt
from processes import StopError, stop_after
import pytest

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import _sources as sources
from dipy_ldm.data._sources import Source
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.evaluation import _memorization as membership
from dipy_ldm.evaluation.audit import audit
from dipy_ldm.evaluation.evaluate import evaluate, scaled
from dipy_ldm.evaluation.features import voxels
from dipy_ldm.nn import _building as building
from dipy_ldm.training import _memory as memory

TINY = {"widths": (8,), "blocks": 1}
FIT = {"epochs": 3, "batch_size": 16, "verbose": False, "precision": "float32"}
STEPS = {"seed": 1, "steps": 3}


@pytest.fixture(scope="module")
def source_images(blobs):
    """Return another contrast of the blobs, in [100, 350]."""
    return 300 - 10 * blobs


@pytest.fixture(scope="module")
def translator(vqvae, blobs, source_images):
    model = LatentDiffusion(vqvae, **TINY)
    held_out = {"validation_data": blobs[:9], "validation_source": source_images[:9]}
    return model.fit(blobs, source=source_images, **held_out, **FIT)


def test_fit_records_the_source(translator, source_images, tmp_path, undecoded):
    source = translator.source_
    assert (source.channels, source.labels) == (1, [])
    npt.assert_allclose(source.bounds, (source_images.min(), source_images.max()))
    shapes = [x.shape[1:] for x in translator.denoiser_.inputs]
    assert shapes == [(4, 3, 2), (), (16, 12, 1)]
    assert len(translator.history_["val_gain_source"]) == len(
        translator.history_["loss"]
    )
    translator.save(tmp_path / "m")
    for copy in (
        LatentDiffusion.load(tmp_path / "m"),
        pickle.loads(pickle.dumps(translator)),
    ):
        assert copy.source_ == source
        samples = (
            m.predict(source=source_images[:2], **STEPS) for m in (copy, translator)
        )
        npt.assert_allclose(*samples, atol=1e-4)


def test_each_source_has_a_sample_whatever_the_batch(translator, source_images):
    whole = translator.predict(source=source_images[:3], **STEPS)
    assert whole.shape == (3, 13, 10, 1)
    pieces = translator.predict(source=source_images[:3, ..., 0], batch_size=2, **STEPS)
    npt.assert_allclose(pieces, whole, atol=1e-3)
    alone = translator.predict(1, source=source_images[2:3], first=2, **STEPS)
    npt.assert_allclose(alone, whole[2:], atol=1e-3)
    several = translator.predict(3, source=source_images[2:3], **STEPS)
    npt.assert_allclose(several[2], whole[2], atol=1e-3)
    assert np.abs(several[0] - whole[0]).max() > 1e-3


@pytest.mark.parametrize("method", ["predict", "denoiser"])
def test_sources_are_checked_once(translator, source_images, method, monkeypatch):
    check = mock.Mock(wraps=sources.check)
    monkeypatch.setattr(sources, "check", check)
    getattr(translator, method)(source=source_images[:3])
    check.assert_called_once()


def test_denoising_inpainting_and_guidance_depend_on_the_source(
    translator, blobs, source_images
):
    hole = np.zeros((13, 10))
    hole[:6, :5] = 1
    for make in (
        lambda source: translator.denoise(blobs[:2], source=source, strength=0.9),
        lambda source: translator.inpaint(blobs[:2], hole, source=source, steps=2),
        lambda source: translator.predict(2, source=source, guidance=3, **STEPS),
    ):
        one, other = make(source_images[:2]), make(source_images[2:4])
        assert np.abs(one - other).max() > 1e-3
        npt.assert_allclose(make(source_images[:1])[0], one[0], atol=1e-3)
    x = np.random.default_rng(0).standard_normal((3, *translator.latent_shape_))
    each = np.asarray(translator.denoiser(source=source_images[[5, 5, 2]])(x, 0.6))
    one = np.asarray(translator.denoiser(source=source_images[5:6])(x, 0.6))
    npt.assert_allclose(each[:2], one[:2], atol=1e-5)
    assert np.abs(each[2] - one[2]).max() > 1e-5


def test_models_with_sources_are_evaluated(translator, blobs, source_images):
    evaluated = evaluate(
        translator, blobs, source=source_images, features=[voxels()], steps=1
    )
    assert evaluated.figures["n"] == 32
    # Each sample is of the source of a real image of the floor.
    expected = scaled(
        translator.predict(source=source_images[32:], steps=1), translator.vqvae_
    )
    npt.assert_allclose(evaluated.sets.generated, expected, atol=1e-4)
    with pytest.raises(InputError, match="one image or 64, one for each, not 40"):
        evaluate(
            translator, blobs, source=source_images[:40], features=[voxels()], steps=1
        )


def test_models_with_sources_are_audited(translator, blobs, source_images):
    sides = blobs[:40], blobs[40:]
    sources = {"source": source_images[:40], "source_held_out": source_images[40:]}
    audited = audit(translator, *sides, n=30, steps=1, **sources)
    # Of training sources, samples are near to training images by design.
    expected = translator.predict(source=source_images[40:], steps=1)
    npt.assert_allclose(
        audited.generated, scaled(expected, translator.vqvae_), atol=1e-4
    )
    sentence = "Samples were generated from the source images of held-out"
    assert sentence in audited.notes[-1]
    assert np.isfinite(audited.members["denoiser"].train).all()
    # Losses depend on what the images are made of.
    other_losses = membership.denoising_losses(
        translator, blobs[:40], source=source_images[40:41]
    )
    assert not np.allclose(audited.members["denoiser"].train, other_losses)
    with pytest.raises(InputError, match="give them as `source_held_out`"):
        audit(translator, *sides, source=source_images[:40])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: None, "conditioned on source images; give them as"),
        (lambda s: s[:, 1:], r"source must have the size \(13, 10\) of the images"),
        (lambda s: s[0, ..., 0], r"not the shape \(13, 10\); resample it"),
        (lambda s: s[:0], r"images, \(n, \*space, channels\), not the shape \(0, 13"),
        (lambda s: s[:3], "source must have one image or 2, one for each, not 3"),
        (lambda s: np.concatenate([s, s], -1), "must have 1 channels, not 2"),
        (lambda s: s + np.inf, "source image 0 has NaN or infinite values"),
        (lambda s: s.astype(str), "source must be real numbers"),
        (lambda s: s / 100, "source image 0 has .* 100% .* outside the 100.* to 35"),
    ],
)
def test_invalid_sources_are_refused(
    translator, blobs, source_images, change, sentence
):
    source = change(source_images if "one image" in sentence else source_images[:2])
    for make in (
        lambda: translator.predict(2, source=source),
        lambda: translator.denoise(blobs[:2], source=source),
        lambda: translator.inpaint(blobs[:2], np.eye(13, 10), source=source),
    ):
        with pytest.raises(InputError, match=sentence):
            make()


def test_a_model_without_sources_refuses_them(diffusion, blobs, source_images):
    assert diffusion.source_ is None
    assert diffusion.to_document()["source"] is None
    for make in (
        lambda: diffusion.predict(2, source=source_images[:2]),
        lambda: diffusion.denoise(blobs[:2], source=source_images[:2]),
        lambda: diffusion.denoiser(source=source_images[:2]),
    ):
        sentence = "this model was trained without source images; leave out"
        with pytest.raises(InputError, match=sentence):
            make()


def test_invalid_training_sources_are_refused(vqvae, blobs, source_images):
    model = LatentDiffusion(vqvae, **TINY)
    many = np.arange(blobs.size).reshape(blobs.shape)
    two = np.stack([many[..., 0]] * 2, -1)
    held_out, held_out_sources = (
        {"validation_data": blobs[:9]},
        {"validation_source": source_images},
    )
    few = held_out | {"validation_source": source_images[:2]}
    unfit = "validation_source must have one image or 9, one for each, not 2"
    for source, options, sentence in (
        (source_images[:9], {}, "source must have 64 images, one for each, not 9"),
        (source_images[:, 1:], {}, r"source must have the size \(13, 10\)"),
        (np.ones_like(source_images), {}, "all source images are constant .1"),
        (np.ones(source_images.shape, int), {}, "all source images are constant .1"),
        (many, {}, "more than 256 labels"),
        (two, {}, "segmentation with one channel, not 2"),
        (source_images, held_out_sources, "no effect without validation_data"),
        (None, held_out_sources, "no effect without source"),
        (source_images, held_out, "give them as `validation_source`"),
        (source_images, few, unfit),
        (
            source_images,
            {"conditions": {"source": [*"ab"] * 32}},
            "can't be called source",
        ),
        (["a.nii"] * 64, {}, "must be arrays; .* load_volumes"),
    ):
        with pytest.raises(InputError, match=sentence):
            model.fit(blobs, source=source, **options, **FIT)


def test_resumed_training_is_the_uninterrupted(
    translator, vqvae, blobs, source_images, tmp_path
):
    # A guide makes no difference to the denoiser.
    held_out = {"validation_data": blobs[:9], "validation_source": source_images[:9]}
    options = held_out | FIT | {"checkpoint": tmp_path / "checkpoint"}
    model = LatentDiffusion(vqvae, guide=False, **TINY)
    with pytest.raises(StopError):
        model.fit(blobs, source=source_images, callbacks=[stop_after(1)], **options)
    with pytest.raises(InputError, match=r"another training \(source was intensities"):
        model.fit(blobs, source=source_images[::-1], **options)
    model.fit(blobs, source=source_images, **options)
    for name, values in translator.history_.items():
        npt.assert_allclose(model.history_[name], values, rtol=1e-4, atol=1e-5)


def test_digits_are_translated_from_their_negatives(digits, caplog):
    images, _, vqvae = digits
    images = images[:700]
    negatives = 1 - images
    model = LatentDiffusion(vqvae, widths=(32,), guide=False)
    held_out = {"validation_data": images[:60], "validation_source": negatives[:60]}
    options = {"epochs": 4, "batch_size": 32, "verbose": False}
    with caplog.at_level(logging.WARNING):
        model.fit(images[60:], source=negatives[60:], **held_out, **options)
    assert "no measurable effect" not in caplog.text
    assert model.history_["val_gain_source"][-1] > 1
    translated = model.predict(source=negatives[:30])
    errors = ((translated - images[:30]) ** 2).mean((1, 2, 3))
    mismatches = ((translated - images[1:31]) ** 2).mean((1, 2, 3))
    assert errors.mean() < 0.2 * mismatches.mean()


def test_volumes_are_translated_from_labels_and_conditions(caplog, rng):
    labels = rng.integers(0, 3, (16, 9, 8, 6))
    volumes = (labels + 0.1 * rng.random(labels.shape))[..., None].astype("float32")
    labels = np.array([0, 4, 17])[labels].astype("uint16")
    options = {"epochs": 1, "batch_size": 4, "verbose": False, "precision": "float32"}
    vqvae = VQVAE(widths=(4,), n_codes=8, code_dim=2).fit(volumes, **options)
    model = LatentDiffusion(vqvae, widths=(4,))
    options |= {"validation_data": volumes[:4], "remat": True}
    options["validation_conditions"] = {"sex": [*"abab"]}
    # A label that the others have not is left out.
    options["validation_source"] = np.where(labels[:4] == 17, 99, labels[:4])
    with caplog.at_level(logging.WARNING):
        model.fit(volumes, {"sex": [*"ab"] * 8}, source=labels, **options)
    assert "no measurable effect" not in caplog.text, "four can't carry a verdict"
    assert model.source_.labels == [0, 4, 17]
    assert list(model.history_)[-2:] == ["val_gain_sex", "val_gain_source"]
    samples = model.predict(conditions={"sex": "b"}, source=labels[:2], **STEPS)
    assert samples.shape == (2, 9, 8, 6, 1)
    # Without a guide, guidance leads away from what is not specified.
    guided = model.predict(source=labels[:2], guidance=4, **STEPS)
    assert np.isfinite(guided).all()
    strange = labels[:2].copy()
    strange[1, 0, 0, 0] = 5
    sentence = "source 1 has the unknown label 5; .* one of 0, 4, 17"
    with pytest.raises(InputError, match=sentence):
        model.predict(source=strange)
    again = LatentDiffusion.from_saved(model.to_tensors(), model.to_document())
    assert again.source_ == model.source_


def test_estimated_memory_includes_sources(translator):
    build = partial(unet_network.unet, translator.latent_shape_, factor=4)
    needed = []
    for source in (None, Source(1, [0, 1], [], "")):
        make = partial(build, **TINY, conditions=[], source=source)
        unet = building.build_without_weights("float32", make)
        needed.append(memory.estimate_training([unet], 1000))
    # The source itself, and both of its features.
    assert needed[1] - needed[0] > 3 * 4 * 16 * 12 * 1000


def test_load_refuses_invalid_sources(translator, assert_unreadable):
    tensors, document = translator.to_tensors(), translator.to_document()
    source = document["source"]
    for wrong in (
        {"channels": 0},
        {"bounds": [2, 1]},
        {"bounds": [1, 1]},
        {"labels": [2, 1]},
        {"labels": [1.5]},
        {"fingerprint": None},
        {"more": 1},
    ):
        changed = document | {"source": source | wrong}
        assert_unreadable(tensors, changed, "source can't be")
    assert_unreadable(tensors, document | {"source": []}, "source can't be")
    other = document | {"source": source | {"channels": 2}}
    assert_unreadable(tensors, other, "has the shape")
