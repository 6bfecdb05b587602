"""BIDS derivatives datasets: their descriptions, folders and file names."""

from collections.abc import Sequence
import json
from pathlib import Path

from dipy_ldm import __version__
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import make_folder
from dipy_ldm.data._paths import DATA_TYPES, entity, suffix
from dipy_ldm.data.channels import Channel
from dipy_ldm.workflows._outputs import write_text

_VERSION = "1.10.0"
_README = """\
Synthetic volumes: none of them is a scan, and no row of participants.tsv is a person.
Its columns are conditions: requested or, if listed under DrawnConditions in the JSON
file beside a volume, drawn at random; n/a is unspecified. A volume need not match its
conditions. The JSON file also lists the model and the options that generated it.
"""
_README_OF_SCANS = """\
Scans processed by a generative model: they are synthetic in part or as a whole. The
JSON file beside each lists its inputs; the folder code has the options.
"""
_DATASET_FILES = ("dataset_description.json", "participants.tsv", "sub-*")
# Lower-case suffixes of diffusion maps, which BIDS does not define yet.
_OF_DIFFUSION = frozenset(("dwimap", "fa", "md", "ad", "rd", "b0"))
# Folders by suffix; files with other suffixes belong in anat.
_FOLDERS = {
    **dict.fromkeys(("dwi", *_OF_DIFFUSION), "dwi"),
    **dict.fromkeys(("bold", "sbref", "boldref"), "func"),
    **dict.fromkeys(("asl", "cbf", "m0scan"), "perf"),
    **{"pet": "pet", "epi": "fmap"},
}


def refuse_other_dataset(root: Path) -> None:
    """Refuse a folder with a dataset of other software, to protect its tables."""
    if _is_from_dipy_ldm(root):
        return
    marks = [name for name in _DATASET_FILES if any(root.glob(name))]
    if marks:
        raise InputError(
            f"{root} holds another dataset ({marks[0]}); name another folder."
        )


def _is_from_dipy_ldm(root):
    try:
        description = json.loads((root / _DATASET_FILES[0]).read_text("utf-8"))
        names = [entry["Name"] for entry in description["GeneratedBy"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return description.get("DatasetType") == "derivative" and "dipy_ldm" in names


def begin_dataset(
    root: Path, ignored: Sequence[str] = (), of_scans: bool = False
) -> None:
    """Create the folder of a dataset, and its description unless it has one."""
    make_folder(root)
    _ignore(root / ".bidsignore", ignored)
    if _is_from_dipy_ldm(root):
        return
    document = {
        "Name": f"Volumes {'processed' if of_scans else 'generated'} by dipy_ldm",
        "BIDSVersion": _VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "dipy_ldm", "Version": __version__}],
    }
    write_json(root / _DATASET_FILES[0], document)
    if not any(root.glob("README*")):
        write_text(root / "README", _README_OF_SCANS if of_scans else _README)


def _ignore(path, names):
    """Add patterns to ``.bidsignore``, which validators skip."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    if new := [name for name in names if name not in lines]:
        write_text(path, "\n".join([*lines, *new, ""]))


def ignored_names(channels: Sequence[Channel], file: Path) -> tuple[str, ...]:
    """Return patterns of file names that BIDS does not define: those of diffusion maps.

    Channels without a name have the suffix of ``file``.
    """
    ends = [
        (c.name, c.suffix or c.name.rpartition("-")[2] or suffix(file) or "")
        for c in channels
    ]
    return tuple(
        f"*_{name}*_{end}.*" if "-" in name else f"*_{end}.*"
        for name, end in ends
        if end.lower() in _OF_DIFFUSION
    )


def folder_of(suffix: str) -> str:
    """Return the BIDS folder, such as anat, of files with a suffix."""
    return _FOLDERS.get(suffix.lower(), "anat")


def place_in_dataset(root: Path, file: Path, name: str) -> Path:
    """Return the path within a dataset of the result for a scan."""
    subject, session = (entity(file.name, key) for key in ("sub", "ses"))
    end = suffix(file)
    if not (subject and end):
        raise InputError(
            f"`bids` needs BIDS names, such as sub-01_T1w.nii.gz, which {file} is not; "
            "rename the file, or leave `bids` out."
        )
    kind = file.absolute().parent.name
    folder = kind if kind in DATA_TYPES else folder_of(end)
    return root / subject / (session or "") / folder / name


def write_json(path: Path, document: dict) -> None:
    """Write a document as JSON."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
