"""Documents: what a model file must say, whoever wrote it.

Nothing is built here, and neither Keras nor TensorFlow is needed: what is wrong is
found before anything is made of it.
"""

from collections.abc import Callable
import math
import reprlib
from typing import Any

import numpy as np

from dipy_ldm._utils.checks import LARGEST, InputError, is_affine, is_label

Shapes = dict[str, tuple[int, ...]]

# Voxels of an image (of one channel, eight gibibytes), and levels of a network.
_MAX_VOXELS, _MAX_LEVELS = 2**31, 32
# Characters of a value that a sentence has room for.
_MAX_TEXT = 160


def check(document: dict) -> None:
    """Refuse a document that does not have what its kind of file must."""
    rules = RULES.get(document["kind"], {})
    _check_entries("", document, rules)
    for name in set(PARAMETERS) & set(rules):
        _check_entries(f"{name}: ", document[name], PARAMETERS[name])
        if unknown := sorted(set(document[name]) - set(PARAMETERS[name])):
            raise InputError(f"{name} has the unknown entry {short(unknown[0])}")
    if population := document.get("population"):
        _check_population(population, document.get("conditions", {}))


def upgraded(document: dict) -> dict:
    """Add the entries that documents of earlier versions lack."""
    if document["kind"] == "latent_diffusion":
        document = {"conditions": {}, "source": None} | document
        # Earlier versions trained a guide in any case.
        parameters = {"guide": True} | document["latent_diffusion"]
        document["latent_diffusion"] = parameters
    if "vqvae" in document:
        design = 1 if document.get("normed_output", True) else 2
        document = {"sharpening": 0.0, "design": design} | document
        usual = {"n_codebooks": 1, "bottleneck": "codebook"}
        document["vqvae"] = usual | document["vqvae"]
    return document


def check_sizes(parameters: dict, shapes: Shapes) -> None:
    """Refuse hyper-parameters that ask for more than the tensors are.

    A network of them is as cheap to sketch as the file is small, then.
    """
    largest = max((side for shape in shapes.values() for side in shape), default=0)
    sizes = [*parameters["widths"], parameters.get("code_dim", 1)]
    # Each width is the length of a bias, and each block has tensors of its own.
    if max(sizes) > largest or parameters["blocks"] * len(sizes) > len(shapes) + 1:
        raise InputError("its hyper-parameters ask for more tensors than it has")


def check_latents(document: dict, shape: tuple[int, ...]) -> None:
    """Refuse latents that are not those of the autoencoder."""
    saved = tuple(document["latent_shape"])
    if saved != shape:
        raise InputError(f"latent_shape must be {shape}, not {saved}")
    for name in ("latent_mean", "latent_scale"):
        if len(document[name]) != shape[-1]:
            raise InputError(f"{name} must have {shape[-1]} numbers")


def check_detector(document: dict) -> None:
    """Refuse a detector in a document of a model, if it is of other images."""
    detector = document["lesion_detector"]
    check(detector | {"kind": "detector"})
    if detector["shape"] != document["shape"]:
        raise InputError(
            f"the detector is of images of the shape {short(detector['shape'])}, and "
            f"the model of {document['shape']}"
        )


def check_shapes(saved: Shapes, expected: Shapes) -> None:
    """Refuse tensors of other names or shapes than those of the networks."""
    for name in sorted(set(saved) | set(expected)):
        if name not in saved:
            raise InputError(f"the tensor {name} is missing")
        if name not in expected:
            raise InputError(f"there is no place for the tensor {short(name)}")
        if saved[name] != expected[name]:
            raise InputError(
                f"the tensor {name} has the shape {saved[name]}, not {expected[name]}"
            )


def _check_entries(where, entries, rules):
    for name, (expected, fits) in rules.items():
        if name not in entries and name in OPTIONAL:
            continue
        if name not in entries:
            raise InputError(f"{where}{name} is missing")
        if not fits(entries[name]):
            raise InputError(
                f"{where}{name} must be {expected}, not {short(entries[name])}"
            )


