"""Simulate a cohort of virtual brains: volumes of many subjects, without a download.

Each subject is the skull-stripped MNI152 template of nilearn after a random
diffeomorphism: the flow along a smooth random velocity field, in which ventricles swell
or shrink, too. Subjects differ in size, pose, tissue contrast, bias field and noise,
and files differ as between many scanners: in orientation, voxel size, data type, unit
and version of the format. Detailed subjects have voxels of 1 to 1.6 mm, sharper edges
than the template (which is a mean of many people), cortex that is displaced on a finer
scale, and texture within tissues.

With covariates, subjects differ more, some have a lesion, and ``participants.tsv`` has
the volume of the ventricles, their offset from the middle, the ratio of grey to white
matter intensity, and the group; some values are missing.

With several contrasts each head has a T2 volume, too: tissues that are dark in one are
bright in the other. It is a separate scan, with its own voxels, bias field and noise.

With a site, all scans are from one scanner, with its voxels, contrast and noise. The
same head can be scanned at several sites: only the scanner differs, and the truth is
known.

The cohort is for examples and tests. Subjects share the folds of the template, so they
differ less than people do, and allow no conclusions about people.
"""

import argparse
import csv
from functools import cache
import gzip
import json
import math
from pathlib import Path
import sys
from typing import NamedTuple

from dipy.align.imaffine import AffineMap
from dipy.align.vector_fields import (
    compose_vector_fields_3d,
    transform_3d_affine,
    warp_3d,
)
import nibabel as nib
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from dipy_ldm import InputError

# Coordinates are those of the template, in mm, RAS+.
BRAIN_CENTRE = np.array([0.0, -22.0, 9.0])
BRAIN_LOW, BRAIN_HIGH = np.array([[-92, -128, -92], [92, 93, 102]])
VENTRICLES_CENTRE = np.array([0.0, -16.0, 14.0])
VENTRICLES_REACH = np.array([24.0, 34.0, 20.0])

# Voxel size of the template as it is used, and maximum voxel size of scans, in mm.
SPACING, COARSEST = 1.5, 3.0
# The same of detailed subjects.
FINE_SPACING, FINE_COARSEST = 1.0, 1.6
FIELD_SPACING = 4.0
# Beyond all voxels of a subject, with a margin in which fields fade to zero.
FIELD_MARGIN = 24.0
# After a Gaussian of 9 mm most of the energy lies near the wavelength 2 pi 9 = 57 mm.
FIELD_SMOOTHNESS = 9.0
# A finer deformation of detailed subjects, so that single folds differ.
FINE_SMOOTHNESS = 4.5
# Standard deviations, in mm, of the two Gaussians whose difference is texture.
TEXTURE = 0.8, 2.5
# Each squaring doubles the time of the flow; before, voxels move less than 0.2 voxels.
SQUARINGS = 6

# Position of lesions of patients, in the white matter of the right frontal lobe.
LESION_CENTRE = np.array([26.0, 24.0, 24.0])
# Share of missing covariates.
MISSING = 0.1
COVARIATES = {
    "ventricles": {"Description": "volume of the lateral ventricles", "Units": "mL"},
    "offset": {
        "Description": "offset of the ventricles to the right of the brain's centre",
        "Units": "mm",
    },
    "contrast": {
        "Description": "intensity of grey matter over that of white matter",
        "Units": "%",
    },
    "group": {
        "Description": "whether there is a lesion in the right frontal lobe",
        "Levels": {"control": "no lesion", "patient": "a dark lesion"},
    },
}

SITE = {"site": {"Description": "site of the scanner"}}

ORIENTATIONS = ("RAS", "LPS", "LAS", "RPI", "PIR", "ASR", "PSR", "SRA")
DTYPES = ("int16", "uint8", "float32")


class Grid(NamedTuple):
    """Shape ``(x, y, z)``, and the affine from voxels to millimetres, ``(4, 4)``."""

    shape: tuple
    affine: np.ndarray


class Deformation(NamedTuple):
    """Displacement in mm, ``(x, y, z, 3)``, at the voxels of an affine, ``(4, 4)``."""

    displacement: np.ndarray
    affine: np.ndarray


class Scanner(NamedTuple):
    """Properties of the scans of a scanner.

    Ranges of the exponent of intensities, of offsets of grey and white matter, and of
    the noise; ``voxel`` is the voxel size in mm, or None for any.
    """

    exponent: tuple = (0.8, 1.3)
    grey: tuple = (-0.08, 0.06)
    white: tuple = (-0.05, 0.08)
    noise: tuple = (0.005, 0.025)
    voxel: float | None = None


