"""Diffusion series: b-values and directions of their volumes.

Tables are those of FSL: directions along the axes of the voxels, the first of which
leads to the left. What is learnt are directions in the world.
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

# A volume of a smaller b-value, or of this, is one of b = 0, as to DIPY.
B0_LIMIT = 50
DIRECTION = "direction"
ENDS = ".bval", ".bvec"


class Gradients(NamedTuple):
    """b-values ``(n,)`` in s/mm^2 and vectors ``(n, 3)`` of a series, as FSL's are."""

    bvals: np.ndarray
    bvecs: np.ndarray
    files: tuple[Path, ...] = ()

    @classmethod
    def read(cls, bval: str | Path, bvec: str | Path) -> Self:
        """Read the tables of a series."""
        from dipy.core.gradients import gradient_table
        from dipy.io.gradients import read_bvals_bvecs

        try:
            bvals = np.atleast_1d(read_bvals_bvecs(str(bval), None)[0])
            # As b-values, of which DIPY reads one alone, too.
            bvecs = np.atleast_2d(read_bvals_bvecs(str(bvec), None)[0])
            if bvecs.ndim != 2 or 3 not in bvecs.shape:
                raise ValueError("there are not three numbers for each direction")
            if not (bvals >= 0).all():
                raise ValueError("a b-value is negative or NaN")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{bval} and {bvec} can't be read as b-values and directions ({error});"
                " give a row of b-values and three of vectors."
            ) from error
        if len(bvecs) == 3:  # as FSL has them, also where there are three
            bvecs = bvecs.T
        if len(bvals) != len(bvecs):
            raise InputError(
                f"{bval} has {len(bvals)} b-values and {bvec} {len(bvecs)} directions; "
                "give both of one series."
            )
        try:
            gradient_table(bvals, bvecs=bvecs, b0_threshold=B0_LIMIT)
        except ValueError as error:
            raise InputError(
                f"{bvec} has directions that are not of length 1 where b is above "
                f"{B0_LIMIT}; give unit vectors, or leave out volumes of none (traces)."
            ) from error
        return cls(bvals, np.nan_to_num(bvecs), (Path(bval), Path(bvec)))

    @classmethod
    def beside(cls, file: Path, n: int) -> Self:
        """Read the tables beside a series of so many volumes."""
        tables = find_tables(file)
        if missing := [end for end in ENDS if end not in tables]:
            raise InputError(
                f"{file} has no {' and no '.join(missing)} beside it; add it, or leave "
                "the file out."
            )
        gradients = cls.read(*(tables[end] for end in ENDS))
        if len(gradients.bvals) != n:
            raise InputError(
                f"{file} has {n} volumes, and {tables['.bvec'].name} "
                f"{len(gradients.bvals)} directions; give the tables of this file."
            )
        if not gradients.b0s.size or not gradients.weighted.size:
            kind = "above" if gradients.b0s.size else "up to"
            raise InputError(
                f"{file} has no volume with b {kind} {B0_LIMIT}; add one, or leave the "
                "file out."
            )
        return gradients

    @property
    def b0s(self):
        """Numbers of the volumes of b = 0."""
        return np.flatnonzero(self.bvals <= B0_LIMIT)

    @property
    def shells(self):
        """How many directions there are of each b-value, to the next hundred."""
        return Counter(round(b, -2) for b in self.bvals[self.weighted].tolist())

    @property
    def weighted(self):
        """Numbers of the diffusion-weighted volumes."""
        return np.flatnonzero(self.bvals > B0_LIMIT)

    def conditions(self, affine: np.ndarray, volumes: Sequence[int]) -> Table:
        """Return the conditions of some volumes of a series with an affine."""
        directions = self.bvecs[volumes] @ _to_world(affine).T
        return Table(
            {
                BVAL: self.bvals[volumes].tolist(),
                DIRECTION: [tuple(vector) for vector in directions.tolist()],
            },
            {BVAL: "s/mm^2"},
        )

    def on(self, affine: np.ndarray, other: np.ndarray) -> Self:
        """Bring the vectors of a series with an affine to the axes of another."""
        rotation = _to_world(other).T @ _to_world(affine)
        return self._replace(bvecs=self.bvecs @ rotation.T)

    def texts(self) -> dict[str, str]:
        """Return what tables of FSL have, by the ends of their names."""
        rows = [[f"{b:g}" for b in self.bvals]]
        vectors = [[f"{x:.6f}" for x in row] for row in self.bvecs.T + 0.0]
        return {
            end: "".join(" ".join(row) + "\n" for row in lines)
            for end, lines in zip(ENDS, (rows, vectors))
        }


def makes_series(conditions: Mapping[str, Condition]) -> bool:
    """Return whether a model of these conditions makes diffusion series."""
    return any(condition.kind == "direction" for condition in conditions.values())


# What helps where each volume would be scaled by itself.
_CURE = (
    "whose volumes have the scale of their b = 0; give the commands dipy_denoise_ldm, "
    "dipy_evaluate_ldm and dipy_audit_ldm such files, and Python the images, "
    "sources and gradients of load_volumes(dwi=True)"
)


def refuse_series(conditions: Mapping[str, Condition], cure: str = _CURE) -> None:
    """Refuse a model of series where it can't be used."""
    if makes_series(conditions):
        raise InputError(f"this model makes diffusion series, {cure}.")


def find_tables(file: str | Path) -> dict[str, Path]:
    """Find the tables of b-values and directions beside a file, by their ends."""
    start = Path(file).with_name(stem(file))
    pairs = ((end, Path(f"{start}{end}{s}")) for end in ENDS for s in ("s", ""))
    return {end: path for end, path in pairs if path.is_file()}  # .bval, then .bvals


def _to_world(affine):
    """Return the rotation from the axes that tables have to those of the world."""
    linear = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # The orthogonal matrix that is nearest: axes of voxels may be oblique.
    vectors, _, transposed = np.linalg.svd(linear)
    rotation = vectors @ transposed
    if np.linalg.det(rotation) > 0:
        rotation[:, 0] *= -1
    return rotation


def describe(series: Sequence[Gradients]) -> str:
    """Describe what several series have, in a sentence."""
    total: Counter[float] = sum((one.shells for one in series), Counter())
    shells = sorted(total)
    n = sum(len(one.b0s) for one in series)
    return (
        f"{len(series)} series: {total.total()} diffusion-weighted volumes with b of "
        f"about {listed(f'{b:g}' for b in shells)} s/mm^2, and {n} of b = 0"
    )
