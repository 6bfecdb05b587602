"""Process scans in their native space: resample them to a model's grid, and back."""

from collections.abc import Callable, Sequence
from itertools import chain
import logging
from pathlib import Path
from typing import Any, NamedTuple, Self

from nibabel.affines import voxel_sizes
import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.progress import warning_once
from dipy_ldm.data._conforming import conform_channels
from dipy_ldm.data._grid import Grid, conform, coverage, same_grid
from dipy_ldm.data._nifti import ALIGNED, read_header, read_mask, space_of
from dipy_ldm.data._pairing import find_masks, mask_complaint
from dipy_ldm.data._preprocessing import Origin
from dipy_ldm.data._scans import (
    Scans,
    displayed_path,
    files_of,
    is_single_scan,
    read_images,
    resolve_channel_files,
)
from dipy_ldm.data._sidecars import synthetic_image
from dipy_ldm.data.channels import Channel, channel_slices, choose_channels
from dipy_ldm.diffusion import _inpainting as inpainting

logger = logging.getLogger("dipy_ldm")

# Share of a voxel that must lie in the mask for the voxel to be inpainted.
_MIN_HOLE_SHARE = 0.05
# Share of a mask that may lie outside the model's grid without a warning.
_MAX_SHARE_OUTSIDE = 0.01


