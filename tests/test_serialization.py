"""Files: round trips, and a sentence for each that is none of ours."""

from functools import partial
import hashlib
import json

import numpy as np
import numpy.testing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dipy_ldm import _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import replacing


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"a": np.arange(6, dtype="float32").reshape(2, 3)}
    _serialization.save(path, "notes", tensors, {"answer": [1, None, "x"]})
    return path


def test_round_trip(model):
    tensors, document = _serialization.load(model, "notes")
    npt.assert_array_equal(tensors["a"], [[0, 1, 2], [3, 4, 5]])
    assert document["answer"] == [1, None, "x"]
    assert document["format_version"] == _serialization.FORMAT_VERSION


def test_model_file_has_the_mode_of_any_file(model):
    (model.parent / "any").touch()
    assert model.stat().st_mode == (model.parent / "any").stat().st_mode


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:40])


def empty(path):
    path.write_bytes(b"")


def become_a_folder(path):
    path.unlink()
    path.mkdir()


def text(path):
    path.write_text("once upon a time")


def foreign(path):
    save_file({"a": np.zeros(1)}, path)


def saying(text, path):
    save_file({"a": np.zeros(1)}, path, metadata={"dipy_ldm": text})


def of_format(version, path):
    saying(json.dumps({"format_version": version, "kind": "notes"}), path)


newer = partial(of_format, _serialization.FORMAT_VERSION + 1)
older = partial(of_format, _serialization.FORMAT_VERSION - 1)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (cut, "is truncated"),
        (cut_in_the_header, "is truncated"),
        (empty, "is truncated"),
        (lambda path: path.unlink(), "there is no model file"),
        (become_a_folder, "there is no model file"),
        (text, "is not a model file"),
        (lambda path: path.write_text("once\n"), "is not a model file"),
        (foreign, "not of dipy_ldm"),
        (newer, "upgrade dipy_ldm"),
        (older, "train it again"),
        (partial(of_format, True), "format_version is missing, or of another type"),
        (partial(of_format, 10**400), "upgrade dipy_ldm"),
        (partial(saying, "once upon a time"), "is not readable JSON"),
        (partial(saying, "[" * 200_000), "is not readable JSON"),
        (partial(saying, "9" * 5000), "is not readable JSON"),
        (partial(saying, "[2]"), "its document is not a dictionary"),
    ],
)
def test_spoilt_files_are_refused(model, spoil, sentence):
    spoil(model)
    with pytest.raises(InputError, match=sentence) as refusal:
        _serialization.load(model, "notes")
    assert str(model) in str(refusal.value)
    assert len(str(refusal.value)) < 400 + len(str(model))


def test_packaged_models_are_named_where_there_is_none():
    with pytest.raises(InputError, match="check the path, or name .*brains, mnist or"):
        _serialization.read_document("brainz")


@pytest.mark.parametrize("kind", ["vqvae", "latent_diffusion"])
def test_a_checkpoint_is_no_model(tmp_path, kind):
    document = {"settings": {}, "history": {}, "steps": 1}
    _serialization.save(tmp_path / "c", "checkpoint", {}, document)
    with pytest.raises(InputError, match="holds a 'checkpoint', not an? .*; choose"):
        _serialization.read_document(tmp_path / "c", kind)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_weights_are_neither_written_nor_read(tmp_path, bad):
    tensors = {"a": np.zeros(1), "b": np.array([1, bad], "float32")}
    with pytest.raises(InputError, match="tensor b has NaN .* lower learning rate"):
        _serialization.save(tmp_path / "m", "notes", tensors, {})
    with pytest.raises(InputError, match="check the history"):
        _serialization.save(tmp_path / "m", "notes", {}, {"history": {"loss": [bad]}})
    assert not list(tmp_path.iterdir())
    version = _serialization.FORMAT_VERSION
    text = json.dumps({"format_version": version, "kind": "notes"})
    save_file(tensors, tmp_path / "m", metadata={"dipy_ldm": text})
    with pytest.raises(InputError, match=r"m is damaged.*tensor 'b' has NaN"):
        _serialization.load(tmp_path / "m", "notes")


def zero(path):
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))


def test_zeros_of_a_crash_are_refused(model):
    zero(model)
    assert load_file(model)["a"].tolist() == [[0, 1, 2], [3, 0, 0]]
    with pytest.raises(InputError, match="damaged.*its checksum is wrong.*copy"):
        _serialization.load(model, "notes")


def test_the_checksum_is_that_of_all_numbers_in_the_order_of_their_names(tmp_path):
    tensors = {"b": np.arange(3), "a": np.ones((2, 2), "float32").T}
    _serialization.save(tmp_path / "m", "notes", tensors, {})
    content = np.ones(4, "float32").tobytes() + np.arange(3).tobytes()
    with safe_open(tmp_path / "m", "numpy") as file:
        assert file.metadata()["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_file_without_a_checksum_is_read(model):
    with safe_open(model, "numpy") as file:
        metadata = file.metadata()
    del metadata["sha256"]
    save_file({"a": np.ones(1)}, model, metadata)
    assert _serialization.load(model, "notes")[0]["a"] == 1


@pytest.mark.parametrize("spoil", [zero, cut, empty, newer])
def test_a_damaged_checkpoint_is_to_be_removed(tmp_path, spoil):
    path = tmp_path / "c"
    document = {"settings": {}, "history": {}, "steps": 1}
    _serialization.save(path, "checkpoint", {"a": np.ones(9)}, document)
    spoil(path)
    cure = "upgrade dipy_ldm" if spoil is newer else "remove it"
    with pytest.raises(InputError, match=f"; {cure}.$"):
        _serialization.load(path, "checkpoint")


def test_a_failed_write_leaves_the_old_file(model):
    before = model.read_bytes()
    with pytest.raises(OSError, match="free some space"):
        with replacing(model) as partial:
            partial.write_text("half")
            raise OSError(28, "No space left on device")
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir()] == [model.name]


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


def test_arrays_that_do_not_lie_in_order_are_written_in_order(tmp_path):
    array = np.arange(6, dtype="float32").reshape(2, 3).T
    arrays = {"x": array, "one": np.float32(1)[()]}
    _serialization.save(tmp_path / "x.safetensors", "vqvae", arrays, {})
    found = load_file(tmp_path / "x.safetensors")
    npt.assert_array_equal(found["x"], array)
    assert found["one"].shape == ()


def test_weights_that_16_bits_can_not_hold_are_refused():
    most = np.float32(np.finfo("float16").max)
    weights = {"a": np.array([most, -most]), "none": np.zeros((0, 3), "float32")}
    half = _serialization.halved(weights)
    assert half["a"].dtype == half["none"].dtype == "float16"
    npt.assert_array_equal(half["a"], weights["a"])
    with pytest.raises(InputError, match="weights b are too large for 16 bits"):
        _serialization.halved(weights | {"b": -2 * weights["a"]})
