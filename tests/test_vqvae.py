"""VQVAE: an estimator that reconstructs, keeps its codes alive, saves and resumes."""

import copy
from functools import partial
from pathlib import Path
import pickle
import re
from types import SimpleNamespace
from unittest import mock

from dipy.data import get_fnames
from models import assert_same_weights
from nilearn.datasets import load_mni152_template
import numpy as np
import numpy.testing as npt
from processes import StopError, run_python, stop_after
import pytest

from dipy_ldm import VQVAE, LatentDiffusion, _backend, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.autoencoder._training import AutoencoderStage, draw_vectors, score
from dipy_ldm.autoencoder.quantizers import BOTTLENECKS, Codebook
from dipy_ldm.data import load_volumes
from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._image_checks import survey
from dipy_ldm.data.channels import Labels
from dipy_ldm.data.volumes import Volumes
from dipy_ldm.metrics import detail_correlation, psnr
from dipy_ldm.training import _trainer as run
from dipy_ldm.training._options import Length, ResolvedOptions

TINY = {"widths": (8, 8), "blocks": 1, "n_codes": 16, "code_dim": 2}
FIT = {"epochs": 2, "batch_size": 16, "verbose": False}


def fit(images, **options):
    """Fit a tiny autoencoder with other parameters or options."""
    parameters = {n: options.pop(n) for n in VQVAE().get_params() if n in options}
    return VQVAE(**TINY | parameters).fit(images, **FIT | options)


def test_fit_records_every_epoch(vqvae):
    for name in ("loss", "mse", "perplexity", "usage", "revived"):
        assert len(vqvae.history_[name]) == 2, name
    assert 1 <= vqvae.history_["perplexity"][-1] <= 16
    assert 0 < vqvae.history_["usage"][-1] <= 1


def test_encode_and_predict_shapes_and_range(vqvae, blobs):
    latents = vqvae.encode(blobs[:5])
    assert latents.shape == (5, 4, 3, 2)
    images = vqvae.predict(blobs[:5])
    assert images.shape == (5, 13, 10, 1)
    assert images.dtype == np.float32
    assert images.min() >= blobs.min()
    assert images.max() <= blobs.max()
    assert vqvae.codes(latents).shape == (5, 4, 3, 1)
    npt.assert_array_equal(vqvae.codes(latents.astype(float)), vqvae.codes(latents))
    pieces = vqvae.encode(blobs[:5], batch_size=2)
    npt.assert_allclose(pieces, latents, atol=1e-5)
    # Other sizes come back in their own.
    assert vqvae.predict(np.zeros((2, 9, 22, 1))).shape == (2, 9, 22, 1)


def test_decode_quantises_first(vqvae, blobs):
    latents = vqvae.encode(blobs[:4])
    codes = vqvae.codebook_[vqvae.codes(latents)].sum(-2)
    npt.assert_allclose(vqvae.decode(latents), vqvae.decode(codes), atol=1e-5)


def test_fit_learns_to_remove_noise(rng):
    # An empty background, with something amid it.
    images = np.zeros((32, 16, 16, 1), "float32")
    images[:, 5:11, 5:11] = rng.uniform(0.5, 1, (32, 1, 1, 1))
    noisy = np.clip(images + rng.normal(0, 0.6, images.shape), 0, 1)
    harm = []
    for augment in (Augmentation(noise=0.6), None):
        vqvae = fit(images, augment=augment, epochs=40, learning_rate=0.01)
        errors = [np.mean((vqvae.predict(x) - images) ** 2) for x in (images, noisy)]
        harm.append(errors[1] - errors[0])
    assert harm[0] < 0.3 * harm[1]


def test_overfits_eight_images(blobs):
    vqvae = VQVAE(widths=(16, 16), n_codes=64, code_dim=4)
    images = np.tile(blobs[:8], (8, 1, 1, 1))
    vqvae.fit(images, epochs=20, batch_size=8, learning_rate=5e-3, verbose=False)
    error = np.mean((vqvae.predict(blobs[:8]) - blobs[:8]) ** 2)
    assert error < 0.02 * blobs[:8].var()


