"""A schedule that ends too early: sampling begins where the network never was."""

from trained import EARLY, good, too_early
from two_trainings import compare


def draw():
    """Draw both trainings side by side."""
    with EARLY:
        compare(
            {"ends in noise": good(), "ends too early": too_early()},
            "the loss alone looks better",
        )
