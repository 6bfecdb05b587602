"""Conditioning of a denoiser."""

from types import SimpleNamespace

import numpy as np

from dipy_ldm.denoiser._conditioning import _learn_conditions


def test_missing_class_codes_warn_once(caplog):
    groups = {"group": np.array([0, 1, np.nan])}
    examples = SimpleNamespace(conditions=groups, shape=(3, 8, 8, 1))
    learnt = _learn_conditions(examples, None, None, np.arange(3))
    assert learnt["group"].levels == {"0": 1, "1": 1}
    assert caplog.text.count("is taken for a class with missing values") == 1
