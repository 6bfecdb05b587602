"""One model, one file: tensors and a JSON document in a safetensors file."""

import json
from pathlib import Path
import struct

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dipy_ldm import __version__
from dipy_ldm.files import replacing
from dipy_ldm.validation import InputError

FORMAT_VERSION = 2
PRETRAINED = Path(__file__).parent / "pretrained"


def save(path, kind, tensors, document):
    """Write tensors and a document to a file, all or nothing.

    Parameters
    ----------
    path : str or Path
        File to write; one that is there is replaced once the new one is whole.
    kind : str
        What the file holds, such as ``"vqvae"``.
    tensors : dict of str to ndarray
        Numbers.
    document : dict
        Everything else, as JSON can say it.

    Raises
    ------
    OSError
        If the file can't be written; what was there before is left alone.
    """
    versions = {"format_version": FORMAT_VERSION, "package_version": __version__}
    header = versions | {"kind": kind} | document
    with replacing(path) as partial:
        try:
            save_file(tensors, partial, metadata={"dipy_ldm": json.dumps(header)})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def find(name):
    """Find a model by its path or, if it is packaged, by its name.

    Parameters
    ----------
    name : str or Path
        Path, or the name of a packaged model.

    Returns
    -------
    Path
        Its file.
    """
    packaged = PRETRAINED / f"{name}.safetensors"
    return packaged if packaged.is_file() and not Path(name).is_file() else Path(name)


def load(path, kind):
    """Read what :func:`save` wrote.

    Parameters
    ----------
    path : str or Path
        File to read.
    kind : str
        What the file must hold.

    Returns
    -------
    tensors : dict of str to ndarray
        Numbers.
    document : dict
        Everything else.

    Raises
    ------
    InputError
        If the file is not there, truncated, foreign, of another format or of
        another kind.
    """
    document = read_document(path, kind)
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, document


def read_document(path, kind=None):
    """Read the document of a file without its tensors.

    Parameters
    ----------
    path : str or Path
        File to read.
    kind : str, optional
        What the file must hold; anything if None.

    Returns
    -------
    dict
        The document.

    Raises
    ------
    InputError
        If the file is not there, truncated, foreign, of another format or of
        another kind.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no model file {path}; check the path.")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(_unreadable(path)) from error
    if "dipy_ldm" not in metadata:
        raise InputError(
            f"{path} is a safetensors file, but not of dipy_ldm; "
            "give one that dipy_train_ldm wrote."
        )
    document = json.loads(metadata["dipy_ldm"])
    version = document["format_version"]
    if version != FORMAT_VERSION:
        age, cure = (
            ("newer", "upgrade dipy_ldm")
            if version > FORMAT_VERSION
            else ("older", "train it again")
        )
        raise InputError(
            f"{path} has format {version}, {age} than the {FORMAT_VERSION} that this "
            f"version of dipy_ldm knows; {cure}."
        )
    if kind is not None and document["kind"] != kind:
        raise InputError(
            f"{path} holds a {document['kind']}, not a {kind}; name another file."
        )
    return document


def weights(network, prefix):
    """Name the weights of a network.

    Parameters
    ----------
    network : keras.Model
        Network.
    prefix : str
        Its name in the file.

    Returns
    -------
    dict of str to ndarray
        Weights by ``prefix.position``, in the order in which the network was
        built; Keras numbers its layers per process, so their names can't serve.
    """
    return {
        f"{prefix}.{i:03d}": np.asarray(variable)
        for i, variable in enumerate(network.weights)
    }


def set_weights(network, prefix, tensors):
    """Give a network the weights that :func:`weights` named.

    Parameters
    ----------
    network : keras.Model
        Network of the same structure.
    prefix : str
        Its name in the file.
    tensors : dict of str to ndarray
        Contents of the file.
    """
    for i, variable in enumerate(network.weights):
        variable.assign(tensors[f"{prefix}.{i:03d}"])


def _unreadable(path):
    """Say whether a file was cut off or never was one of ours."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file starts with the length of its JSON header.
    length = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if size < 9 or (start[8:] == b"{" and length < 100_000_000):
        return f"{path} is truncated; copy or train it again."
    return f"{path} is not a model file; give one that dipy_train_ldm wrote."