def test_fit_revives_dead_codes(blobs):
    # Far more codes than these images need: without revival most stay unused.
    vqvae = fit(blobs, n_codes=64, epochs=6)
    assert sum(vqvae.history_["revived"]) > 0
    assert vqvae.history_["revived"][-1] == 0


def test_load_restores_exactly(vqvae, blobs, tmp_path):
    vqvae.save(tmp_path / "a.safetensors")
    loaded = VQVAE.load(tmp_path / "a.safetensors")
    assert_same_weights(vqvae, loaded)
    assert loaded.history_ == vqvae.history_
    npt.assert_array_equal(loaded.predict(blobs), vqvae.predict(blobs))


def test_load_reads_the_autoencoder_of_a_whole_model():
    assert_same_weights(VQVAE.load("mnist"), LatentDiffusion.load("mnist").vqvae)


def test_fit_resumes_a_finished_training(blobs, tmp_path, monkeypatch):
    # As a training in earnest: what is wrong with it ends it.
    monkeypatch.setattr(run, "_MIN_STEPS", 0)
    options = {"epochs": 30, "checkpoint": tmp_path / "checkpoint"}
    assert_same_weights(fit(blobs, **options), fit(blobs, **options))


def test_fit_refuses_checkpoints_of_another_training_and_damaged_ones(blobs, tmp_path):
    path = tmp_path / "c"
    fit(blobs, checkpoint=path)
    with pytest.raises(InputError, match="seed was 0 and is 1"):
        fit(blobs, seed=1, checkpoint=path)
    tensors, document = _serialization.load(path, "checkpoint")
    # In the middle of a round, and without the figures so far.
    document = {name: document[name] for name in ("settings", "history")}
    tensors = {n: t for n, t in tensors.items() if not n.startswith("metric")}
    _serialization.save(path, "checkpoint", tensors, document | {"steps": 6})
    with pytest.raises(InputError, match="is damaged; remove it"):
        fit(blobs, checkpoint=path)