class Scan(NamedTuple):
    """A scan on the grid of a model, and the way back to its own space.

    ``image`` is ``(*grid.shape, columns)``. Of a masked scan, ``hole`` are the voxels
    to inpaint, ``(*grid.shape)``, and each origin has those of its file.
    """

    channels: Sequence[Channel]
    origins: Sequence[Origin]
    image: np.ndarray
    hole: np.ndarray | None = None

    @classmethod
    def read(
        cls, channels: Sequence[Channel], files: Sequence[Path], grid: Grid
    ) -> Self:
        """Read all channels of a scan."""
        image, origins = conform_channels(zip(channels, files), grid)
        return cls(
            channels, [o._replace(space=space_of(o.file)) for o in origins], image
        )

    @classmethod
    def read_masked(
        cls,
        channels: Sequence[Channel],
        files: Sequence[Path],
        hole: np.ndarray,
        affine: np.ndarray,
        grid: Grid,
    ) -> Self:
        """Read all channels of a scan, with a hole on the grid of the first."""
        parts = []
        for channel, file in zip(channels, files, strict=True):
            data, file_affine = channel.load(file)
            file_grid = Grid(data.shape[:3], file_affine)
            file_hole = hole_of_file(file, file_grid, hole, Grid(hole.shape, affine))
            parts.append((file, data, file_affine, space_of(file), file_hole))
        return cls._masked(channels, parts, grid)

    def masked(self, holes: Sequence[np.ndarray]) -> Self:
        """Return the scan with a hole in each of its files, ``(x, y, z)``."""
        pairs = zip(self.origins, holes, strict=True)
        parts = [(o.file, o.measured, o.affine, o.space, hole) for o, hole in pairs]
        return self._masked(self.channels, parts, self.origins[0].grid)

    @classmethod
    def _masked(cls, channels, parts, grid):
        """Conform volumes whose holes are filled.

        They are filled first, so that they change neither the intensity range nor, by
        the blur of larger voxels, their surroundings.
        """
        images, origins, holes = [], [], []
        for channel, (file, data, affine, space, hole) in zip(channels, parts):
            if channel.continuous:
                filled = inpainting.fill(data[None], hole[None])[0]
            else:
                filled = inpainting.fill_nearest(data, hole, voxel_sizes(affine))
            image, origin = channel.conform(file, filled, affine, grid)
            images.append(image)
            origins.append(origin._replace(space=space, hole=hole, unfilled=data))
            holes.append(on_grid(hole, affine, grid))
        return cls(channels, origins, np.concatenate(images, -1), np.any(holes, 0))

    def bring_back(self, image: np.ndarray) -> list[np.ndarray]:
        """Return ``(*grid.shape, columns)`` as channels in the space of their files."""
        return [
            channel.bring_back(image[..., columns], origin)
            for (channel, columns), origin in zip(
                channel_slices(self.channels), self.origins
            )
        ]

    def inpainted(self, image: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the channels with an image in their holes, or else filled ones."""
        filled = [origin.data for origin in self.origins]
        volumes = filled if image is None else self.bring_back(image)
        return list(map(_blend, self.channels, self.origins, volumes))

    def to_images(
        self, image: np.ndarray, sidecar: dict, channels: Sequence[Channel]
    ) -> Any:
        """Return the channels of an image, or a probability map, in their space.

        Samples ``(n_samples, *grid.shape, columns)`` are returned as a list.
        """
        if image.ndim == 5:
            numbered = (sidecar | {"Sample": i} for i in range(len(image)))
            pairs = zip(image, numbered)
            return [self.to_images(x, entries, channels) for x, entries in pairs]
        first = self.origins[0]
        if image.ndim == 3:
            volume = first.restore(image[..., None], 0.0)
            sidecar = sidecar | {"Role": "probability map"}
            return synthetic_image(volume, first.affine, sidecar, space=first.space)
        if self.hole is None:
            volumes = self.bring_back(image)
        else:
            volumes = self.inpainted(image)
            sidecar = sidecar | {"Sample": sidecar.get("Sample", 0)}
        images = {
            channel.name: _as_image(
                channel, volume, sidecar, origin.affine, origin.space
            )
            for channel, volume, origin in zip(self.channels, volumes, self.origins)
            if channel in channels
        }
        return images.get("", images)


def _blend(channel, origin, volume):
    """Blend an inpainted volume ``(x, y, z, channels)`` into the hole of its file."""
    if not channel.continuous:
        return origin.with_hole(volume[origin.hole]).astype(volume.dtype)
    return inpainting.blend(origin.measured[None], volume[None], origin.hole[None])[0]


class ImageBatch(NamedTuple):
    """Images ``(n, *space, columns)`` of a call, and their scans, if they have any.

    ``files`` are those of each scan and its mask; ``single`` is whether a scan was
    given alone.
    """

    images: np.ndarray
    masks: Any = None
    scans: Sequence[Scan] = ()
    files: Sequence[Sequence[Path]] = ()
    single: bool = False

    @property
    def first_files(self) -> list[Path]:
        """The first file of each scan."""
        return [files[0] for files in self.files]

    @property
    def names(self) -> list:
        """Names of the images in warnings."""
        numbers = range(len(self.images))
        unnamed = [f"image {i}" for i in numbers] if len(numbers) > 1 else ["the image"]
        return self.first_files or unnamed

    def to_images(
        self,
        results: np.ndarray,
        describe: Callable[[int], Sequence[dict]],
        source_files: Sequence[Sequence[Path]] = (),
        channels: Sequence[str] | None = None,
    ) -> Any:
        """Return results, or samples of each, in the space of their scans.

        ``describe`` returns the provenance of so many; arrays of images without scans
        are returned as they are.
        """
        if not self.scans:
            return results
        sidecars = with_sources(describe(len(results)), self.files, source_files)
        images = [
            scan.to_images(result, sidecar, choose_channels(channels, scan.channels))
            for scan, result, sidecar in zip(self.scans, results, sidecars)
        ]
        return images[0] if self.single else images


def read_batch(
    scans: Scans, grid: Grid | None, channels: Sequence[Channel]
) -> ImageBatch:
    """Read scans on a grid; without one, two-dimensional images."""
    if grid is None:
        return ImageBatch(read_images(scans))
    with files_of(scans) as (files, folder):
        read = [
            Scan.read(channels, scan_files, grid)
            for scan_files in resolve_channel_files(files, channels)
        ]
        names = [
            [displayed_path(o.file, folder) for o in scan.origins] for scan in read
        ]
    images = np.stack([scan.image for scan in read])
    return ImageBatch(images, None, read, names, is_single_scan(scans))


def with_sources(
    sidecars: Sequence[dict], *files: Sequence[Sequence[Path]]
) -> Sequence[dict]:
    """Add source files to the sidecar of each image; a single list is for all."""
    n = len(sidecars)
    lists = [
        list(group) if len(group) == n else [*group] * n for group in files if group
    ]
    if not lists:
        return sidecars
    return [
        sidecar | {"Sources": [str(file) for file in chain(*parts)]}
        for sidecar, *parts in zip(sidecars, *lists, strict=True)
    ]


def _as_image(channel, volume, sidecar, affine, space):
    """Return the values of a channel as an image with its provenance."""
    entries, dtype = sidecar | channel.sidecar_entries(), channel.dtype or "float32"
    return synthetic_image(volume, affine, entries, dtype, space)


def as_sample(
    image: np.ndarray, channels: Sequence[Channel], affine: np.ndarray, sidecar: dict
) -> Any:
    """Return ``(*grid.shape, columns)`` as a nibabel image, or one per channel."""
    images = {
        channel.name: _as_image(
            channel, channel.to_values(image[..., columns]), sidecar, affine, ALIGNED
        )
        for channel, columns in channel_slices(channels)
    }
    return images.get("", images)


def read_masked_batch(
    scans: Scans, masks: Scans, grid: Grid | None, channels: Sequence[Channel]
) -> ImageBatch:
    """Read scans on a grid, and masks on the grid of the first channel of each."""
    if grid is None:
        raise InputError("masks of 2D images must be arrays, and so must the images")
    with (
        files_of(scans) as (files, folder),
        files_of(masks) as (mask_files, mask_folder),
        warning_once("dipy_ldm"),
    ):
        sets = resolve_channel_files(files, channels)
        mask_of = find_masks([scan_files[0] for scan_files in sets], mask_files)
        read, names = [], []
        for scan_files in sets:
            mask = mask_of[scan_files[0]]
            info = read_header(scan_files[0], channels[0].width > 1)
            if complaint := mask_complaint(info, read_header(mask, channels=None)):
                raise complaint
            shares = read_mask(mask)[..., 0]
            warn_of_probabilities(mask, shares)
            hole = shares > 0
            check_on_grid(mask, hole, info.affine, grid)
            read.append(Scan.read_masked(channels, scan_files, hole, info.affine, grid))
            names.append([displayed_path(file, folder) for file in scan_files])
            names[-1].append(displayed_path(mask, mask_folder))
    images, holes = (
        np.stack(arrays) for arrays in zip(*((s.image, s.hole) for s in read))
    )
    return ImageBatch(images, holes, read, names, is_single_scan(scans))


def hole_of_file(file: Path, grid: Grid, hole: np.ndarray, mask: Grid) -> np.ndarray:
    """Resample a hole to the grid of a file; refuse one that covers all of it."""
    if not same_grid(grid, mask):
        # Larger voxels are in the hole if it touches them, smaller ones by half.
        volumes = [abs(np.linalg.det(a[:3, :3])) for a in (grid.affine, mask.affine)]
        min_share = _MIN_HOLE_SHARE if volumes[0] > volumes[1] else 0.5
        hole = on_grid(hole, mask.affine, grid, min_share)
    refuse_full_hole(file, hole)
    return hole


def refuse_full_hole(file: Path, hole: np.ndarray) -> None:
    """Refuse a hole that covers all of a file."""
    if hole.all():
        raise InputError(
            f"the mask covers all of {file}",
            "use a smaller mask, or a volume that extends beyond it",
        )


def warn_of_probabilities(file: Path, mask: np.ndarray) -> None:
    """Warn of a mask with many low probabilities, which are inpainted, too."""
    if np.mean(mask[mask > 0] < 0.5) > 0.5:
        text = "all voxels of the mask %s above 0 are inpainted, but most are below "
        text += "0.5; if they are probabilities, threshold the mask first."
        logger.warning(text, file)


def check_on_grid(
    file: Path, hole: np.ndarray, affine: np.ndarray, grid: Grid
) -> np.ndarray:
    """Resample the hole of a mask file to the model's grid; refuse one outside it."""
    result = on_grid(hole, affine, grid)
    inside = coverage(grid, Grid(hole.shape, affine))[hole] >= 0.5
    if not inside.any() and not result.any():
        raise InputError(
            f"the mask {file} has nothing on the grid of the model, which has shape "
            f"{grid.shape} and begins at {np.round(grid.affine[:3, 3], 1).tolist()} mm",
            "align it and its volume with the training volumes",
        )
    if not result.any():
        raise InputError(
            f"the mask {file} is too small for the voxels of the model",
            "use a larger one",
        )
    if (share := 1 - inside.mean()) > _MAX_SHARE_OUTSIDE:
        text = "%.0f %% of the mask %s lies outside the grid of the model, and is "
        logger.warning(text + "filled smoothly, without the model.", 100 * share, file)
    return result


def on_grid(
    hole: np.ndarray, affine: np.ndarray, grid: Grid, min_share: float = _MIN_HOLE_SHARE
) -> np.ndarray:
    """Return the voxels of a grid of which a hole ``(x, y, z)`` covers a share."""
    shares = conform(hole[..., None].astype("float32"), affine, grid)[..., 0]
    return shares >= min_share