ANY = Scanner()
# An old scanner, of low contrast and resolution, and a new one.
SITES = {
    "A": Scanner((0.82, 0.88), (0.03, 0.06), (-0.05, -0.02), (0.02, 0.025), 2.6),
    "B": Scanner((1.22, 1.28), (-0.08, -0.05), (0.05, 0.08), (0.006, 0.01), 1.7),
}


class Lesion(NamedTuple):
    """A lesion: its ``diameter`` in mm, and the share of intensity that it removes."""

    diameter: float = 20.0
    darkness: float = 0.5


LESION = Lesion()


class Traits(NamedTuple):
    """Additional traits of subjects with covariates.

    ``swelling`` of the ventricles and their ``shift`` to the right, in mm, are terms of
    the velocity; ``lesion`` is None if there is none.
    """

    swelling: float
    shift: float
    lesion: Lesion | None


def make_cohort(
    folder,
    n,
    seed=0,
    first=0,
    detailed=False,
    verbose=True,
    covariates=False,
    contrasts=("T1w",),
    lesion=LESION,
    site=None,
):
    """Write the volumes of a cohort.

    Volume ``i`` depends on ``(seed, i)`` alone: a cohort can be simulated in parts.

    Parameters
    ----------
    folder : str or Path
        Where to write ``sub-0000_T1w.nii.gz`` etc.; created if it does not exist.
    n : int
        Number of volumes.
    seed : int
        Seed of the cohort.
    first : int
        Number of the first volume.
    detailed : bool
        Whether to simulate detailed subjects.
    verbose : bool
        Whether to show a progress bar.
    covariates : bool
        Whether to draw traits and write ``participants.tsv`` and its ``.json``, too.
    contrasts : sequence of str
        Contrasts of each head: ``T1w``, ``T2w``, or both.
    lesion : Lesion
        Lesion of patients.
    site : str, optional
        Site of all scans, which is written to ``participants.tsv``, too.

    Returns
    -------
    list of Path
        Files.

    Raises
    ------
    InputError
        If a number is invalid.
    OSError
        If the folder can't be created or a file can't be written.
    """
    check_range("n", n, 1)
    check_range("seed", seed, 0)
    check_range("first", first, 0)
    check_range("lesion's diameter", lesion.diameter, 1)
    check_range("darkness", lesion.darkness, 0, 1)
    templates(detailed)  # raises early if nilearn is not installed
    make_folder(folder)
    folder, files = Path(folder), []
    covariates_of: dict[str, dict] = {}
    numbers = range(first, first + n)
    for i in tqdm(numbers, "virtual subjects", disable=not verbose):
        traits = draw_traits(i, seed, lesion) if covariates else None
        # Covariates of a head are measured in its T1.
        for contrast in sorted({*contrasts, "T1w"} if covariates else contrasts):
            image, facts = make_subject(i, seed, detailed, traits, contrast, site)
            covariates_of.setdefault(f"sub-{i:04d}", facts)
            if contrast in contrasts:
                files.append(folder / f"sub-{i:04d}_{contrast}.nii.gz")
                write_image(files[-1], image)
    if covariates:
        rng = np.random.default_rng((seed, first, 2))
        covariates_of = omit(rng, covariates_of)
    if site:
        for facts in covariates_of.values():
            facts["site"] = site
    columns = (COVARIATES if covariates else {}) | (SITE if site else {})
    # Remove rows of an earlier cohort.
    if columns or (folder / "participants.tsv").is_file():
        write_table(folder, covariates_of, columns)
    return files


def check_range(name, value, lowest, highest=math.inf):
    """Refuse a number that is too small or too large, or NaN."""
    if lowest <= value <= highest:
        return
    if highest < math.inf:
        raise InputError(f"{name} must lie between {lowest} and {highest}, not {value}")
    raise InputError(f"{name} must be at least {lowest}, not {value}")


def make_folder(path):
    """Create a folder and its parents if they do not exist."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"can't create the folder {path} ({error.strerror}); name another place."
        ) from error


def write_file(file, content):
    """Write bytes to a partial file, and rename it when complete."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(content)
    partial.replace(file)


def write_image(file, image):
    """Write a compressed image, reproducible to the byte."""
    write_file(file, gzip.compress(image.to_bytes(), 1, mtime=0))


