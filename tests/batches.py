"""Batches for the tests that look at them."""


def draw_batches(data, n_batches, first_step=0):
    """Return so many batches, from a step on."""
    return [data.of(first_step + step) for step in range(n_batches)]
