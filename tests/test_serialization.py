"""Model files: round trips, and a message for each unusable file."""

from functools import partial
import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.testing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scans import small_files

from dipy_ldm import _serialization
from dipy_ldm._serialization import FORMAT_VERSION
from dipy_ldm._utils.checks import InputError


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"a": np.arange(6, dtype="float32").reshape(2, 3)}
    _serialization.save(path, "notes", tensors, {"answer": [1, None, "x"]})
    return path


def test_load_returns_saved_tensors(model):
    tensors, document = _serialization.load(model, "notes")
    npt.assert_array_equal(tensors["a"], [[0, 1, 2], [3, 4, 5]])
    assert document["answer"] == [1, None, "x"]
    assert document["format_version"] == FORMAT_VERSION
    # As of any other new file.
    (model.parent / "any").touch()
    assert model.stat().st_mode == (model.parent / "any").stat().st_mode


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def cut_header(path):
    path.write_bytes(path.read_bytes()[:40])


def empty(path):
    path.write_bytes(b"")


def zero_end(path):
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))


def become_folder(path):
    path.unlink()
    path.mkdir()


def write_text(text, path):
    path.write_text(text)


def write_foreign(path):
    save_file({"a": np.zeros(1)}, path)


def write_document(text, path):
    save_file({"a": np.zeros(1)}, path, metadata={"dipy_ldm": text})


def write_version(version, path):
    write_document(json.dumps({"format_version": version, "kind": "notes"}), path)


write_newer = partial(write_version, FORMAT_VERSION + 1)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (cut, "is truncated"),
        (cut_header, "is truncated"),
        (empty, "is truncated"),
        (zero_end, "is damaged.*its checksum is wrong.*copy"),
        (Path.unlink, "there is no model file"),
        (become_folder, "there is no model file"),
        (partial(write_text, "once upon a time"), "is not a model file"),
        (partial(write_text, "once\n"), "is not a model file"),
        (write_foreign, "not of dipy_ldm"),
        (write_newer, "upgrade dipy_ldm"),
        (partial(write_version, FORMAT_VERSION - 1), "train it again"),
        (partial(write_version, True), "format_version is missing, or of another type"),
        (partial(write_version, 10**400), "upgrade dipy_ldm"),
        (partial(write_document, "once upon a time"), "is not readable JSON"),
        (partial(write_document, "[" * 200_000), "is not readable JSON"),
        (partial(write_document, "9" * 5000), "is not readable JSON"),
        (partial(write_document, "[2]"), "its document is not a dictionary"),
    ],
)
def test_load_refuses_spoilt_files(model, spoil, sentence):
    spoil(model)
    with pytest.raises(InputError, match=sentence) as refusal:
        _serialization.load(model, "notes")
    assert str(model) in str(refusal.value)
    assert len(str(refusal.value)) < 400 + len(str(model))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (None, "no model file brainz; check .* mnist for images, volumes for an auto"),
        ("latent_diffusion", r"\(brains for volumes, mnist for images\)\.$"),
    ],
)
def test_read_document_suggests_packaged_models(kind, sentence):
    with pytest.raises(InputError, match=sentence):
        _serialization.read_document("brainz", kind)


def test_load_reads_a_file_without_a_checksum(model):
    write_version(FORMAT_VERSION, model)
    tensors, _ = _serialization.load(model, "notes")
    assert tensors["a"] == 0


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "c"
    document = {"settings": {}, "history": {}, "steps": 1}
    _serialization.save(path, "checkpoint", {"a": np.ones(9)}, document)
    return path


@pytest.mark.parametrize("kind", ["vqvae", "latent_diffusion"])
def test_read_document_refuses_a_checkpoint_as_a_model(checkpoint, kind):
    with pytest.raises(InputError, match="holds a 'checkpoint', not an? .*; choose"):
        _serialization.read_document(checkpoint, kind)