def omit(rng, subjects):
    """Remove a tenth of the covariates, ``{subject: {name: value}}``."""
    return {
        subject: {name: values[name] for name in COVARIATES if rng.random() >= MISSING}
        for subject, values in subjects.items()
    }


def write_table(folder, subjects, columns):
    """Write ``participants.tsv`` and ``participants.json``.

    Subjects are ``{subject: {column: value}}``; missing values become ``n/a``. Columns
    are BIDS descriptions. Subjects of earlier parts of a cohort stay, with their
    columns.
    """
    path, description = folder / "participants.tsv", folder / "participants.json"
    earlier = {n: row for n, row in earlier_rows(path).items() if n not in subjects}
    if earlier and description.is_file():
        columns = json.loads(description.read_text()) | columns
    rows = earlier | subjects
    lines = [["participant_id", *columns]]
    for subject, values in sorted(rows.items()):
        lines.append([subject, *(str(values.get(name, "n/a")) for name in columns)])
    write_file(path, "".join("\t".join(line) + "\n" for line in lines).encode())
    write_file(description, f"{json.dumps(columns, indent=2)}\n".encode())


def earlier_rows(path):
    """Read the rows of a table, if there is one, of subjects that have files."""
    if not path.is_file():
        return {}
    with open(path, newline="") as file:
        rows = {r["participant_id"]: r for r in csv.DictReader(file, delimiter="\t")}
    return {name: r for name, r in rows.items() if any(path.parent.glob(f"{name}_*"))}


def draw_traits(i, seed=0, lesion=LESION):
    """Draw the traits of a subject; half of the subjects are patients.

    They have their own random numbers, so that all else is as without traits.
    """
    rng = np.random.default_rng((seed, i, 1))
    swelling, shift = rng.uniform(-0.2, 0.4), rng.uniform(-8, 8)
    return Traits(swelling, shift, lesion if rng.random() < 0.5 else None)


def make_subject(i, seed=0, detailed=False, traits=None, contrast="T1w", site=None):
    """Simulate a volume of a subject; return the image and its covariates.

    The brain is skull-stripped: voxels outside are 0. Without traits there are no
    covariates.
    """
    rng = np.random.default_rng((seed, i))
    deformation = draw_deformation(rng, detailed, traits)
    pose = draw_pose(rng)
    if contrast != "T1w":
        # All except the head itself is specific to this scan.
        rng = np.random.default_rng((seed, i, 3))
    if site:
        rng = np.random.default_rng((seed, i, 4, *site.encode(), *contrast.encode()))
    scanner = SITES.get(site, ANY)
    grid = draw_grid(rng, detailed, scanner.voxel)
    brain = CONTRASTS[contrast](rng, detailed, scanner)
    covariates = {}
    if traits:
        covariates = describe(brain, grid, deformation, pose, detailed)
        covariates["group"] = "patient" if traits.lesion else "control"
        if traits.lesion:
            # Lesions are dark in T1 and bright in T2.
            sign = -1 if contrast == "T1w" else 1
            brain = brain * (1 + sign * darkness(traits.lesion, detailed))
    if detailed:
        brain = add_detail(rng, brain)
    brain = np.clip(brain, 0, 1)
    brain = warp(blur(brain, grid, detailed), grid, deformation, pose, detailed)
    # Remove the blurred edge that interpolation adds.
    inside = brain > 0.05
    brain *= draw_bias(rng, grid)
    brain = add_noise(rng, brain, rng.uniform(*scanner.noise))
    return draw_image(rng, brain * inside, grid.affine), covariates


def describe(brain, grid, deformation, pose, detailed=False):
    """Return exact ventricles, offset and contrast, measured without noise."""
    (t1, grey, white), affine = templates(detailed)
    off = (places(t1.shape, affine) - VENTRICLES_CENTRE) / VENTRICLES_REACH
    dark = (t1 < 0.4) & (grey + white < 0.4) & ((off**2).sum(-1) < 1.5)
    ventricles, whole = (
        warp(mask.astype("float32"), grid, deformation, pose, detailed)
        for mask in (dark, t1 > 0.05)
    )
    volume = ventricles.sum() * abs(np.linalg.det(grid.affine[:3, :3])) / 1000
    right = places(grid.shape, grid.affine)[..., 0]
    offset = np.average(right, weights=ventricles) - np.average(right, weights=whole)
    contrast = np.average(brain, weights=grey) / np.average(brain, weights=white)
    return {
        "ventricles": round(float(volume), 2),
        "offset": round(float(offset), 2),
        "contrast": round(100 * float(contrast), 2),
    }


