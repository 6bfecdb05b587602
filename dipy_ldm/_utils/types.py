"""Types of annotations."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

# An array of numpy, or a tensor of the back-end, for which Keras has no type.
Tensor: TypeAlias = Any


class ImageOfNibabel(Protocol):
    """What type checkers are told of images of nibabel."""

    @property
    def affine(self) -> Any:
        """From voxels to millimetres, ``(4, 4)``."""

    def get_fdata(self) -> Any:
        """Return the voxels, scaled."""


# What is shown in pictures.
ShownLike: TypeAlias = npt.ArrayLike | ImageOfNibabel | Sequence[ImageOfNibabel]