def _check_population(population, conditions):
    """Refuse cells of other conditions than those of the document."""
    bins, cells, counts = (population[name] for name in ("bins", "cells", "counts"))
    sizes = [len(facts["levels"]) or bins for facts in conditions.values()]
    fits = len(cells) == len(counts) > 0 and all(
        len(cell) == len(sizes) and all(map(int.__lt__, cell, sizes)) for cell in cells
    )
    if not fits:
        raise InputError(
            f"population must have cells of the conditions, not {short(cells)}"
        )


def short(value: Any) -> str:
    """Write a value in some words, however long and deep it is."""
    text = reprlib.repr(value).replace("\n", " ")
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def word(text: str) -> str:
    """Keep what fits into a sentence, of a text that may be anything."""
    return " ".join(text.split())[:40]


def _is_whole(value, least=0):
    # To Python, True is a number too.
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value):
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    # NaN is neither above nor below.
    return (is_whole or isinstance(value, float)) and -LARGEST <= value <= LARGEST


def _is_size(value):
    return _is_whole(value, 1)


def _is_text(value):
    return isinstance(value, str)


def _is_bool(value):
    return isinstance(value, bool)


def _is_dictionary(value):
    return isinstance(value, dict)


def _list_of(fits):
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _dictionary_of(fits):
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _or_none(fits):
    return lambda value: value is None or fits(value)


def _record(**rules):
    """Return what fits dictionaries of just these entries."""
    return lambda value: (
        isinstance(value, dict)
        and set(value) == set(rules)
        and all(fits(value[name]) for name, fits in rules.items())
    )


def _are_sizes(value):
    return _list_of(_is_size)(value) and 1 <= len(value) <= _MAX_LEVELS


def _is_shape(value):
    return (
        _are_sizes(value) and len(value) in (3, 4) and math.prod(value) <= _MAX_VOXELS
    )


def _are_bounds(value):
    return _list_of(_is_number)(value) and len(value) == 2 and value[0] <= value[1]


def _is_affine(value):
    rows = _list_of(lambda row: _list_of(_is_number)(row) and len(row) == 4)
    return rows(value) and len(value) == 4 and is_affine(np.array(value, "float64"))


_has_facts = _record(
    kind=_is_text,
    levels=lambda v: _dictionary_of(_is_whole)(v) and all(map(is_label, v)),
    quantiles=_list_of(_is_number),
    missing=lambda v: _is_number(v) and 0 <= v <= 1,
    units=_or_none(lambda v: _is_text(v) and is_label(v)),
    meanings=_or_none(_dictionary_of(_is_text)),
)


def _is_condition(facts):
    """Return whether saved facts describe a valid condition."""
    if not _has_facts(facts):
        return False
    levels, quantiles = facts["levels"], facts["quantiles"]
    if facts["kind"] == "class":
        return bool(levels) and not quantiles
    rises = quantiles == sorted(quantiles) and quantiles[:1] != quantiles[-1:]
    return facts["kind"] == "continuous" and not levels and rises


def _are_conditions(value):
    return _dictionary_of(_is_condition)(value) and all(
        name != "" and is_label(name) for name in value
    )


def _are_labels(value):
    whole = _list_of(lambda label: _is_whole(label, -(2**63)))
    return whole(value) and value == sorted(set(value))


_is_population = _record(
    bins=_is_size,
    cells=_list_of(_list_of(lambda code: _is_whole(code, -1))),
    counts=_list_of(_is_size),
)
_is_source = _record(
    channels=_is_size,
    bounds=lambda value: _are_bounds(value) and value[0] < value[1],
    labels=_are_labels,
    fingerprint=_is_text,
)

