"""Provenance of outputs: the sidecar of each volume, and entries of its header."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import hashlib
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from dipy_ldm import __version__
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import fsync, replacing
from dipy_ldm.data._nifti import ALIGNED, make_image, space_code, write_volume
from dipy_ldm.data._paths import stem


def fingerprint(path: str | Path) -> str:
    """Return the SHA-256 hash of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(model_path: str | Path, **options) -> dict:
    """Describe the model and the options that generated an image."""
    return model_metadata(Path(model_path).name, fingerprint(model_path)) | options


def model_metadata(model: str, fingerprint: str) -> dict:
    """Describe the model that generated an image."""
    return {
        "Synthetic": True,
        "GeneratedBy": {"Name": "dipy_ldm", "Version": __version__},
        "Model": model,
        "ModelFingerprint": fingerprint,
    }


def sidecar(path: Path) -> Path:
    """Return the path of a volume's sidecar."""
    return path.with_name(f"{stem(path)}.json")


def write_with_sidecar(
    path: Path,
    volume: np.ndarray,
    affine: np.ndarray,
    dtype: str,
    metadata: dict,
    intent: tuple[str, str] = ("none", ""),
    space: int = ALIGNED,
) -> None:
    """Write a volume ``(x, y, z, channels)`` and its sidecar."""
    origin = {n: metadata[n] for n in ("Conditions", "Sources") if metadata.get(n)}
    description, extension = describe(metadata), json.dumps(origin) if origin else ""
    with sidecar_first(path, metadata) as ready:
        write_volume(
            path, volume, affine, dtype, description, extension, ready, intent, space
        )


def describe(metadata: dict) -> str:
    """Summarise the provenance of an image, for its header."""
    model = metadata["ModelFingerprint"][:8]
    parts = [f"synthetic: dipy_ldm {__version__}", f"model {model}"]
    parts += [f"{n.lower()} {metadata[n]}" for n in ("Seed", "Sample") if n in metadata]
    return ", ".join(parts + ([metadata["Channel"]] if "Channel" in metadata else []))


@contextmanager
def sidecar_first(path: Path, metadata: dict) -> Iterator[Callable]:
    """Yield a function that writes the sidecar before its volume gets its name.

    It removes the volume that is replaced, so that a volume never has another's
    sidecar, even if the disk is full or the process is killed.
    """

    def put():
        try:
            with replacing(sidecar(path)) as partial:
                partial.write_text(json.dumps(metadata, indent=2) + "\n")
                fsync(partial)
                Path(os.path.realpath(path)).unlink(missing_ok=True)
        except OSError as error:
            # The original error, which the writer of the volume describes.
            raise error.__cause__ or error from None

    try:
        yield put
    except BaseException:
        if not path.exists():
            sidecar(path).unlink(missing_ok=True)
        raise


class SyntheticImage(nib.Nifti1Image):
    """A NIfTI image that is saved with a sidecar of its provenance."""

    facts: dict = {}

    def to_filename(
        self, filename: str | Path, dtype: npt.DTypeLike | None = None, **kwargs
    ) -> None:
        """Write the image in a type of voxels, and its sidecar."""
        if not self.facts:  # derived from another one, by its slicer or nilearn
            super().to_filename(filename, dtype=dtype, **kwargs)
            return
        if kwargs:
            raise InputError(
                f"{min(kwargs)} has no effect on a synthetic image", "leave it out"
            )
        kind: npt.DTypeLike = self.get_data_dtype() if dtype is None else dtype
        kind = kind if isinstance(kind, str) else np.dtype(kind).name
        data = np.asanyarray(self.dataobj)
        data = data[..., None] if data.ndim == 3 else data
        path = Path(os.path.expanduser(filename))
        space = space_code(self.header)
        write_with_sidecar(path, data, self.affine, kind, self.facts, space=space)


def synthetic_image(
    volume: np.ndarray,
    affine: np.ndarray,
    metadata: dict,
    dtype: str = "float32",
    space: int = ALIGNED,
) -> SyntheticImage:
    """Return ``(x, y, z, channels)`` as an image with its provenance."""
    image = make_image(volume, affine, np.dtype(dtype), describe(metadata), space)
    synthetic = SyntheticImage(image.dataobj, image.affine, image.header)
    synthetic.facts = metadata
    return synthetic
