"""One model, one file: tensors and a JSON document in a safetensors file."""

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache
import hashlib
import json
import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from dipy_ldm import __version__, _schema
from dipy_ldm._utils.checks import InputError, plain
from dipy_ldm._utils.files import replacing

if TYPE_CHECKING:  # it takes seconds to import
    import keras

logger = logging.getLogger("dipy_ldm")

FORMAT_VERSION = 11
# Types of network weights; optimizers also have integers.
_FLOATS = ("F32", "F16")
_TYPES = ("F32", "F16", "F64", "I64", "I32", "U32", "BOOL")
# Descriptions of the contents of a file, for messages.
_CONTENTS = {
    "vqvae": "an autoencoder alone",
    "latent_diffusion": "a diffusion model",
}
PRETRAINED = Path(__file__).parent / "pretrained"
_PACKAGED = "brains for volumes, mnist for images"


def save(
    path: str | Path,
    kind: str,
    tensors: dict[str, np.ndarray],
    document: dict,
    previous: str | Path | None = None,
) -> None:
    """Write tensors and a document to a file, atomically."""
    versions = {"format_version": FORMAT_VERSION, "package_version": __version__}
    header = versions | {"kind": kind} | document
    if name := _not_finite(tensors):
        raise InputError(
            f"the tensor {name} has NaN or infinite values, and is not written to "
            f"{path}",
            "train again, with a lower learning rate or in float32",
        )
    try:
        text = json.dumps(plain(header), allow_nan=False)
    except ValueError as error:
        raise InputError(
            f"{path} can't be written: a number is NaN or infinite",
            "check the history and the affine of the model",
        ) from error
    # safetensors ignores strides, and writes the numbers in the order of the memory.
    ordered = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    metadata = {"dipy_ldm": text, "sha256": checksum(ordered)}
    with replacing(path, previous) as partial:
        # safetensors would write a temporary file of its own, which may be left over.
        with open(partial, "wb") as file:
            file.writelines(_in_order(to_bytes(ordered, metadata)))


def _in_order(content: bytes):
    """Yield content with sorted metadata: safetensors writes it in random order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(len(text) + -len(text) % 8)  # so that tensors are aligned
    yield from (len(text).to_bytes(8, "little"), text, memoryview(content)[start:])


def halved(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Round weights to 16 bits; refuse any above 65504."""
    for name, weights in tensors.items():
        if np.abs(weights).max(initial=0) > np.finfo("float16").max:
            raise InputError(
                f"the weights {name} are too large for 16 bits", "save with half=False"
            )
    return {name: weights.astype("float16") for name, weights in tensors.items()}


def find(name: str | Path) -> Path:
    """Find a model by its path or, if it is packaged, by its name."""
    name = os.path.expanduser(name)
    packaged = PRETRAINED / f"{name}.safetensors"
    if not packaged.is_file() or Path(name).is_file():
        return Path(name)
    if (trained := Path(name) / "ldm.safetensors").is_file():
        _warn_of_trained_model(name, trained)
    return packaged


@cache
def _warn_of_trained_model(name: str, trained: Path):
    logger.warning("%s is the packaged model; your model is %s.", name, trained)


def load(
    path: str | Path,
    kind: str,
    expected_shapes: Callable[[dict, _schema.Shapes], _schema.Shapes] | None = None,
) -> tuple[dict[str, np.ndarray], dict]:
    """Read tensors and document from a file, and check the shapes of the tensors."""
    document = read_document(path, kind)
    allowed = _TYPES if expected_shapes is None else _FLOATS
    with safe_open(path, "numpy") as file, _naming(path, kind):
        slices = {name: file.get_slice(name) for name in file.keys()}
        for name, piece in slices.items():
            if (dtype := piece.get_dtype()) not in allowed:
                raise InputError(
                    f"the tensor {_schema.short(name)} is of {dtype} instead of "
                    f"{', '.join(allowed)}"
                )
        if expected_shapes is not None:
            saved = {name: tuple(s.get_shape()) for name, s in slices.items()}
            _schema.check_shapes(saved, expected_shapes(document, saved))
        tensors = {name: file.get_tensor(name) for name in slices}
        # Files by other software have none.
        if file.metadata().get("sha256") not in (None, checksum(tensors)):
            raise InputError("its checksum is wrong")
        if name := _not_finite(tensors):
            raise InputError(
                f"the tensor {_schema.short(name)} has NaN or infinite values"
            )
    return tensors, document


def previous_path(checkpoint: str | Path) -> Path:
    """Return the path of the checkpoint before the last one."""
    return Path(f"{checkpoint}.previous")


def load_newest(checkpoint: str | Path, read: Callable = load) -> tuple:
    """Read the last checkpoint or, if that is damaged, the one before."""
    path, previous = Path(checkpoint), previous_path(checkpoint)
    try:
        return path, read(path, "checkpoint")
    except InputError as error:
        if not previous.exists():
            raise
        logger.warning("%s Training resumes from the checkpoint before.", error)
        return previous, read(previous, "checkpoint")


