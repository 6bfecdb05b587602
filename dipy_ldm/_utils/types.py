"""Shared types."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy.typing as npt

# A numpy array or a tensor of the back-end, for which Keras has no common type.
Tensor: TypeAlias = Any


class Batches(NamedTuple):
    """Endless batches; ``draw`` takes a step and the indices within its batch."""

    size: int
    draw: Callable

    def of(self, step: int) -> tuple:
        """Return the batch of a step."""
        return self.draw(step, range(self.size))


class ImageOfNibabel(Protocol):
    """Protocol of nibabel images, for type checkers."""

    @property
    def affine(self) -> Any:
        """Map from voxels to millimetres, ``(4, 4)``."""

    def get_fdata(self) -> Any:
        """Return the scaled voxels."""


# Images to plot.
ShownLike: TypeAlias = (
    npt.ArrayLike
    | ImageOfNibabel
    | Mapping[str, ImageOfNibabel]
    | Sequence[ImageOfNibabel]
    | Sequence[Mapping[str, ImageOfNibabel]]
)
