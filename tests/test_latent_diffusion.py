"""LatentDiffusion: an estimator that generates, denoises, saves and resumes."""

import copy

from batches import with_inputs
import keras
from models import assert_same_weights
import nibabel as nib
from nibabel.affines import from_matvec
from nilearn.datasets import load_mni152_template
import numpy as np
import numpy.testing as npt
from processes import StopError, stop_after
import pytest
from scans import soft_balls

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm._utils.checks import InputError
from dipy_ldm.denoiser._training import latent_scale
from dipy_ldm.diffusion import _denoisers as denoisers, samplers, schedules
from dipy_ldm.diffusion.samplers import SAMPLERS
from dipy_ldm.metrics import psnr

# One level: what takes the time is that networks are compiled.
TINY = {"widths": (8,), "blocks": 1}
FIT = {"epochs": 2, "batch_size": 16, "verbose": False}
# So little is learnt that weights show where they came from.
BRIEFLY = {"steps": 1, "batch_size": 16, "learning_rate": 1e-9, "verbose": False}


def test_latents_have_unit_variance_and_channels_keep_theirs(diffusion, vqvae, blobs):
    latents = vqvae.encode(blobs)
    scaled = diffusion._scaled(latents)
    npt.assert_allclose(scaled.mean((0, 1, 2)), 0, atol=1e-4)
    npt.assert_allclose(scaled.var((0, 1, 2)).mean(), 1, atol=1e-4)
    spreads, kept = (x.std((0, 1, 2)) for x in (latents, scaled))
    npt.assert_allclose(kept / kept[0], spreads / spreads[0], rtol=1e-4)


def test_the_scale_of_very_many_latents_is_exact(rng):
    # In float32, sums of so many numbers stop growing; in memory there is one latent.
    one = 0.5 * rng.standard_normal((1, 40, 48, 40, 2), "float32") + 1.7
    mean, scale = latent_scale(with_inputs(np.broadcast_to(one, (300, *one.shape[1:]))))
    assert mean.dtype == scale.dtype == np.float32
    exact = one.astype("float64")
    axes = (0, 1, 2, 3)
    npt.assert_allclose(mean, exact.mean(axes), rtol=1e-6)
    npt.assert_allclose(scale, np.sqrt(exact.var(axes).mean()), rtol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_are_in_the_training_range_and_the_same_in_any_batch(
    diffusion, blobs, sampler
):
    options = {"sampler": sampler, "steps": 5, "seed": 2}
    whole = diffusion.predict(9, **options)
    assert whole.shape == (9, 13, 10, 1) and whole.dtype == np.float32
    assert blobs.min() <= whole.min() <= whole.max() <= blobs.max()
    npt.assert_allclose(diffusion.predict(9, batch_size=2, **options), whole, atol=1e-3)
    alone = diffusion.predict(1, first=7, **options)
    npt.assert_allclose(alone, whole[7:8], atol=1e-3)
    assert np.abs(diffusion.predict(9, **(options | {"seed": 3})) - whole).max() > 0.1


def test_guidance_extrapolates_from_the_guide(diffusion):
    assert diffusion.guide_.count_params() < diffusion.denoiser_.count_params() / 2
    last = diffusion.guide_.trainable_variables[-2]
    assert np.abs(last).max() > 0  # it starts at zero
    x = np.random.default_rng(0).standard_normal((3, *diffusion.latent_shape_))
    guide, half, alone, beyond = (
        np.asarray(diffusion.denoiser(guidance)(x, 0.6)) for guidance in (0, 0.5, 1, 3)
    )
    assert np.abs(alone - guide).max() > 1e-3
    npt.assert_allclose(half, (guide + alone) / 2, atol=1e-5)
    npt.assert_allclose(beyond, 3 * alone - 2 * guide, atol=1e-5)
    images = [diffusion.predict(3, guidance=guidance) for guidance in (1, 3)]
    assert np.abs(images[0] - images[1]).max() > 1e-3


def test_guidance_is_at_the_same_noise_whatever_the_schedule(diffusion, monkeypatch):
    architecture, sigmas = diffusion._denoiser.architecture, {}
    for name in schedules.SCHEDULES:
        parameters = architecture.parameters._replace(schedule=name)
        chosen = architecture._replace(parameters=parameters)
        monkeypatch.setattr(diffusion._denoiser, "architecture", chosen)
        monkeypatch.setattr(denoisers, "guided", lambda *args: args[-1])
        times = diffusion.denoiser(2.0)
        sigmas[name] = schedules.rates(name, times)[1]
    npt.assert_allclose(sigmas["cosine"], schedules.rates("cosine", [0.4, 0.9])[1])
    npt.assert_allclose(sigmas["linear"], sigmas["cosine"], atol=1e-5)


def test_denoise_warns_of_images_on_a_far_smaller_scale(diffusion, blobs, caplog):
    diffusion.denoise(blobs[:2] / 255, strength=0)
    hole = np.eye(*blobs.shape[1:3]) > 0
    diffusion.inpaint(blobs[:2], hole, steps=1)
    diffusion.inpaint(blobs[:2] / 255, hole, steps=1)
    assert caplog.text.count("scale them like those of the training") == 2


def test_denoise_changes_more_with_strength(diffusion, vqvae, blobs):
    # Of as many as are encoded at once, the reconstruction to the bit.
    reconstructed = vqvae.predict(blobs[:4])
    npt.assert_array_equal(diffusion.denoise(blobs[:4], strength=0), reconstructed)
    near, far = (
        np.mean((diffusion.denoise(blobs, strength=s) - vqvae.predict(blobs)) ** 2)
        for s in (0.05, 1.0)
    )
    assert near < far
    results = [diffusion.denoise(b[None], strength=1, seed=1) for b in blobs[:2]]
    # An SNR of 4e-5 is left, with which a latent may come to another code.
    assert np.mean(np.abs(results[0] - results[1])) < 0.05 * np.ptp(blobs)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.1, 0.4, 1])