def darkness(lesion, detailed=False):
    """Return how much a lesion darkens each voxel of the template.

    Shares, float32, fall off over a fifth of the diameter.
    """
    (t1, *_), affine = templates(detailed)
    distance = np.linalg.norm(places(t1.shape, affine) - LESION_CENTRE, axis=-1)
    edge = np.clip(0.5 + (lesion.diameter / 2 - distance) / (lesion.diameter / 5), 0, 1)
    return (lesion.darkness * edge).astype("float32")


def places(shape, affine):
    """Return the coordinates of voxels in mm, ``(*shape, 3)``."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def spacing(detailed):
    """Return the voxel size of the template as it is used, in mm."""
    return FINE_SPACING if detailed else SPACING


@cache
def templates(detailed=False):
    """Read T1, grey and white matter, downsampled, which saves most of the time.

    Shapes: maps, each from 0 to 1, float32 ``(3, x, y, z)``, affine ``(4, 4)``.
    """
    try:
        from nilearn import datasets
    except ModuleNotFoundError as error:
        raise InputError("the template is part of nilearn", "pip install it") from error
    images = [
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
    ]
    data = np.stack([image.get_fdata(dtype=np.float32) for image in images], -1)
    size = spacing(detailed)
    shape = [math.ceil(side / size) for side in data.shape[:3]]
    affine = images[0].affine @ np.diag([*[size] * 3, 1])
    step = np.diag([*[size] * 3, 1.0])
    maps = [downsample(data[..., i], step, shape) for i in range(data.shape[-1])]
    return np.stack(maps), affine


def downsample(volume, step, shape):
    """Interpolate a volume linearly on a coarser grid, after a low-pass filter.

    The step maps indices of the new grid to those of the volume, ``(4, 4)``.
    """
    width = np.linalg.norm(step[:3, :3], axis=1)
    sigma = np.sqrt(np.maximum(width**2 - 1, 0) / (8 * np.log(2)))
    smooth = gaussian_filter(volume, sigma, mode="nearest")
    mapping = AffineMap(
        step, domain_grid_shape=tuple(shape), codomain_grid_shape=volume.shape
    )
    # The weights add up to 1 up to rounding.
    return mapping.transform(smooth).clip(volume.min(), volume.max()).astype("float32")


def draw_deformation(rng, detailed=False, traits=None):
    """Draw a diffeomorphism, from the subject to the template.

    In detailed subjects, neighbouring folds are displaced differently.
    """
    shape, affine = field_grid()
    velocity = rng.uniform(1.6, 2.8) * np.stack(
        [smooth_noise(rng, shape, FIELD_SMOOTHNESS) for _ in range(3)], -1
    )
    velocity += rng.uniform(-0.35, 0.5) * swelling(shape, affine)
    if detailed:
        velocity += np.stack(
            [smooth_noise(rng, shape, FINE_SMOOTHNESS) for _ in range(3)], -1
        )
    if traits:
        velocity += traits.swelling * swelling(shape, affine)
        velocity -= traits.shift * rightwards(shape, affine)
    velocity *= fade(shape)
    return Deformation(integrate(velocity), affine)


def field_grid(low=BRAIN_LOW, high=BRAIN_HIGH):
    """Return shape and affine of deformations and bias fields, between two corners."""
    low, high = low - FIELD_MARGIN, high + FIELD_MARGIN
    affine = np.diag([FIELD_SPACING] * 3 + [1.0])
    affine[:3, 3] = low
    return tuple(np.ceil((high - low) / FIELD_SPACING).astype(int) + 1), affine


def smooth_noise(rng, shape, smoothness):
    """Draw a smooth random field of standard deviation 1, float32."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    smooth = gaussian_filter(noise, smoothness / FIELD_SPACING, mode="wrap")
    return smooth / smooth.std()


def swelling(shape, affine):
    """Return the velocity that enlarges the ventricles, in mm, ``(*shape, 3)``.

    It points towards their centre, since it maps from a subject to the template, whose
    ventricles are smaller.
    """
    inwards = VENTRICLES_CENTRE - places(shape, affine)
    near = np.exp(-((inwards / VENTRICLES_REACH) ** 2).sum(-1, keepdims=True) / 2)
    return (near * inwards).astype("float32")


