"""Scripts that are not in the package, for the tests of what is in them."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "doc" / "examples"


def load(path):
    """Import a script of the repository as a module."""
    path = ROOT / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As Python does for a script: it imports its neighbours. What benchmarks share
        # adds the folder of the examples, but when it is imported first alone.
        patch.syspath_prepend(EXAMPLES)
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module