def test_denoise_calls_the_network_once_a_step(
    diffusion, blobs, monkeypatch, sampler, strength
):
    times = []
    predict = diffusion._denoiser.predict

    def counted(x, t):
        times.append(float(np.max(t)))
        return predict(x, t)

    monkeypatch.setattr(diffusion._denoiser, "predict", counted)
    options = {"sampler": sampler, "strength": strength}
    for steps in (1, 3, 12):
        times.clear()
        denoised = diffusion.denoise(blobs[:2], steps=steps, **options)
        assert len(times) == steps
        npt.assert_allclose(times[0], strength, atol=1e-4)
        assert np.isfinite(denoised).all()
    times.clear()
    diffusion.denoise(blobs[:2], **options)
    assert len(times) == diffusion.default_denoising_steps(sampler, strength)


def test_default_denoising_steps_follow_from_strength(diffusion):
    steps = diffusion.default_denoising_steps
    counts = [steps("dpm++", strength) for strength in (0, 0.1, 0.2, 0.4, 1)]
    assert counts == [1, 1, 3, 5, 20]
    assert steps("ddim", 0.1) == 2


@pytest.mark.parametrize("chosen", [("noise", "linear"), ("clean", "cosine")])
def test_every_target_and_schedule_trains(vqvae, blobs, chosen):
    options = dict(zip(("target", "schedule"), chosen, strict=True))
    model = LatentDiffusion(vqvae, guide=False, **options, **TINY).fit(blobs, **FIT)
    assert np.isfinite(model.predict(2, steps=4)).all()


@pytest.mark.parametrize(("images", "noise"), [(True, 0.2), (False, 0.02)])
def test_samples_of_volumes_have_finer_details(diffusion, monkeypatch, images, noise):
    paths, sample = [], samplers.sample

    def watched(denoise, x, path, *args):
        paths.append(path)
        return sample(denoise, x, path, *args)

    monkeypatch.setattr(samplers, "sample", watched)
    monkeypatch.setattr(type(diffusion), "_of_images", lambda self: images)
    diffusion.predict(1, guidance=1)
    # The last level of all is clean.
    assert len(paths[0]) == 11
    assert paths[0][-2][1][1] == pytest.approx(noise, rel=0.01)


def test_learns_the_latents_of_eight_images(rng):
    """A latent of two values: samples must be one of them, not their mean."""
    images = np.repeat(rng.integers(0, 2, (256, 1, 1, 1)), 8, 1).repeat(8, 2)
    vqvae = VQVAE(widths=(8, 8), n_codes=8, code_dim=1)
    vqvae.fit(images, epochs=5, batch_size=16, learning_rate=3e-3, verbose=False)
    model = LatentDiffusion(vqvae, widths=(16,), guide=False)
    model.fit(images, epochs=10, batch_size=32, learning_rate=3e-3, verbose=False)
    means = model.predict(64, steps=20).mean((1, 2, 3))
    npt.assert_array_less(np.minimum(means, 1 - means), 0.2)
    assert 16 <= np.sum(means > 0.5) <= 48


