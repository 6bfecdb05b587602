"""Shared types."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

# A numpy array or a tensor of the back-end, for which Keras has no common type.
Tensor: TypeAlias = Any
# A strategy of TensorFlow; None for one device, and with other back-ends of Keras.
Strategy: TypeAlias = Any
# Metrics by name, as Keras passes them to callbacks.
Logs: TypeAlias = Any
# Sizes of axes; None for any size.
Space: TypeAlias = tuple[int | None, ...]


class Batches(NamedTuple):
    """Endless batches; ``draw`` takes a step and the indices within its batch."""

    size: int
    draw: Callable

    def of(self, step: int) -> tuple:
        """Return the batch of a step."""
        return self.draw(step, range(self.size))
