"""Volumes of which only the headers were read."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from dipy_ldm.data._grid import Grid
from dipy_ldm.data._pairing import Task
from dipy_ldm.data._table_rows import find_subjects
from dipy_ldm.data._tables import Row
from dipy_ldm.data.cohort import draw_order


class Plan(NamedTuple):
    """Volumes of which only the headers were read.

    ``tasks`` tell of each volume and what belongs to it, ``subjects`` whose it is;
    ``grid`` is where they are to be brought, and ``labels`` says whether sources are
    segmentations. ``listed`` are the rows of lists that named the volumes.
    """

    tasks: list[Task]
    subjects: list
    grid: Grid
    skip_bad: bool
    labels: bool = False
    listed: Mapping[str, list[Row]] = MappingProxyType({})

    @property
    def infos(self):
        """What the header of each volume says."""
        return [task.info for task in self.tasks]

    @property
    def files(self):
        """All files that are read."""
        masks = [task.mask for task in self.tasks if task.mask]
        sources = [task.source.file for task in self.tasks if task.source]
        return [info.file for info in self.infos] + masks + sources

    @property
    def source_channels(self):
        """Channels of sources; 0 where there are none."""
        source = self.tasks[0].source
        return source.channels if source else 0

    @property
    def shape(self):
        """Shape of all images, ``(n, x, y, z, channels)``, if none turns out bad."""
        return (len(self.infos), *self.grid.shape, self.infos[0].channels)

    @property
    def affine(self):
        """From voxel indices to millimetres, ``(4, 4)``."""
        return self.grid.affine


def make_plan(tasks, grid, listed, *, skip_bad=False, shuffle=False, labels=False):
    """Put volumes whose headers were read in the order of a plan."""
    subjects = find_subjects([task.info.file for task in tasks], listed)
    order = draw_order(subjects, seed=0) if shuffle else range(len(tasks))
    tasks, subjects = [tasks[i] for i in order], [subjects[i] for i in order]
    return Plan(tasks, subjects, grid, skip_bad, labels, listed)
