"""A measured diffusion series, as a channel of a scan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np

from dipy_ldm.data._bvals_bvecs import Gradients
from dipy_ldm.data._grid import Grid, conform
from dipy_ldm.data._nifti import VolumeInfo, check_whole, read_each
from dipy_ldm.data._pairing import Task
from dipy_ldm.data._preprocessing import Origin, conform_voxels, scale_intensities
from dipy_ldm.data.channels import Unnamed


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredSeries(Unnamed):
    """A series as columns: mean b = 0 and weighted volumes, in the scale of that."""

    info: VolumeInfo
    gradients: Gradients

    @classmethod
    def of(cls, task: Task) -> Self:
        """Return a series of which headers and tables were read."""
        return cls(info=task.info, gradients=cast(Gradients, task.gradients))

    @property
    def width(self) -> int:
        """How many columns there are."""
        return 1 + len(self.gradients.weighted)

    @property
    def conditions(self) -> Mapping[str, Sequence]:  # type: ignore[override]
        """b-value and direction of each weighted volume."""
        return self.gradients.conditions(self.info.affine, self.gradients.weighted)

    @property
    def tables(self) -> Sequence[Path]:  # type: ignore[override]
        """Files of b-values and directions."""
        return self.gradients.files

    @property
    def shown(self) -> int:  # type: ignore[override]
        """Number of the first weighted volume."""
        return int(self.gradients.weighted[0])

    def texts(self) -> dict[str, str]:
        """Return b-values and directions."""
        return self.gradients.texts()

    def load(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read all volumes, ``(x, y, z, volumes)``, and their affine."""
        check_whole(file)
        volumes = list(read_each(self.info, range(len(self.gradients.bvals))))
        return np.concatenate(volumes, -1), self.info.affine

    def conform(
        self, file: Path, data: np.ndarray, affine: np.ndarray, grid: Grid
    ) -> tuple[np.ndarray, Origin]:
        """Bring b = 0 and weighted volumes to a grid; return the way back, too."""
        b0 = data[..., self.gradients.b0s].mean(-1, keepdims=True)
        source, origin = conform_voxels(file, b0, affine, grid, from_zero=True)
        weighted = data[..., self.gradients.weighted]
        images = conform(scale_intensities(weighted, origin.intensities), affine, grid)
        return np.concatenate([source, images], -1), origin._replace(data=data)

    def bring_back(self, images: np.ndarray, origin: Origin) -> np.ndarray:
        """Return the series with other weighted volumes."""
        weighted, series = self.gradients.weighted, origin.data.copy()
        own = origin._replace(data=series[..., weighted])
        series[..., weighted] = super().bring_back(images[..., 1:], own)
        return series

    def spread(self, repeated: np.ndarray, origin: Origin) -> np.ndarray:
        """Return how much weighted volumes differ; those of b = 0 do not."""
        deviations = np.zeros_like(origin.data)
        own = super().spread(repeated, origin)[..., 1:]
        deviations[..., self.gradients.weighted] = own
        return deviations
