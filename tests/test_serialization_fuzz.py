"""Damaged model files give the whole model, or one sentence."""

import json
import resource
import struct
from threading import current_thread, main_thread

from hypothesis import HealthCheck, given, settings, strategies as st
import numpy as np
import numpy.testing as npt
import pytest
from safetensors.numpy import load_file

from dipy_ldm import VQVAE, LatentDiffusion, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.autoencoder import _codec, _network
from dipy_ldm.denoiser import _unet
from dipy_ldm.prior._latent_prior import LatentPrior

PARAMETERS = {"widths": [2], "blocks": 1, "n_codes": 3, "n_codebooks": 1, "code_dim": 1}
PARAMETERS |= {"commitment": 0.25, "loss": "squared", "bottleneck": "codebook"}
OF_DENOISER = {"widths": [4], "blocks": 1, "attention": None, "schedule": "cosine"}
AGE = {"kind": "continuous", "levels": {}, "quantiles": [20.5, 50.0, 80.0]}
SEX = {"kind": "class", "levels": {"F": 10, "M": 12}, "quantiles": []}
# As an autoencoder and a diffusion model say it.
DOCUMENT = {
    "vqvae": PARAMETERS | {"seed": 0},
    "sharpening": 0.25,
    "shape": [4, 5, 1],
    "intensity": [0.0, 1.0],
    "affine": np.diag([2.0, 2, 3, 1]).tolist(),
    "history": {"loss": [0.5, 0.25], "mse": [0.1, 0.05]},
    "fingerprint": "abc",
    "precision": {"name": "float32", "reason": "as requested"},
    "latent_diffusion": OF_DENOISER | {"target": "v", "guide": False, "seed": 0},
    "latent_mean": [0.5],
    "latent_scale": [1.5],
    "latent_shape": [2, 3, 1],
    "conditions": {
        "age": AGE | {"missing": 0.25, "units": "years", "meanings": None},
        "sex": SEX | {"missing": 0.0, "units": None, "meanings": {"F": "female"}},
    },
    "latent_diffusion_history": {"loss": [0.5]},
    "latent_diffusion_fingerprint": "abc",
    "latent_diffusion_precision": None,
}
ESTIMATORS = {"vqvae": VQVAE, "latent_diffusion": LatentDiffusion}
EXAMPLES = {"vqvae": 400, "latent_diffusion": 150}
# What all these files of some kilobytes may take at most; TensorFlow has another.
GIBIBYTE = 2**30


@pytest.fixture(autouse=True)
def networks_built_once(monkeypatch):
    """Build networks of the same sizes once: a file has all of their weights."""

    def remember(build):
        networks = {}

        def built(*sizes, **options):
            # Sketches are built in threads.
            sketched = current_thread() is not main_thread()
            key = repr((sketched, sizes, options))
            if key not in networks:
                networks[key] = build(*sizes, **options)
            return networks[key]

        return built

    monkeypatch.setattr(_unet, "unet", remember(_unet.unet))
    both = remember(_network.encoder_and_decoder)
    for module in (_network, _codec):
        monkeypatch.setattr(module, "encoder_and_decoder", both)


@pytest.fixture(scope="module", params=ESTIMATORS)
def whole(request, tmp_path_factory):
    """Return kind, tensors and metadata of a file, and a place to change it."""
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    rng = np.random.default_rng(0)
    model = VQVAE(**DOCUMENT["vqvae"])._restore_attributes(DOCUMENT)
    model._build()
    if request.param == "latent_diffusion":
        described = LatentDiffusion(model, **DOCUMENT["latent_diffusion"])
        described.vqvae_ = model
        model = described._restore_attributes(DOCUMENT)
        saved = dict.fromkeys(["expectation", "gaussian.mean", "reading.weights"], ())
        saved["gaussian.loadings"] = (2,)
        shapes = LatentPrior.shapes(saved, model.latent_shape_, model.conditions_)
        zeros = {name: np.zeros(shape) for name, shape in shapes.items()}
        model._set_prior(LatentPrior.from_tensors(zeros, model.conditions_))
        model._build()
    tensors = {
        name: rng.standard_normal(tensor.shape).astype("float32")
        for name, tensor in model.to_tensors().items()
    }
    _serialization.save(path, request.param, tensors, model.to_document())
    return request.param, path.read_bytes(), path


