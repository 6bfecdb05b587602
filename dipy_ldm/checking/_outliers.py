"""Images unlike most others, by robust scores, and subjects that are there twice.

Volumes are compared as small cubes, each centred on its own content: a file whose
header swaps axes is turned about its own middle, not about that of the grid.
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
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data._grid import Grid, conform
from dipy_ldm.data.channels import channel_slices, scan_column

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


# Standard deviations. Of 200 virtual brains the farthest lies 3 of them out.
_OUTLIER_SCORE = 7.0
# How many of the farthest are shown.
_MIN_SHOWN = 3
# A background that is brighter than this, between the darkest and the brightest.
_BRIGHT_BACKGROUND = 0.1
# Of the grid, what holds all that any image shows: with less, most of it is empty.
_MIN_GRID_SHARE = 0.35
_QUANTILES = 0.05, 0.25, 0.5, 0.75, 0.95
# Figures of each image, and what a difference must be to count: of brightness from 0 to
# 1, in the log of a volume, in voxels of the cubes, and in correlation.
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
    "intensities": "Look at these images: another contrast or modality, artefacts, or "
    "a few very bright voxels that set the range; leave out what is not meant.",
    "shapes": "Look at these volumes: cut off, not skull-stripped as the others are, "
    "of another part of the body, or rare anatomy; leave out what is not meant.",
}
_NO_SCAN = "Not looked at: there are labels alone."


def measure_brightness(
    images: np.ndarray, column: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Measure how bright a column of images is, and where any image is.

    Shapes: images ``(n, *space, channels)``, figures ``(n, figures)``, the brightest of
    all columns at each place ``(*space)``. The last figure is that of the background.
    """
    # Volumes have been brought to [0, 1].
    ends = (0, 1) if images.ndim == 5 else (images.min(), images.max())
    low, high = map(np.float32, ends)
    brightest = np.zeros(images.shape[1:-1], "float32")
    figures = []
    for image in tqdm(images, "brightness"):
        scaled = (np.asarray(image, "float32") - low) / (high - low or 1)
        np.maximum(brightest, scaled.max(-1), out=brightest)
        figures.append(_brightness(scaled[..., column]))
    return np.array(figures), brightest


def _brightness(image):
    """Return the figures of `_OF_VOLUMES` or `_OF_IMAGES` for an image in [0, 1]."""
    background = float(np.median(_edge(image)))
    if image.ndim == 2:
        return [image.mean(), image.std(), background]
    shown = image[np.abs(image - background) > 0.02]
    shown = shown if shown.size else image.ravel()
    rough = np.abs(image - gaussian_filter(image, 1.0)).mean()
    return [*np.quantile(shown, _QUANTILES), np.mean(shown > 0.999), rough, background]


def _edge(image):
    """Return the voxels at the edge of an image, or of a volume's content.

    Where its file has no voxels there is 0, whatever its background is.
    """
    places = np.nonzero(image)
    if image.ndim == 3 and places[0].size:
        image = image[tuple(slice(p.min(), p.max() + 1) for p in places)]
    ends = [np.take(image, end, a) for a in range(image.ndim) for end in (0, -1)]
    return np.concatenate([end.ravel() for end in ends])


def measure_shape(small: np.ndarray) -> np.ndarray:
    """Measure size and extent of what volumes show, ``(n, 5)``."""
    median = np.median(small, axis=0)
    # Otsu's threshold parts what is shown from the background.
    inside = small > (otsu(median) if np.ptp(median) > 0 else 0.5)
    pairs = zip(inside, likeness_to_median(small), strict=True)
    return np.array([[*_extent(mask), alike] for mask, alike in pairs])


def _extent(mask):
    places = np.argwhere(mask)
    if len(places) < 2:
        return [0.0] * 4
    return [math.log(len(places)), *places.std(axis=0)]


def check_outliers(
    title: str,
    figures: np.ndarray,
    least: Mapping[str, float],
    names: Sequence[str],
    show: Callable,
) -> Finding:
    """Find outliers in any of the figures ``(n, figures)``, and show the farthest."""
    if len(figures) < MIN_VOLUMES:
        return too_few(title, len(figures))
    scores = robust_scores(figures, list(least.values()))
    far = np.abs(scores).max(axis=1)
    order = np.argsort(-far)
    bad = [int(i) for i in order if far[i] > _OUTLIER_SCORE]
    shown = [int(i) for i in order[: max(_MIN_SHOWN, min(len(bad), 8))]]
    table: list[tuple] = [("image", "most unusual in", "standard deviations (robust)")]
    for i in shown:
        place = np.abs(scores[i]).argmax()
        table.append((names[i], list(least)[place], float(scores[i, place])))
    pictures = show(shown[:4], "The most unusual; the last is a usual one")
    if not bad:
        message = f"None lies {_OUTLIER_SCORE:g} robust standard deviations from most."
        return green(title, message, table=table, pictures=pictures)
    listing = listed([names[i] for i in bad], 5)
    message = f"{counted(len(bad), 'image')} far from most: {listing}."
    return amber(title, message, _CURES[title], table=table, pictures=pictures)


