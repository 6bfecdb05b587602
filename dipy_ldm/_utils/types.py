"""Types that several folders share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy.typing as npt

# An array of numpy, or a tensor of the back-end, for which Keras has no type.
Tensor: TypeAlias = Any


class Batches(NamedTuple):
    """Batches without end; ``draw`` takes a step, and places in its batch."""

    size: int
    draw: Callable

    def of(self, step: int) -> tuple:
        """Make the batch of a step."""
        return self.draw(step, range(self.size))


class ImageOfNibabel(Protocol):
    """What type checkers are told of images of nibabel."""

    @property
    def affine(self) -> Any:
        """From voxels to millimetres, ``(4, 4)``."""

    def get_fdata(self) -> Any:
        """Return the voxels, scaled."""


# What is shown in pictures.
ShownLike: TypeAlias = (
    npt.ArrayLike
    | ImageOfNibabel
    | Mapping[str, ImageOfNibabel]
    | Sequence[ImageOfNibabel]
    | Sequence[Mapping[str, ImageOfNibabel]]
)
