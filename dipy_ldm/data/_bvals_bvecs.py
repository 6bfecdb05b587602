"""b-values and directions of diffusion series.

Files are FSL's: directions are along the voxel axes, the first of which points left.
Models are conditioned on directions in world axes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from dipy_ldm._conditions import BVAL, Condition
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import Table, listed
from dipy_ldm.data._paths import stem

# Volumes up to this b-value count as b = 0, as in DIPY.
B0_LIMIT = 50
DIRECTION = "direction"
EXTENSIONS = ".bval", ".bvec"


class Gradients(NamedTuple):
    """b-values ``(n,)`` in s/mm^2 and directions ``(n, 3)``, in FSL's axes."""

    bvals: np.ndarray
    bvecs: np.ndarray
    files: tuple[Path, ...] = ()

    @classmethod
    def read(cls, bval: str | Path, bvec: str | Path) -> Self:
        """Read the b-values and directions of a series."""
        from dipy.core.gradients import gradient_table
        from dipy.io.gradients import read_bvals_bvecs

        try:
            bvals = np.atleast_1d(read_bvals_bvecs(str(bval), None)[0])
            # Read as b-values: as directions, DIPY would refuse a single one.
            bvecs = np.atleast_2d(read_bvals_bvecs(str(bvec), None)[0])
            if bvecs.ndim != 2 or 3 not in bvecs.shape:
                raise ValueError("there are not three numbers for each direction")
            if not (bvals >= 0).all():
                raise ValueError("a b-value is negative or NaN")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{bval} and {bvec} can't be read as b-values and directions ({error})",
                "give a row of b-values and three of directions",
            ) from error
        if len(bvecs) == 3:  # FSL's layout, also of three directions
            bvecs = bvecs.T
        if len(bvals) != len(bvecs):
            raise InputError(
                f"{bval} has {len(bvals)} b-values and {bvec} {len(bvecs)} directions",
                "give the files of one series",
            )
        try:
            gradient_table(bvals, bvecs=bvecs, b0_threshold=B0_LIMIT)
        except ValueError as error:
            raise InputError(
                f"{bvec} has directions that are not of length 1 where b is above "
                f"{B0_LIMIT}",
                "give unit vectors, or leave out volumes of none (traces)",
            ) from error
        return cls(bvals, np.nan_to_num(bvecs), (Path(bval), Path(bvec)))

    @classmethod
    def beside(cls, file: Path, n: int) -> Self:
        """Read the files beside a series of ``n`` volumes."""
        tables = find_tables(file)
        if missing := [end for end in EXTENSIONS if end not in tables]:
            raise InputError(
                f"{file} has no {' and no '.join(missing)} beside it",
                "add it, or leave the file out",
            )
        gradients = cls.read(*(tables[end] for end in EXTENSIONS))
        if len(gradients.bvals) != n:
            raise InputError(
                f"{file} has {n} volumes, and {tables['.bvec'].name} "
                f"{len(gradients.bvals)} directions",
                "give the tables of this file",
            )
        if not gradients.b0s.size or not gradients.weighted.size:
            kind = "above" if gradients.b0s.size else "up to"
            raise InputError(
                f"{file} has no volume with b {kind} {B0_LIMIT}",
                "add one, or leave the file out",
            )
        return gradients

    @property
    def b0s(self):
        """Indices of the b = 0 volumes."""
        return np.flatnonzero(self.bvals <= B0_LIMIT)

    @property
    def shells(self):
        """Number of directions by b-value, rounded to hundreds."""
        return Counter(round(b, -2) for b in self.bvals[self.weighted].tolist())

    @property
    def weighted(self):
        """Indices of the diffusion-weighted volumes."""
        return np.flatnonzero(self.bvals > B0_LIMIT)

    def conditions(self, affine: np.ndarray, volumes: Sequence[int]) -> Table:
        """Return b-values and directions of volumes as conditions, in world axes."""
        directions = self.bvecs[volumes] @ _to_world(affine).T
        return Table(
            {
                BVAL: self.bvals[volumes].tolist(),
                DIRECTION: [tuple(vector) for vector in directions.tolist()],
            },
            {BVAL: "s/mm^2"},
        )

    def rotated(self, affine: np.ndarray, other: np.ndarray) -> Self:
        """Rotate the directions from the axes of one affine to those of another."""
        rotation = _to_world(other).T @ _to_world(affine)
        return self._replace(bvecs=self.bvecs @ rotation.T)

    def texts(self) -> dict[str, str]:
        """Return the contents of FSL's files, by extension."""
        rows = [[f"{b:g}" for b in self.bvals]]
        vectors = [[f"{x:.6f}" for x in row] for row in self.bvecs.T + 0.0]
        return {
            end: "".join(" ".join(row) + "\n" for row in lines)
            for end, lines in zip(EXTENSIONS, (rows, vectors))
        }


def makes_series(conditions: Mapping[str, Condition]) -> bool:
    """Return whether a model with these conditions generates diffusion series."""
    return any(condition.kind == "direction" for condition in conditions.values())


# Where each volume would be scaled by itself.
_CURE = (
    "which are scaled by their b = 0; use the commands dipy_denoise_ldm, "
    "dipy_evaluate_ldm and dipy_audit_ldm, or in Python the images, sources and "
    "gradients of load_volumes(dwi=True)"
)


def refuse_series(conditions: Mapping[str, Condition], cure: str = _CURE) -> None:
    """Refuse a model that generates diffusion series."""
    if makes_series(conditions):
        raise InputError(f"this model makes diffusion series, {cure}")


def find_tables(file: str | Path) -> dict[str, Path]:
    """Return the files of b-values and directions beside a file, by extension."""
    start = Path(file).with_name(stem(file))
    pairs = ((end, Path(f"{start}{end}{s}")) for end in EXTENSIONS for s in ("s", ""))
    return {end: path for end, path in pairs if path.is_file()}  # .bval, then .bvals


def _to_world(affine: np.ndarray):
    """Return the rotation from FSL's axes to world axes."""
    linear = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # The nearest orthogonal matrix: voxel axes may not be perpendicular.
    vectors, _, transposed = np.linalg.svd(linear)
    rotation = vectors @ transposed
    if np.linalg.det(rotation) > 0:
        rotation[:, 0] *= -1
    return rotation


def describe(series: Sequence[Gradients]) -> str:
    """Summarise several series in a sentence."""
    total: Counter[float] = sum((gradients.shells for gradients in series), Counter())
    shells = sorted(total)
    n = sum(len(gradients.b0s) for gradients in series)
    return (
        f"{len(series)} series: {total.total()} diffusion-weighted volumes with b of "
        f"about {listed(f'{b:g}' for b in shells)} s/mm^2, and {n} of b = 0"
    )
