"""Conditional models: requested conditions, none, saved models, resumed training."""

import copy
from functools import partial
import json
import logging
import pickle
from unittest import mock

from batches import with_inputs
from keras import ops
from models import assert_same_weights
import numpy as np
import numpy.testing as npt
import pandas as pd
from processes import StopError, stop_after
import pytest
from sklearn.base import clone

from dipy_ldm import LatentDiffusion, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.denoiser import _networks as networks, _training as diffusion
from dipy_ldm.denoiser._training import ablation_gains
from dipy_ldm.evaluation._memorization import denoising_losses
from dipy_ldm.evaluation.audit import Reference, _within_range
from dipy_ldm.nn._layers import ConditionFeatures

TINY = {"widths": (8,), "blocks": 1}
FIT = {"epochs": 6, "batch_size": 16, "verbose": False, "precision": "float32"}


@pytest.fixture(scope="module")
def blob_conditions(blobs):
    """Say where each blob is: the row as a number, the side as a class."""
    places = blobs[..., 0].reshape(len(blobs), -1).argmax(1)
    rows, columns = np.divmod(places, 10)
    sides = np.where(columns < 5, "left", "right").tolist()
    return {"row": rows + 0.5, "side": [*sides[:-1], None]}


def take_first(conditions, stop):
    return {name: values[:stop] for name, values in conditions.items()}


@pytest.fixture(scope="module")
def conditional_model(vqvae, blobs, blob_conditions):
    model = LatentDiffusion(vqvae, **TINY)
    held_out = {
        "validation_data": blobs[:9],
        "validation_conditions": take_first(blob_conditions, 9),
    }
    return model.fit(blobs, blob_conditions, **held_out, **FIT)


def test_fit_records_conditions(conditional_model, blob_conditions, tmp_path):
    assert list(conditional_model.conditions_) == ["row", "side"]
    row, side = conditional_model.conditions_.values()
    assert (row.kind, row.quantiles[0]) == ("continuous", blob_conditions["row"].min())
    counts = {
        level: blob_conditions["side"].count(level) for level in ("left", "right")
    }
    assert (side.levels, side.missing) == (counts, 1 / 64)
    gains = {"val_gain_row", "val_gain_side"}
    assert set(conditional_model.history_) == {
        "step",
        "epoch",
        "loss",
        "val_loss",
        *gains,
    }
    conditional_model.save(tmp_path / "m")
    saved = _serialization.read_document(tmp_path / "m")["latent_diffusion_history"]
    assert saved["val_gain_row"] == conditional_model.history_["val_gain_row"]


def test_requested_conditions_change_samples(conditional_model):
    options = {"seed": 1, "steps": 3}
    unconditional = conditional_model.predict(2, conditions="none", **options)
    conditioned = conditional_model.predict(
        2, conditions={"side": "left", "row": 3}, **options
    )
    assert np.abs(conditioned - unconditional).max() > 1e-3
    nothing = {"side": "none", "row": ["none", "none"]}
    npt.assert_array_equal(
        conditional_model.predict(2, conditions=nothing, **options), unconditional
    )


def test_unspecified_conditions_are_drawn(conditional_model):
    options = {"seed": 1, "steps": 3}
    drawn = conditional_model.draw_conditions(4, seed=1)
    assert set(drawn["side"]) <= {"left", "right"} and len(set(drawn["row"])) > 2
    whole = conditional_model.predict(4, conditions=drawn, **options)
    assert (
        np.abs(whole - conditional_model.predict(4, conditions="none", **options)).max()
        > 1e-3
    )
    for nothing in (None, {}, {"side": None}, {"side": ["n/a"] * 4, "row": np.nan}):
        same = conditional_model.predict(4, conditions=nothing, **options)
        npt.assert_array_equal(same, whole)
    alone = conditional_model.predict(1, first=2, **options)
    npt.assert_allclose(alone, whole[2:3], atol=1e-3)
    one = conditional_model.draw_conditions(4, {"row": 3}, seed=1, same_noise=True)
    assert len(set(one["side"])) == 1


