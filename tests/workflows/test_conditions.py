"""Conditions on the command line: learnt, asked for, and said beside the outputs."""

import csv
import json
import os
from pathlib import Path
import subprocess
import sys

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import answer, execute, load_model
import pytest
from scans import comment_of

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm._conditions import Condition, to_saved
from dipy_ldm._serialization import read_document
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import load_mnist
from dipy_ldm.workflows import _inputs
from dipy_ldm.workflows._conditions import (
    RequestedConditions,
    count_requested,
    parse_conditions,
)

AFFINE = np.diag([2.0, 2, 2, 1])
OLDER = Path(__file__).parents[1] / "files" / "format-11.safetensors"
FIT = {"steps": 4, "batch_size": 4, "verbose": False, "precision": "float32"}


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    """Return a model of tiny volumes that knows conditions, and a volume."""
    folder = tmp_path_factory.mktemp("conditions")
    volumes = np.random.default_rng(0).random((8, 8, 9, 10, 1), "float32")
    vqvae = VQVAE(widths=(4,), n_codes=4, code_dim=1)
    vqvae.fit(volumes, affine=AFFINE, **FIT)
    model = LatentDiffusion(vqvae, widths=(4,), guide=False)
    ages = np.linspace(50, 80, 8)
    model.fit(volumes, {"age": ages, "group": ["control", "patient"] * 4}, **FIT)
    model.save(folder / "m.safetensors")
    image = nib.Nifti1Image(volumes[0, ..., 0], AFFINE)
    nib.save(image, folder / "scan.nii.gz")
    return folder


def test_generated_volumes_record_requested_conditions(brains):
    how = ("--steps", 2, "--first_sample", 3, "--same_noise")
    conditions = ("--conditions", "age=60,99", "group=control")
    execute("generate", "m.safetensors", *how, *conditions, cwd=brains)
    model = load_model(brains / "m.safetensors")
    for number, age in ((3, 60), (4, 99)):
        facts = json.loads((brains / f"samples-000{number}.json").read_text())
        asked = {"age": age, "group": "control"}
        assert facts["Conditions"] == asked
        assert facts["SameNoise"] is True
        warned = "age 99 is outside the model's range" in str(facts.get("Warnings"))
        assert warned == (age == 99)
        image = nib.load(brains / f"samples-000{number}.nii.gz")
        assert comment_of(image)["Conditions"] == asked
        wanted = model.predict(1, conditions=asked, first=3, steps=2)
        npt.assert_allclose(image.get_fdata(), wanted[0, ..., 0], atol=1e-4)


@pytest.mark.parametrize("words", [(), ("none",), ("group=control",)])
def test_drawn_conditions_are_recorded_as_drawn(brains, command, words):
    stem = f"drawn-{len(words)}{words == ('none',)}"
    asked = ("--conditions", *words) if words else ()
    given = (brains / "m.safetensors", "--steps", 2, "--n_samples", 2, "--seed", 5)
    command("generate", *given, "--out_samples", stem, *asked)
    model = load_model(brains / "m.safetensors")
    request = {"group": "control"} if len(words) and "=" in words[0] else None
    drawn = model.draw_conditions(2, request, seed=5)
    request = "none" if words == ("none",) else request
    images = model.predict(2, conditions=request, seed=5, steps=2)
    for number, image in enumerate(images):
        facts = json.loads(Path(f"{stem}-000{number}.json").read_text())
        file = nib.load(f"{stem}-000{number}.nii.gz")
        npt.assert_allclose(file.get_fdata(), image[..., 0], atol=1e-4)
        said = comment_of(file)["Conditions"]
        assert said == facts["Conditions"]
        if request == "none":
            assert said == {"age": "n/a", "group": "n/a"}
            assert "DrawnConditions" not in facts
            continue
        assert said == {name: values[number] for name, values in drawn.items()}
        assert facts["DrawnConditions"] == (["age"] if request else ["age", "group"])


