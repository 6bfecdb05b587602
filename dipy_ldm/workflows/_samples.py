"""Where samples go: beside one another, or into a dataset."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._conditions import from_saved
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import make_folder
from dipy_ldm.workflows import _bids as bids
from dipy_ldm.workflows._provenance import sidecar
from dipy_ldm.workflows._restoring import beside, name_outputs
from dipy_ldm.workflows._sources import SourceInputs


class Samples(NamedTuple):
    """Files of samples."""

    names: list[Path]
    log: Path
    picture: Path | None = None
    dataset: Path | None = None
    described: dict[str, dict] = {}

    @classmethod
    def beside(
        cls, stem: Path, numbers: range, of_volumes: bool, one_of_several: bool
    ) -> Self:
        """Name files that begin with a stem."""
        own = _numbered(stem, numbers.start) if one_of_several else stem
        names = (
            [_beside(_numbered(stem, number), ".nii.gz") for number in numbers]
            if of_volumes
            else [_beside(own, ".npz")]
        )
        return cls(names, stem, _beside(own, ".png"))

    @classmethod
    def named_after(
        cls, sources: SourceInputs, stem: Path, numbers: range, one_of_several: bool
    ) -> Self:
        """Name files after the sources that volumes are made of."""
        outputs = name_outputs(sources.files, stem, "generate")
        names = [outputs[file] for file in sources.own]
        if len(numbers) > 1:
            names = [beside(n, f"-{i:04d}") for n in names for i in numbers]
        return cls(names, stem, None if one_of_several else _beside(stem, ".png"))

    @classmethod
    def inside(
        cls, flow: Any, root: Path, numbers: range, suffix: str | None, document: dict
    ) -> Self:
        """Name files of a dataset, as BIDS has derivatives."""
        if len(document["shape"]) != 4:
            raise InputError("`bids` is for volumes; leave it out for images.")
        suffix = bids.check_suffix(suffix, document.get("suffix"))
        bids.refuse_other_dataset(flow, root)
        names = [bids.scan_path(root, number, suffix) for number in numbers]
        described = bids.describe(from_saved(document["conditions"]))
        return cls(names, root / "code" / "samples", None, root, described)

    @property
    def paths(self):
        """All files that will be written and must not be there, but for logs."""
        volumes = [name for name in self.names if name.suffix == ".gz"]
        pictures = [] if self.picture is None else [self.picture]
        return [*self.names, *map(sidecar, volumes), *pictures]

    @property
    def cure(self):
        """What to do if one of them is there."""
        further = " or give another number to --first_sample" if self.dataset else ""
        return f"add --force to overwrite{further}"

    @contextmanager
    def being_written(self) -> Iterator[None]:
        """Make the folders of the files and, in the end, the table of a dataset."""
        if self.dataset is not None:
            bids.begin(self.dataset)
        for folder in {name.parent for name in self.names}:
            make_folder(folder)
        try:
            yield
        finally:
            # Also of what there is when it is interrupted.
            if self.dataset is not None:
                bids.list_participants(self.dataset, self.described)

    def draw(self, images: np.ndarray, columns: int | None = None) -> None:
        """Draw the first of the samples.

        Shapes: images ``(n, h, w, channels)``.
        """
        if self.picture is not None:
            from dipy_ldm import plots

            plots.save_montage(self.picture, images[:100], columns=columns)


def _beside(stem, suffix):
    """Add a suffix to a stem, which may have dots of its own."""
    return stem.with_name(stem.name + suffix)


def _numbered(stem, number):
    return _beside(stem, f"-{number:04d}")