def test_membership_uses_conditions_that_all_images_have(
    conditional_model, blobs, blob_conditions
):
    few = take_first(blob_conditions, 40)

    def shared(*conditions):
        own = Reference(conditional_model, blobs, blobs, conditions=conditions)
        return own.with_shared_conditions().conditions

    assert [set(x) for x in shared(few, few)] == [{"row", "side"}] * 2
    lacking = blob_conditions, few | {"side": ["above"] * 40}, {"row": few["row"]}
    for other in lacking:
        assert [set(own) for own in shared(few, other)] == [{"row"}] * 2
    assert shared(few, None) == (None, None)
    # Of what lies beyond the training, another value would be told.
    beyond = few | {"row": [1e6, *few["row"][1:]]}
    assert _within_range(conditional_model, beyond, 40) == [*range(1, 40)]
    assert _within_range(conditional_model, None, 3) == [0, 1, 2]
    losses = [
        denoising_losses(conditional_model, blobs[:8], conditions=x)
        for x in (None, few)
    ]
    assert not np.allclose(*losses)


def test_denoise_draws_no_conditions(conditional_model, blobs):
    conditioned, *unconditional = (
        conditional_model.denoise(blobs[:2], conditions=conditions, strength=1)
        for conditions in ({"side": "left"}, None, "none", {"row": "none"})
    )
    assert np.abs(conditioned - unconditional[0]).max() > 1e-3
    npt.assert_array_equal(unconditional[1:], [unconditional[0]] * 2)


def test_each_sample_has_its_own_conditions_whatever_the_batch(conditional_model):
    conditions = {"row": [2, 5, 9], "side": ["left", None, "right"]}
    options = {"seed": 1, "steps": 3}
    whole = conditional_model.predict(conditions=conditions, **options)
    assert len(whole) == 3
    pieces = conditional_model.predict(
        3, conditions=conditions, batch_size=2, **options
    )
    npt.assert_allclose(pieces, whole, atol=1e-3)
    last = {"row": 9, "side": "right"}
    alone = conditional_model.predict(
        1, first=2, conditions=last, batch_size=1, **options
    )
    npt.assert_allclose(alone, whole[2:], atol=1e-3)


def test_predict_with_the_same_noise(conditional_model):
    options = {"first": 4, "steps": 3}
    conditions = {"row": [3, 8, 3], "side": ["left", "right", "left"]}
    images = conditional_model.predict(
        3, conditions=conditions, same_noise=True, **options
    )
    npt.assert_allclose(images[0], images[2], atol=1e-4)
    assert np.abs(images[0] - images[1]).max() > 1e-3
    alone = conditional_model.predict(
        1, conditions={"row": 8, "side": "right"}, **options
    )
    npt.assert_allclose(images[1:2], alone, atol=1e-3)


def test_denoiser_depends_on_conditions(conditional_model):
    x = np.random.default_rng(0).standard_normal((3, *conditional_model.latent_shape_))
    one = np.asarray(conditional_model.denoiser(conditions={"row": 5})(x, 0.6))
    each = np.asarray(conditional_model.denoiser(conditions={"row": [5, 5, 2]})(x, 0.6))
    npt.assert_allclose(each[:2], one[:2], atol=1e-5)
    assert np.abs(each[2] - one[2]).max() > 1e-4


def test_guidance_extrapolates_from_a_less_conditioned_guide(
    conditional_model, monkeypatch
):
    x = np.random.default_rng(0).standard_normal((2, *conditional_model.latent_shape_))
    requested = {"row": 5, "side": "left"}
    alone, guided, guide, unconditional = (
        np.asarray(conditional_model.denoiser(guidance, conditions)(x, 0.6))
        for guidance, conditions in (
            (1, requested),
            (3, requested),
            (0, requested),
            (0, "none"),
        )
    )
    npt.assert_allclose(guided, 3 * alone - 2 * guide, atol=1e-4)
    monkeypatch.setattr(networks, "UNCONDITIONAL_SHARE", 0)
    conditional = np.asarray(conditional_model.denoiser(0, requested)(x, 0.6))
    npt.assert_allclose(guide, 0.9 * conditional + 0.1 * unconditional, atol=1e-4)
    assert np.abs(conditional - unconditional).max() > 1e-3


