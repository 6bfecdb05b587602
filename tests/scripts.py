"""Scripts that are not in the package, for the tests of what is in them."""

import importlib.util

import pytest


def load(path):
    """Import a script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # As Python does for a script: it imports its neighbours.
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module
