"""Checks for outliers by robust scores, wrong orientations and duplicate subjects.

Volumes are compared as small cubes, each centred on its own content, since a header
with swapped axes rotates a volume about its own centre.
"""

from collections.abc import Callable, Mapping, Sequence
import hashlib
from itertools import permutations, product
import math

from dipy.segment.threshold import otsu
from nibabel.orientations import apply_orientation, ornt2axcodes, ornt_transform
import numpy as np
from scipy.ndimage import center_of_mass, gaussian_filter

from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.values import counted, listed
from dipy_ldm.checking._findings import (
    Finding,
    amber,
    gallery,
    green,
    grey,
    red,
    robust_scores,
)
from dipy_ldm.data import Grid
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data._grid import conform
from dipy_ldm.data.channels import channel_slices, empty_columns, scan_column

# Voxels along a side of a cube: enough to distinguish front from back.
_CUBE_SIDE = 20
# With fewer volumes, the median is not robust.
MIN_VOLUMES = 6
# Gain in correlation when the median is reoriented that indicates a wrong header. Of
# 200 virtual brains it is at most -0.058, with swapped axes at least 0.049; mirrored
# left to right it is 0.001, which cannot be detected.
_MIN_REORIENTATION_GAIN = 0.02
# Gain in correlation that justifies a further change of axes.
_AXIS_PENALTY = 0.003
# Correlation of two duplicates, and of each with the median: two volumes unlike all
# others may deviate from the median in the same way.
_MIN_CORRELATION, _MIN_MEDIAN_CORRELATION = 0.98, 0.8
# Correlation of the residuals from the median. Of 200 virtual brains no pair exceeds
# 0.83; copies shifted by half a voxel, with noise of 5 % or another contrast (to the
# power of 1.2) reach at least 0.94.
_MIN_RESIDUAL_CORRELATION = 0.9
# Voxels. Makes up for the slight blur of copies that were resampled to another grid.
_BLUR = 1.0
# Volumes that are compared with all others at once.
_BLOCK_SIZE = 1000


# In the convention of nibabel, ``(48, 3, 2)``; the first is RAS.
ORIENTATIONS = np.array(
    [[*zip(p, f)] for p in permutations(range(3)) for f in product((1, -1), repeat=3)]
)