@pytest.mark.tensorflow  # others bring weights back at the end of a round
def test_weights_are_averaged(vqvae, blobs):
    raw, published = [], []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: raw.append(note.model.get_weights())
    )
    callbacks = [note, lambda m: published.append(m.denoiser_.get_weights())]
    model = LatentDiffusion(vqvae, guide=False, **TINY)
    model.fit(blobs, callbacks=callbacks, **FIT | {"epochs": 6})
    share, average = 10 / len(raw), raw[0]
    assert 0.2 < share < 0.8
    for weights in raw:
        average = [a + share * (w - a) for a, w in zip(average, weights, strict=True)]
    # What callbacks see is what fit ends with: the average after the last step.
    final = model.denoiser_.get_weights()
    for a, b, expected in zip(published[-1], final, average, strict=True):
        npt.assert_array_equal(a, b)
        npt.assert_allclose(b, expected, atol=1e-6)
    assert max(np.abs(a - b).max() for a, b in zip(final, raw[-1], strict=True)) > 1e-4


def test_accumulated_batches_are_as_one_larger(diffusion, vqvae, blobs):
    parts = LatentDiffusion(vqvae, widths=diffusion.widths, guide=False)
    parts.fit(blobs, **(FIT | {"batch_size": 8, "accumulate": 2}))
    x = np.random.default_rng(0).standard_normal((16, *diffusion.latent_shape_))
    t = np.linspace(0, 1, 16)
    whole, accumulated = (m._denoiser.predict(x, t) for m in (diffusion, parts))
    # The averages weigh every batch, so that they differ a little. With as many steps
    # as batches, the second would have learnt about twice as much.
    assert np.linalg.norm(whole - accumulated) < 0.3 * np.linalg.norm(whole)
    npt.assert_allclose(parts.history_["loss"], diffusion.history_["loss"], rtol=0.02)


def test_further_fit_of_the_autoencoder_leaves_the_model_as_it_was(
    vqvae, blobs, untrained
):
    vqvae = copy.deepcopy(vqvae)
    model = LatentDiffusion(vqvae, guide=False, **TINY).fit(blobs, **BRIEFLY)
    again = LatentDiffusion.from_saved(model.to_tensors(), model.to_document())
    # Nothing was decoded yet: what is compiled late is of the first fit, too.
    vqvae.set_params(n_codes=4, seed=1).fit(100 * blobs[:, 1:], **BRIEFLY)
    assert vqvae.shape_ == (12, 10, 1)
    images = model.predict(2, steps=2)
    assert images.shape == (2, 13, 10, 1)
    assert images.max() <= blobs.max()
    npt.assert_allclose(again.predict(2, steps=2), images, atol=1e-4)
    assert model.denoise(blobs[:1]).shape == blobs[:1].shape
    assert_same_weights(model, again)


def test_another_fit_starts_afresh_and_resumed_training_is_the_uninterrupted(
    vqvae, blobs, tmp_path, reset_layer_names
):
    # Where there is bfloat16, in it; in float32, and with a guide, this is tested with
    # the commands.
    tiny = TINY | {"guide": False}
    fit = FIT | {"epochs": 3, "validation_data": blobs[:3], "precision": "auto"}
    reset_layer_names()
    model = LatentDiffusion(vqvae, **tiny)
    assert model.fit(blobs, **fit) is model
    assert {name: getattr(model, name) for name in TINY} == TINY
    assert model.history_["step"] == [4, 8, 12]
    assert set(model.history_) == {"step", "epoch", "loss", "val_loss"}
    whole = copy.deepcopy(model)
    fit["checkpoint"] = tmp_path / "checkpoint"
    reset_layer_names()
    with pytest.raises(StopError):
        model.fit(blobs, callbacks=[stop_after(1)], **fit)
    reset_layer_names()
    resumed = LatentDiffusion(vqvae, **tiny).fit(blobs, **fit)
    assert_same_weights(resumed, whole)
    assert resumed.history_ == whole.history_


