"""Outputs of commands: names, protection from overwriting, and writing."""

from collections import Counter
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import contextmanager, suppress
import hashlib
import json
import logging
import os
from pathlib import Path
import re

from dipy.workflows.multi_io import connect_output_paths
from dipy.workflows.workflow import Workflow
import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import claimed, make_folder, replacing
from dipy_ldm.data._nifti import ALIGNED
from dipy_ldm.data._paths import stem as stem_of, suffix as suffix_of
from dipy_ldm.data._sidecars import sidecar, write_with_sidecar
from dipy_ldm.data.channels import Channel

logger = logging.getLogger(__name__)

# File systems allow 255 bytes; temporary files and sidecars have longer names.
_MAX_NAME_BYTES = 240


class LDMFlow(Workflow):
    """Base class of all workflows of dipy_ldm."""

    written = 0  # number of images so far
    outputs: Sequence[Path] = ()  # all files, once written
    cure = ""  # what to do after an interruption
    example = ""  # arguments of an example, for the help

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return f"{cls.__name__.removesuffix('LDMFlow').lower()}_ldm"

    def when_interrupted(self) -> str:
        """Return a sentence on what is left after Ctrl-C."""
        if self.written == 0:
            return "interrupted; nothing was written."
        return (
            f"interrupted; the images written so far ({self.written}) are complete"
            f"{self.cure}."
        )


def name_written(paths: Sequence[Path]) -> str:
    """Return a sentence with the first files that a command wrote, and their folder."""
    if any(path.is_absolute() for path in paths):
        paths = [path.absolute() for path in paths]
    folder = os.path.commonpath([path.parent for path in paths]) or "."
    names = [os.path.relpath(path, folder) for path in paths[:3]]
    more = f" and {len(paths) - 3} more files" if len(paths) > 3 else ""
    where = "" if folder == "." else f" in {folder}"
    return f"wrote {', '.join(names)}{more}{where}"


def output_paths(
    flow: Workflow,
    input_path: str | Path,
    out_dir: str | Path,
    mix_names: bool = True,
    **names: str,
) -> list[Path]:
    """Return the output paths of a workflow, as DIPY does, without creating folders.

    DIPY's own iterator takes every positional argument for an existing file, creates
    folders before inputs are checked, and exits with status 0 if outputs exist.
    """
    for name, text in names.items():
        if not Path(text).name:
            raise InputError(f"`{name}` is empty", "give a name")
    _, (paths,) = connect_output_paths(
        [[str(input_path)]],
        out_dir,
        list(names.values()),
        output_strategy=flow._output_strategy,
        mix_names=mix_names and flow._mix_names,
    )
    flow.last_generated_outputs = dict(zip(names, map(Path, paths)))
    paths = list(flow.last_generated_outputs.values())
    for path in paths:
        _refuse_unwritable(path)
    return paths


def _refuse_unwritable(path):
    """Refuse a path that cannot be written, before hours of work."""
    _refuse_long(path)
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not place.is_dir():
        raise InputError(
            f"{path} can't be written, since {place} is a file", "name another place"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{path} can't be written, since you have no write permission for {place}",
            "ask for it, or name another place",
        )


def _refuse_long(path):
    """Refuse names that are too long for file systems."""
    size = len(os.fsencode(path.name))
    if size > _MAX_NAME_BYTES:
        raise InputError(
            f"the name {path.name[:40]}... has {size} bytes, and at most "
            f"{_MAX_NAME_BYTES} are allowed",
            "give a shorter one",
        )


def refuse_overwriting(
    flow: Workflow, paths: Iterable[Path], cure: str = "add --force to overwrite"
) -> None:
    """Refuse paths that exist, unless overwriting is forced."""
    paths = list(paths)
    for path in paths:
        _refuse_long(path)
        if path.is_dir():
            raise InputError(f"{path} is a folder", "give the output another name")
    existing = [str(path) for path in paths if path.exists()]
    if existing and not flow._force_overwrite:
        verb = "exists" if len(existing) == 1 else "exist"
        raise InputError(f"{', '.join(existing)} {verb} already", cure)


@contextmanager
def claimed_output(path: Path) -> Iterator[None]:
    """Claim an output, and create its folders, which are removed if they stay empty."""
    new = [folder for folder in path.parents if not folder.exists()]
    make_folder(path.parent)
    try:
        with claimed(path):
            yield
    finally:
        with suppress(OSError):
            for folder in new:
                folder.rmdir()


def json_and_page(
    flow: Workflow,
    first: str | Path,
    out_dir: str | Path,
    further: Iterable[str] = (),
    **name: str,
) -> list[Path]:
    """Name the JSON file, the page and further outputs; refuse existing ones."""
    (stem,) = output_paths(flow, first, out_dir, mix_names=True, **name)
    ends = [".json", ".html", *further]
    paths = [stem.with_name(f"{stem.name}{end}") for end in ends]
    refuse_overwriting(flow, paths)
    return paths