def test_difference_is_the_effect_of_conditions(brains):
    given = ("m.safetensors", "scan.nii.gz", "--strength", 1, "--difference")
    for name, more in {
        "plain": (),
        "asked": ("--conditions", "age=50", "group=control", "--repeats", 2),
    }.items():
        execute("denoise", *given, "--out_denoised", name, *more, cwd=brains)
    facts = json.loads((brains / "scan_asked.json").read_text())
    first = facts["Noise"]
    assert facts["Conditions"] == {"age": 50, "group": "control"}
    assert "Difference" not in facts
    facts = json.loads((brains / "scan_asked_difference.json").read_text())
    assert facts["Difference"] == "result without conditions minus result"
    facts = json.loads((brains / "scan_plain_difference.json").read_text())
    assert facts["Difference"] == "scan minus result"

    def read(name):
        return nib.load(brains / f"{name}.nii.gz").get_fdata()

    taken = read("scan") - read("scan_plain")
    npt.assert_allclose(read("scan_plain_difference"), taken, atol=1e-5)
    model = load_model(brains / "m.safetensors")
    images = read("scan")[None, ..., None]

    def denoise(asked):
        how = {"strength": 1, "conditions": asked}
        results = [model.denoise(images, first=first + i, **how) for i in range(2)]
        return np.mean(results, axis=0)[0, ..., 0]

    changed = denoise(None) - denoise({"age": 50, "group": "control"})
    assert np.abs(changed).max() > 1e-3
    # In the intensities of the scan, which are those of the model but for a percentile.
    found = read("scan_asked_difference")
    # A latent between two codes may become either, by rounding.
    assert np.isclose(found, changed, rtol=0.02, atol=1e-4).mean() > 0.9


def test_words_of_a_command():
    site = Condition("class", {"Boston, MA": 9, "Leeds": 9}, [])
    document = {"conditions": to_saved({"site": site})}
    words = ["age=70", "sex=F,M", "site=Boston, MA"]
    parsed = {"age": "70", "sex": ["F", "M"], "site": "Boston, MA"}
    assert parse_conditions(words, document) == parsed
    for words in (["age"], ["=70"], ["age=70", "age=60"]):
        with pytest.raises(InputError, match="must be name=value, each name once"):
            parse_conditions(words, document)
    for words in (["age=70,", "sex=F"], ["age=70,site=Leeds"]):
        with pytest.raises(
            InputError, match=f"'{words[0]}' has no value after a comma"
        ):
            parse_conditions(words, document)


def test_invalid_requests_are_refused(brains):
    words = ("--out_samples", "bad", "--conditions", "age=60,70", "--n_samples", 3)
    output = execute("generate", "m.safetensors", *words, cwd=brains, status=2)
    assert "age must have one value or 3" in answer(output)
    assert not list(brains.glob("bad*"))


def test_conditions_of_a_model_without(command):
    words = (OLDER, "--conditions", "label=7")
    assert "without conditions" in answer(command("generate", *words, status=2))
    words = ("mnist", "--conditions", "age")
    assert "label" in answer(command("train", *words, status=2))


@pytest.mark.parametrize("given", [{}, "none"])
@pytest.mark.parametrize("seed", [None, 0])
def test_requests_are_empty_for_a_model_without_conditions(given, seed):
    requested = RequestedConditions.of(read_document(OLDER), given, range(2), seed=seed)
    assert requested.subset(range(1)) is None
    assert requested.facts(range(1)) == requested.arrays(range(1)) == {}


def test_digits_are_trained_by_label(command, tmp_path, monkeypatch, unguided):
    # More than those from which is learnt what latents are like.
    few = [part[:2000] for part in load_mnist("train")]
    monkeypatch.setattr(_inputs, "load_mnist", lambda split: few)
    short = "--steps_vqvae 3 --steps_ldm 3 --n_codes 8 --widths_vqvae 4 --widths_ldm 4"
    options = (*short.split(), "--validation", 0.03, "--conditions", "label")
    output = command("train", "mnist", *options)
    # The condition is said before training. So short a one taught nothing, but what a
    # linear fit knows is heard all the same.
    assert "label: 7 220, 1 212, 4 206" in output
    assert "condition label has no measurable effect" not in output
    with open(tmp_path / "history.csv") as table:
        assert "val_gain_label" in next(csv.reader(table))
    options = ("--steps", 1, "--conditions", "label=3,n/a")
    command("generate", "ldm.safetensors", *options)
    with np.load(tmp_path / "samples.npz") as arrays:
        three, drawn = arrays["condition_label"].tolist()
        facts = json.loads(arrays["description"].item())
    assert three == "3" and drawn in "0123456789"
    assert facts["Conditions"] == {"label": ["3", drawn]}
    assert facts["DrawnConditions"] == ["label"]


