"""What the files of ``dipy_generate_ldm`` say of the images in them."""

from collections.abc import Iterable, Sequence
import json
from pathlib import Path

import numpy as np

from dipy_ldm._utils.values import values_of
from dipy_ldm.workflows._provenance import sidecar


def asked_of(
    names: Sequence[str], places: Sequence[tuple[Path, int]]
) -> dict[str, list] | None:
    """Look up what images were asked to be."""
    told = {file: asked_in(file) for file in dict.fromkeys(file for file, _ in places)}
    found = {
        name: values_of(name, [_value(told[file].get(name), i) for file, i in places])
        for name in names
    }
    known = any(value is not None for values in found.values() for value in values)
    return found if known else None


def asked_in(file: Path) -> dict[str, object]:
    """Read what the images of a file were asked to be."""
    try:
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                start = "condition_"
                told = [name for name in arrays.files if name.startswith(start)]
                return {name.removeprefix(start): arrays[name] for name in told}
        return json.loads(sidecar(file).read_text("utf-8")).get("Conditions", {})
    except (OSError, ValueError):
        return {}


def refused_in(files: Iterable[Path]) -> int:
    """Count the samples that were refused as copies in place of those of some files."""
    return sum(_refused(file) for file in set(files))


def _refused(file):
    try:
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                told = json.loads(str(arrays["description"]))
        else:
            told = json.loads(sidecar(file).read_text("utf-8"))
        return int(told.get("Refused", 0))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return 0


def _value(told, number):
    return told[number] if isinstance(told, np.ndarray) else told
