"""What networks are told of examples: numbers of conditions, and sources.

Never more than a batch of the sources is read at once: a mapped file may be far larger
than the memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm.conditions import UNSPECIFIED
from dipy_ldm.data._patches import read_windows, window_size
from dipy_ldm.data._sources import Source


class Sources(NamedTuple):
    """Sources, as networks are given them.

    Shapes: images ``(n, *space, channels)``.
    """

    images: np.ndarray
    info: Source
    size: tuple[int, ...]

    @property
    def shape(self):
        """Shape of one, ``(*size, channels)``."""
        return (*self.size, self.info.channels)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read some of them.

        Shapes: numbers ``(n,)``, result ``(n, *size, channels)``.
        """
        places = [max(0, int(number)) for number in rows]
        corners = np.zeros((len(places), len(self.size)), int)
        scaled = self.info.scaled(read_windows(self.images, places, corners, self.size))
        scaled[np.asarray(rows) < 0] = UNSPECIFIED
        return scaled


class ConditioningInputs(NamedTuple):
    """What networks are told of some examples.

    Shapes: table ``(n, conditions)``.
    """

    table: np.ndarray
    sources: Sources | None = None

    @classmethod
    def of(cls, numbers: np.ndarray, sources: Sources | None) -> Self:
        """Join conditions and sources.

        Shapes: numbers ``(n, conditions)``.
        """
        if sources is None:
            return cls(numbers)
        n, count = len(numbers), len(sources.images)
        which = np.arange(n) if count == n else np.zeros(n)
        return cls(np.column_stack([numbers, which]).astype("float32"), sources)

    def take(self, numbers: np.ndarray) -> Self:
        """Choose some of the examples."""
        return self._replace(table=self.table[numbers])

    def arrays(self) -> tuple:
        """Return what networks are given beside latents and times."""
        read = None if self.sources is None else self.sources.read
        return network_inputs(self.table, read)


def prepare_sources(
    info: Source | None, images: np.ndarray | None, factor: int
) -> Sources | None:
    """Say how networks are given sources."""
    if info is None or images is None:
        return None
    return Sources(images, info, window_size(images.shape[1:-1], factor))


def network_inputs(table: Any, read: Callable | None) -> tuple:
    """Split a table of :class:`Given` into what networks are given.

    Shapes: table ``(n, columns)``.
    """
    conditions = table if read is None else table[:, :-1]
    parts = (conditions,) if conditions.shape[1] else ()
    return parts if read is None else (*parts, read(table[:, -1]))
