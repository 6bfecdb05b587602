"""Process scans in their native space: resample them to a model's grid, and back."""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import chain
import logging
from pathlib import Path
import re
from typing import Any, NamedTuple, ParamSpec, Self, cast

from nibabel.affines import voxel_sizes
import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.progress import reworded, warning_once
from dipy_ldm.data._grid import Grid, conform, coverage, same_grid
from dipy_ldm.data._nifti import ALIGNED, read_header, read_mask
from dipy_ldm.data._pairing import find_masks, mask_complaint
from dipy_ldm.data._preprocessing import Origin
from dipy_ldm.data._scans import (
    are_scans,
    displayed_path,
    files_of,
    is_single_scan,
    read_scans,
    resolve_channel_files,
    shown,
)
from dipy_ldm.data._sidecars import synthetic_image
from dipy_ldm.data._table_rows import join_to_files
from dipy_ldm.data.channels import Channel, channel_slices, choose_channels
from dipy_ldm.diffusion import _inpainting as inpainting

logger = logging.getLogger("dipy_ldm")

# Share of a voxel that must lie in the mask for the voxel to be inpainted.
_MIN_HOLE_SHARE = 0.05
# Share of a mask that may lie outside the model's grid without a warning.
_MAX_SHARE_OUTSIDE = 0.01

P = ParamSpec("P")


def accepts_scans(method: Callable[P, Any]) -> Callable[P, Any]:
    """Make a method on arrays accept scans, and return results in their space.

    The method returns an array and the options for the sidecars.
    """

    @wraps(method)
    def apply(self, images, *args, **kwargs):
        run: Any = method
        if not are_scans(images):
            return run(self, images, *args, **kwargs)[0]
        self._check_fitted()
        grid, channels = self._grid()
        on_grid, origins = read_scans(images, grid, channels)
        files = [[origin.file for origin in own] for own in origins]
        kwargs, sources = _match_to_scans(self, kwargs, files)
        with _naming_files(files):
            results, used = run(self, on_grid, *args, **kwargs)
        if not origins:
            return results
        facts = with_sources(self._provenance(len(results), **used), files, sources)
        restored = [
            _to_scan_space(result, channels, own, about)
            for result, own, about in zip(results, origins, facts)
        ]
        return restored[0] if is_single_scan(images) else restored

    return cast(Callable[P, Any], apply)


def _naming_files(files):
    """Return a context in which warnings begin with a file instead of its number."""

    def reword(message):
        match = re.match(r"(the image|image (\d+))\b", message)
        if match is None or not files:
            return message
        return f"{files[int(match[2] or 0)][0]}{message[match.end() :]}"

    return reworded("dipy_ldm.latent_diffusion", reword)


def _match_to_scans(model, kwargs, files):
    """Match conditions and sources to scans by name; return arguments and files."""
    firsts, sources = [own[0] for own in files], []
    if "conditions" in kwargs:
        rows = join_to_files(kwargs["conditions"], firsts)
        kwargs = kwargs | {"conditions": rows}
    if files and "source" in kwargs and getattr(model, "source_", None) is not None:
        source, sources = model._read_source(kwargs["source"], firsts)
        kwargs = kwargs | {"source": source}
    return kwargs, sources


def with_sources(facts: list[dict], *files: list[list[Path]]) -> list[dict]:
    """Add source files to the facts of each image; a single list is for all."""
    n = len(facts)
    lists = [each if len(each) == n else each * n for each in files if each]
    if not lists:
        return facts
    return [
        own | {"Sources": [str(file) for file in chain(*parts)]}
        for own, *parts in zip(facts, *lists, strict=True)
    ]


def _to_scan_space(result, channels, origins, facts):
    """Resample an image, or a probability map without channels, to a scan's space."""
    if result.ndim == 3:
        volume, first = origins[0].restore(result[..., None], 0.0), origins[0]
        facts = facts | {"Role": "probability map"}
        return synthetic_image(volume, first.affine, facts, space=first.space)
    volumes = bring_back(result, channels, origins)
    places = [(origin.affine, origin.space) for origin in origins]
    return as_images(channels, volumes, places, facts)


