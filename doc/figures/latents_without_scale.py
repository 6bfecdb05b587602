"""Latents that are not brought to unit variance."""

from panels import packaged
from trained import good, without_scale
from two_trainings import compare


def draw():
    """Draw both trainings side by side."""
    packaged()
    compare(
        {"unit variance": good(), "ten times smaller": without_scale()},
        "the loss alone looks better",
    )