def test_fit_resumes_from_the_checkpoint_before_a_damaged_one(
    blobs, tmp_path, reset_layer_names, caplog
):
    path = tmp_path / "c"
    options = {"epochs": 4, "validation_data": blobs[:3]}
    reset_layer_names()
    whole = fit(blobs, **options)
    options |= {"checkpoint": path, "checkpoint_steps": 1}
    reset_layer_names()
    with pytest.raises(StopError):
        fit(blobs, callbacks=[stop_after(2)], **options)
    content = path.read_bytes()
    path.write_bytes(content[: -len(content) // 2] + bytes(len(content) // 2))
    reset_layer_names()
    resumed = fit(blobs, **options)
    assert "c is damaged" in caplog.text
    assert "from the checkpoint before" in caplog.text
    assert_same_weights(resumed, whole)
    assert resumed.history_ == whole.history_
    # Both are whole again, and if neither is, it is said so.
    for spoilt in (_serialization.previous_path(path), path):
        _serialization.read_document(spoilt, "checkpoint")
        spoilt.write_bytes(b"")
    with pytest.raises(InputError, match="c.previous is truncated; remove it"):
        fit(blobs, **options)


def test_fit_in_bfloat16(blobs, bfloat16):
    vqvae = fit(blobs, precision=bfloat16)
    assert {w.dtype for w in vqvae.encoder_.weights} == {"float32"}
    assert vqvae.encoder_.compute_dtype == "float32"
    assert np.isfinite(vqvae.predict(blobs[:2])).all()


@pytest.fixture(scope="module")
def volumes():
    """Return 16 volumes (10, 9, 11) of one soft blob each, in [0, 1]."""
    rng = np.random.default_rng(1)
    grid = np.stack(np.mgrid[:10, :9, :11])
    centres = rng.uniform(3, 6, (16, 3, 1, 1, 1))
    distance = ((grid - centres) ** 2).sum(1)
    return np.exp(-distance / 8).astype("float32")[..., None]


@pytest.fixture(scope="module")
def mapped(volumes, tmp_path_factory):
    """Return the volumes, mapped from a file."""
    path = tmp_path_factory.mktemp("mapped") / "volumes.npy"
    np.save(path, volumes)
    return np.load(path, mmap_mode="r")


@pytest.fixture(scope="module")
def volume_vqvae(mapped):
    """Return an autoencoder that has learnt from the file."""
    return fit(mapped, batch_size=4, affine=np.diag([2.0, 2, 3, 1]))


def test_volumes_keep_their_shape_and_affine(volume_vqvae, volumes, tmp_path):
    assert volume_vqvae.encode(volumes[:5]).shape == (5, 3, 3, 3, 2)
    assert volume_vqvae.predict(volumes[:2]).shape == (2, 10, 9, 11, 1)
    volume_vqvae.save(tmp_path / "a.safetensors")
    loaded = VQVAE.load(tmp_path / "a.safetensors")
    npt.assert_array_equal(loaded.affine_, np.diag([2.0, 2, 3, 1]))


@pytest.mark.parametrize(
    ("space", "tile"),
    [((65, 33, 17), 4), ((65, 33, 17), 16), ((20, 23, 18), 9)],
)
def test_tiles_make_no_difference(volume_vqvae, space, tile):
    images = np.random.default_rng(0).random((2, *space, 1))
    latents, tiled = (volume_vqvae.encode(images, tile=side) for side in (100, tile))
    npt.assert_allclose(tiled, latents, atol=1e-5)
    whole, tiled = (
        volume_vqvae.decode(latents, space=space, tile=side) for side in (100, tile)
    )
    assert whole.shape == (2, *space, 1)
    npt.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"patch": 8, "background": 0.1},
        {"patch": (6, 8, 5), "remat": True, "augment": Augmentation(True, 2, 0.1, 0.1)},
    ],
)
def test_fit_of_volumes_learns_in_patches(volumes, options):
    held_out = volumes[:3]
    options |= {"code_dim": 8, "n_codebooks": 2, "batch_size": 8}
    vqvae = fit(volumes, epochs=8, validation_data=held_out, **options)
    assert vqvae.history_["val_mse"][-1] < 0.3 * np.var(volumes)
    assert 0 < vqvae.history_["val_detail"][-1] < 1
    # It is validated without sharpening.
    vqvae.sharpening_ = 0.0
    detail = np.mean(detail_correlation(vqvae.predict(held_out), held_out))
    assert score(vqvae._codec, held_out)["detail"] == pytest.approx(detail, abs=1e-4)
    # An image of one value has no detail, and is no trouble.
    assert score(vqvae._codec, np.zeros_like(held_out))["detail"] == 0


def test_fit_of_a_mapped_file_gives_the_same_as_memory(volumes, mapped, volume_vqvae):
    vqvae = fit(volumes, batch_size=4)
    assert_same_weights(vqvae, volume_vqvae)
    npt.assert_array_equal(vqvae.encode(mapped), volume_vqvae.encode(volumes))


def test_fit_with_remat_gives_the_same(volumes, volume_vqvae):
    vqvae = fit(volumes, batch_size=4, remat=True)
    assert_same_weights(vqvae, volume_vqvae, atol=1e-4)


def test_fit_learns_voxels_of_masks(volumes):
    fronts, backs = [], []
    for learnt in (np.s_[:, :5], np.s_[:, 5:]):
        masks = np.zeros(volumes.shape[:-1], "uint8")
        masks[learnt] = 1
        options = {"epochs": 12, "batch_size": 4, "learning_rate": 1e-2}
        vqvae = fit(volumes, masks=masks, background=0.0, **options)
        error = (vqvae.predict(volumes) - volumes) ** 2
        fronts.append(error[:, :5].mean())
        backs.append(error[:, 5:].mean())
    assert fronts[0] < fronts[1]
    assert backs[1] < backs[0]


