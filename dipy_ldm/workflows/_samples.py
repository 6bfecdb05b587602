"""Files of samples: in one folder, or in a BIDS derivatives dataset."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
import json
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from dipy_ldm._conditions import Condition, from_saved
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.cluster import Cluster
from dipy_ldm._utils.files import claimed, make_folder
from dipy_ldm.data._bvals_bvecs import EXTENSIONS
from dipy_ldm.data._paths import stem as stem_of, suffix as suffix_of
from dipy_ldm.data._sidecars import sidecar
from dipy_ldm.data._tables import as_text
from dipy_ldm.data.channels import Unnamed, from_saved as channels_from
from dipy_ldm.workflows import _bids_dataset as bids
from dipy_ldm.workflows._conditions import read_facts
from dipy_ldm.workflows._outputs import (
    further_output,
    list_files,
    name_outputs,
    refuse_equal,
    write_text,
)
from dipy_ldm.workflows._sources import SourceInputs, is_of_series


class Samples(NamedTuple):
    """Files of samples of a model, one for each named channel."""

    names: list[list[Path]]
    log: Path
    document: dict
    picture: Path | None = None
    dataset: Path | None = None
    of_sources: bool = False

    @classmethod
    def in_folder(
        cls,
        stem: Path,
        numbers: range,
        document: dict,
        cluster: Cluster | None,
        sources: SourceInputs | None = None,
    ) -> Self:
        """Name files after a stem or, for samples of source images, after these."""
        part = _with_end(stem, f"-{numbers.start:04d}") if cluster else stem
        picture = _with_end(part, ".png")
        if len(document["shape"]) != 4:
            return cls([[_with_end(part, ".npz")]], stem, document, picture)
        if sources is None:
            stems = [_with_end(stem, f"-{i:04d}") for i in numbers]
            return cls(_name_channels(stems, document), stem, document, picture)
        outputs = name_outputs(sources.files, stem, "generate")
        stems = [outputs[file] for file in sources.assigned]
        if len(numbers) > 1:
            stems = [further_output(n, f"-{i:04d}") for n in stems for i in numbers]
        stems = [path.with_name(path.name.removesuffix(".nii.gz")) for path in stems]
        names = _name_channels(stems, document)
        return cls(names, stem, document, None if cluster else picture)

    @classmethod
    def in_dataset(
        cls,
        root: Path,
        numbers: range,
        suffix: str | None,
        document: dict,
        sources: SourceInputs | None = None,
    ) -> Self:
        """Name files of a BIDS derivatives dataset, after source images if any."""
        if len(document["shape"]) != 4:
            raise InputError("`bids` is for volumes", "leave it out for images")
        channels = channels_from(document.get("channels"))
        if suffix and channels:
            raise InputError(
                "channels have suffixes of their own", "leave out `suffix`"
            )
        kinds = [(c.suffix or c.name.rpartition("-")[2], c.name) for c in channels]
        kinds = kinds or [(check_suffix(suffix, document.get("suffix")), "")]
        bids.refuse_other_dataset(root)
        log = root / "code" / "samples"
        if sources is None:
            names = [[scan_path(root, i, *kind) for kind in kinds] for i in numbers]
            return cls(names, log, document, dataset=root)
        ends = [f"{i:04d}" for i in numbers] if len(numbers) > 1 else [""]
        names = [
            [source_path(root, file, end, *kind) for kind in kinds]
            for file in sources.assigned
            for end in ends
        ]
        refuse_equal([files[0] for files in names], "generate from", "source images")
        return cls(names, log, document, dataset=root, of_sources=True)

    @property
    def paths(self):
        """All files that will be written, except logs."""
        if len(self.document["shape"]) != 4:
            return [*self.names[0], self.picture]
        volumes = [pair for files in self.names for pair in zip(files, self._channels)]
        files = list_files(volumes, self.picture)
        if is_of_series(self.document):
            sidecars = [sidecar(file) for file, _ in volumes]
            files += [path.with_suffix(end) for path in sidecars for end in EXTENSIONS]
        return files

    @property
    def _channels(self):
        return channels_from(self.document.get("channels")) or (Unnamed(),)

    @property
    def cure(self):
        """What to do if one of the files exists."""
        numbered = self.dataset and not self.of_sources
        further = ", or give another --first_sample" if numbered else ""
        return f"add --force to overwrite{further}"

    @contextmanager
    def being_written(self) -> Iterator[None]:
        """Create the folders of the files and, in the end, write a dataset's table."""
        if self.dataset is not None:
            ignored = bids.ignored_names(self.paths)
            bids.begin_dataset(self.dataset, ignored, of_scans=self.of_sources)
        for folder in {file.parent for files in self.names for file in files}:
            make_folder(folder)
        try:
            yield
        finally:
            # If interrupted, of the samples written so far.
            if self.dataset is not None and not self.of_sources:
                conditions = from_saved(self.document["conditions"])
                list_participants(self.dataset, describe_columns(conditions))

    def draw(
        self,
        config: Path | None,
        images: np.ndarray,
        captions: Sequence[str],
        columns: int | None = None,
    ) -> list[Path]:
        """Draw the first images ``(n, h, w, channels)`` as a picture; return its file.

        For volumes, the picture is named after the TOML file of the run, if any.
        """
        picture = self.picture
        of_run = self.dataset or columns and picture == _with_end(self.log, ".png")
        if config and of_run:
            picture = config.with_suffix(".png")
        if picture is None:
            return []
        from dipy_ldm import plots

        first = images[:100]
        captions = captions[: len(first)] if len(captions) >= len(first) else ()
        plots.save_montage(picture, first, columns=columns, captions=captions)
        return [picture]