def test_predict_warns_of_numbers_outside_the_training_range(conditional_model, caplog):
    with caplog.at_level(logging.WARNING):
        far = conditional_model.predict(1, conditions={"row": 99}, steps=2)
    assert "row 99 is outside the model's range of 2.5 to " in caplog.text
    last = conditional_model.conditions_["row"].quantiles[-1]
    npt.assert_array_equal(
        conditional_model.predict(1, conditions={"row": last}, steps=2), far
    )


def test_invalid_requests_are_refused(conditional_model, blobs):
    sentence = "row must have one value or 2, one for each image, not 3"
    for ask in (
        partial(conditional_model.predict, 2),
        partial(conditional_model.denoise, blobs[:2]),
    ):
        with pytest.raises(InputError, match=sentence):
            ask(conditions={"row": [1, 2, 3]})


def test_a_model_without_conditions_refuses_them(diffusion, blobs):
    assert diffusion.conditions_ == {}
    assert diffusion.to_document()["conditions"] == {}
    assert len(diffusion.denoiser_.inputs) == 2
    denoise = partial(diffusion.denoise, blobs[:1])
    sentence = "this model was trained without conditions"
    for ask in (diffusion.predict, diffusion.denoiser, denoise):
        with pytest.raises(InputError, match=sentence):
            ask(conditions={"age": 70})


def test_invalid_training_conditions_are_refused(vqvae, blobs, blob_conditions):
    model = LatentDiffusion(vqvae, **TINY)
    validation = {"validation_conditions": blob_conditions}
    nine = {"validation_data": blobs[:9], "validation_conditions": {"row": [1, 2]}}
    for conditions, options, sentence in (
        (
            take_first(blob_conditions, 9),
            {},
            "row must have 64 values, one for each image, not 9",
        ),
        (None, validation, "no effect without conditions"),
        (blob_conditions, validation, "without validation_data"),
        (blob_conditions, nine, "row must have one value or 9"),
    ):
        with pytest.raises(InputError, match=sentence):
            model.fit(blobs, conditions, **options, **FIT)


@pytest.mark.parametrize("how", ["file", "half", "pickle"])
def test_copies_keep_conditions(conditional_model, tmp_path, how, undecoded):
    near = {"atol": 1e-4}
    if how == "pickle":
        model = pickle.loads(pickle.dumps(conditional_model))
    else:
        conditional_model.save(tmp_path / "m", half=how == "half")
        model = LatentDiffusion.load(tmp_path / "m")
    if how == "half":
        near["atol"] = 5e-3
        conditional_model.save(tmp_path / "whole")
        whole, half = ((tmp_path / name).stat().st_size for name in ("whole", "m"))
        assert half < 0.65 * whole
        assert_same_weights(model, conditional_model, atol=1e-6, rtol=1e-3)
    else:
        assert_same_weights(model, conditional_model)
    assert model.conditions_ == conditional_model.conditions_
    assert model.population_ == conditional_model.population_ is not None
    assert model.history_ == conditional_model.history_
    requested = {"row": [2, None], "side": "right"}
    first, second = (
        m.predict(conditions=requested, steps=3) for m in (model, conditional_model)
    )
    npt.assert_allclose(first, second, **near)


def test_clones_and_further_fits_forget_conditions(conditional_model, blobs):
    assert not hasattr(clone(conditional_model), "conditions_")
    again = copy.deepcopy(conditional_model).set_params(guide=False)
    labels = np.arange(64) % 3
    again.fit(blobs, labels, **(FIT | {"epochs": 1}))
    assert list(again.conditions_) == ["label"]
    assert again.predict(conditions=[0, 1, 2], steps=1).shape == (3, 13, 10, 1)
    # Without a guide, guidance leads away from what is not specified.
    x = np.random.default_rng(0).standard_normal((3, *again.latent_shape_))
    guided, alone, unconditional = (
        np.asarray(again.denoiser(guidance, condition)(x, 0.6))
        for guidance, condition in ((3, 1), (1, 1), (1, None))
    )
    npt.assert_allclose(guided, 3 * alone - 2 * unconditional, atol=1e-5)
    assert np.abs(guided - alone).max() > 1e-6
    with pytest.raises(InputError, match="a guidance of 3 needs conditions"):
        again.predict(2, conditions="none", guidance=3)
    with pytest.raises(InputError, match="a guidance of 3 needs conditions"):
        again.denoiser(3)
    # The default guides away from nothing where nothing is asked for.
    alone = again.predict(2, conditions="none", steps=1)
    with mock.patch.object(LatentDiffusion, "default_guidance", 3.0):
        npt.assert_array_equal(again.predict(2, conditions="none", steps=1), alone)
    assert list(conditional_model.conditions_) == ["row", "side"]


