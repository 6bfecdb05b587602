"""Batches and latents for the tests that look at them."""

import numpy as np

from dipy_ldm.data._sources import ConditioningInputs
from dipy_ldm.denoiser._conditioning import Latents


def with_inputs(latents, *inputs, mean=None):
    """Return latents of as many subjects, without conditions unless they are given."""
    n = len(latents)
    inputs = ConditioningInputs(*(inputs or [np.empty((n, 0), "float32")]))
    return Latents(latents, inputs, mean, np.arange(n))


def draw_batches(data, n_batches, first_step=0):
    """Return so many batches, from a step on."""
    return [data.of(first_step + step) for step in range(n_batches)]