@pytest.mark.parametrize(
    ("call", "arguments", "sentence"),
    [
        ("predict", {"n": 0}, "n must be at least 1"),
        ("predict", {"steps": 0}, "steps must be at least 1"),
        ("predict", {"batch_size": 0}, "batch_size must be at least 1"),
        ("predict", {"first": -1}, "first must be at least 0"),
        ("predict", {"guidance": -1}, "guidance must be at least 0"),
        ("predict", {"seed": -1}, "seed must be at least 0"),
        ("predict", {"sampler": "euler"}, "ddpm, ddim, dpm"),
        ("predict", {"sampler": "ddim", "eta": 2}, "between 0 and 1"),
        ("predict", {"step": 2}, "unknown option 'step'; choose one of n, "),
        ("denoiser", {"guidance": -1}, "guidance must be at least 0"),
        ("draw_conditions", {"n": 0}, "n must be at least 1"),
    ],
)
def test_sampling_refuses(diffusion, call, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        getattr(diffusion, call)(**arguments)


def test_denoise_and_fit_refuse(diffusion, vqvae, blobs):
    spoilt = np.where(np.arange(4)[:, None, None, None] == 2, np.nan, blobs[:4])
    for images, strength, sentence in (
        (blobs, 1.5, "strength must lie between"),
        (np.zeros((1, 8, 8, 1)), 0.5, "must have the shape"),
        (spoilt, 0.5, "image 2 has NaN"),
    ):
        with pytest.raises(InputError, match=sentence):
            diffusion.denoise(images, strength=strength)
    for images, parameters, options, sentence in (
        (np.zeros((16, 13, 10, 1)), {}, {}, "are constant .0.; check how"),
        (blobs, {}, {"validation_data": blobs[:, :-1]}, "must have the shape"),
        (blobs, {}, {"validation_data": spoilt}, "validation image 2 has NaN"),
        (blobs, {"schedule": "square"}, {}, "cosine, linear"),
        (blobs, {"target": "score"}, {}, "v, noise, clean"),
        (blobs, {"blocks": (1, 2)}, {}, "blocks must be a number, not"),
    ):
        with pytest.raises(InputError, match=sentence):
            LatentDiffusion(vqvae, **TINY | parameters).fit(images, **options, **FIT)
    with pytest.raises(InputError, match=r"VQVAE.load\(path\)"):
        LatentDiffusion("v.safetensors").fit(blobs)


@pytest.mark.parametrize("attention", [False, True])
def test_one_entry_of_attention_is_for_all_levels(vqvae, attention):
    chosen = LatentDiffusion(vqvae, attention=attention, guide=0)._resolved(2)
    assert chosen["attention"] == [attention, attention]
    # A model file has no whole number there.
    assert chosen["guide"] is False


def test_unfitted_names_the_call_to_make(vqvae, blobs):
    model = LatentDiffusion(vqvae)
    calls = model.predict, model.check_sampling, model.check_memory
    calls += (lambda: model.default_denoising_steps("dpm++", 0.1),)
    for call in calls:
        with pytest.raises(InputError, match="call fit"):
            call()
    with pytest.raises(InputError, match="VQVAE is not fitted"):
        LatentDiffusion(VQVAE()).fit(blobs)
    with pytest.raises(AttributeError, match="call fit"):  # what hasattr looks for
        model.default_guidance  # noqa: B018


def test_fit_begins_from_another(diffusion, vqvae, blobs, tmp_path, untrained):
    diffusion.save(tmp_path / "m.safetensors")
    model = LatentDiffusion(vqvae)
    model.fit(blobs, init=tmp_path / "m.safetensors", **BRIEFLY)
    assert model.widths is None
    assert_same_weights(model, diffusion, atol=1e-6)


def test_init_with_new_conditions_changes_nothing_at_first(
    diffusion, vqvae, blobs, untrained
):
    labels = np.arange(len(blobs)) % 3
    model = LatentDiffusion(vqvae, guide=False)
    model.fit(blobs, labels, init=diffusion, **BRIEFLY)
    x, t = np.ones((3, *model.latent_shape_), "float32"), np.full(3, 0.5, "float32")
    encoded = np.array([[-1], [0], [2]], "float32")
    before, after = diffusion.denoiser_([x, t]), model.denoiser_([x, t, 0 * x, encoded])
    before, after = map(keras.ops.convert_to_numpy, (before, after))
    npt.assert_allclose(after, before, atol=1e-4)


def test_init_matches_conditions_by_name(vqvae, blobs, caplog):
    site, age = np.array(["A", "B"])[np.arange(60) % 2], np.arange(60) / 2
    fit = BRIEFLY | {"steps": 2, "learning_rate": 0.1}
    first = LatentDiffusion(vqvae, guide=False, **TINY)
    first.fit(blobs[:60], {"site": site, "age": age}, **fit)
    second = LatentDiffusion(vqvae, guide=False)
    caplog.set_level("INFO")
    new = {"age": age, "sex": ["F", "M"] * 30, "site": np.where(site == "A", "C", "B")}
    second.fit(blobs[:60], new, init=first, **BRIEFLY)
    assert "does not have: sex, site C." in caplog.text
    assert "are dropped: site A." in caplog.text
    before, after = (
        next(w for w in m.denoiser_.get_weights() if w.shape[0] == rows)
        for m, rows in ((first, 3 + 17), (second, 17 + 3 + 3))
    )
    npt.assert_allclose(after[:17], before[3:], atol=1e-6)  # age
    npt.assert_allclose(after[17:20], 0, atol=1e-6)  # sex
    npt.assert_allclose(after[[20, 21]], before[[0, 2]], atol=1e-6)  # unspecified, B
    npt.assert_allclose(after[22], 0, atol=1e-6)  # C
    assert np.abs(before).max() > 0


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"target": "clean"}, "`init` was trained with target = 'v', not 'clean'"),
        ({"schedule": "linear"}, "with schedule = 'cosine', not 'linear'"),
        ({"blocks": 2}, "with blocks = 1, not 2"),
        ({"attention": True}, r"with attention = None, not \[True, True\]"),
        ({"widths": (24, 24)}, r"with widths = \[8, 16\], not \[24, 24\]"),
    ],
)
def test_fit_and_check_refuse_another_init(
    diffusion, vqvae, blobs, parameters, sentence
):
    model = LatentDiffusion(vqvae, **parameters)
    with pytest.raises(InputError, match=sentence):
        model.fit(blobs, init=diffusion, **BRIEFLY)
    assert not hasattr(model, "denoiser_")
    with pytest.raises(InputError, match=sentence):
        model.check(blobs.shape, init=diffusion)
    # None and False are the same attention.
    LatentDiffusion(vqvae, attention=False).check(blobs.shape, init=diffusion)