def test_resumed_training_is_the_uninterrupted(
    conditional_model, vqvae, blobs, blob_conditions, tmp_path
):
    # A guide makes no difference to the denoiser, and that it resumes is tested with
    # the commands.
    held_out = {
        "validation_data": blobs[:9],
        "validation_conditions": take_first(blob_conditions, 9),
    }
    options = held_out | FIT | {"checkpoint": tmp_path / "checkpoint"}
    model = LatentDiffusion(vqvae, guide=False, **TINY)
    with pytest.raises(StopError):
        model.fit(blobs, blob_conditions, callbacks=[stop_after(1)], **options)
    shuffled = blob_conditions | {"row": blob_conditions["row"][::-1]}
    for other in (None, shuffled, {"row": blob_conditions["row"]}):
        wrong = options | {"validation_conditions": other and take_first(other, 9)}
        with pytest.raises(InputError, match=r"another training \(conditions was row"):
            LatentDiffusion(vqvae, guide=False, **TINY).fit(blobs, other, **wrong)
    resumed = LatentDiffusion(vqvae, guide=False, **TINY).fit(
        blobs, blob_conditions, **options
    )
    assert_same_weights(resumed, conditional_model, atol=1e-5)
    for name, values in conditional_model.history_.items():
        npt.assert_allclose(resumed.history_[name], values, rtol=1e-4, atol=1e-5)


@pytest.fixture
def begin(monkeypatch):
    """Return what begins a fit, up to the latents that it learns from and holds out."""

    def stop(denoiser, *latents):
        raise StopError(*latents[:2])

    monkeypatch.setattr(diffusion, "stages", stop)

    def begin(model, *data, **options):
        with pytest.raises(StopError) as stopped:
            model.fit(*data, **options)
        return stopped.value.args

    return begin


