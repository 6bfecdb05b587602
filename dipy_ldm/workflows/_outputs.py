"""Outputs: where they go, that none is overwritten, and what is said of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dipy.workflows.multi_io import connect_output_paths
from dipy.workflows.workflow import Workflow
import numpy as np
import numpy.typing as npt

from dipy_ldm import __version__
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import flush, make_folder, replacing
from dipy_ldm.data._nifti import write_volume
from dipy_ldm.data.channels import Channel, columns_of

if TYPE_CHECKING:  # they take seconds to import
    from dipy_ldm.latent_diffusion import LatentDiffusion

logger = logging.getLogger(__name__)

# Bytes of a name; 255 less what is added while it is written, or beside it.
_MAX_NAME_BYTES = 240


class LDMFlow(Workflow):
    """What all commands of dipy_ldm are."""

    written = 0  # volumes
    cure = ""  # what to do if it was interrupted

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return f"{cls.__name__.removesuffix('LDMFlow').lower()}_ldm"

    def when_interrupted(self) -> str:
        """Describe in one sentence what Ctrl-C left behind."""
        if self.written == 0:
            return "interrupted; nothing was written."
        return (
            f"interrupted; the volumes that are written ({self.written}) are "
            f"whole{self.cure}."
        )


def output_paths(
    flow: Workflow, input_path: str | Path, out_dir: str | Path, **names: str
) -> list[Path]:
    """Resolve the outputs of a workflow as DIPY does, without making anything.

    DIPY's own iterator takes every positional word for an existing file, makes
    folders before the inputs are known to be good, and goes on with status 0 where
    outputs exist.
    """
    _, (paths,) = connect_output_paths(
        [[str(input_path)]],
        out_dir,
        list(names.values()),
        output_strategy=flow._output_strategy,
        mix_names=flow._mix_names,
    )
    flow.last_generated_outputs = dict(zip(names, map(Path, paths)))
    paths = list(flow.last_generated_outputs.values())
    for path in paths:
        _refuse_unwritable(path)
    return paths


def _refuse_unwritable(path):
    """Refuse a path that can't be written, before hours of work."""
    _refuse_long(path)
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not place.is_dir():
        raise InputError(
            f"{path} can't be written, since {place} is a file; name another place."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{path} can't be written, since {place} may not be changed; ask for the "
            "permission or name another place."
        )


def _refuse_long(path):
    """Refuse names that are too long for file systems."""
    size = len(os.fsencode(path.name))
    if size > _MAX_NAME_BYTES:
        raise InputError(
            f"the name {path.name[:40]}... has {size} bytes, and may have "
            f"{_MAX_NAME_BYTES}; give a shorter one."
        )


def refuse_overwriting(
    flow: Workflow, paths: Iterable[Path], cure: str = "add --force to overwrite"
) -> None:
    """Raise an error if one of the paths exists, unless forced."""
    paths = list(paths)
    for path in paths:
        _refuse_long(path)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the output another name.")
    existing = [str(path) for path in paths if path.exists()]
    if existing and not flow._force_overwrite:
        verb = "exists" if len(existing) == 1 else "exist"
        raise InputError(f"{', '.join(existing)} {verb} already; {cure}.")


def json_and_page(
    flow: Workflow,
    first: str | Path,
    out_dir: str | Path,
    further: Iterable[str] = (),
    **name: str,
) -> list[Path]:
    """Name the outputs, and refuse to overwrite them unasked."""
    (stem,) = output_paths(flow, first, out_dir, **name)
    ends = [".json", ".html", *further]
    paths = [stem.with_name(f"{stem.name}{end}") for end in ends]
    refuse_overwriting(flow, paths)
    return paths