def test_training_beyond_memory_is_refused(volumes, monkeypatch):
    monkeypatch.setattr(_backend, "free_memory", lambda strategy: 1e6)
    with pytest.raises(InputError, match="needs about .*`patch` .*`remat`"):
        fit(volumes)
    with pytest.raises(InputError, match="batch_size"):
        VQVAE(**TINY).check((100, 400, 400, 400, 1))
    monkeypatch.setattr(_backend, "free_memory", lambda strategy: 1e9)
    # Each step would have enough, and what looks at whole volumes would not.
    with pytest.raises(InputError, match="a larger voxel size"):
        VQVAE(**TINY).check((100, 400, 400, 400, 1), patch=32, batch_size=2)
    VQVAE(**TINY).check((100, 128, 128, 128, 1), patch=32, batch_size=2)
    # No larger than the images.
    VQVAE(**TINY).check((100, 32, 32, 32, 1), patch=400, batch_size=2)


@pytest.mark.tensorflow
def test_recomputing_needs_less_memory(monkeypatch):
    vqvae = VQVAE(**TINY | {"blocks": 3})
    needed = []
    for remat in (False, True):
        monkeypatch.setattr(_backend, "free_memory", lambda strategy: 0.0)
        with pytest.raises(InputError) as refusal:
            vqvae.check((9, 128, 128, 128, 1), batch_size=8, remat=remat)
        needed.append(float(re.search("about ([0-9.]+)", str(refusal.value))[1]))
    assert needed[1] < 0.7 * needed[0]


def test_a_cohort_twice_as_large_as_the_memory_trains(tmp_path):
    script = Path(__file__).with_name("train_in_little_memory.py")
    result = run_python(script, tmp_path, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "trained" in result.stdout


NOTHING, VOLUMES = np.zeros((16, 8, 8, 1)), np.zeros((16, 8, 8, 8, 1))


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        (NOTHING[..., 0], {}, "images\\[..., None\\]"),
        (NOTHING + np.nan, {}, "image 0 has NaN"),
        (NOTHING[:0], {}, "must have the shape"),
        (NOTHING[:8], {}, "fewer than a batch of 16"),
        (NOTHING + 3, {}, "all images are constant .3.; check how"),
        (NOTHING + np.r_[np.ones(7), 2e38][:, None], {}, "scale them down"),
        (NOTHING, {"epochs": 0}, "epochs must be at least 1"),
        (NOTHING, {"epochs": "2"}, "epochs must be a number"),
        (NOTHING, {"batch_size": 2.5}, "batch_size must be a whole"),
        (NOTHING, {"learning_rate": -1}, "above 0"),
        (NOTHING, {"learning_rate": "2"}, "must be above 0 and fin"),
        (NOTHING, {"precision": "float8"}, "float32, bfloat16"),
        (NOTHING, {"validation_data": NOTHING[..., 0]}, "\\(n, h, w"),
        (
            NOTHING,
            {"validation_data": np.zeros((2, 8, 9, 1))},
            r"validation_data must have the shape \('n', 8, 8, 1\) of the images",
        ),
        (NOTHING, {"validation_data": NOTHING + np.inf}, "validation image 0 has NaN"),
        (NOTHING, {"affine": np.eye(3)}, "affine must be a finite"),
        (NOTHING, {"affine": np.diag([1, 1, 0, 1])}, "finite, invertible 4 x 4"),
        (NOTHING, {"affine": np.diag([1, 1, np.nan, 1])}, "finite, invertible"),
        (NOTHING, {"affine": "RAS"}, "affine must be a finite"),
        (NOTHING, {"augment": True}, "must be an Augmentation, not True"),
        (NOTHING, {"init": 7}, "`init` must be a VQVAE or a file, not a int"),
        (NOTHING, {"epoch": 2}, "unknown option 'epoch'; choose one of images, "),
        (NOTHING, {"widths": (8, 0)}, "widths must be at least 1"),
        (NOTHING, {"n_codes": 0}, "n_codes must be at least 1"),
        (NOTHING, {"seed": -1}, "seed must be a whole number from 0"),
        (NOTHING, {"blocks": (1, 2)}, r"blocks must be a number, not \[1, 2\]"),
        (NOTHING, {"commitment": "0.25"}, "commitment must be a number, not .0.25."),
        (VOLUMES, {"patch": (4, 4)}, "one number or 3"),
        (VOLUMES, {"patch": 0}, "patch must be at least 1"),
        (VOLUMES, {"background": 2}, "between 0 and 1"),
        (VOLUMES, {"masks": NOTHING[..., 0]}, "masks must have the shape"),
        (VOLUMES, {"masks": VOLUMES[..., 0] + 1}, "masks have no effect"),
    ],
)
def test_fit_refuses_bad_input(images, options, sentence):
    with pytest.raises(InputError, match=sentence):
        fit(images, **options)


