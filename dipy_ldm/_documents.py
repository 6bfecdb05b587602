"""Documents: what a model file must say, whoever wrote it.

Nothing is built here, and neither Keras nor TensorFlow is needed: what is wrong is
found before anything is made of it.
"""

from collections.abc import Callable
import math
import reprlib
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm._utils.checks import LARGEST, InputError, is_affine, is_label

# Voxels of an image; of one channel, eight gibibytes.
_VOXELS = 2**31
# Characters of a value that a sentence has room for.
_LONG = 160
# No training halves the resolution so often.
_LEVELS = 32


class Rule(NamedTuple):
    """What an entry of a document must be."""

    wanted: str
    fits: Callable
    optional: bool = False


def check(document: dict) -> None:
    """Refuse a document that does not say what its kind of file must."""
    _check_entries("", document, RULES.get(document["kind"], {}))
    for name in set(HYPERPARAMETERS) & set(RULES.get(document["kind"], {})):
        rules = HYPERPARAMETERS[name]
        _check_entries(f"{name}: ", document[name], rules)
        if unknown := sorted(set(document[name]) - set(rules)):
            raise InputError(f"{name} has the unknown entry {short(unknown[0])}")
    if population := document.get("population"):
        _check_population(population, document.get("conditions", {}))


def upgraded(document: dict) -> dict:
    """Say what a document of an earlier version leaves out."""
    if document["kind"] == "latent_diffusion":
        document = {"conditions": {}, "source": None} | document
    if "shape" not in document:
        return document
    document = {"sharpening": 0.0} | document
    if "vqvae" in document:
        document |= {"vqvae": {"n_codebooks": 1} | document["vqvae"]}
    if "design" in document:
        return document
    return document | {"design": 1 if document.get("normed_output", True) else 2}


