"""BIDS derivatives datasets: their descriptions, folders and file names."""

from collections.abc import Iterable, Sequence
import json
from pathlib import Path

from dipy_ldm import __version__
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import make_folder
from dipy_ldm.data._bvals_bvecs import EXTENSIONS
from dipy_ldm.data._paths import DATA_TYPES, entity, suffix
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
# Folders by suffix; files with other suffixes belong in anat.
_FOLDERS = {
    **dict.fromkeys(("dwi", "dwimap", "fa", "md", "ad", "rd", "b0"), "dwi"),
    **dict.fromkeys(("bold", "cbv", "phase", "sbref", "boldref"), "func"),
    **dict.fromkeys(("asl", "cbf", "m0scan"), "perf"),
    **{"pet": "pet", "epi": "fmap"},
}
# Suffixes that BIDS defines, by the entity that their names need.
_SUFFIXES = {
    "sub": "T1w T2w T2starw FLAIR PDw PDT2 inplaneT1 inplaneT2 angio defacemask FLASH "
    "PD T1map T2map T2starmap R1map R2map R2starmap PDmap MTRmap MTsat MTVmap MWFmap "
    "UNIT1 T1rho Chimap M0map S0map dseg probseg mask asl m0scan pet",
    "task": "bold cbv phase sbref",
    "inv": "IRT1 MP2RAGE",
    "flip": "VFA",
    "echo": "MEGRE MESE",
    "mt": "MPM MTS",
}
_NEEDED = {end: key for key, ends in _SUFFIXES.items() for end in ends.split()}


def refuse_other_dataset(root: Path) -> None:
    """Refuse a folder with a dataset of other software, to protect its tables."""
    if _is_from_dipy_ldm(root):
        return
    marks = [name for name in _DATASET_FILES if any(root.glob(name))]
    if marks:
        raise InputError(
            f"{root} holds another dataset ({marks[0]})", "name another folder"
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


def ignored_names(files: Iterable[Path]) -> list[str]:
    """Return patterns of the names of files that BIDS does not define."""
    files = list(files)
    # The names of tables must not have desc-, unlike those of their series.
    tables = [f"*_{suffix(f)}{f.suffix}" for f in files if f.suffix in EXTENSIONS]
    ends = {suffix(f): None for f in files if not _is_in_bids(f)}
    ignored = [f"*_{end}.*" for end in ends if end and not (end == "dwi" and tables)]
    return [*ignored, *dict.fromkeys(tables)]


def _is_in_bids(file):
    """Return whether BIDS defines the suffix of a file, with its entities."""
    key = _NEEDED.get(suffix(file) or "")
    return bool(key and entity(file.name, key))


def folder_of(suffix: str) -> str:
    """Return the BIDS folder, such as anat, of files with a suffix."""
    return _FOLDERS.get(suffix.lower(), "anat")


def place_in_dataset(root: Path, file: Path, name: str) -> Path:
    """Return the path within a dataset of the result for a scan."""
    subject, session = (entity(file.name, key) for key in ("sub", "ses"))
    end = suffix(file)
    if not (subject and end):
        raise InputError(
            f"`bids` needs BIDS names, such as sub-01_T1w.nii.gz, which {file} is not",
            "rename the file, or leave `bids` out",
        )
    kind = file.absolute().parent.name
    folder = kind if kind in DATA_TYPES else folder_of(end)
    return root / subject / (session or "") / folder / name


def write_json(path: Path, document: dict) -> None:
    """Write a document as JSON."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