def test_fit_goes_on_at_another_rate_after_an_exploded_loss(blobs, tmp_path):
    interrupt = mock.Mock(side_effect=KeyboardInterrupt)
    path = tmp_path / "checkpoint"
    options = {"checkpoint": path, "epochs": 4}
    with pytest.raises(KeyboardInterrupt):
        fit(blobs, callbacks=[interrupt], **options)
    good = path.read_bytes()
    sentence = "became (nan|inf).* with a lower learning rate"
    with pytest.raises(InputError, match=sentence):
        fit(blobs, learning_rate=1e30, **options)
    assert path.read_bytes() == good
    history = fit(blobs, learning_rate=1e-3, **options).history_
    assert history["step"] == [4, 8, 12, 16]
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize(
    ("call", "shape", "options", "sentence"),
    [
        ("encode", (2, 13, 10, 2), {}, "images must have 1 channels"),
        ("encode", (2, 13, 10, 3, 1), {}, r"must have the shape \(n, h, w, channels"),
        ("encode", (2, 13, 10, 1), {"batch_size": -1}, "batch_size must be at least 1"),
        ("predict", (2, 13, 10, 1), {"tile": -4}, "tile must be at least 1"),
        ("decode", (2, 4, 3, 3), {}, r"\('n', 4, 3, 2\), not \(2, 4, 3, 3"),
        ("decode", (2, 4, 4, 2), {}, "and the size of the images"),
        ("decode", (0, 4, 3, 2), {}, "give what encode returned"),
        ("decode", (2, 4, 3, 2), {"space": (13,)}, "space must have 2 numbers, not 1"),
        ("decode", (2, 4, 3, 2), {"space": 13}, "space must have 2 numbers, not 1"),
        ("decode", (2, 4, 3, 2), {"space": (13, 0)}, "space must be at least 1, not 0"),
        ("decode", (2, 4, 3, 2), {"batch_size": 1.5}, "a whole number, not 1.5"),
        ("codes", (2, 4, 3, 1), {}, "latents must have 2 channels"),
    ],
)
def test_images_of_other_shapes_are_refused(vqvae, call, shape, options, sentence):
    with pytest.raises(InputError, match=sentence):
        getattr(vqvae, call)(np.zeros(shape), **options)


@pytest.mark.parametrize("call", ["encode", "predict"])
def test_images_of_another_range_are_refused(vqvae, blobs, call):
    for value in (np.nan, -np.inf):
        images = blobs[:9].copy()
        images[5, 3, 3] = value
        with pytest.raises(InputError, match="image 5 has NaN or infinite values"):
            getattr(vqvae, call)(images, batch_size=2)
    images[5] = 10 * blobs[5]
    sentence = "image 5 has values from -50 to .* outside the -5 to 19.9"
    with pytest.raises(InputError, match=sentence):
        getattr(vqvae, call)(images, batch_size=2)