def reorient(cube: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Reorient a cube ``(side, side, side)`` from RAS to another orientation."""
    return apply_orientation(cube, ornt_transform(ORIENTATIONS[0], view))


def axes_of(view: np.ndarray) -> str:
    """Return the axis codes of an orientation, such as LAS."""
    return "".join(ornt2axcodes(view))


def centred_cubes(
    images: np.ndarray, affine: np.ndarray, empty: float = 0.0
) -> np.ndarray:
    """Resample volumes to ``(n, side, side, side)``, each centred on its content.

    They are differences from the value of empty space.
    """
    extents = np.abs(np.diag(affine)[:3]) * images.shape[1:4]
    width = max(extents.max() / _CUBE_SIDE, np.abs(np.diag(affine)[:3]).min())
    side = int(np.ceil(extents.max() / width))
    bar = tqdm(images, "compare")
    contents = (image[..., :1] - np.float32(empty) for image in bar)
    return np.stack([_cube(content, affine, width, side) for content in contents])


def _cube(image: np.ndarray, affine: np.ndarray, width: float, side: int) -> np.ndarray:
    """Resample a volume to a cube that is centred on its content."""
    # A volume without the label is centred on its grid.
    weights = np.abs(image[..., 0]) if image.any() else np.ones(image.shape[:3])
    centre = affine[:3, :3] @ center_of_mass(weights) + affine[:3, 3]
    placed = np.diag([width, width, width, 1.0])
    placed[:3, 3] = centre - (side - 1) / 2 * width
    return conform(np.asarray(image), affine, Grid((side,) * 3, placed))[..., 0]


def unit_vectors(arrays: np.ndarray) -> np.ndarray:
    """Return vectors ``(n, voxels)`` of mean 0 and length 1, for correlations."""
    rows = arrays.reshape(len(arrays), -1).astype("float32")
    rows = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def correlate_with_median(small: np.ndarray) -> np.ndarray:
    """Correlate cubes ``(n, side, side, side)`` with their median, ``(n,)``."""
    return unit_vectors(small) @ unit_vectors(np.median(small, axis=0)[None])[0]


def compare_orientations(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gain in correlation and the index of the best view, ``(n,)``."""
    median = np.median(small, axis=0)
    views = unit_vectors(np.stack([reorient(median, view) for view in ORIENTATIONS]))
    correlations = unit_vectors(small) @ views.T
    # Among those with similar correlation, the one with the fewest changes.
    changes = (ORIENTATIONS != ORIENTATIONS[0]).sum((1, 2))
    best = (correlations - _AXIS_PENALTY * changes)[:, 1:].argmax(axis=1) + 1
    return correlations[np.arange(len(correlations)), best] - correlations[:, 0], best


def too_few_volumes(title: str, n: int) -> Finding:
    """Return a grey finding: too few volumes to compare."""
    why = f"Not checked: {n} images are too few to compare ({MIN_VOLUMES} are needed)."
    return grey(title, why)


def check_orientation(
    small: np.ndarray, names: Sequence[str], show: Callable
) -> Finding:
    """Find volumes whose content contradicts the orientation of their headers."""
    title = "orientation of the images"
    if len(small) < MIN_VOLUMES:
        return too_few_volumes(title, len(small))
    gains, best = compare_orientations(small)
    bad = np.flatnonzero(gains > _MIN_REORIENTATION_GAIN)
    bad = bad[np.argsort(-gains[bad])].tolist()
    if not bad:
        return green(
            title,
            "No volume is more similar to a mirrored or rotated median of all (swapped "
            "left and right cannot be detected if both sides are similar).",
        )
    swapped = [f"{names[i]} ({axes_of(ORIENTATIONS[best[i]])})" for i in bad]
    rows = zip(swapped, gains[bad].tolist())
    return red(
        title,
        f"{counted(len(bad), 'volume')} with other axes than most, which are RAS: "
        f"{listed(swapped, 3)}.",
        "Correct the orientation in the headers of these files, by their DICOM files.",
        table=[("file, and its axes", "more alike by (correlation)"), *rows],
        pictures=show(bad[:4], "According to their headers; the last is typical"),
    )


def check_duplicates(
    small: np.ndarray, names: Sequence[str], subjects: Sequence, show: Callable
) -> Finding:
    """Find duplicate volumes, also on another grid or with other noise."""
    title = "duplicate subjects"
    if len(small) < MIN_VOLUMES:
        return too_few_volumes(title, len(small))
    pairs = find_near_duplicates(small)
    if not pairs:
        return green(title, "No two volumes are equal or nearly equal.")
    rows = [(f"{names[i]} and {names[j]}", similarity) for i, j, similarity in pairs]
    across = [(i, j) for i, j, _ in pairs if subjects[i] != subjects[j]]
    listing = listed([files for files, _ in rows], 3)
    cure = "Remove repetitions, unless all subjects have equally many."
    if across:
        cure = (
            "Keep one of each pair, or mark both as one subject (sub- in their names): "
            "otherwise one may be trained on and the other held out."
        )
    first = across[0] if across else pairs[0][:2]
    return Finding(
        "red" if across else "amber",
        title,
        f"{counted(len(pairs), 'pair')} of equal or nearly equal volumes: {listing}.",
        cure,
        show(first, "The first pair, and a typical image"),
        [("files", "alike (correlation)"), *rows],
    )


def find_near_duplicates(small: np.ndarray) -> list[tuple[int, int, float]]:
    """Find pairs that are similar, with similar residuals from the median."""
    rows = unit_vectors(np.stack([gaussian_filter(cube, _BLUR) for cube in small]))
    median = unit_vectors(np.median(rows, axis=0)[None])[0]
    away = unit_vectors(rows - (rows @ median)[:, None] * median)
    familiar = rows @ median > _MIN_MEDIAN_CORRELATION
    pairs = []
    for start in range(0, len(rows), _BLOCK_SIZE):
        block = slice(start, start + _BLOCK_SIZE)
        residual = away[block] @ away.T
        similar = (residual > _MIN_RESIDUAL_CORRELATION) & familiar
        similar &= rows[block] @ rows.T > _MIN_CORRELATION
        for i, j in np.argwhere(similar):
            if i + start < j:
                pairs.append((int(i + start), int(j), float(residual[i, j])))
    return sorted(pairs, key=lambda pair: -pair[2])


# Robust standard deviations. Of 200 virtual brains the largest score is 3.
_OUTLIER_SCORE = 7.0
# Images that are shown, if none is an outlier.
_MIN_PICTURES = 3
# Level of a bright background, between the darkest and the brightest voxel.
_BRIGHT_BACKGROUND = 0.1
# Share of the grid that must contain the content of any image.
_MIN_GRID_SHARE = 0.35
_QUANTILES = 0.05, 0.25, 0.5, 0.75, 0.95
# Figures of each image, and their minimal spread: of brightness from 0 to 1, in the log
# of a volume, in voxels of the cubes, and in correlation.
_OF_VOLUMES = {
    **{f"{q:.0%} quantile of brightness": 0.02 for q in _QUANTILES},
    "share at the highest brightness": 0.01,
    "roughness": 0.01,
    "background": 0.02,
}
_OF_IMAGES = {"mean brightness": 0.02, "contrast": 0.02, "background": 0.02}
_OF_SHAPE = {
    "size (log)": 0.05,
    **dict.fromkeys(("width", "depth", "height"), 0.15),
    "similarity to the median": 0.01,
}
_CURES = {
    "intensities": "Review these images: another contrast or modality, artefacts, or a "
    "few very bright voxels that set the range; remove those that do not belong.",
    "shapes": "Review these volumes: cut off, not skull-stripped like the others, "
    "another part of the body, or rare anatomy; remove those that do not belong.",
}
_NO_SCAN = "Not checked: there are labels only."


def measure_brightness(
    images: np.ndarray, column: int = 0, empty: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return brightness figures of one column, and the maximum over all images.

    The maximum is of all columns, as differences from their empty values.

    Shapes: images ``(n, *space, channels)``, empty ``(channels,)``, figures ``(n,
    figures)``, of which the last is the level of the background, and maximum
    ``(*space)``.
    """
    # Volumes are scaled to [0, 1] already.
    ends = (0, 1) if images.ndim == 5 else (images.min(), images.max())
    low, high = map(np.float32, ends)
    brightest = np.zeros(images.shape[1:-1], "float32")
    of_column, figures = np.broadcast_to(empty, images.shape[-1])[column], []
    for image in tqdm(images, "brightness"):
        scaled = (np.asarray(image, "float32") - low) / (high - low or 1)
        np.maximum(brightest, np.abs(scaled - empty).max(-1), out=brightest)
        figures.append(_brightness(scaled[..., column], of_column))
    return np.array(figures), brightest


def _brightness(image: np.ndarray, empty: float) -> list:
    """Return the figures of `_OF_VOLUMES` or `_OF_IMAGES` for an image in [0, 1]."""
    deviation = float(np.median(_edge(image - np.float32(empty))))
    background, level = empty + deviation, abs(deviation)
    if image.ndim == 2:
        return [image.mean(), image.std(), level]
    content = image[np.abs(image - background) > 0.02]
    content = content if content.size else image.ravel()
    rough = np.abs(image - gaussian_filter(image, 1.0)).mean()
    shares = *np.quantile(content, _QUANTILES), np.mean(content > 0.999)
    return [*shares, rough, level]


def _edge(image: np.ndarray) -> np.ndarray:
    """Return the values at the edge of an image, or of a volume without its padding."""
    indices = np.nonzero(image)
    if image.ndim == 3 and indices[0].size:
        image = image[tuple(slice(i.min(), i.max() + 1) for i in indices)]
    ends = [np.take(image, end, a) for a in range(image.ndim) for end in (0, -1)]
    return np.concatenate([end.ravel() for end in ends])


def measure_shape(small: np.ndarray) -> np.ndarray:
    """Return size, extent and similarity to the median of volumes, ``(n, 5)``."""
    median = np.abs(np.median(small, axis=0))
    # Otsu's threshold separates foreground and background.
    inside = np.abs(small) > (otsu(median) if np.ptp(median) > 0 else 0.5)
    pairs = zip(inside, correlate_with_median(small), strict=True)
    return np.array([[*_extent(mask), similarity] for mask, similarity in pairs])


def _extent(mask: np.ndarray) -> list[float]:
    voxels = np.argwhere(mask)
    if len(voxels) < 2:
        return [0.0] * 4
    return [math.log(len(voxels)), *voxels.std(axis=0)]


def check_outliers(
    title: str,
    figures: np.ndarray,
    least: Mapping[str, float],
    names: Sequence[str],
    show: Callable,
) -> Finding:
    """Find outliers in any of the figures ``(n, figures)``, and show the largest."""
    if len(figures) < MIN_VOLUMES:
        return too_few_volumes(title, len(figures))
    scores = robust_scores(figures, list(least.values()))
    far = np.abs(scores).max(axis=1)
    order = np.argsort(-far)
    bad = [int(i) for i in order if far[i] > _OUTLIER_SCORE]
    rows = [int(i) for i in order[: max(_MIN_PICTURES, min(len(bad), 8))]]
    table: list[tuple] = [("image", "most unusual in", "standard deviations (robust)")]
    for i in rows:
        figure = np.abs(scores[i]).argmax()
        table.append((names[i], list(least)[figure], float(scores[i, figure])))
    pictures = show(rows[:4], "The most unusual; the last is typical")
    if not bad:
        message = f"No robust score is beyond {_OUTLIER_SCORE:g} standard deviations."
        return green(title, message, table=table, pictures=pictures)
    listing = listed([names[i] for i in bad], 5)
    message = f"{counted(len(bad), 'outlier')}: {listing}."
    return amber(title, message, _CURES[title], table=table, pictures=pictures)


def check_background(figures: np.ndarray) -> Finding:
    """Check whether the background of volumes is dark."""
    level = float(np.median(figures[:, -1]))
    if level <= _BRIGHT_BACKGROUND:
        message = f"The edge of a typical volume has an intensity of {level:.2g}."
        return green("background", message)
    return amber(
        "background",
        f"The edge of a typical volume has an intensity of {level:.2g} (of 0 to 1): "
        "negative values, as in standardised volumes, or content that is cut off.",
        "Use volumes that are not standardised, or a larger --shape.",
    )


def check_grid(brightest: np.ndarray, affine: np.ndarray | None) -> Finding:
    """Check the size of the grid and the share that is used."""
    space = brightest.shape
    unit = "pixels" if affine is None else "voxels"
    message = f"{' x '.join(map(str, space))} {unit}"
    if affine is not None:
        sizes = [f"{mm:.3g}" for mm in np.diag(affine)[:3]]
        sizes = sizes if len({*sizes}) > 1 else sizes[:1]
        message += f" of {' x '.join(sizes)} mm, axes RAS"
    used = _used_sides(brightest)
    share = math.prod(used) / math.prod(space)
    sides = " x ".join(map(str, used))
    message += f"; all images fit into {sides} about its centre ({share:.0%})."
    if share >= _MIN_GRID_SHARE:
        return green("grid", message)
    sides = " ".join(str(min(n + 2, side)) for n, side in zip(used, space))
    cure = f"Crop the grid with --shape {sides}."
    if affine is None:
        cure = "Crop the images, to save time and memory."
    return amber("grid", message, cure)


def _used_sides(brightest: np.ndarray) -> tuple[int, ...]:
    """Return the sides of the box about the centre that contains all foreground."""
    darkest = max(0.0, float(brightest.min()))
    voxels = np.argwhere(brightest > darkest + _BRIGHT_BACKGROUND)
    if not len(voxels):
        return brightest.shape
    last = np.array(brightest.shape) - 1
    gains = np.minimum(voxels.min(axis=0), last - voxels.max(axis=0))
    return tuple(map(int, last + 1 - 2 * gains))


def check_equal_images(images: np.ndarray, names: Sequence[str]) -> Finding:
    """Find identical images among ``(n, *space, channels)``."""
    first: dict[bytes, int] = {}
    duplicates = []
    for i, image in enumerate(images):
        content = hashlib.sha256(np.ascontiguousarray(image).data).digest()
        j = first.setdefault(content, i)
        if j != i:
            duplicates.append(f"{names[j]} and {names[i]}")
    if not duplicates:
        return green("duplicate images", "No two images are equal.")
    return amber(
        "duplicate images",
        f"{counted(len(duplicates), 'pair')} of equal images: {listed(duplicates, 3)}.",
        "Remove repetitions: one may be trained on and the other held out.",
    )


def check_channels(cohort: Cohort, names: Sequence[str]) -> list[Finding]:
    """Find labels that few volumes have, and maps of another scale.

    ``names`` are those of the files of the first channel.
    """
    findings = []
    for channel, columns in channel_slices(cohort.channels):
        rows = [channel.measure(image[..., columns], 1.0) for image in cohort.images]
        if not rows[0]:
            continue
        measured = {title: np.array([row[title] for row in rows]) for title in rows[0]}
        partners = [f"the {channel.name} that belongs to {name}" for name in names]
        odd = channel.find_odd(measured, partners if columns.start else names)
        findings.append(
            amber(channel.name, f"{listed(odd, 5)}.", channel.cure)
            if odd
            else green(channel.name, "No volume is unusual.")
        )
    return findings


def check_images(cohort: Cohort, names: Sequence[str]) -> list[Finding]:
    """Check every image, by its first scan if channels have names."""
    images, affine = cohort.images, cohort.affine
    column = scan_column(cohort.channels)
    empty = empty_columns(cohort.channels, images.shape[-1])
    figures, brightest = measure_brightness(images, column or 0, empty)
    if affine is None:
        typical = int(np.abs(robust_scores(figures, 0.01)).max(axis=1).argmin())
        show = gallery(images, None, typical)
        return [
            check_grid(brightest, None),
            check_outliers("intensities", figures, _OF_IMAGES, names, show),
            check_equal_images(images, names),
        ]
    if column is None:
        equal = check_equal_images(images, names)
        return [check_grid(brightest, affine), equal, grey("scans", _NO_SCAN)]
    images = images[..., column : column + 1] if cohort.channels else images
    small = centred_cubes(images, affine, empty[column])
    typical = int(correlate_with_median(small).argmax())
    show = gallery(images, affine, typical)
    return [
        check_grid(brightest, affine),
        check_background(figures),
        check_orientation(small, names, show),
        check_duplicates(small, names, cohort.subjects or names, show),
        check_outliers("intensities", figures, _OF_VOLUMES, names, show),
        check_outliers("shapes", measure_shape(small), _OF_SHAPE, names, show),
    ]
