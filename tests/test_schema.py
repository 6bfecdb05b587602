"""Documents of model files: a wrong entry is refused in one sentence."""

import json
from pathlib import Path
import resource

import keras
import numpy as np
import numpy.testing as npt
import pytest
from safetensors.numpy import save_file

from dipy_ldm import LatentDiffusion, _schema, _serialization

FILES = Path(__file__).parent / "files"
FILE = FILES / "format-11.safetensors"


@pytest.fixture(scope="module")
def saved(diffusion):
    return diffusion.to_tensors(), diffusion.to_document()


def changed(document, name, value, part=None):
    if part is None:
        return document | {name: value}
    return document | {part: document[part] | {name: value}}


WRONG = [
    ("widths", "8", "vqvae", "vqvae: widths can't be '8'"),
    ("widths", [], "vqvae", r"widths can't be \[\]"),
    ("blocks", True, "vqvae", "blocks can't be True"),
    ("blocks", 10**9, "vqvae", "need more tensors than it has"),
    ("n_codes", 10**10, "vqvae", r"codebook has the shape \(16, 2\), not \(10000000"),
    ("code_dim", 10**10, "vqvae", "need more tensors than it has"),
    ("bottleneck", "bottle", "vqvae", "unknown bottleneck 'bottle'"),
    ("colour", "red", "vqvae", "vqvae has the unknown entry 'colour'"),
    ("seed", -1, "latent_diffusion", "latent_diffusion: seed can't be -1"),
    ("target", "score", "latent_diffusion", "unknown target 'score'"),
    ("widths", [60_000, 16], "latent_diffusion", "need more tensors than it has"),
    ("attention", [1], "latent_diffusion", r"attention can't be \[1\]"),
    ("attention", [True], "latent_diffusion", "one entry per level: 2, not 1"),
    ("shape", [13, 10], None, r"shape can't be \[13, 10\]"),
    ("shape", [10**6, 10**6, 1], None, r"shape can't be \[1000000, 1"),
    ("intensity", [20, -5], None, r"intensity can't be \[20, -5\]"),
    ("affine", np.eye(3).tolist(), None, "affine can't be"),
    ("history", {"loss": ["low"]}, None, "history can't be"),
    ("history", [0.5], None, "history can't be"),
    ("latent_scale", [0, 1], None, r"latent_scale can't be \[0, 1\]"),
    ("latent_mean", [0], None, "latent_mean must have 2 numbers"),
    ("latent_shape", [4, 4, 2], None, r"latent_shape must be \(4, 3, 2\), not"),
    ("precision", "float32", None, "precision can't be 'float32'"),
]


@pytest.mark.parametrize(("name", "value", "part", "sentence"), WRONG)
def test_wrong_entries_are_refused(
    saved, assert_unreadable, name, value, part, sentence
):
    tensors, document = saved
    document = changed(document, name, value, part)
    message = assert_unreadable(tensors, document, sentence)
    assert "m.safetensors is damaged" in message
    assert message.endswith("copy or train it again.")


@pytest.mark.parametrize(
    ("name", "level", "units"),
    [
        ("=HYPERLINK(1)", "a", None),
        ("group", "a\rb", None),
        ("group", "a", "\x07"),
    ],
)
def test_names_with_formulas_or_control_characters_are_refused(name, level, units):
    facts = {"kind": "class", "levels": {level: 2, "b": 2}, "quantiles": []}
    facts |= {"missing": 0, "units": units, "meanings": None}
    assert not _schema.fits({name: facts}, _schema.Conditions)
    good = {"group": facts | {"levels": {"-1": 2, "+": 2}, "units": "%"}}
    assert _schema.fits(good, _schema.Conditions)


@pytest.mark.parametrize("name", ["shape", "history", "vqvae", "latent_mean"])
def test_missing_entries_are_refused(saved, assert_unreadable, name):
    tensors, document = saved
    rest = {key: value for key, value in document.items() if key != name}
    assert_unreadable(tensors, rest, f"{name} is missing")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("encoder.003"), "the tensor 'encoder.003' is missing"),
        (
            lambda t: t.update(extra=np.ones(1, "float32")),
            "the tensor 'extra' is unexpected",
        ),
        (
            lambda t: t.update(codebook=t["codebook"].reshape(8, 4).copy()),
            r"codebook has the shape \(8, 4\), not \(16, 2\)",
        ),
        (
            lambda t: t.update(codebook=np.ones((16, 2), "int32")),
            "'codebook' is of I32 instead of F32, F16",
        ),
    ],
)
def test_wrong_tensors_are_refused(saved, assert_unreadable, change, sentence):
    tensors, document = saved
    tensors = dict(tensors)
    change(tensors)
    assert_unreadable(tensors, document, sentence)


def peak_memory():
    """Return the most kilobytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# A side as large is there, and 240 kB of it, or 12.
@pytest.mark.parametrize("width", [60_000, 3000])
def test_widths_without_weights_take_no_memory(saved, assert_unreadable, width):
    tensors, document = saved
    tensors = tensors | {"decoder.001": np.zeros(width, "float32")}
    document = changed(document, "widths", [width, width], "vqvae")
    before = peak_memory()
    assert_unreadable(tensors, document, "has the shape")
    # When Keras leaves such a scope, it makes all weights that have no values yet.
    with keras.StatelessScope():
        pass
    assert peak_memory() - before < 200_000  # instead of 388 million


def test_half_weights_are_read(saved, tmp_path):
    tensors, document = saved
    tensors = {name: tensor.astype("float16", "C") for name, tensor in tensors.items()}
    tensors["codebook"] = tensors["codebook"].astype("float32")
    path = tmp_path / "m"
    # numpy can't say whether these are finite, which is asked before files are written.
    _serialization.save(path, "latent_diffusion", {}, document)
    text = json.dumps(_serialization.read_document(path))
    save_file(tensors, path, metadata={"dipy_ldm": text})
    loaded = LatentDiffusion.load(path)
    for name, tensor in loaded.to_tensors().items():
        npt.assert_array_equal(tensor, tensors[name].astype("float32"))
    assert np.isfinite(loaded.predict(2, steps=2)).all()


def test_a_file_of_this_format_stays_the_same(tmp_path):
    model = LatentDiffusion.load(FILE)
    assert model.conditions_ == {}
    samples = model.predict(2, steps=2)
    # As the version that wrote it had them.
    npt.assert_allclose(samples[0, :3, 0, 0], [0.54298, 0.58813, 0.53131], atol=1e-4)
    npt.assert_allclose(samples.mean(), 0.54491, atol=1e-4)
    volumes = LatentDiffusion.load(FILES / "format-11-channels.safetensors")
    assert volumes.channels_ == ()
    pair = volumes.predict(1, steps=2, seed=1).mean((0, 1, 2, 3))
    npt.assert_allclose(pair, [0.48326, 0.49668], atol=1e-4)
    model.save(tmp_path / "again")
    again = LatentDiffusion.load(tmp_path / "again")
    npt.assert_array_equal(again.predict(2, steps=2), samples)
