"""Source images of a command."""

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._nifti import check_headers
from dipy_ldm.data._paths import choose_files, find_volumes
from dipy_ldm.data._preprocessing import conform_source
from dipy_ldm.data._scans import refuse_other_channels
from dipy_ldm.data._sources import Source, refuse_mismatch


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

    def read(self, file: Path) -> np.ndarray:
        """Read a source on the grid of the model, ``(1, *space, channels)``."""
        several, labels = self.source.channels > 1, bool(self.source.labels)
        return conform_source(file, self.grid, several, labels)[None]
