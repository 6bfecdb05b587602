"""Fitted models, for the tests that compare them."""

import numpy.testing as npt


def assert_same_weights(model, other, atol=0, rtol=0):
    """Compare all that a model file would have of a model with that of another."""
    tensors = other.to_tensors()
    for name, tensor in model.to_tensors().items():
        npt.assert_allclose(tensor, tensors[name], rtol=rtol, atol=atol, err_msg=name)
