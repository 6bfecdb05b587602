"""What the commands say about the volumes they write."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dipy_ldm import __version__
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import flush, replacing
from dipy_ldm.data._nifti import write_volume


def fingerprint(path: str | Path) -> str:
    """Hash a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(model_path: str | Path, **options) -> dict:
    """Tell by what, and how, an image was made."""
    return {
        "Synthetic": True,
        "GeneratedBy": {"Name": "dipy_ldm", "Version": __version__},
        "Model": Path(model_path).name,
        "ModelFingerprint": fingerprint(model_path),
        **options,
    }


def affine_of(model: Any) -> np.ndarray:
    """Return the affine of the volumes that a model learnt from."""
    return require_affine(model.vqvae.affine_)


def require_affine(affine: npt.ArrayLike | None) -> np.ndarray:
    """Return the affine that a model has, or say that it has none."""
    if affine is None:
        raise InputError(
            "this model does not know where its voxels are; fit the VQVAE with "
            "affine=..., or train with dipy_train_ldm."
        )
    return np.array(affine, "float64")


def sidecar(path: Path) -> Path:
    """Name the file of what is known of a volume."""
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


def write_with_sidecar(
    path: Path, volume: np.ndarray, affine: np.ndarray, dtype: str, facts: dict
) -> None:
    """Write a volume, and beside it as JSON what is known of it.

    Shapes: volume ``(x, y, z, channels)``.
    """
    with sidecar_first(path, facts) as ready:
        header_texts = describe(facts), comment(facts)
        write_volume(path, volume, affine, dtype, *header_texts, ready)


def describe(facts: dict) -> str:
    """Say in short how an image was made, for its header."""
    description = (
        f"synthetic: dipy_ldm {__version__}, model {facts['ModelFingerprint'][:8]}, "
        f"seed {facts['Seed']}"
    )
    if "Sample" in facts:
        description += f", sample {facts['Sample']}"
    return description


def comment(facts: dict) -> str:
    """Say in a header what was asked for and of what it was made.

    Its description has room for little.
    """
    entries = {name: facts.get(name) for name in ("Conditions", "Sources")}
    entries = {name: value for name, value in entries.items() if value}
    return json.dumps(entries) if entries else ""


@contextmanager
def sidecar_first(path: Path, facts: dict) -> Iterator[Callable]:
    """Put beside a volume as JSON what is known of it, before the volume itself.

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