@pytest.mark.parametrize("spoil", [zero_end, cut, empty, write_newer])
def test_load_names_the_cure_of_a_damaged_checkpoint(checkpoint, spoil):
    spoil(checkpoint)
    cure = "upgrade dipy_ldm" if spoil is write_newer else "remove it"
    with pytest.raises(InputError, match=f"; {cure}.$"):
        _serialization.load(checkpoint, "checkpoint")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_weights_are_neither_written_nor_read(tmp_path, bad):
    tensors = {"a": np.zeros(1), "b": np.array([1, bad], "float32")}
    with pytest.raises(InputError, match="tensor b has NaN .* lower learning rate"):
        _serialization.save(tmp_path / "m", "notes", tensors, {})
    with pytest.raises(InputError, match="check the history"):
        _serialization.save(tmp_path / "m", "notes", {}, {"history": {"loss": [bad]}})
    assert not list(tmp_path.iterdir())
    text = json.dumps({"format_version": FORMAT_VERSION, "kind": "notes"})
    save_file(tensors, tmp_path / "m", metadata={"dipy_ldm": text})
    with pytest.raises(InputError, match=r"m is damaged.*tensor 'b' has NaN"):
        _serialization.load(tmp_path / "m", "notes")


def test_save_writes_numbers_and_their_checksum_in_order(tmp_path):
    path = tmp_path / "m"
    transposed = np.arange(6, dtype="float32").reshape(2, 3).T
    tensors = {"b": transposed, "a": np.float32(1)[()]}
    _serialization.save(path, "notes", tensors, {})
    saved = load_file(path)
    npt.assert_array_equal(saved["b"], transposed)
    assert saved["a"].shape == ()
    # Names are sorted, and numbers follow their indices.
    content = np.float32([1, 0, 3, 1, 4, 2, 5]).tobytes()
    with safe_open(path, "numpy") as file:
        assert file.metadata()["sha256"] == hashlib.sha256(content).hexdigest()


def test_save_writes_equal_files_of_equal_models(tmp_path):
    contents = set()
    for _ in range(9):
        tensors = {"ä": np.arange(3, dtype="float32"), "b": np.ones(2, "int32")}
        _serialization.save(tmp_path / "m", "notes", tensors, {"level": 'ü"\n\x1f'})
        contents.add((tmp_path / "m").read_bytes())
    assert len(contents) == 1
    loaded, document = _serialization.load(tmp_path / "m", "notes")
    npt.assert_array_equal(loaded["ä"], [0, 1, 2])
    assert document["level"] == 'ü"\n\x1f'


def test_save_that_fails_leaves_the_old_file(model):
    before = model.read_bytes()
    with small_files(0), pytest.raises(OSError, match="free some space"):
        _serialization.save(model, "notes", {"a": np.ones(9)}, {})
    assert model.read_bytes() == before
    assert list(model.parent.iterdir()) == [model]


def test_find_packaged_names_and_paths(tmp_path, monkeypatch, caplog):
    path = _serialization.PRETRAINED / "mnist.safetensors"
    assert _serialization.find("mnist") == path
    assert _serialization.find(tmp_path / "a") == tmp_path / "a"
    # A file of one's own goes first; a folder does not, and that is said.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brains").mkdir()
    (tmp_path / "brains" / "ldm.safetensors").write_text("mine")
    assert _serialization.find("brains").parent == _serialization.PRETRAINED
    assert "your model is brains/ldm.safetensors" in caplog.text
    (tmp_path / "mnist").write_text("mine")
    assert str(_serialization.find("mnist")) == "mnist"


def test_halved_refuses_weights_that_16_bits_can_not_hold():
    most = np.float32(np.finfo("float16").max)
    weights = {"a": np.array([most, -most]), "none": np.zeros((0, 3), "float32")}
    half = _serialization.halved(weights)
    assert half["a"].dtype == half["none"].dtype == "float16"
    npt.assert_array_equal(half["a"], weights["a"])
    with pytest.raises(InputError, match="weights b are too large for 16 bits"):
        _serialization.halved(weights | {"b": -2 * weights["a"]})