def rightwards(shape, affine):
    """Return the velocity that shifts the ventricles, float32 ``(*shape, 3)``.

    It is 1 mm to the right at their centre, and less around it.
    """
    off = (places(shape, affine) - VENTRICLES_CENTRE) / (1.5 * VENTRICLES_REACH)
    near = np.exp(-(off**2).sum(-1, keepdims=True) / 2)
    return (near * [1, 0, 0]).astype("float32")


def fade(shape):
    """Return factors ``(*shape, 1)`` that fall from 1 to 0 at the edge of a field."""
    width = FIELD_MARGIN / FIELD_SPACING
    sides = []
    for size in shape:
        from_edge = np.minimum(np.arange(size), np.arange(size)[::-1])
        sides.append(np.sin(np.pi / 2 * np.minimum(from_edge / width, 1)) ** 2)
    x, y, z = np.ix_(*sides)
    return (x * y * z).astype("float32")[..., None]


def integrate(velocity):
    """Follow a stationary velocity field, 0 at the edges, for one unit of time.

    Scaling and squaring: a short step, composed with itself repeatedly. Unlike a sum of
    steps at fixed positions, the result is a diffeomorphism.

    Shapes: velocity and displacement in mm, float32 ``(x, y, z, 3)``.
    """
    displacement = np.ascontiguousarray(velocity / 2**SQUARINGS)
    to_voxels = np.diag([1 / FIELD_SPACING] * 3 + [1.0])
    for _ in range(SQUARINGS):
        displacement, _ = compose_vector_fields_3d(
            displacement, displacement, np.eye(4), to_voxels, 1.0, None
        )
    return np.asarray(displacement)


def draw_pose(rng, variety=1.0):
    """Draw the scale and rotation of a head as an affine, ``(4, 4)``.

    It maps from the subject's millimetres to the template's; the centre of the brain is
    fixed.
    """
    turns = variety * rng.uniform(-4, 4, 3)
    sizes = 1 + variety * rng.uniform(-0.06, 0.06, 3)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", turns, degrees=True).as_matrix() / sizes
    pose[:3, 3] = BRAIN_CENTRE - pose[:3, :3] @ BRAIN_CENTRE
    return pose


def draw_grid(rng, detailed=False, voxel=None):
    """Draw the grid of a scan around the brain, in any order of axes.

    Voxels have 1.5 to 3 mm or, in detailed subjects, 1 to 1.6 mm, unless given.
    """
    finest = spacing(detailed)
    coarsest = FINE_COARSEST if detailed else COARSEST
    sizes = np.full(3, voxel) if voxel else draw_sizes(rng, finest, coarsest)
    low = BRAIN_LOW - rng.uniform(0, 8, 3)
    high = BRAIN_HIGH + rng.uniform(0, 8, 3)
    shape = np.ceil((high - low) / sizes).astype(int)
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = low
    axes = axcodes2ornt(rng.choice(ORIENTATIONS))
    return turn_axes(shape, affine, axes)


def draw_sizes(rng, finest, coarsest):
    """Draw voxel sizes in mm, ``(3,)``; in 40 % of scans they are anisotropic."""
    sizes = np.round(np.repeat(rng.uniform(finest, coarsest), 3), 2)
    if rng.random() < 0.4:
        sizes[rng.integers(3)] = np.round(rng.uniform(finest, coarsest), 2)
    return sizes


def turn_axes(shape, affine, axes):
    """Reorder and flip the axes of an RAS+ grid.

    ``axes`` has the old axis and 1 or -1 for each new one, ``(3, 2)``, as in nibabel.
    """
    order = axes[:, 0].astype(int)
    # nibabel maps old axes to new ones.
    becomes = np.stack([np.argsort(order), axes[np.argsort(order), 1]], -1)
    turned = affine @ inv_ornt_aff(becomes, shape)
    return Grid(tuple(int(shape[axis]) for axis in order), turned)


def draw_contrast(rng, detailed=False, scanner=ANY):
    """Draw the T1 intensities of the template, about 0 to 1."""
    (t1, grey, white), _ = templates(detailed)
    exponent = rng.uniform(*scanner.exponent)
    more_grey, more_white = rng.uniform(*zip(scanner.grey, scanner.white))
    return t1**exponent + np.float32(more_grey) * grey + np.float32(more_white) * white


def draw_t2(rng, detailed=False, scanner=ANY):
    """Draw the T2 intensities of the template; 0 outside.

    From bright to dark: fluid, grey and white matter.
    """
    (t1, grey, white), _ = templates(detailed)
    inside = np.clip(t1 / 0.1, 0, 1)
    fluid = np.clip(inside - grey - white, 0, 1)
    levels = rng.uniform([0.88, 0.5, 0.28], [1.0, 0.6, 0.36]).astype("float32")
    return levels[0] * fluid + levels[1] * grey + levels[2] * white