def test_conditions_that_images_have_not(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((9, 8, 8)))
    with pytest.raises(
        InputError, match="neither a participants.tsv .* lists them; add"
    ):
        _inputs.plan([str(tmp_path / "images.npy")], ["age"])
    labels = _inputs.plan(["mnist"], ["label"]).load().conditions["label"]
    assert labels[:3] == [5, 0, 4]
    assert _inputs.plan(["mnist"]).load().conditions is None


def test_requested_conditions_subset_and_records(brains):
    document = read_document(brains / "m.safetensors")
    ages = {"age": ["60", "n/a", "70.5"]}
    requested = RequestedConditions.of(document, ages, range(5, 8))
    assert requested.table == {"age": [60, None, 70.5], "group": [None] * 3}
    assert requested.subset(range(6, 8)) == {"age": [None, 70.5], "group": [None] * 2}
    assert requested.facts(range(6, 7)) == {
        "Conditions": {"age": "n/a", "group": "n/a"}
    }
    ages = requested.arrays(range(5, 7))["condition_age"]
    npt.assert_array_equal(ages, [60, float("nan")])
    assert count_requested({"age": ["60", "70"], "group": "x"}) == 2
    assert count_requested({"age": "60"}) is None
    assert count_requested("none") is None
    nothing = RequestedConditions.of(document, "none", range(2), seed=0)
    assert nothing.subset(range(1)) == "none"
    assert nothing.facts(range(1)) == {"Conditions": {"age": "n/a", "group": "n/a"}}
    some = RequestedConditions.of(document, {"age": ["none", "60"]}, range(2), seed=0)
    assert some.subset(range(2))["age"] == ["none", 60]
    assert some.arrays(range(2))["condition_group"].tolist() == some.table["group"]


def test_each_sample_records_its_own_conditions(brains):
    document = read_document(brains / "m.safetensors")
    ages = {"age": ["60", "n/a", "99"]}
    requested = RequestedConditions.of(document, ages, range(5, 8), seed=0)
    facts = [requested.facts(range(i, i + 1)) for i in range(5, 8)]
    drawn = [own["DrawnConditions"] for own in facts]
    assert drawn == [["group"], ["age", "group"], ["group"]]
    assert ["Warnings" in own for own in facts] == [False, False, True]
    assert requested.captions(range(5, 8)) == ["age=60", "", "age=99"]
    nothing = RequestedConditions.of(document, None, range(2), seed=0)
    assert nothing.captions(range(2)) == []


WRITE = """
import locale
from pathlib import Path
from dipy_ldm.workflows._outputs import (write_page, write_text)
from dipy_ldm.workflows._training import write_history
assert locale.getpreferredencoding(False) != "utf-8"
history = {"loss": [1], "val_gain_\\u5e74\\u9f62": [2]}
write_history(Path("history.csv"), {"diffusion": history})
file = b"scan\\xe9.nii.gz".decode("utf-8", "surrogateescape")
write_page([Path("page.json"), Path("page.html")], {"file": file}, file)
write_text(Path("participants.tsv"), file)
"""


def test_names_are_written_whatever_the_locale_and_if_they_are_no_text(tmp_path):
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", WRITE]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert "val_gain_年齢" in (tmp_path / "history.csv").read_text("utf-8")
    for name in ("page.json", "page.html", "participants.tsv"):
        assert r"scan\udce9.nii.gz" in (tmp_path / name).read_text("utf-8")
