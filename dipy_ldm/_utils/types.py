"""Types of annotations."""

from typing import Any, TypeAlias

# An array of numpy, or a tensor of the back-end, for which Keras has no type.
Tensor: TypeAlias = Any