CONTRASTS = {"T1w": draw_contrast, "T2w": draw_t2}


def add_detail(rng, brain):
    """Sharpen the edges of a fine template, and draw texture.

    The standard deviation of texture is 0.02 of the intensity.
    """
    sharp = brain + 0.7 * (brain - gaussian_filter(brain, 1.5))
    noise = rng.standard_normal(brain.shape, dtype=np.float32)
    texture = np.subtract(*(gaussian_filter(noise, sigma) for sigma in TEXTURE))
    return sharp * (1 + np.float32(0.02) / texture.std() * texture)


def blur(brain, grid, detailed=False):
    """Blur the template, ``(x, y, z)``, to the larger voxels of a grid."""
    sizes = np.abs(grid.affine[:3, :3]).sum(axis=1)
    # Full widths at half maximum that make up the difference, as in `conform`.
    missing = np.maximum((sizes / spacing(detailed)) ** 2 - 1, 0)
    return gaussian_filter(brain, np.sqrt(missing / (8 * np.log(2))), truncate=3)


def warp(brain, grid, deformation, pose, detailed=False):
    """Warp the template, float32 ``(x, y, z)``, to a subject, ``(*grid.shape,)``.

    The deformation is from the subject to the template, before the pose, ``(4, 4)``.
    """
    _, affine = templates(detailed)
    to_template = np.linalg.solve(affine, pose)
    return np.asarray(
        warp_3d(
            brain,
            deformation.displacement,
            np.linalg.solve(deformation.affine, grid.affine),
            to_template @ grid.affine,
            to_template,
            np.array(grid.shape, "int32"),
        )
    )


def draw_bias(rng, grid):
    """Draw a bias field of the coil: factors from 0.85 to 1.15."""
    shape, affine = field_grid()
    field = smooth_noise(rng, shape, smoothness=32)
    field *= np.float32(0.15) / np.abs(field).max()
    to_field = np.linalg.solve(affine, grid.affine)
    return 1 + np.asarray(
        transform_3d_affine(field, np.array(grid.shape, "int32"), to_field)
    )


def add_noise(rng, brain, level):
    """Add Rician noise, that of magnitude images."""
    real, imaginary = level * rng.standard_normal((2, *brain.shape), dtype="float32")
    return np.hypot(brain + real, imaginary)


def draw_image(rng, brain, affine):
    """Draw intensity scale, data type and NIfTI version of an image.

    The sform and the qform of the image are the affine.
    """
    kind = rng.choice([nib.Nifti1Image, nib.Nifti2Image], p=[0.8, 0.2])
    dtype = np.dtype(rng.choice(DTYPES))
    highest = 255 if dtype == "uint8" else 100 * 40 ** rng.random()
    data = brain * (highest / brain.max())
    data = data if dtype.kind == "f" else np.rint(data)
    image = kind(data.astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, "aligned")
    image.set_qform(affine, "aligned")
    return image


def add_lesion(parser):
    """Add the option for the two numbers of a :class:`Lesion`."""
    parser.add_argument(
        "--lesion",
        nargs=2,
        type=float,
        metavar=("DIAMETER", "DARKNESS"),
        default=LESION,
        help="of patients, in mm and as a share of the intensity (default: 20 0.5)",
    )


def main(arguments=None):
    """Write a cohort from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="where to write the volumes")
    parser.add_argument("--n", type=int, required=True, help="number of volumes")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--detailed", action="store_true", help="voxels of 1 to 1.6 mm, and fine detail"
    )
    parser.add_argument(
        "--covariates",
        action="store_true",
        help="larger differences, with their values in participants.tsv",
    )
    parser.add_argument(
        "--contrasts",
        nargs="+",
        choices=CONTRASTS,
        default=["T1w"],
        help="contrasts in which each head is scanned",
    )
    add_lesion(parser)
    parser.add_argument("--site", choices=SITES, help="site of all scans")
    options = parser.parse_args(arguments)
    if options.lesion != LESION and not options.covariates:
        parser.error("only subjects with --covariates have a --lesion.")
    try:
        make_cohort(
            options.folder,
            options.n,
            options.seed,
            options.first,
            options.detailed,
            covariates=options.covariates,
            contrasts=options.contrasts,
            lesion=Lesion(*options.lesion),
            site=options.site,
        )
    except (InputError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
