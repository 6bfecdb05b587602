"""Schema of the JSON document in a model file.

Documents are checked before anything is built, without Keras and TensorFlow.
"""

import math
import reprlib
from types import UnionType
from typing import (
    Annotated,
    Any,
    NotRequired,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import numpy as np

from dipy_ldm._utils.checks import MAX_ABSOLUTE_VALUE, InputError, is_affine, is_label

Shapes = dict[str, tuple[int, ...]]

# Voxels of an image (of one channel, eight gibibytes), and levels of a network.
_MAX_VOXELS, _MAX_LEVELS = 2**31, 32
# Characters of a value that are shown in a message.
_MAX_TEXT = 160


def _is_condition(entry: dict):
    """Return whether a class has levels, or a number increasing quantiles."""
    levels, quantiles = entry["levels"], entry["quantiles"]
    if entry["kind"] == "direction":
        return not levels and not quantiles
    if entry["kind"] == "class":
        return bool(levels) and not quantiles
    is_increasing = quantiles == sorted(quantiles) and quantiles[:1] != quantiles[-1:]
    return entry["kind"] == "continuous" and not levels and is_increasing


# Types of entries, with their limits.
_Size = Annotated[int, lambda n: n > 0]
_Sizes = Annotated[list[_Size], lambda sizes: 1 <= len(sizes) <= _MAX_LEVELS]
_Seed = Annotated[int, lambda n: 0 <= n < 2**32]
# A comparison with NaN is false.
_Number = Annotated[float, lambda x: -MAX_ABSOLUTE_VALUE <= x <= MAX_ABSOLUTE_VALUE]
_Share = Annotated[float, lambda x: 0 <= x <= 1]
_Scale = Annotated[_Number, lambda x: x >= 1e-30]
_Shape = Annotated[_Sizes, lambda s: len(s) in (3, 4) and math.prod(s) <= _MAX_VOXELS]
_Bounds = Annotated[list[_Number], lambda b: len(b) == 2 and b[0] <= b[1]]
_Affine = Annotated[
    list[list[_Number]],
    lambda rows: [*map(len, rows)] == [4] * 4 and is_affine(np.array(rows, "float64")),
]
_History = dict[str, list[_Number]]
_Label = Annotated[str, is_label]


class _Precision(TypedDict):
    name: str
    reason: str


class _Condition(TypedDict):
    kind: str
    levels: Annotated[
        dict[str, Annotated[int, lambda n: n >= 0]],
        lambda levels: all(map(is_label, levels)),
    ]
    quantiles: list[_Number]
    missing: _Share
    units: _Label | None
    meanings: dict[str, str] | None


Conditions = Annotated[
    dict[str, Annotated[_Condition, _is_condition]],
    lambda conditions: all(name and is_label(name) for name in conditions),
]


class _Population(TypedDict):
    bins: _Size
    cells: list[
        list[Annotated[list[int], lambda c: len(c) == 2 and -1 <= c[0] <= c[1]]]
    ]
    counts: list[_Size]


class _Source(TypedDict):
    channels: _Size
    bounds: Annotated[_Bounds, lambda b: b[0] < b[1]]
    labels: Annotated[
        list[Annotated[int, lambda label: label >= -(2**63)]],
        lambda labels: labels == sorted(set(labels)),
    ]
    fingerprint: str


class _Network(TypedDict):
    widths: _Sizes
    blocks: _Size
    seed: _Seed


class _Unet(_Network):
    attention: list[bool] | None
    schedule: str
    target: str
    guide: bool | None


class _Autoencoder(_Network):
    n_codes: _Size
    n_codebooks: _Size
    code_dim: _Size
    commitment: _Number
    loss: str
    bottleneck: str


class _Images(TypedDict):
    shape: _Shape
    intensity: _Bounds
    history: _History
    fingerprint: str
    precision: _Precision | None


class _Detector(_Images):
    detector: _Network


class _VQVAE(_Images):
    vqvae: _Autoencoder
    affine: _Affine | None
    suffix: str | None
    channels: NotRequired[Annotated[list[dict[str, Any]], len] | None]
    sharpening: _Share


class _LatentDiffusion(_VQVAE):
    latent_diffusion: _Unet
    latent_mean: list[_Number]
    latent_scale: list[_Scale]
    latent_shape: _Shape
    conditions: Conditions
    population: _Population | None
    source: _Source | None
    source_channels: NotRequired[Annotated[list[dict[str, Any]], len] | None]
    latent_diffusion_history: _History
    latent_diffusion_fingerprint: str
    latent_diffusion_precision: _Precision | None
    lesion_detector: NotRequired[_Detector]
    settings: NotRequired[dict[str, Any]]


class _Checkpoint(TypedDict):
    settings: dict[str, Any]
    history: _History
    steps: Annotated[int, lambda n: n >= 0]


_KINDS: dict[str, type] = {
    "vqvae": _VQVAE,
    "latent_diffusion": _LatentDiffusion,
    "detector": _Detector,
    "checkpoint": _Checkpoint,
}


def check(document: dict) -> None:
    """Refuse a document that violates the schema of its kind of file."""
    if document["kind"] in _KINDS:
        _check_entries("", document, _KINDS[document["kind"]])
    if document["kind"] == "latent_diffusion":
        _check_agreement(document)


def _check_entries(where: str, entries: dict, kind: Any):
    """Refuse missing entries and entries of another type."""
    for name, expected in get_type_hints(kind, include_extras=True).items():
        if name not in entries:
            if name in kind.__required_keys__:
                raise InputError(f"{where}{name} is missing")
        elif is_typeddict(expected) and isinstance(entries[name], dict):
            _check_entries(f"{name}: ", entries[name], expected)
            if unknown := sorted(set(entries[name]) - set(expected.__annotations__)):
                raise InputError(f"{name} has the unknown entry {short(unknown[0])}")
        elif not fits(entries[name], expected):
            raise InputError(f"{where}{name} can't be {short(entries[name])}")


def _check_agreement(document: dict):
    """Refuse entries of a diffusion model that contradict each other."""
    n_channels = document["latent_shape"][-1]
    for name in ("latent_mean", "latent_scale"):
        if len(document[name]) != n_channels:
            raise InputError(f"{name} must have {n_channels} numbers")
    detector_shape = document.get("lesion_detector", document)["shape"]
    if detector_shape != document["shape"]:
        raise InputError(
            f"the detector is for images of shape {short(detector_shape)}, but the "
            f"model for {document['shape']}"
        )
    if document["population"]:
        _check_population(document["population"], document["conditions"])


def fits(value: Any, kind: Any) -> bool:
    """Return whether a JSON value has a type, and is within its limits."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Annotated, NotRequired):
        limits = arguments[1:]
        return fits(value, arguments[0]) and all(limit(value) for limit in limits)
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in arguments)
    if origin in (list, dict):
        if type(value) is not origin:
            return False
        values = value.values() if origin is dict else value
        return all(fits(entry, arguments[-1]) for entry in values)
    if is_typeddict(kind):
        types = get_type_hints(kind, include_extras=True)
        return (
            isinstance(value, dict)
            and value.keys() == types.keys()
            and all(fits(value[name], types[name]) for name in types)
        )
    # Not isinstance: to Python, True is an int.
    return kind is Any or type(value) in ((int, float) if kind is float else (kind,))


def check_sizes(parameters: dict, shapes: Shapes) -> None:
    """Refuse hyper-parameters of larger networks than the tensors allow.

    Building the network without weights is then as cheap as the file is small.
    """
    largest = max((side for shape in shapes.values() for side in shape), default=0)
    sizes = [*parameters["widths"], parameters.get("code_dim", 1)]
    # Each width is the length of a bias, and each block has tensors of its own.
    if max(sizes) > largest or parameters["blocks"] * len(sizes) > len(shapes) + 1:
        raise InputError("its hyper-parameters need more tensors than it has")


def check_shapes(saved: Shapes, expected: Shapes) -> None:
    """Refuse tensors whose names or shapes differ from those of the networks."""
    if different := sorted(saved.keys() ^ expected.keys()):
        problem = "missing" if different[0] in expected else "unexpected"
        raise InputError(f"the tensor {short(different[0])} is {problem}")
    for name, shape in expected.items():
        if saved[name] != shape:
            raise InputError(
                f"the tensor {name} has the shape {saved[name]}, not {shape}"
            )


def _check_population(population: dict, conditions: dict):
    """Refuse cells that do not match the conditions of the document."""
    bins, cells, counts = (population[name] for name in ("bins", "cells", "counts"))
    sizes = [len(entry["levels"]) or bins for entry in conditions.values()]
    fitting = len(cells) == len(counts) > 0 and all(
        len(cell) == len(sizes)
        and all(last < size for (_, last), size in zip(cell, sizes))
        for cell in cells
    )
    if not fitting:
        raise InputError(
            f"population must have cells that match the conditions, not {short(cells)}"
        )


def short(value: object) -> str:
    """Return the text of a value, shortened if it is long or deep."""
    text = reprlib.repr(value).replace("\n", " ")
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
