"""Source images of a command."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._scans import (
    check_channel_files,
    conform_source_files,
    find_channel_files,
    grid_for_files,
)
from dipy_ldm.data._sources import Source, refuse_mismatch
from dipy_ldm.data.channels import Channel, Unnamed, from_saved as channels_from


class SourceInputs(NamedTuple):
    """Files of sources, and the grid that they are brought to.

    ``parts`` are the files of all channels of each source, by the first of them, and
    ``own`` the first ones of this worker.
    """

    source: Source
    channels: Sequence[Channel]
    grid: Grid
    parts: dict[Path, list[Path]]
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
        named = channels_from(document.get("source_channels"))
        channels = named or (Unnamed(n=source.channels),)
        cure = "name those of one kind, with a wildcard"
        sets = find_channel_files(source_files, channels, cure=cure)
        start = "the model was trained with source images of"
        along_axis = (source.channels > 1 and not named) or None
        check_channel_files(sets, channels, along_axis, start=start)
        own = document["shape"], document["affine"], source.intensity
        grid = grid_for_files(*own)
        parts = {files[0]: files for files in sets}
        return cls(source, named, grid, parts, list(parts))

    @property
    def files(self):
        """The first file of each source."""
        return list(self.parts)

    def paths(self, file: Path) -> list[str]:
        """Return the files of all channels of a source, as text."""
        return list(map(str, self.parts[file]))

    def read(self, file: Path) -> np.ndarray:
        """Read a source on the grid of the model, ``(1, *space, channels)``."""
        how = self.source, self.grid, self.channels
        return conform_source_files(self.parts[file], *how)[None]