TEXTS, NUMBERS = ["", "codebook", "x" * 5000], [0, 1, 2, -1, 60_000]
junk = st.one_of(
    st.sampled_from([None, True, *TEXTS, *NUMBERS, *(10**n for n in (10, 30, 400))]),
    st.sampled_from([1.0, 1e10, 1e308, float("nan"), float("inf")]),
    st.integers(),
    st.floats(),
    st.builds(list),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 70_000), st.floats(), st.none()), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def split(raw):
    """Cut a file into its header, as a dictionary, and its data."""
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def places(tree, path=()):
    """List the way to each entry of nested dictionaries and lists."""
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    for key, entry in tree.items() if isinstance(tree, dict) else ():
        yield (*path, key)
        yield from places(entry, (*path, key))


def change_tree(draw, tree):
    """Replace, remove or rename an entry."""
    *path, key = draw(st.sampled_from(list(places(tree))))
    for step in path:
        tree = tree[step]
    kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if kind == "replace":
        tree[key] = draw(junk)
    elif kind == "remove":
        del tree[key]
    elif isinstance(tree, dict):
        tree[draw(st.text(max_size=4))] = draw(junk)
    else:
        tree.append(draw(junk))


def change_bytes(draw, raw):
    start = draw(st.integers(0, len(raw) - 1))
    length = draw(st.sampled_from([0, 1, 4, 100]))
    return raw[:start] + draw(st.binary(max_size=8)) + raw[start + length :]


def change_header(draw, raw):
    header, data = split(raw)
    document = header.pop("__metadata__")
    change_tree(draw, header)
    return join(header | {"__metadata__": document}, data)


def change_document(draw, raw):
    header, data = split(raw)
    document = json.loads(header["__metadata__"]["dipy_ldm"])
    change_tree(draw, document)
    header["__metadata__"]["dipy_ldm"] = json.dumps(document)
    return join(header, data)


def change_text(draw, raw):
    header, data = split(raw)
    bad = st.sampled_from(["[" * 200_000, "[]", "null", "9" * 5000, '{"kind": "x"}'])
    text = draw(st.one_of(st.text(max_size=9), bad))
    header["__metadata__"]["dipy_ldm"] = text
    return join(header, data)


def change_tensors(draw, raw):
    header, data = split(raw)
    name = draw(st.sampled_from([n for n in header if n != "__metadata__"]))
    other = draw(st.sampled_from(["shape", "name", "none", "nan", "double", "half"]))
    place = header[name]
    start, end = place["data_offsets"]
    if other == "shape":
        place["shape"] = draw(st.permutations([*place["shape"], 1]))
    elif other == "name":
        header[draw(st.text(max_size=9))] = header.pop(name)
    elif other == "none":
        del header[name]
    elif other == "nan":
        bad = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e38]))
        data = data[:start] + np.float32(bad).tobytes() + data[start + 4 :]
    else:
        place["dtype"] = {"double": "F64", "half": "F16"}[other]
    return join(header, data)


CHANGES = [change_bytes, change_header, change_document, change_text, change_tensors]


def assert_equals_file(model, path):
    tensors = model.to_tensors()
    for name, tensor in load_file(path).items():
        npt.assert_array_equal(tensors[name], tensor.astype("float32"))
    document = _serialization.read_document(path)
    for name, entry in json.loads(json.dumps(model.to_document())).items():
        if isinstance(entry, dict):
            assert document[name].items() <= entry.items()
        else:
            assert document.get(name) == entry


def load_changed(whole, data):
    kind, raw, path = whole
    change = data.draw(st.sampled_from(CHANGES))
    path.write_bytes(change(data.draw, raw))
    try:
        model = ESTIMATORS[kind].load(path)
    except InputError as error:
        sentence = str(error)
        assert str(path) in sentence
        assert "\n" not in sentence
        assert sentence.endswith(".")
        assert len(sentence) < 400 + len(str(path))
    else:
        assert_equals_file(model, path)


def test_changed_files_are_read_or_refused(whole):
    # The same every time, so that nobody's change fails by another's luck.
    options = {"derandomize": True, "database": None, "deadline": None}
    options["suppress_health_check"] = list(HealthCheck)
    chosen = settings(max_examples=EXAMPLES[whole[0]], **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chosen(given(st.data())(lambda data: load_changed(whole, data)))()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIBIBYTE / 1024