def test_fit_uses_subjects(vqvae, blobs, blob_conditions, begin):
    options = FIT | {"validation_data": blobs[:4]}
    options["validation_conditions"] = take_first(blob_conditions, 4)
    one_subject = ["sub-1"] * 64
    for subjects, expected in ((None, True), (one_subject, False)):
        model = LatentDiffusion(vqvae, **TINY)
        groups = {"subjects": subjects, "validation_subjects": ["a", "b", "a", "c"]}
        latents, held_out = begin(model, blobs, blob_conditions, **groups, **options)
        npt.assert_array_equal(held_out.subjects, [0, 1, 0, 2])
        # Of one subject nothing is known of others.
        assert latents.conditional_mean.weights.any() == expected
        assert not hasattr(model, "conditional_mean_")
    model = LatentDiffusion(vqvae, **TINY)
    for groups, sentence in (
        ({"subjects": ["a"]}, "`subjects` must have a subject for each of 64"),
        (
            {
                "subjects": one_subject,
                "validation_subjects": ["a", "sub-1", None, None],
            },
            "^sub-1 are in both `subjects` and",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            model.fit(blobs, blob_conditions, **groups, **options)


def test_ablation_gains_warn_of_conditions_without_effect(caplog, rng):
    table = np.column_stack([rng.random(40), np.arange(40) % 2, np.full(40, -1.0)])
    table[:4, 1] = -1
    noise = rng.random(40)

    def losses(other):
        wrong = np.abs(other[:, 1] - table[:, 1])
        return noise + 0.2 * wrong

    subjects = np.arange(40) % 20
    with caplog.at_level(logging.WARNING):
        gains = ablation_gains(losses, table, subjects, ["a", "b", "c"], warn=True)
    # Of the third, no image has a value.
    assert gains == {"val_gain_a": 0, "val_gain_b": pytest.approx(0.2)}
    assert "condition a has no measurable effect" in caplog.text
    assert "20 subjects" in caplog.text
    assert "condition b" not in caplog.text
    assert "condition c" not in caplog.text  # known of none
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ablation_gains(losses, table, np.arange(40) % 9, ["a"], warn=True)
    assert not caplog.text, "nine subjects can't carry a verdict"
    table[4:, 0] = 0.5
    table[:4, 0] = -1
    with caplog.at_level(logging.WARNING):
        gains = ablation_gains(losses, table, subjects, ["a", "b"], warn=True)
    assert "val_gain_a" not in gains, "of one value there is no effect to be told"
    assert not ablation_gains(losses, table, np.zeros(40), ["a", "b"], warn=True)


def test_few_validation_latents_are_repeated():
    latents = with_inputs(np.zeros((5, 2, 1)), np.arange(5)[:, None])
    numbered = latents.for_validation()
    assert numbered.clean.shape == (35, 2, 1)
    table = numbered.inputs.table
    npt.assert_array_equal(table[:, 0], table[:, 1])
    # Those of a subject are one of which the mean is taken.
    latents = latents._replace(subjects=np.array([0, 1, 1, 0, 2]))
    numbered = latents.for_validation()
    npt.assert_array_equal(numbered.inputs.table[:5, 1], [0, 1, 1, 0, 2])
    npt.assert_array_equal(numbered.subjects, numbered.inputs.table[:, 1])


def test_digits_follow_the_requested_labels(digits, caplog):
    images, names, vqvae = digits
    held_out = {"validation_data": images[:100], "validation_conditions": names[:100]}
    model = LatentDiffusion(vqvae, widths=(32,), guide=False)
    options = {"epochs": 6, "batch_size": 32, "verbose": False}
    with caplog.at_level(logging.WARNING):
        model.fit(images[100:], names[100:], **held_out, **options)
    assert "no measurable effect" not in caplog.text
    assert model.history_["val_gain_label"][-1] > 0.1
    requested = np.repeat(["naught", "one", "two"], 20)
    samples = model.predict(conditions=requested).reshape(60, -1)
    means = np.stack(
        [images[names == name].mean(0).ravel() for name in requested[::20]]
    )
    nearest = np.argmin(((samples[:, None] - means) ** 2).sum(-1), 1)
    assert np.mean(requested[::20][nearest] == requested) > 0.85
    # Where they tell nothing, that is said.
    held_out = held_out | {"validation_conditions": np.roll(names[:100], 1)}
    options["epochs"] = 3
    with caplog.at_level(logging.WARNING):
        model.fit(images[100:], np.roll(names[100:], 1), **held_out, **options)
    assert "the condition label has no measurable effect" in caplog.text


def test_condition_features_have_length_one():
    layer = ConditionFeatures([3, 0])
    encoded = np.array([[0, 0.0], [2, 1.0], [-1, 0.4], [1, -1]], "float32")
    features = ops.convert_to_numpy(layer(encoded))
    assert features.shape == layer.compute_output_shape((4, 2)) == (4, 21)
    npt.assert_allclose(np.linalg.norm(features[:, :4], axis=1), 1, rtol=1e-6)
    npt.assert_allclose(np.linalg.norm(features[:, 4:], axis=1), 1, rtol=1e-6)
    npt.assert_array_equal(features[:, :4].argmax(1), [1, 3, 0, 2])
    npt.assert_array_equal(features[:, 4], [0, 0, 0, 1])
    again = ConditionFeatures.from_config(json.loads(json.dumps(layer.get_config())))
    npt.assert_array_equal(ops.convert_to_numpy(again(encoded)), features)


def test_load_refuses_invalid_conditions(conditional_model, assert_unreadable):
    tensors, document = conditional_model.to_tensors(), conditional_model.to_document()
    row, side = (document["conditions"][name] for name in ("row", "side"))
    for wrong in (
        [],
        {"row": row | {"kind": "number"}, "side": side},
        {"row": row | {"quantiles": [3, 2]}, "side": side},
        {"row": row | {"quantiles": [3, 3]}, "side": side},
        {"row": row, "side": side | {"levels": {}}},
        {"row": row, "side": side | {"levels": {"left": -1, "right": 2}}},
        {"row": row, "side": side | {"missing": 2}},
        {"row": row, "side": side | {"colour": 2}},
        {"row": row, "": side},
    ):
        changed = document | {"conditions": wrong}
        assert_unreadable(tensors, changed, "conditions can't be")
    # Others than those of which there are weights.
    more = document["conditions"] | {"age": row}
    for conditions in ({}, more):
        changed = document | {"conditions": conditions}
        assert_unreadable(tensors, changed, "is damaged")


def test_load_refuses_invalid_populations(conditional_model, assert_unreadable):
    tensors, document = conditional_model.to_tensors(), conditional_model.to_document()
    right = document["population"]
    unfit = "must have cells that match the conditions"
    for wrong, sentence in (
        ([], "population can't be"),
        (right | {"bins": 0}, "population can't be"),
        (right | {"cells": [[[0, 0], [-2, 0]]]}, "population can't be"),
        (right | {"cells": [[[0, 0], [1, 0]]]}, "population can't be"),
        (right | {"cells": [[[0, 0], [1]]]}, "population can't be"),
        (right | {"counts": right["counts"][1:]}, unfit),
        (right | {"cells": [], "counts": []}, unfit),
        (right | {"cells": [[[0, 0]]], "counts": [9]}, unfit),
        (right | {"cells": [[[0, 0], [0, 99]]], "counts": [9]}, unfit),
    ):
        assert_unreadable(tensors, document | {"population": wrong}, sentence)


def test_load_files_without_a_conditional_mean():
    older = LatentDiffusion.load("mnist")
    assert list(older.conditions_) == ["label"]
    assert older.conditional_mean_ is None
    both = [older.predict(1, conditions={"label": n}, steps=2) for n in (0, 1)]
    assert np.abs(both[0] - both[1]).max() > 0.5


def test_load_refuses_a_conditional_mean_of_another_shape(
    conditional_model, assert_unreadable
):
    tensors, document = conditional_model.to_tensors(), conditional_model.to_document()
    weights = tensors.pop("expectation")
    assert weights.shape == (5, *conditional_model.latent_shape_)
    # Without it, the networks would be others.
    for changed, sentence in (
        ({}, "the tensor denoiser.003 has the shape"),
        ({"expectation": weights[:4]}, "the tensor expectation has the shape"),
        ({"expectation": weights[..., :1]}, "the tensor expectation has the shape"),
    ):
        assert_unreadable(tensors | changed, document, sentence)


def test_conditional_mean_is_used_from_the_first_step(vqvae, blobs, blob_conditions):
    model = LatentDiffusion(vqvae, guide=False, **TINY)
    held_out = {"validation_data": blobs, "validation_conditions": blob_conditions}
    model.fit(blobs, blob_conditions, **held_out, **FIT | {"epochs": 1})
    assert model.history_["val_gain_row"][0] > 0.01
    assert model.history_["val_gain_side"][0] > 0.01


def test_interrupted_fit_keeps_the_earlier_fit(conditional_model, blobs, monkeypatch):
    model = copy.deepcopy(conditional_model)
    interrupt = mock.Mock(side_effect=KeyboardInterrupt)
    for step in ("_learn_latents", "_encode_held_out", "_build"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(LatentDiffusion, step, interrupt)
            model.fit(blobs, {"age": np.linspace(20, 80, len(blobs))}, **FIT)
        assert model.to_document() == conditional_model.to_document(), step
    assert_same_weights(model, conditional_model)
    requested = {"row": 3, "side": "left"}
    same = [
        m.predict(conditions=requested, steps=2) for m in (model, conditional_model)
    ]
    npt.assert_allclose(*same, atol=1e-4)
    with pytest.raises(InputError, match="age"):
        model.predict(conditions={"age": 70})


def test_rows_of_a_table_follow_the_subjects(vqvae, blobs, begin):
    images = blobs[:12]
    subjects = [f"sub-{i:02}" for i in np.random.default_rng(0).permutation(12)]
    ink = [float(name[-2:]) for name in subjects]
    frame = pd.DataFrame({"ink": ink}, subjects)
    options = FIT | {"batch_size": 4, "subjects": subjects}
    model = LatentDiffusion(vqvae, **TINY)
    in_order, by_name = (
        begin(model, images, conditions, **options)[0].inputs.table
        for conditions in ({"ink": ink}, frame.sort_index())
    )
    npt.assert_array_equal(by_name, in_order)
    with pytest.raises(InputError, match="1 of 12 images have no row"):
        model.fit(images, frame[1:], **options)
    del options["subjects"]
    with pytest.raises(InputError, match="give the subjects of the images"):
        model.fit(images, frame, **options)