def write_text(path: Path, text: str, mode: int | None = None) -> None:
    """Write a text, with escapes for file names that are not valid UTF-8."""
    with replacing(path) as partial:
        if mode is not None:
            partial.chmod(mode)
        partial.write_text(text, "utf-8", errors="backslashreplace")


def write_page(paths: Sequence[Path], facts: dict, html: str) -> None:
    """Write facts as JSON, and the page."""
    json_path, page = paths
    make_folder(page.parent)
    write_text(json_path, json.dumps(facts, indent=2) + "\n")
    write_text(page, html)


def list_files(
    volumes: Sequence[tuple[Path, Channel]], picture: Path | None = None
) -> list[Path]:
    """List the volumes of channels, the files beside each, and their picture.

    If options of an earlier run exist, the picture gets another name and is not listed.
    """
    files = [file for file, _ in volumes]
    for file, channel in volumes:
        files += [sidecar(file).with_suffix(e) for e in (".json", *channel.texts())]
    if picture and not picture.with_suffix(".toml").exists():
        files.append(picture)
    return files


def write_tables(file: Path, texts: dict[str, str]) -> None:
    """Write tables, by the ends of their names, beside a volume."""
    for end, text in texts.items():
        write_text(sidecar(file).with_suffix(end), text)


def write_channel(
    file: Path,
    channel: Channel,
    values: np.ndarray,
    affine: np.ndarray,
    dtype: str,
    facts: dict,
    space: int = ALIGNED,
) -> None:
    """Write the values of a channel, their sidecar, and its tables."""
    kind = channel.intent, channel.name
    write_tables(file, channel.texts())
    facts = facts | channel.sidecar_entries()
    dtype = channel.dtype or dtype
    facts |= {"Dtype": dtype} if "Dtype" in facts else {}
    write_with_sidecar(file, values, affine, dtype, facts, kind, space)


def _append(name, end):
    return f"{name}_{end}.nii.gz"


def bids_name(name: str, end: str) -> str:
    """Name an output by the BIDS entity ``desc-``, if its volume has a BIDS name.

    ``sub-01_T1w`` becomes ``sub-01_desc-denoised_T1w.nii.gz``.
    """
    kind = suffix_of(name)
    if kind is None or not end.isalnum():
        return _append(name, end)
    entities = name.removesuffix(f"_{kind}")
    before, is_described, label = entities.partition("_desc-")
    # A name has at most one desc-, as its last entity.
    label = label + end[:1].upper() + end[1:] if is_described else end
    return f"{before}_desc-{label}_{kind}.nii.gz"


def name_outputs(
    files: list[Path], end: Path, verb: str, named: Callable = _append
) -> dict[Path, Path]:
    """Name an output after each volume, and its folder if names are equal."""
    stems = _stems(files)
    names = [stem.with_name(named(stem.name, end.name)) for stem in stems]
    outputs = {file: end.parent / name for file, name in zip(files, names)}
    refuse_equal(outputs.values(), verb)
    return outputs


def refuse_equal(outputs: Iterable[Path], verb: str, noun: str = "volumes") -> None:
    """Refuse to write two results to one file."""
    output, count = Counter(outputs).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{count} of the {noun} would be written to {output}",
            f"{verb} them in separate runs, with another --out_dir each",
        )


def number_noise(files: list[Path]) -> dict[Path, int]:
    """Return the number of each volume's first noise, from its name within the inputs.

    No two volumes have the same noise, and each keeps its noise if their order changes,
    with ``resume``, and on several workers.
    """
    return {
        # File names need not be valid UTF-8.
        file: int.from_bytes(hashlib.sha256(os.fsencode(stem.as_posix())).digest()[:6])
        for file, stem in zip(files, _stems(files), strict=True)
    }


def _stems(files):
    """Return the stems of the volumes' names, with folders if any are equal."""
    stems = [Path(stem_of(file)) for file in files]
    if len(set(stems)) == len(stems):
        return stems
    file_folders = [Path(os.path.abspath(file)).parent for file in files]
    common = os.path.commonpath(file_folders)
    return [place.relative_to(common) / s for place, s in zip(file_folders, stems)]


def further_output(name: Path, end: str) -> Path:
    """Name a further output of a volume, such as its mask."""
    match = re.fullmatch(r"(.*_desc-[A-Za-z0-9]+)(_[A-Za-z0-9]+\.nii\.gz)", name.name)
    if match:
        return name.with_name(match[1] + end.strip("_-").capitalize() + match[2])
    return name.with_name(f"{name.name.removesuffix('.nii.gz')}{end}.nii.gz")