def write_text(path: Path, text: str) -> None:
    """Write a text, which may name files whose names are no text."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8", errors="backslashreplace")


def write_page(paths: Sequence[Path], facts: dict, html: str) -> None:
    """Write facts as JSON, and the page."""
    json_path, page = paths
    make_folder(page.parent)
    write_text(json_path, json.dumps(facts, indent=2) + "\n")
    write_text(page, html)
    logger.info("the page is %s", page)


def write_private(path: Path, html: str) -> None:
    """Write a page that others shall not read."""
    with replacing(path) as partial:
        partial.chmod(0o600)
        partial.write_text(html, "utf-8")
    logger.info("the private page is %s", path)


def fingerprint(path: str | Path) -> str:
    """Hash a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(model_path: str | Path, **options) -> dict:
    """Describe by which model and with which options an image was made."""
    return {
        "Synthetic": True,
        "GeneratedBy": {"Name": "dipy_ldm", "Version": __version__},
        "Model": Path(model_path).name,
        "ModelFingerprint": fingerprint(model_path),
        **options,
    }


def affine_of(model: "LatentDiffusion") -> np.ndarray:
    """Return the affine of the volumes that a model learnt from."""
    return require_affine(model.vqvae.affine_)


def require_affine(affine: npt.ArrayLike | None) -> np.ndarray:
    """Return the affine of a model, or raise that it has none."""
    if affine is None:
        raise InputError(
            "this model has no affine; fit the VQVAE with "
            "affine=..., or train with dipy_train_ldm."
        )
    return np.array(affine, "float64")


def sidecar(path: Path) -> Path:
    """Return the path of a volume's sidecar."""
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


def write_with_sidecar(
    path: Path,
    volume: np.ndarray,
    affine: np.ndarray,
    dtype: str,
    facts: dict,
    intent: tuple[str, str] = ("none", ""),
) -> None:
    """Write a volume and its sidecar.

    Shapes: volume ``(x, y, z, channels)``.
    """
    with sidecar_first(path, facts) as ready:
        header_texts = describe(facts), comment(facts)
        write_volume(path, volume, affine, dtype, *header_texts, ready, intent)


def write_sample(
    files: Sequence[Path],
    volume: np.ndarray,
    affine: np.ndarray,
    dtype: str,
    facts: dict,
    channels: Sequence[Channel],
) -> None:
    """Write a volume, and each of its named channels to a file of its own.

    Shapes: volume ``(x, y, z, channels)``.
    """
    if not channels:
        write_with_sidecar(files[0], volume, affine, dtype, facts)
    for file, (channel, columns) in zip(files, columns_of(channels)):
        values = channel.restore(volume[..., columns])
        own = facts | channel.facts()
        kind = channel.intent, channel.name
        channel.write_table(partial(write_text, sidecar(file).with_suffix(".tsv")))
        write_with_sidecar(file, values, affine, channel.dtype or dtype, own, kind)


def describe(facts: dict) -> str:
    """Describe in short how an image was made, for its header."""
    description = (
        f"synthetic: dipy_ldm {__version__}, model {facts['ModelFingerprint'][:8]}, "
        f"seed {facts['Seed']}"
    )
    if "Sample" in facts:
        description += f", sample {facts['Sample']}"
    if "Channel" in facts:
        description += f", {facts['Channel']}"
    return description


def comment(facts: dict) -> str:
    """Describe conditions and sources of an image, for its header.

    Its description has room for little.
    """
    entries = {name: facts.get(name) for name in ("Conditions", "Sources")}
    entries = {name: value for name, value in entries.items() if value}
    return json.dumps(entries) if entries else ""


@contextmanager
def sidecar_first(path: Path, facts: dict) -> Iterator[Callable]:
    """Write a sidecar before its volume, within this context.

    A volume that is there has its own sidecar, then, even where the disk is full or
    the process is killed: what it replaces is removed first.
    """

    def put():
        try:
            with replacing(sidecar(path)) as partial:
                partial.write_text(json.dumps(facts, indent=2) + "\n")
                flush(partial)
                Path(os.path.realpath(path)).unlink(missing_ok=True)
        except OSError as error:
            # Whoever writes the volume says it in a sentence.
            raise error.__cause__ or error from None

    try:
        yield put
    except BaseException:
        if not path.exists():
            sidecar(path).unlink(missing_ok=True)
        raise
