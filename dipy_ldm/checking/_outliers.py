"""Images that are brighter, larger or otherwise unlike most, by robust scores."""

from collections.abc import Callable, Mapping, Sequence
import hashlib
import math

from dipy.segment.threshold import otsu
import numpy as np
from scipy.ndimage import gaussian_filter

from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.values import counted, listed
from dipy_ldm.checking import _similarity as likeness
from dipy_ldm.checking._findings import (
    Finding,
    amber,
    gallery,
    green,
    grey,
    robust_scores,
)
from dipy_ldm.checking._similarity import MIN_VOLUMES, too_few
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data.channels import channel_slices, scan_column

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
    pairs = zip(inside, likeness.likeness_to_median(small), strict=True)
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
    small = likeness.centred_cubes(images, affine)
    usual = int(likeness.likeness_to_median(small).argmax())
    show = gallery(images, affine, usual)
    return [
        check_grid(brightest, affine),
        check_background(figures),
        likeness.check_orientation(small, names, show),
        likeness.check_duplicates(small, names, cohort.subjects or names, show),
        check_outliers("intensities", figures, _OF_VOLUMES, names, show),
        check_outliers("shapes", measure_shape(small), _OF_SHAPE, names, show),
    ]