# What an entry must be, in words and as a function.
_SIZE = "a whole number above 0", _is_size
_SIZES = f"1 to {_MAX_LEVELS} whole numbers above 0", _are_sizes
_SEED = "a whole number of 32 bits", lambda value: _is_whole(value) and value < 2**32
_TEXT = "text", _is_text
_NUMBERS = "a list of numbers", _list_of(_is_number)
_DICTIONARY = "a dictionary", _is_dictionary
_HISTORY = "lists of numbers by their names", _dictionary_of(_list_of(_is_number))
_PRECISION = (
    "a name and a reason, or null",
    _or_none(_record(name=_is_text, reason=_is_text)),
)

# Parameters of each estimator, by the name under which a document has them.
PARAMETERS: dict[str, dict[str, tuple[str, Callable]]] = {
    "vqvae": {
        "widths": _SIZES,
        "blocks": _SIZE,
        "n_codes": _SIZE,
        "n_codebooks": _SIZE,
        "code_dim": _SIZE,
        "commitment": ("a number", _is_number),
        "loss": _TEXT,
        "bottleneck": _TEXT,
        "seed": _SEED,
    },
    "detector": {"widths": _SIZES, "blocks": _SIZE, "seed": _SEED},
    "latent_diffusion": {
        "widths": _SIZES,
        "blocks": _SIZE,
        "attention": (
            "a list of true and false, or null",
            _or_none(_list_of(_is_bool)),
        ),
        "schedule": _TEXT,
        "target": _TEXT,
        "guide": ("true, false or null", _or_none(_is_bool)),
        "seed": _SEED,
    },
}

_IMAGES = {
    "shape": ("the size of an image of two or three dimensions", _is_shape),
    "intensity": ("two numbers, the lower first", _are_bounds),
    "history": _HISTORY,
    "fingerprint": _TEXT,
    "precision": _PRECISION,
}
_VQVAE = _IMAGES | {
    "vqvae": _DICTIONARY,
    "affine": ("4 x 4 numbers that tell places, or null", _or_none(_is_affine)),
    "suffix": ("text or null", _or_none(_is_text)),
    "design": ("1, 2 or 3", lambda value: _is_size(value) and value <= 3),
    "normed_output": ("true or false", _is_bool),
    "sharpening": (
        "a number from 0 to 1",
        lambda value: _is_number(value) and 0 <= value <= 1,
    ),
}
# Entries of each kind of file.
RULES: dict[str, dict[str, tuple[str, Callable]]] = {
    "vqvae": _VQVAE,
    "latent_diffusion": _VQVAE
    | {
        "latent_diffusion": _DICTIONARY,
        "latent_mean": _NUMBERS,
        "latent_scale": (
            "a list of numbers above 0",
            _list_of(lambda value: _is_number(value) and value >= 1e-30),
        ),
        "latent_shape": ("the size of a latent", _is_shape),
        "conditions": (
            "classes with levels and counts, or numbers with quantiles, by their names",
            _are_conditions,
        ),
        "population": ("cells with counts, or null", _or_none(_is_population)),
        "source": (
            "channels, bounds and labels of images, or null",
            _or_none(_is_source),
        ),
        "latent_diffusion_history": _HISTORY,
        "latent_diffusion_fingerprint": _TEXT,
        "latent_diffusion_precision": _PRECISION,
        "lesion_detector": _DICTIONARY,
    },
    "detector": _IMAGES | {"detector": _DICTIONARY},
    "checkpoint": {
        "settings": _DICTIONARY,
        "history": _HISTORY,
        "steps": ("a whole number", _is_whole),
    },
}
# What earlier versions did not write, or some files don't have.
OPTIONAL = {
    "bottleneck",
    "conditions",
    "design",
    "guide",
    "latent_diffusion_precision",
    "lesion_detector",
    "n_codebooks",
    "normed_output",
    "population",
    "precision",
    "sharpening",
    "source",
    "steps",
    "suffix",
}