def _with_end(stem, suffix):
    """Append a suffix to a path, whose name may have dots."""
    return stem.with_name(stem.name + suffix)


def _name_channels(stems, document):
    """Name the files of each sample, one for each channel that has a name."""
    channels = channels_from(document.get("channels"))
    ends = [f"_{channel.ending}" for channel in channels] or [""]
    return [[_with_end(stem, f"{end}.nii.gz") for end in ends] for stem in stems]


_ID = "participant_id"
_LABEL = "sub-S"


def scan_path(root: Path, number: int, suffix: str, channel: str = "") -> Path:
    """Name the file of a generated volume, or of a channel of it."""
    name = f"{_LABEL}{number:04d}"
    return _sample_path(root / name, name, "", suffix, channel)


def source_path(
    root: Path, source: Path, end: str, suffix: str, channel: str = ""
) -> Path:
    """Name the file of a sample, or of a channel of it, after its source image."""
    entities = stem_of(source).removesuffix(f"_{suffix_of(source)}")
    entities = entities.partition("_desc-")[0]
    folder = bids.place_in_dataset(root, source, source.name).parents[1]
    return _sample_path(folder, entities, end, suffix, channel)


def _sample_path(folder, entities, end, suffix, channel):
    """Name a file in the folder of a subject; channels may have their own desc-."""
    parts = [entities, channel] if "-" in channel else [entities]
    if channel.startswith("desc-"):
        parts[-1] += end
    else:
        parts.append(f"desc-synthetic{end}")
    name = f"{'_'.join([*parts, suffix])}.nii.gz"
    return folder / bids.folder_of(suffix) / name


def check_suffix(suffix: str | None, model_suffix: str | None) -> str:
    """Return the suffix of the files, by default that of the model."""
    suffix_used = suffix or model_suffix
    if suffix_used is None:
        raise InputError(
            "the training volumes had no BIDS suffix", "give a `suffix`, such as T1w"
        )
    if not (suffix_used.isascii() and suffix_used.isalnum()):
        raise InputError(
            f"must be of letters and digits, such as T1w, not {suffix_used!r}",
            option="suffix",
        )
    return suffix_used


def describe_columns(conditions: Mapping[str, Condition]) -> dict[str, dict]:
    """Describe the columns of the table, for the JSON beside it."""
    columns = {}
    for name, condition in conditions.items():
        text = f"Requested or drawn {name} of the sample."
        meanings = condition.meanings or {}
        levels = {level: meanings.get(level) or level for level in condition.levels}
        entries = {"Description": text, "Units": condition.units, "Levels": levels}
        columns[name] = {key: value for key, value in entries.items() if value}
    return columns


def list_participants(root: Path, described: Mapping[str, dict]) -> None:
    """Write the table of all samples of a dataset, from their sidecars.

    Each run that adds samples rewrites it, so that it is complete after the last, even
    if several ran at once or one was killed.
    """
    with claimed(root / "participants.tsv", wait=True):
        rows = dict(_samples(root))
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines = [[_ID, *names]]
        lines += [
            [sample, *(as_text(row.get(name)) for name in names)]
            for sample, row in rows.items()
        ]
        text = "".join("\t".join(line) + "\n" for line in lines)
        write_text(root / "participants.tsv", text)
        path = root / "participants.json"
        columns = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        columns |= {_ID: {"Description": "Index of a synthetic sample; not a person."}}
        bids.write_json(path, columns | dict(described))


def _samples(root):
    """Yield each sample with its conditions, in order."""
    folders = (path for path in root.glob(f"{_LABEL}*") if path.is_dir())
    for folder in sorted(folders, key=lambda path: (len(path.name), path.name)):
        for scan in sorted(folder.glob("*/*_desc-*.nii.gz"))[:1]:
            # A scan without sidecar is just being written.
            yield folder.name, read_facts(scan).get("Conditions", {})
