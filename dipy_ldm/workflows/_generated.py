"""What the files of ``dipy_generate_ldm`` say of the images in them."""

from collections.abc import Iterable, Sequence
import json
from pathlib import Path

import numpy as np

from dipy_ldm._utils.values import values_of
from dipy_ldm.workflows._provenance import sidecar


def requested_conditions_of(
    names: Sequence[str], places: Sequence[tuple[Path, int]]
) -> dict[str, list] | None:
    """Look up what images were asked to be."""
    by_file = {
        file: requested_conditions_in(file)
        for file in dict.fromkeys(file for file, _ in places)
    }
    columns = {
        name: values_of(
            name, [_value(by_file[file].get(name), i) for file, i in places]
        )
        for name in names
    }
    has_values = any(
        value is not None for values in columns.values() for value in values
    )
    return columns if has_values else None


def requested_conditions_in(file: Path) -> dict[str, object]:
    """Read what the images of a file were asked to be."""
    try:
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                start = "condition_"
                names = [name for name in arrays.files if name.startswith(start)]
                return {name.removeprefix(start): arrays[name] for name in names}
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
                facts = json.loads(str(arrays["description"]))
        else:
            facts = json.loads(sidecar(file).read_text("utf-8"))
        return int(facts.get("Refused", 0))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return 0


def _value(values, number):
    return values[number] if isinstance(values, np.ndarray) else values