def test_a_training_begins_from_the_packaged_brains():
    volumes = soft_balls(4, 0)
    packaged = LatentDiffusion.load("brains")
    vqvae = packaged.vqvae_.adapt(volumes, affine=np.diag([8.0, 8, 8, 1]))
    brief = {"steps": 1, "batch_size": 2, "verbose": False, "learning_rate": 1e-9}
    model = LatentDiffusion(vqvae).fit(volumes, init="brains", **brief)
    widths = [m.to_document()["latent_diffusion"]["widths"] for m in (model, packaged)]
    assert widths[0] == widths[1]
    assert model.predict(1, steps=1).shape == (1, *volumes.shape[1:])


def test_a_denoiser_does_not_begin_from_an_autoencoder(vqvae, blobs, tmp_path):
    vqvae.save(tmp_path / "v.safetensors")
    sentence = "holds an autoencoder alone, not a diffusion model"
    with pytest.raises(InputError, match=sentence):
        LatentDiffusion(vqvae).fit(blobs, init=tmp_path / "v.safetensors")
    sentence = "`init` must be a LatentDiffusion or a file, not a VQVAE"
    with pytest.raises(InputError, match=sentence):
        LatentDiffusion(vqvae).fit(blobs, init=vqvae)


def test_packaged_brains_accept_a_template_and_follow_brain_volume(caplog):
    model = LatentDiffusion.load("brains")
    template = load_mni152_template(resolution=2)
    # As large as people are, about its middle.
    shrink = from_matvec(0.9 * np.eye(3), 0.1 * np.array([0, -18, 8]))
    smaller = shrink @ template.affine
    original = template.get_fdata()
    denoised = model.denoise(nib.Nifti1Image(original, smaller)).get_fdata()
    # It lies where the brains of the training do, and looks like them.
    assert not caplog.messages
    pair = [x[None, ..., None] for x in (denoised, original)]
    assert psnr(*pair, original[None] > 0) > 25  # 26.1
    hole = np.zeros(original.shape, bool)
    hole[45:55, 55:65, 45:55] = True
    scan, mask = (
        nib.Nifti1Image(x.astype("float32"), smaller) for x in (original, hole)
    )
    filled = model.inpaint(scan, mask, steps=2, resamplings=1).get_fdata()
    npt.assert_array_equal(filled[~hole], scan.get_fdata()[~hole])
    assert psnr(filled[None, ..., None], pair[1], hole[None]) > 15
    conditions = {"brain": [900, 1400], "ventricles": 40}
    brains = model.predict(conditions=conditions, steps=5, same_noise=True)
    small, large = (brains > 0.25).sum(axis=(1, 2, 3, 4))
    assert large > 1.3 * small
    model.denoise([template, template], steps=1)
    assert "image-1/scan.nii is unlike the training images" in caplog.text