def read_document(path: str | Path, kind: str | None = None) -> dict:
    """Read the document of a file without its tensors."""
    if not Path(path).is_file():
        raise _missing(path, kind)
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, kind) from error
    if "dipy_ldm" not in metadata:
        raise InputError(
            f"{path} is a safetensors file, but not of dipy_ldm",
            "choose one that dipy_train_ldm wrote",
        )
    with _naming(path, kind):
        document = _parse(metadata["dipy_ldm"])
    version = document["format_version"]
    if version != FORMAT_VERSION:
        newer = version > FORMAT_VERSION
        cure = "upgrade dipy_ldm" if newer else _cure(kind, "train it again")
        raise InputError(
            f"{path} has format {_schema.short(version)}, and this version of "
            f"dipy_ldm reads {FORMAT_VERSION}",
            cure,
        )
    if kind is not None and document["kind"] != kind:
        content, expected = map(_content, (document["kind"], kind))
        expected = expected.removesuffix(" alone")
        raise InputError(f"{path} holds {content}, not {expected}", "choose another")
    with _naming(path, kind):
        _schema.check(document)
    return document


def _variables(network: "keras.Model", prefix: str):
    """Return the trainable variables of a network, by their names in a file."""
    variables = enumerate(network.trainable_variables)
    return {f"{prefix}.{i:03d}": variable for i, variable in variables}


def shapes(network: "keras.Model", prefix: str) -> _schema.Shapes:
    """Return the shapes of the trainable weights of a network, by name."""
    return {name: tuple(x.shape) for name, x in _variables(network, prefix).items()}


def weights(network: "keras.Model", prefix: str) -> dict[str, np.ndarray]:
    """Return the trainable weights of a network, by name."""
    return {name: np.asarray(x) for name, x in _variables(network, prefix).items()}


def set_weights(
    network: "keras.Model", prefix: str, tensors: dict[str, np.ndarray]
) -> None:
    """Set a network's weights from named tensors."""
    for name, variable in _variables(network, prefix).items():
        variable.assign(tensors[name])


def matching_weights(
    expected: dict[str, tuple[int, ...]], tensors: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the tensors whose names and shapes match expected weights.

    Raise an error if they are less than half of the weights: the networks differ.
    """
    matching = {
        name: tensors[name]
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape == tuple(shape)
    }
    total = sum(math.prod(shape) for shape in expected.values())
    if sum(tensor.size for tensor in matching.values()) < total / 2:
        raise InputError(
            f"`init` has other networks: {len(matching)} of {len(expected)} weights "
            "have the same shapes",
            "use the same widths and number of dimensions",
        )
    if n_random := len(expected) - len(matching):
        text = "%d of %d weights start at random: those of `init` have other shapes."
        logger.warning(text, n_random, len(expected))
    return matching


@contextmanager
def _naming(path: str | Path, kind: str | None):
    """Add file and cure to errors raised in this context."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{path} is damaged, or was changed by other software ({error.problem})",
            _cure(kind),
        ) from error


def _cure(kind: str | None, cure: str = "copy or train it again"):
    """Return the advice for an unusable file."""
    return "remove it" if kind == "checkpoint" else cure


def _parse(text: str):
    """Parse a document, and check that it has a version and a kind."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("its document is not readable JSON") from error
    if not isinstance(document, dict):
        raise InputError("its document is not a dictionary")
    for name, kind in (("format_version", int), ("kind", str)):
        # Not isinstance: to Python, True is an int.
        if type(document.get(name)) is not kind:
            raise InputError(f"{name} is missing, or of another type")
    return document


def checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 hash of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _not_finite(tensors: dict[str, np.ndarray]):
    """Return the name of the first tensor with NaN or infinite values, or None."""
    bad = (name for name, tensor in tensors.items() if not np.isfinite(tensor).all())
    return next(bad, None)


def _missing(path: str | Path, kind: str | None):
    """Return the error of a path without a file."""
    cure = ""
    if kind in (None, "vqvae", "latent_diffusion"):
        alone = "" if kind == "latent_diffusion" else ", volumes for an autoencoder"
        cure = f", or name a packaged model ({_PACKAGED}{alone})"
    return InputError(f"there is no model file {path}", f"check the path{cure}")


def _unreadable(path: str | Path, kind: str | None):
    """Return the error of a truncated file or one of another format."""
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file starts with the length of its JSON header.
    length = int.from_bytes(start[:8], "little")
    if start[8:] in (b"", b"{") and length < 100_000_000:
        return InputError(f"{path} is truncated", _cure(kind))
    cure = "choose one that dipy_train_ldm wrote"
    return InputError(f"{path} is not a model file", cure)


def _content(kind: str):
    return _CONTENTS.get(kind) or f"a {_schema.short(kind)}"