def bring_back(
    image: np.ndarray, channels: Sequence[Channel], origins: Sequence[Origin]
) -> list[np.ndarray]:
    """Resample channels of ``(*grid.shape, columns)`` to the space of their files."""
    return [
        channel.bring_back(image[..., columns], origin)
        for (channel, columns), origin in zip(channel_slices(channels), origins)
    ]


def as_images(
    channels: Sequence[Channel],
    volumes: Sequence[np.ndarray],
    places: Sequence[tuple[np.ndarray, int]],
    facts: dict,
) -> Any:
    """Return volumes as images, in a dictionary if their channels are named.

    Each has its place: affine, and code of its space.
    """
    images = {}
    for channel, volume, (affine, space) in zip(channels, volumes, places):
        own, dtype = facts | channel.sidecar_entries(), channel.dtype or "float32"
        images[channel.name] = synthetic_image(volume, affine, own, dtype, space)
    return images.get("", images)


def as_sample(
    image: np.ndarray, channels: Sequence[Channel], affine: np.ndarray, facts: dict
) -> Any:
    """Return ``(*grid.shape, columns)`` as a nibabel image, or one per channel."""
    volumes = [
        c.to_values(image[..., columns]) for c, columns in channel_slices(channels)
    ]
    return as_images(channels, volumes, [(affine, ALIGNED)] * len(volumes), facts)


def accepts_masked_scans(method: Callable[P, Any]) -> Callable[P, Any]:
    """Make a method that inpaints arrays accept scans and their masks.

    The method returns an array and the options for the sidecars.
    """

    @wraps(method)
    def apply(self, images, masks, **kwargs):
        inpaint: Any = method
        if not are_scans(images):
            return inpaint(self, images, masks, **kwargs)[0]
        self._check_fitted()
        grid, channels = self._grid()
        chosen = choose_channels(kwargs.get("channels"), channels)
        masked, files = _read_masked(images, masks, grid, channels)
        kwargs, sources = _match_to_scans(self, kwargs, files)
        arrays, holes, origins = zip(*(conformed(parts, grid) for parts in masked))
        with _naming_files(files):
            results, used = inpaint(self, np.stack(arrays), np.stack(holes), **kwargs)
        several = kwargs.get("n_samples") is not None
        samples = results if several else results[:, None]
        facts = with_sources(self._provenance(len(results), **used), files, sources)
        inpainted: list = [
            [
                _inpainted(parts, sample, ways, own | {"Sample": number}, chosen)
                for number, sample in enumerate(own_samples)
            ]
            for parts, own_samples, ways, own in zip(masked, samples, origins, facts)
        ]
        inpainted = inpainted if several else [one for (one,) in inpainted]
        return inpainted[0] if is_single_scan(images) else inpainted

    return cast(Callable[P, Any], apply)


def _inpainted(parts, sample, origins, facts, chosen):
    channels = [scan.channel for scan in parts]
    volumes = bring_back(sample, channels, origins)
    pairs = [(s, volume) for s, volume in zip(parts, volumes) if s.channel in chosen]
    filled = [scan.blended(volume) for scan, volume in pairs]
    places = [(scan.affine, scan.space) for scan, _ in pairs]
    return as_images([scan.channel for scan, _ in pairs], filled, places, facts)


def _read_masked(scans, masks, grid, channels):
    """Read volumes, and masks on the grid of the first channel; return their files."""
    if grid is None:
        raise InputError("masks of 2D images must be arrays, and so must the images")
    with (
        files_of(scans) as (files, folder),
        files_of(masks) as (mask_files, other),
        warning_once("dipy_ldm"),
    ):
        sets = resolve_channel_files(files, channels)
        mask_of = find_masks([own[0] for own in sets], mask_files)
        masked, names = [], []
        for own in sets:
            info, mask = read_header(own[0], channels[0].width > 1), mask_of[own[0]]
            if complaint := mask_complaint(info, read_header(mask, channels=None)):
                raise complaint
            shares = read_mask(mask)[..., 0]
            warn_of_probabilities(mask, shares)
            hole = shares > 0
            check_on_grid(mask, hole, info.affine, grid)
            parts = read_masked(channels, own, hole, info.affine)
            masked.append([shown(part, folder) for part in parts])
            own_names = [part.file for part in masked[-1]]
            names.append([*own_names, displayed_path(mask, other)])
        return masked, names


