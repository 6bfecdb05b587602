"""Conditioning of a denoiser."""

import numpy as np

from dipy_ldm.denoiser._conditioning import Examples, _learn_conditions


def test_missing_class_codes_warn_once(caplog):
    groups = {"group": np.array([0, 1, np.nan])}
    examples = Examples((3, 8, 8, 1), groups)
    learnt = _learn_conditions(examples, None, None, np.arange(3))
    assert learnt["group"].levels == {"0": 1, "1": 1}
    assert caplog.text.count("is taken for a class with missing values") == 1