def test_decode_refuses_latents_that_are_not_finite(vqvae):
    for value in (np.nan, -np.inf):
        with pytest.raises(InputError, match="latents have NaN or infinite values"):
            vqvae.decode(np.full((1, 4, 3, 2), value))


@pytest.fixture
def interrupted(monkeypatch):
    """Return what fits until networks are built."""
    monkeypatch.setattr(VQVAE, "_build", mock.Mock(side_effect=KeyboardInterrupt))

    def interrupted(images, **options):
        with pytest.raises(KeyboardInterrupt):
            fit(images, **options)

    return interrupted


def test_fit_warns_of_volumes_without_channels(interrupted, caplog):
    interrupted(np.random.default_rng(0).random((64, 8, 8, 8), "float32"))
    assert "(64, 8, 8, 8) are treated as 64 two-dimensional images" in caplog.text
    assert "images[..., None]" in caplog.text


def test_fit_warns_of_masks_without_effect(volumes, interrupted, caplog):
    masked = Volumes(volumes, np.ones(volumes.shape[:-1], "uint8"), np.eye(4), [])
    interrupted(masked, background=0.5)
    assert "have no effect" not in caplog.text
    interrupted(masked, background=1)
    assert "masks of the volumes have no effect while `background` is 1" in caplog.text


@pytest.mark.parametrize("make", [VQVAE, LatentDiffusion])
def test_validation_images_of_another_scale_are_refused_before_training(
    vqvae, blobs, make
):
    held_out = np.stack([blobs[0], 10 * blobs[1]])
    model = make(vqvae) if make is LatentDiffusion else make()
    with pytest.raises(InputError, match="^validation image 1 has values from"):
        model.fit(blobs, validation_data=held_out, callbacks=[pytest.fail], **FIT)


def test_another_fit_starts_afresh_and_numbers_of_numpy_are_as_pythons(
    vqvae, blobs, tmp_path, reset_layer_names
):
    chosen = {name: np.array(value) for name, value in TINY.items()}
    chosen |= {"commitment": np.float32(0.25), "seed": np.int64(0)}
    fit = FIT | {"batch_size": np.int64(16), "learning_rate": np.float64(4e-3)}
    again = copy.deepcopy(vqvae).set_params(**chosen)
    reset_layer_names()
    assert again.fit(blobs, checkpoint=tmp_path / "c", **fit) is again
    assert all(getattr(again, name) is value for name, value in chosen.items())
    assert_same_weights(again, vqvae)
    again.save(tmp_path / "m")
    assert_same_weights(VQVAE.load(tmp_path / "m"), vqvae)
    # One width is one level.
    one = VQVAE(**(TINY | {"widths": np.int64(8)}))
    assert one.factor == 2
    one.check(blobs.shape, **fit)


@pytest.mark.parametrize("call", ["predict", "encode", "decode", "codes", "save"])
def test_unfitted_names_the_call_to_make(call):
    with pytest.raises(InputError, match="call fit"):
        getattr(VQVAE(), call)(NOTHING)
    with pytest.raises(AttributeError, match="this VQVAE is not fitted; call fit"):
        VQVAE().codebook_  # noqa: B018


def test_fit_learns_dim_scans_in_few_steps(tmp_path, rng):
    file = get_fnames(name="aniso_vox")
    image = load_volumes([file], voxel_size=12, cache_dir=tmp_path).images[0]
    moves = ((rng.integers(-2, 3, 3), rng.uniform(0.7, 1.4)) for _ in range(6))
    # Mostly background, (20, 22, 20).
    scans = np.stack([np.roll(image, by, (0, 1, 2)) ** power for by, power in moves])
    options = {"augment": Augmentation(shift=2, intensity=0.05, noise=0.1)}
    vqvae = VQVAE().fit(scans, steps=24, batch_size=2, verbose=False, **options)
    assert np.corrcoef(scans.ravel(), vqvae.predict(scans).ravel())[0, 1] > 0.9
    assert (vqvae.history_["step"][-1], vqvae.history_["epoch"][-1]) == (24, 8)