def read_masked(
    channels: Sequence[Channel],
    files: Sequence[Path],
    hole: np.ndarray,
    affine: np.ndarray,
) -> list["MaskedScan"]:
    """Read all channels of a scan, with a hole on the grid of the first."""
    return [
        MaskedScan.of(channel, file, *channel.load(file), hole, affine)
        for channel, file in zip(channels, files, strict=True)
    ]


def conformed(
    scans: Sequence["MaskedScan"], grid: Grid
) -> tuple[np.ndarray, np.ndarray, list[Origin]]:
    """Resample all channels of a scan and their hole to a grid; return origins, too."""
    images, origins = zip(*(scan.conformed(grid) for scan in scans))
    holes = [on_grid(scan.hole, scan.affine, grid) for scan in scans]
    return np.concatenate(images, -1), np.any(holes, 0), list(origins)


class MaskedScan(NamedTuple):
    """A volume, and the mask to inpaint.

    ``data`` are ``(x, y, z, channels)``, with ``affine`` from indices to millimetres
    and the code of its ``space``; ``hole``, bool ``(x, y, z)``, is to be inpainted.
    """

    channel: Channel
    file: Path
    data: np.ndarray
    affine: np.ndarray
    hole: np.ndarray
    space: int = ALIGNED

    @classmethod
    def of(cls, channel, file, data, affine, hole, hole_affine) -> Self:
        """Resample a hole to the grid of a volume."""
        grid = Grid(data.shape[:3], affine)
        if not same_grid(grid, Grid(hole.shape, hole_affine)):
            # Larger voxels are in the hole if it touches them, smaller ones by half.
            volumes = [abs(np.linalg.det(a[:3, :3])) for a in (affine, hole_affine)]
            min_share = _MIN_HOLE_SHARE if volumes[0] > volumes[1] else 0.5
            hole = on_grid(hole, hole_affine, grid, min_share)
        if hole.all():
            raise InputError(
                f"the mask covers all of {file}",
                "use a smaller mask, or a volume that extends beyond it",
            )
        return cls(channel, file, data, affine, hole)

    def conformed(self, grid: Grid) -> tuple[np.ndarray, Origin]:
        """Return the volume on a grid, and its origin.

        The hole is filled first, so that it changes neither the intensity range nor, by
        the blur of larger voxels, its surroundings.
        """
        if self.channel.continuous:
            filled = inpainting.fill(self.data[None], self.hole[None])[0]
        else:
            sizes = voxel_sizes(self.affine)
            filled = inpainting.fill_nearest(self.data, self.hole, sizes)
        return self.channel.conform(self.file, filled, self.affine, grid)

    def filled(self, values: npt.ArrayLike) -> np.ndarray:
        """Return the volume with new values ``(voxels, channels)`` in its hole."""
        volume = self.data.copy()
        volume[self.hole] = values
        return volume

    def hole_only(self, values: npt.ArrayLike) -> np.ndarray:
        """Return values ``(voxels, channels)`` in the hole, and 0 elsewhere."""
        return self._replace(data=np.zeros_like(self.data)).filled(values)

    def blended(self, restored: np.ndarray) -> np.ndarray:
        """Blend an inpainted ``(x, y, z, channels)`` into the hole."""
        if not self.channel.continuous:
            return self.filled(restored[self.hole]).astype(restored.dtype)
        images = self.data[None], restored[None], self.hole[None]
        return inpainting.blend(*images)[0]


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