def check_sizes(settings: dict, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse hyper-parameters that ask for more than the tensors are.

    A network of them is as cheap to sketch as the file is small, then.
    """
    largest = max((side for shape in shapes.values() for side in shape), default=0)
    sizes = [*settings["widths"], settings.get("code_dim", 1)]
    # Each width is the length of a bias, and each block has tensors of its own.
    if max(sizes) > largest or settings["blocks"] * len(sizes) > len(shapes) + 1:
        raise InputError("its hyper-parameters ask for more tensors than it has")


def check_latents(document: dict, shape: tuple[int, ...]) -> None:
    """Refuse latents that are not those of the autoencoder."""
    found = tuple(document["latent_shape"])
    if found != shape:
        raise InputError(f"latent_shape must be {shape}, not {found}")
    for name in ("latent_mean", "latent_scale"):
        if len(document[name]) != shape[-1]:
            raise InputError(f"{name} must have {shape[-1]} numbers")


def check_detector(document: dict) -> None:
    """Refuse a detector in a document of a model, if it is of other images."""
    described = document["lesion_detector"]
    check(described | {"kind": "detector"})
    if described["shape"] != document["shape"]:
        raise InputError(
            f"the detector is of images of the shape {short(described['shape'])}, and "
            f"the model of {document['shape']}"
        )


def check_shapes(
    found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> None:
    """Refuse tensors of other shapes than those of the networks."""
    for name in sorted(set(found) | set(wanted)):
        if name not in found:
            raise InputError(f"the tensor {name} is missing")
        if name not in wanted:
            raise InputError(f"there is no place for the tensor {short(name)}")
        if found[name] != wanted[name]:
            raise InputError(
                f"the tensor {name} has the shape {found[name]}, not {wanted[name]}"
            )


def _check_entries(where, entries, rules):
    for name, rule in rules.items():
        if name not in entries:
            if rule.optional:
                continue
            raise InputError(f"{where}{name} is missing")
        if not rule.fits(entries[name]):
            raise InputError(
                f"{where}{name} must be {rule.wanted}, not {short(entries[name])}"
            )


def _check_population(population, conditions):
    """Refuse cells of other conditions than those of the document."""
    bins, cells, counts = (population[name] for name in _OF_POPULATIONS)
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
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def _is_whole(value, least=0):
    # To Python, True is a number too.
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value):
    whole = isinstance(value, int) and not isinstance(value, bool)
    # NaN is neither above nor below.
    return (whole or isinstance(value, float)) and -LARGEST <= value <= LARGEST


def _is_text(value):
    return isinstance(value, str)


def _is_list(value, fits):
    return isinstance(value, list) and all(map(fits, value))


def _are_sizes(value):
    return _is_list(value, lambda size: _is_whole(size, 1)) and (
        1 <= len(value) <= _LEVELS
    )


def _is_shape(value):
    return _are_sizes(value) and len(value) in (3, 4) and math.prod(value) <= _VOXELS


def _are_bounds(value):
    return _is_list(value, _is_number) and len(value) == 2 and value[0] <= value[1]


def _is_affine(value):
    rows = _is_list(value, lambda row: _is_list(row, _is_number) and len(row) == 4)
    return rows and len(value) == 4 and is_affine(np.array(value, "float64"))


def _is_history(value):
    return isinstance(value, dict) and all(
        _is_list(figures, _is_number) for figures in value.values()
    )


def _is_precision(value):
    return (
        isinstance(value, dict)
        and set(value) == {"name", "reason"}
        and (_is_list(list(value.values()), _is_text))
    )


def _are_conditions(value):
    return isinstance(value, dict) and all(
        name != ""
        and is_label(name)
        and isinstance(facts, dict)
        and _is_condition(facts)
        for name, facts in value.items()
    )


def _are_texts(value):
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_condition(facts):
    """Say whether it is a class with levels, or continuous with quantiles."""
    if set(facts) != {"kind", "levels", "quantiles", "missing", "units", "meanings"}:
        return False
    levels, quantiles = facts["levels"], facts["quantiles"]
    if not (
        isinstance(levels, dict)
        and all(map(is_label, levels))
        and all(map(_is_whole, levels.values()))
        and _is_list(quantiles, _is_number)
        and _is_number(facts["missing"])
        and 0 <= facts["missing"] <= 1
        and _or_none(lambda text: _is_text(text) and is_label(text))(facts["units"])
        and _or_none(_are_texts)(facts["meanings"])
    ):
        return False
    if facts["kind"] == "class":
        return bool(levels) and not quantiles
    rises = quantiles == sorted(quantiles) and quantiles[:1] != quantiles[-1:]
    return facts["kind"] == "continuous" and not levels and rises


def _is_population(facts):
    """Say whether it has shares, and cells with counts."""
    return (
        isinstance(facts, dict)
        and set(facts) == set(_OF_POPULATIONS)
        and _is_whole(facts["bins"], 1)
        and _is_list(
            facts["cells"], lambda c: _is_list(c, lambda code: _is_whole(code, -1))
        )
        and _is_list(facts["counts"], lambda count: _is_whole(count, 1))
    )


def _is_source(facts):
    """Say whether it has channels and bounds, and labels that rise, or none."""
    if not isinstance(facts, dict) or set(facts) != _OF_SOURCES:
        return False
    labels = facts["labels"]
    return (
        _is_whole(facts["channels"], 1)
        and _are_bounds(facts["bounds"])
        and facts["bounds"][0] < facts["bounds"][1]
        and _is_list(labels, lambda label: _is_whole(label, -(2**63)))
        and labels == sorted(set(labels))
        and _is_text(facts["fingerprint"])
    )


def _or_none(fits):
    return lambda value: value is None or fits(value)


_OF_POPULATIONS = ("bins", "cells", "counts")
_OF_SOURCES = {"channels", "bounds", "labels", "fingerprint"}
_SIZE = Rule("a whole number above 0", lambda value: _is_whole(value, 1))
_SIZES = Rule(f"1 to {_LEVELS} whole numbers above 0", _are_sizes)
_COUNT = Rule("a whole number", _is_whole)
_SEED = Rule("a whole number of 32 bits", lambda v: _is_whole(v) and v < 2**32)
_TEXT = Rule("text", _is_text)
_HISTORY = Rule("lists of numbers by their names", _is_history)
_PRECISION = Rule("a name and a reason, or null", _or_none(_is_precision), True)
_NUMBERS = Rule("a list of numbers", lambda value: _is_list(value, _is_number))

# Of each estimator, by the name under which a document has them.
HYPERPARAMETERS = {
    "vqvae": {
        "widths": _SIZES,
        "blocks": _SIZE,
        "n_codes": _SIZE,
        "n_codebooks": _SIZE._replace(optional=True),
        "code_dim": _SIZE,
        "commitment": Rule("a number", _is_number),
        "loss": _TEXT,
        # Earlier versions knew but one.
        "bottleneck": _TEXT._replace(optional=True),
        "seed": _SEED,
    },
    "detector": {"widths": _SIZES, "blocks": _SIZE, "seed": _SEED},
    "latent_diffusion": {
        "widths": _SIZES,
        "blocks": _SIZE,
        "attention": Rule(
            "a list of true and false, or null",
            _or_none(lambda v: _is_list(v, lambda level: isinstance(level, bool))),
        ),
        "schedule": _TEXT,
        "target": _TEXT,
        # Earlier versions trained one in any case.
        "guide": Rule(
            "true, false or null", _or_none(lambda v: isinstance(v, bool)), True
        ),
        "seed": _SEED,
    },
}

# Of what is learnt from images.
_IMAGES = {
    "shape": Rule("the size of an image of two or three dimensions", _is_shape),
    "intensity": Rule("two numbers, the lower first", _are_bounds),
    "history": _HISTORY,
    "fingerprint": _TEXT,
    "precision": _PRECISION,
}
_DICTIONARY = Rule("a dictionary", lambda value: isinstance(value, dict))

_VQVAE = _IMAGES | {
    "vqvae": _DICTIONARY,
    "affine": Rule("4 x 4 numbers that tell places, or null", _or_none(_is_affine)),
    # Earlier versions did not know it.
    "suffix": Rule("text or null", _or_none(_is_text), True),
    # Earlier versions said it otherwise, if at all.
    "design": Rule("1, 2 or 3", lambda v: _is_whole(v, 1) and v <= 3, True),
    "normed_output": Rule("true or false", lambda v: isinstance(v, bool), True),
    "sharpening": Rule(
        "a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1, True
    ),
}

# Of each kind of file.
RULES = {
    "vqvae": _VQVAE,
    "latent_diffusion": _VQVAE
    | {
        "latent_diffusion": _DICTIONARY,
        "latent_mean": _NUMBERS,
        "latent_scale": Rule(
            "a list of numbers above 0",
            lambda v: _is_list(v, lambda n: _is_number(n) and n >= 1e-30),
        ),
        "latent_shape": Rule("the size of a latent", _is_shape),
        # Earlier versions knew of none.
        "conditions": Rule(
            "classes with levels and counts, or numbers with quantiles, by their names",
            _are_conditions,
            True,
        ),
        # Earlier versions did not count.
        "population": Rule(
            "cells with counts, or null", _or_none(_is_population), True
        ),
        # Earlier versions knew of none, either.
        "source": Rule(
            "channels, bounds and labels of images, or null",
            _or_none(_is_source),
            True,
        ),
        "latent_diffusion_history": _HISTORY,
        "latent_diffusion_fingerprint": _TEXT,
        "latent_diffusion_precision": _PRECISION,
        # Most have none.
        "lesion_detector": _DICTIONARY._replace(optional=True),
    },
    "detector": _IMAGES | {"detector": _DICTIONARY},
    "checkpoint": {
        "settings": _DICTIONARY,
        "history": _HISTORY,
        # Earlier versions did not count them.
        "steps": _COUNT._replace(optional=True),
    },
}