def test_fit_warns_where_nothing_was_learnt(volumes, caplog, monkeypatch):
    class Mistaken(Codebook):
        """Takes another code than the nearest."""

        def nearest(self, vectors):
            return (super().nearest(vectors) + 1) % self.n_codes

    monkeypatch.setitem(BOTTLENECKS, "mistaken", Mistaken)
    options = {"batch_size": 8, "learning_rate": 1e-9, "patch": 8, "epochs": 1}
    fit(volumes, bottleneck="mistaken", **options)
    sentence = "after 2 steps the autoencoder's reconstructions are no better"
    assert sentence in caplog.text
    assert "train for more steps, with larger patches, or with" in caplog.text


def test_collapsed_codes_are_warned_of():
    stage = object.__new__(AutoencoderStage)
    sentence = stage.failure({"perplexity": 1.2})
    assert sentence.startswith("nearly all latents have the same code")


def test_validation_takes_a_tenth_of_the_time():
    images = np.zeros((50, 8, 8, 8, 1))
    stage = object.__new__(AutoencoderStage)
    stage.options = ResolvedOptions(epochs=1, batch_size=4)

    def kept(size, total=100):
        stage.data = run.TrainingData(images, survey(images), size)
        stage.length = Length(20, total)
        return stage.validation_subset(images)

    assert len(kept(size=(8, 8, 8))) == 25  # 24 and a bit
    assert len(kept(size=(4, 4, 4))) == 4
    # Of all the time there is, where a training ends before its first round does.
    assert len(kept(size=(8, 8, 8), total=4)) == 5


def test_few_dead_codes_are_revived_from_few_pieces(volumes, volume_vqvae):
    class Counted(np.ndarray):
        read = 0

        def __getitem__(self, key):
            if isinstance(key, int | np.integer):
                Counted.read += 1
            return super().__getitem__(key)

    many = np.tile(volumes, (8, 1, 1, 1, 1)).view(Counted)
    draw = partial(draw_vectors, volume_vqvae._codec, many, (4, 4, 4))
    assert draw(np.random.default_rng(0), 1).shape == (1, 2)
    assert 0 < Counted.read <= 16
    assert draw(np.random.default_rng(0), 200).shape == (200, 2)


class Rounded:
    """Encodes images as their numbers, with a rounding that depends on how many."""

    parameters = SimpleNamespace(latent_shape=lambda space: (1, 1, 1))

    def encode(self, images):
        return images[:, :1, :1] + np.float32(1e-6 * len(images))


def numbered(n):
    return np.tile(np.arange(n, dtype="float32")[:, None, None, None], (1, 4, 4, 1))


def test_draw_vectors_on_any_number_of_devices():
    two = SimpleNamespace(extended=SimpleNamespace(worker_devices=("CPU:0", "CPU:0")))

    def draw():
        rng = np.random.default_rng(0)
        return draw_vectors(Rounded(), numbered(40), (4, 4), rng, 30)

    one = draw()
    with _backend.distributed(two):
        npt.assert_array_equal(draw(), one)


def test_draw_vectors_without_repetition(rng):
    drawn = draw_vectors(Rounded(), numbered(40), (4, 4), rng, 90)
    times = np.bincount(np.rint(drawn[:, 0]).astype(int), minlength=40)
    assert set(times) == {2, 3}


def test_fit_begins_from_another(vqvae, blobs):
    # Parameters that are None are those of what it begins from.
    new = fit(blobs[:16], init=vqvae, code_dim=None, epochs=1, learning_rate=1e-9)
    assert (new.code_dim, new.n_codebooks) == (None, None)
    assert_same_weights(new, vqvae, atol=1e-6)


def test_fit_begins_from_a_file_and_goes_on_from_its_own(vqvae, blobs, tmp_path):
    vqvae.save(tmp_path / "v.safetensors")
    options = {"checkpoint": tmp_path / "c", "init": tmp_path / "v.safetensors"}
    new = fit(blobs[:32], **options)
    assert_same_weights(fit(blobs[:32], **options), new)
    with pytest.raises(InputError, match="init was .* and is None"):
        fit(blobs[:32], **options | {"init": None})


