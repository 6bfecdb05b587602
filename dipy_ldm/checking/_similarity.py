"""Volumes beside the cohort's median: orientation, and subjects that are there twice.

Volumes are compared as small cubes, each centred on its own content: a file whose
header swaps axes is turned about its own middle, not about that of the grid.
"""

from collections.abc import Callable, Sequence
from itertools import permutations, product

from nibabel.orientations import apply_orientation, ornt2axcodes, ornt_transform
import numpy as np
from scipy.ndimage import center_of_mass, gaussian_filter

from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.values import counted, listed
from dipy_ldm.checking._findings import Finding, green, grey, red
from dipy_ldm.data._grid import Grid, conform

# Voxels along a side of a cube: enough to tell front from back.
_SIDE = 20
# With fewer volumes, their median is not that of most.
MIN_VOLUMES = 6
# By how much a turned median must be more like a volume than the median as it is. Of
# 200 virtual brains none comes nearer than -0.058, and with axes swapped all come to
# 0.049 and more; mirrored left to right they come to 0.001, which can't be told.
_TURNED = 0.02
# What a further change of axes must be worth, in correlation.
_PLAIN = 0.003
# Correlation of two volumes, and of one with the median: what is like no other may have
# in common that it differs.
_LIKE, _FAMILIAR = 0.98, 0.8
# Of what two have beside the median. Of 200 virtual brains no pair comes above 0.83;
# copies moved by half a voxel, with noise of 5 % or of another contrast (to the power
# of 1.2) come to 0.94 and more.
_EQUAL = 0.9
# So that copies on another grid, which blurs them a little, are as blurred: in voxels.
_BLUR = 1.0
# Rows of pairs that are compared at once.
_BLOCK = 1000


# All orientations of nibabel, ``(48, 3, 2)``; the first is RAS.
ORIENTATIONS = np.array(
    [[*zip(p, f)] for p in permutations(range(3)) for f in product((1, -1), repeat=3)]
)


def reorient(cube: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Turn a cube ``(side, side, side)`` from RAS to another orientation."""
    return apply_orientation(cube, ornt_transform(ORIENTATIONS[0], view))


def axes_of(view: np.ndarray) -> str:
    """Name the axes of an orientation, such as LAS."""
    return "".join(ornt2axcodes(view))


def centred_cubes(images: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Make volumes small, ``(n, side, side, side)``, each centred on its content."""
    extents = np.abs(np.diag(affine)[:3]) * images.shape[1:4]
    width = max(extents.max() / _SIDE, np.abs(np.diag(affine)[:3]).min())
    side = int(np.ceil(extents.max() / width))
    bar = tqdm(images, "compare")
    return np.stack([_cube(image[..., :1], affine, width, side) for image in bar])


def _cube(image, affine, width, side):
    # The middle of a volume that lacks the label which is looked at.
    content = image[..., 0] if image.any() else np.ones(image.shape[:3])
    centre = affine[:3, :3] @ center_of_mass(content) + affine[:3, 3]
    placed = np.diag([width, width, width, 1.0])
    placed[:3, 3] = centre - (side - 1) / 2 * width
    return conform(np.asarray(image), affine, Grid((side,) * 3, placed))[..., 0]


def unit_vectors(arrays: np.ndarray) -> np.ndarray:
    """Make vectors ``(n, voxels)`` of length 1, mean 0: products are correlations."""
    rows = arrays.reshape(len(arrays), -1).astype("float32")
    rows = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def likeness_to_median(small: np.ndarray) -> np.ndarray:
    """Correlate cubes ``(n, side, side, side)`` with their median, ``(n,)``."""
    return unit_vectors(small) @ unit_vectors(np.median(small, axis=0)[None])[0]


def compare_orientations(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare cubes with their median in 48 views: margins and best ones, ``(n,)``."""
    median = np.median(small, axis=0)
    views = unit_vectors(np.stack([reorient(median, view) for view in ORIENTATIONS]))
    correlations = unit_vectors(small) @ views.T
    # Of those that fit about as well, the one that changes least.
    changes = (ORIENTATIONS != ORIENTATIONS[0]).sum((1, 2))
    best = (correlations - _PLAIN * changes)[:, 1:].argmax(axis=1) + 1
    return correlations[np.arange(len(correlations)), best] - correlations[:, 0], best


def too_few(title: str, n: int) -> Finding:
    """Return a grey finding: too few volumes to compare."""
    why = (
        f"Not looked at: of {n} images, too few to compare ({MIN_VOLUMES} are needed)."
    )
    return grey(title, why)


def check_orientation(
    small: np.ndarray, names: Sequence[str], show: Callable
) -> Finding:
    """Find volumes whose content contradicts the orientation of their headers."""
    title = "orientation of the images"
    if len(small) < MIN_VOLUMES:
        return too_few(title, len(small))
    margins, best = compare_orientations(small)
    bad = np.flatnonzero(margins > _TURNED)
    bad = bad[np.argsort(-margins[bad])].tolist()
    if not bad:
        return green(
            title,
            "No volume is more like the median of all when that is mirrored or turned "
            "(swapped left and right can't be told where both sides are alike).",
        )
    swapped = [f"{names[i]} ({axes_of(ORIENTATIONS[best[i]])})" for i in bad]
    rows = zip(swapped, margins[bad].tolist())
    return red(
        title,
        f"{counted(len(bad), 'volume')} with axes that are swapped beside the others, "
        f"which are RAS: {listed(swapped, 3)}.",
        "Correct the orientation in the headers of these files, by their DICOM files.",
        table=[("file, and its axes", "more alike by (correlation)"), *rows],
        pictures=show(bad[:4], "As their headers say; the last is a usual one"),
    )


def check_duplicates(
    small: np.ndarray, names: Sequence[str], subjects: Sequence, show: Callable
) -> Finding:
    """Find volumes that are there twice, also on another grid or with other noise."""
    title = "duplicate subjects"
    if len(small) < MIN_VOLUMES:
        return too_few(title, len(small))
    pairs = find_near_duplicates(small)
    if not pairs:
        return green(title, "No two volumes are equal, or nearly so.")
    rows = [(f"{names[i]} and {names[j]}", alike) for i, j, alike in pairs]
    across = [(i, j) for i, j, _ in pairs if subjects[i] != subjects[j]]
    listing = listed([files for files, _ in rows], 3)
    cure = "Leave repetitions out, unless all subjects have as many."
    if across:
        cure = (
            "Keep one of each pair, or say that they are of one subject (the sub- of "
            "their names): one may be learnt from and the other held out."
        )
    first = across[0] if across else pairs[0][:2]
    return Finding(
        "red" if across else "amber",
        title,
        f"{counted(len(pairs), 'pair')} of equal or nearly equal volumes: {listing}.",
        cure,
        show(first, "The first pair, and a usual one"),
        [("files", "alike (correlation)"), *rows],
    )


def find_near_duplicates(small: np.ndarray) -> list[tuple[int, int, float]]:
    """Find pairs that are alike, and differ alike from the median of all."""
    rows = unit_vectors(np.stack([gaussian_filter(cube, _BLUR) for cube in small]))
    median = unit_vectors(np.median(rows, axis=0)[None])[0]
    away = unit_vectors(rows - (rows @ median)[:, None] * median)
    familiar = rows @ median > _FAMILIAR
    pairs = []
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        own = away[block] @ away.T
        alike = (own > _EQUAL) & (rows[block] @ rows.T > _LIKE) & familiar
        for i, j in np.argwhere(alike):
            if i + start < j:
                pairs.append((int(i + start), int(j), float(own[i, j])))
    return sorted(pairs, key=lambda pair: -pair[2])
