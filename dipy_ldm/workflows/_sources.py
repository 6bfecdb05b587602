"""Source images of a command."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.cluster import Cluster
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._nifti import check_headers
from dipy_ldm.data._paths import choose_files, find_volumes
from dipy_ldm.data._plan import pair_sources
from dipy_ldm.data._preprocessing import conform_source
from dipy_ldm.data._scans import refuse_other_channels
from dipy_ldm.data._sources import Source, refuse_mismatch
from dipy_ldm.workflows import _launch as launch


class SourceInputs(NamedTuple):
    """Files of sources, and the grid that they are brought to."""

    source: Source
    grid: Grid
    files: list[Path]
    own: list[Path]

    @classmethod
    def of(cls, document: dict, source_files: list[str] | None) -> Self | None:
        """Read and check the headers of source images."""
        if document["source"] and len(document["shape"]) != 4:
            raise InputError(
                "this model is conditioned on source images; generate with "
                "LatentDiffusion.predict(source=...)."
            )
        refuse_mismatch(document["source"], source_files, "source_files")
        if source_files is None:
            return None
        source = Source(**document["source"])
        files = find_volumes(source_files)
        choose_files(files, cure="name those of one kind, with a wildcard")
        infos, _ = check_headers(files, source.channels > 1)
        refuse_other_channels(
            infos[0], source.channels, "the model was trained with source images of"
        )
        affine = np.array(document["affine"], "float64")
        grid = Grid(tuple(document["shape"][:3]), affine)
        return cls(source, grid, files, files)

    def part_of(self, cluster: Cluster | None) -> Self:
        """Choose what this of several workers works on."""
        return self._replace(own=launch.part_of(cluster, self.files))

    def read(self, file: Path) -> np.ndarray:
        """Read a source, on the grid of the model.

        Shapes: result ``(1, *space, channels)``.
        """
        several, labels = self.source.channels > 1, bool(self.source.labels)
        return conform_source(file, self.grid, several, labels)[None]


class SourcePairs(NamedTuple):
    """Volumes, and the source that each belongs to."""

    sources: SourceInputs | None
    source_of: dict[Path, Path]

    @classmethod
    def of(
        cls, document: dict, files: list[Path], source_files: list[str] | None
    ) -> Self:
        """Find the source of each volume."""
        sources = SourceInputs.of(document, source_files)
        return cls(sources, pair_sources(files, sources.files) if sources else {})

    def arguments(self, file: Path) -> dict[str, np.ndarray]:
        """Read the source of a volume."""
        return (
            {"source": self.sources.read(self.source_of[file])} if self.sources else {}
        )

    def names(self, *files: Path) -> list[str]:
        """Return the names of all source files."""
        own = [self.source_of[files[0]]] if self.sources else []
        return [str(file) for file in [*files, *own]]


def pieces(
    sources: SourceInputs | None, names: Sequence, numbers: range, at_once: int
) -> Iterator[tuple]:
    """Yield the source, names and numbers of each batch of samples, in order."""
    files: list[Any] = [None] if sources is None else [*sources.own]
    for i, file in enumerate(files):
        own = names[i * len(numbers) :]
        for start in range(0, len(numbers), at_once):
            batch = numbers[start : start + at_once]
            yield file, own[start : start + len(batch)], batch