def test_fit_draws_weights_of_other_shapes(vqvae, caplog):
    images = np.random.default_rng(0).random((16, 13, 10, 2))
    new = fit(images, init=vqvae)
    assert new.encode(images).shape == (16, 4, 3, 2)
    assert new.predict(images[:2]).shape == (2, 13, 10, 2)
    assert "weights start at random: those of `init` have other shapes" in caplog.text


@pytest.mark.parametrize(
    ("parameters", "space", "message"),
    [
        ({"widths": (16, 16)}, (8, 8), "`init` has other networks"),
        ({"blocks": 2}, (8, 8), "`init` was trained with blocks = 1, not 2"),
        ({}, (8, 8, 8), "`init` is for images of 2 dimensions, and these have 3"),
    ],
)
def test_refused_init_leaves_the_estimator_as_it_was(vqvae, parameters, space, message):
    new = VQVAE(**TINY | parameters)
    images = np.random.default_rng(0).random((16, *space, 1))
    with pytest.raises(InputError, match=message):
        new.fit(images, init=vqvae, **FIT)
    assert not hasattr(new, "shape_")


def test_a_fit_that_ends_before_its_first_step_leaves_the_estimator_as_it_was(
    vqvae, blobs, monkeypatch
):
    other = pickle.loads(pickle.dumps(vqvae)).set_params(seed=1)
    before = other.predict(blobs[:4])

    def stop_with(error):
        def stop(*_):
            raise error

        monkeypatch.setattr("dipy_ldm.vqvae.train", stop)

    for error in (InputError("another checkpoint"), KeyboardInterrupt("Ctrl-C")):
        stop_with(error)
        with pytest.raises(type(error), match=str(error)):
            other.fit(blobs, **FIT)
        npt.assert_array_equal(other.predict(blobs[:4]), before)
    new = VQVAE(**TINY)
    with pytest.raises(KeyboardInterrupt):
        new.fit(blobs, **FIT)
    with pytest.raises(InputError, match="is not fitted"):
        new.predict(blobs[:4])


def test_adapt_to_other_images(vqvae):
    images = 7 * np.random.default_rng(0).random((4, 9, 22, 1)) - 3
    other = pickle.loads(pickle.dumps(vqvae))
    assert other.adapt(images, affine=np.eye(4), suffix="T1w") is other
    assert (other.shape_, other.suffix_) == ((9, 22, 1), "T1w")
    assert other.intensity_ == (images.astype("f4").min(), images.astype("f4").max())
    npt.assert_array_equal(other.codebook_, vqvae.codebook_)
    (low, high), (first, last) = vqvae.intensity_, other.intensity_
    alike = low + (high - low) * (images - first) / (last - first)
    npt.assert_allclose(other.encode(images), vqvae.encode(alike), atol=1e-4)
    other.adapt(images, channels=["T1w"])
    assert [channel.name for channel in other.channels_] == ["T1w"]
    with pytest.raises(InputError, match="with 1 channel, and these have 2 with 3"):
        other.adapt(np.zeros((2, 8, 8, 3)))
    # Of labels, not of the columns that they take.
    segmentation = (Labels("dseg", labels=(1, 2)),)
    with pytest.raises(InputError, match="labels"):
        other.adapt(np.zeros((2, 8, 8, 2)), channels=segmentation)


def test_packaged_autoencoder_reconstructs_a_brain_that_it_never_saw():
    brain = load_mni152_template(resolution=4).get_fdata()[None, ..., None]
    vqvae = VQVAE.load("volumes").adapt(brain)
    assert vqvae.shape_ == brain.shape[1:]
    # 27.5 dB, of another size and voxel size than its training's.
    assert psnr(vqvae.predict(brain) / brain.max(), brain / brain.max()) > 27