def check_background(figures: np.ndarray) -> Finding:
    """Check whether the background of volumes is dark."""
    level = float(np.median(figures[:, -1]))
    if level <= _BRIGHT_BACKGROUND:
        message = f"The edge of a usual volume has a level of {level:.2g}."
        return green("background", message)
    return amber(
        "background",
        f"The edge of a usual volume has a level of {level:.2g}, amid the range from 0 "
        "to 1: values below 0, as of standardised volumes, or content that is cut off.",
        "Give volumes as the scanner made them, not standardised, or a larger --shape.",
    )


def check_grid(brightest: np.ndarray, affine: np.ndarray | None) -> Finding:
    """Check the size of the grid, and how much of it is used."""
    space = brightest.shape
    unit = "pixels" if affine is None else "voxels"
    message = f"{' x '.join(map(str, space))} {unit}"
    if affine is not None:
        sizes = [f"{mm:.3g}" for mm in np.diag(affine)[:3]]
        shown = sizes if len({*sizes}) > 1 else sizes[:1]
        message += f" of {' x '.join(shown)} mm, axes RAS"
    used = _used(brightest)
    share = math.prod(used) / math.prod(space)
    sides = " x ".join(map(str, used))
    message += f"; what any image shows takes {sides} about the middle ({share:.0%})."
    if share >= _MIN_GRID_SHARE:
        return green("grid", message)
    sides = " ".join(str(min(n + 2, side)) for n, side in zip(used, space))
    cure = f"Crop the rest away with --shape {sides}."
    if affine is None:
        cure = "Crop the images: the rest costs time and memory for nothing."
    return amber("grid", message, cure)


def _used(brightest):
    """Return the sides of the box about the middle that holds all that is not dark.

    Grids are cropped about their middle.
    """
    darkest = max(0.0, float(brightest.min()))
    places = np.argwhere(brightest > darkest + _BRIGHT_BACKGROUND)
    if not len(places):
        return brightest.shape
    last = np.array(brightest.shape) - 1
    margins = np.minimum(places.min(axis=0), last - places.max(axis=0))
    return tuple(map(int, last + 1 - 2 * margins))


def check_equal_images(images: np.ndarray, names: Sequence[str]) -> Finding:
    """Find images ``(n, *space, channels)`` that occur twice, to the bit."""
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
        "Leave repetitions out: one may be learnt from and the other held out.",
    )


def check_channels(cohort: Cohort, names: Sequence[str]) -> list[Finding]:
    """Look for labels that few volumes have, and maps of another scale."""
    findings = []
    for channel, columns in channel_slices(cohort.channels):
        rows = [channel.measure(image[..., columns], 1.0) for image in cohort.images]
        if not rows[0]:
            continue
        measured = {title: np.array([row[title] for row in rows]) for title in rows[0]}
        odd = channel.find_odd(measured, names)
        cure = "Merge rare labels, or leave out what is wrong: it is hardly learnt."
        findings.append(
            amber(channel.name, f"{listed(odd, 5)}.", cure)
            if odd
            else green(channel.name, "No volume is odd.")
        )
    return findings


def check_images(cohort: Cohort, names: Sequence[str]) -> list[Finding]:
    """Check every image, by its first scan where channels have names."""
    images, affine = cohort.images, cohort.affine
    column = scan_column(cohort.channels)
    figures, brightest = measure_brightness(images, column or 0)
    if affine is None:
        usual = int(np.abs(robust_scores(figures, 0.01)).max(axis=1).argmin())
        show = gallery(images, None, usual)
        return [
            check_grid(brightest, None),
            check_outliers("intensities", figures, _OF_IMAGES, names, show),
            check_equal_images(images, names),
        ]
    if column is None:
        equal = check_equal_images(images, names)
        return [check_grid(brightest, affine), equal, grey("scans", _NO_SCAN)]
    images = images[..., column : column + 1] if cohort.channels else images
    small = centred_cubes(images, affine)
    usual = int(likeness_to_median(small).argmax())
    show = gallery(images, affine, usual)
    return [
        check_grid(brightest, affine),
        check_background(figures),
        check_orientation(small, names, show),
        check_duplicates(small, names, cohort.subjects or names, show),
        check_outliers("intensities", figures, _OF_VOLUMES, names, show),
        check_outliers("shapes", measure_shape(small), _OF_SHAPE, names, show),
    ]
