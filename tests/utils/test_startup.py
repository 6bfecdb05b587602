"""The garbage collector during large imports."""

import gc
import os
import sys

from processes import run_python
import pytest

from dipy_ldm._utils.startup import gc_disabled

LOOKS = """
import gc
looks = [0, 0]
gc.callbacks.append(lambda phase, info: count(phase, info))
def count(phase, info):
    looks[info["generation"] == 2] += phase == "start"
"""
AS_A_LIBRARY = """
from dipy_ldm import VQVAE
"""
AS_A_COMMAND = """
from dipy_ldm.workflows._launch import quiet_start
with quiet_start():
    from dipy_ldm import VQVAE
"""


@pytest.mark.parametrize("code", [AS_A_LIBRARY, AS_A_COMMAND])
def test_gc_is_disabled_during_imports(code):
    tell = "print(looks[1], gc.isenabled(), gc.get_freeze_count())"
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = run_python("-c", LOOKS + code + tell, env=env)
    looks, enabled, frozen = done.stdout.split()
    assert int(looks) == 0
    assert enabled == "True"
    assert (int(frozen) > 100_000) is (code == AS_A_COMMAND)


@pytest.fixture
def not_imported(monkeypatch):
    """Let it seem as if Keras were not there yet, and nothing frozen by conftest."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.parametrize("for_good", [True, False])
def test_gc_disabled_ends_after_an_error(not_imported, for_good):
    with pytest.raises(ImportError), gc_disabled(for_good):
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    assert (gc.get_freeze_count() > 0) is for_good


def test_gc_disabled_keeps_settings_of_the_user(not_imported):
    gc.disable()
    with gc_disabled():
        pass
    assert not gc.isenabled()
    gc.enable()
    gc.freeze()
    with gc_disabled():
        pass
    assert gc.get_freeze_count() > 0


def test_gc_disabled_does_nothing_after_imports():
    pytest.importorskip("keras")
    with gc_disabled():
        assert gc.isenabled()
