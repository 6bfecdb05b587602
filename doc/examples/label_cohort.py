"""Simulate a cohort from label maps: heads or brains with different folds.

Each subject is one of the label maps of a folder, mirrored or not, and deformed on the
scales of lobes and gyri. A scan gives each tissue an intensity and a texture, averages
them over its voxels, and adds a bias field and noise; contrast, voxel size, orientation
and data type vary as between scanners. ``participants.tsv`` has exact values from the
labels: the volumes of brain, ventricles and hippocampi.

Label maps are those of FreeSurfer (``aseg``, ``aparc+aseg``, ``wmparc``) or SynthSeg.
For whole heads use the 20 that SynthSeg was trained on, in the folder
``data/training_label_maps`` of https://github.com/BBillot/SynthSeg (Apache-2.0); if the
arrays of ``data/labels_classes_priors`` are in the same folder, they set the T1
intensities of tissues. Always hold out four of the twenty, as heads on which no model
is trained::

    python label_cohort.py train --maps heads --except 05 10 15 20 --n 400
    python label_cohort.py strange --maps heads --only 05 10 15 20 --n 40

Without label maps, subjects are not heads but random nested shapes, for models of any
kind of volume. Method: [1]_, [2]_.

References
----------
.. [1] Billot et al. SynthSeg: segmentation of brain MRI scans of any contrast and
   resolution without retraining. Medical Image Analysis 86, 2023.
.. [2] Hoffmann et al. SynthMorph: learning contrast-invariant registration without
   acquired images. IEEE Transactions on Medical Imaging 41, 2022.
"""

import argparse
import itertools
from pathlib import Path
import sys
from typing import NamedTuple

from label_maps import (
    BRAIN,
    HIPPOCAMPI,
    INDEX,
    INSIDE,
    MIRRORED,
    NUMBERS,
    TISSUE,
    TISSUES,
    VENTRICLES,
    find_maps,
    largest,
    members,
    name_of,
    read_map,
    read_priors,
)
import nibabel as nib
from nibabel.affines import apply_affine, from_matvec
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    ornt_transform,
)
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array
from tqdm import tqdm
from virtual_cohort import (
    FIELD_SPACING,
    ORIENTATIONS,
    add_noise,
    check_range,
    draw_image,
    draw_pose,
    draw_sizes,
    fade,
    field_grid,
    integrate,
    make_folder,
    places,
    smooth_noise,
    swelling,
    write_image,
    write_table,
)

from dipy_ldm import InputError

# Voxel size of labels in mm; voxels of scans are means of these.
FINE = 1.0
# Standard deviations in mm of the Gaussians that make deformations smooth.
LOBES, GYRI = 10.0, 4.5
# Maximum displacement of the edge of a head in mm, and margin of scans around it.
REACH, EDGE = 12.0, 4.0
# Standard deviation of the point spread function, as a share of the voxel size.
POINT_SPREAD = 0.3, 0.5
CONTRASTS = ("T1w", "T2w", "random", "shapes")
MEASURED = {"brain": BRAIN, "ventricles": VENTRICLES, "hippocampi": HIPPOCAMPI}
COLUMNS = {
    "anatomy": {
        "Description": "label map that the subject was drawn from, mirrored or not"
    },
    "stripped": {"Description": "whether the brain is alone"},
    "brain": {"Description": "volume of the brain without fluid", "Units": "mL"},
    "ventricles": {
        "Description": "volume of all ventricles, with their choroid plexus",
        "Units": "mL",
    },
    "hippocampi": {"Description": "volume of both hippocampi", "Units": "mL"},
}


class Anatomy(NamedTuple):
    """A subject: ``labels`` as in a map, and their coordinates along ``axes``, in mm.

    ``alone`` is whether scans show the brain only.
    """

    labels: np.ndarray
    axes: list
    alone: bool = False


class Looks(NamedTuple):
    """Appearance of labels, as in :class:`Tissue`, float32 ``(labels,)`` each."""

    brightness: np.ndarray
    grain: np.ndarray
    patches: np.ndarray
    septa: np.ndarray


def make_cohort(
    folder,
    n,
    maps=None,
    seed=0,
    first=0,
    contrasts=("T1w",),
    voxel_size=(1.5, 3.0),
    stripped=0.0,
    variety=1.0,
    only=(),
    without=(),
    dseg=False,
    verbose=True,
):
    """Write the volumes of a cohort.

    Subject ``i`` depends on ``(seed, i)``, the label maps, ``stripped`` and ``variety``
    alone, so that a cohort can be simulated in parts.

    Parameters
    ----------
    folder : str or Path
        Where to write ``sub-0000_T1w.nii.gz`` etc.; created if it does not exist.
    n : int
        Number of subjects.
    maps : str or Path, optional
        Folder of label maps, NIfTI or MGH. Without, subjects are random shapes.
    seed : int
        Seed of the cohort.
    first : int
        Number of the first subject.
    contrasts : sequence of str
        Scans of each subject: ``T1w``, ``T2w``, ``random``.
    voxel_size : tuple of float
        Smallest and largest sides of voxels, in mm.
    stripped : float
        Share of the subjects that are skull-stripped.
    variety : float
        How much subjects are deformed, and how much the contrast, texture, bias and
        noise of their scans vary: 1 is as between many scanners, 0 not at all.
        Ventricles, voxels, sharpness and random contrasts always vary.
    only, without : sequence of str
        Ends of the names of the maps to use, or to exclude.
    dseg : bool
        Whether to write the labels of each scan, ``sub-0000_T1w_dseg.nii.gz``, too.
    verbose : bool
        Whether to show a progress bar.

    Returns
    -------
    list of Path
        Files of the scans.

    Raises
    ------
    InputError
        If a number is invalid, or there are no usable label maps.
    OSError
        If the folder can't be created or a file can't be written.
    """
    check_numbers(n, seed, first, voxel_size, stripped, variety)
    of_maps = stripped, only, without, dseg, tuple(contrasts) != ("T1w",), variety != 1
    if not maps and any(of_maps):
        raise InputError(
            "random shapes have no label maps", "name the folder with --maps"
        )
    files = find_maps(maps, only, without) if maps else []
    priors = read_priors(maps) if maps else {}
    contrasts = contrasts if maps else CONTRASTS[3:]
    make_folder(folder)
    folder, scans = Path(folder), []
    subjects: dict[str, dict] = {}
    for i in tqdm(range(first, first + n), "subjects", disable=not verbose):
        anatomy, subjects[f"sub-{i:04d}"] = draw_subject(
            i, seed, files, stripped, variety
        )
        for contrast in contrasts:
            image, labels = draw_scan(
                i, seed, anatomy, contrast, priors, voxel_size, variety
            )
            scans.append(folder / f"sub-{i:04d}_{contrast}.nii.gz")
            write_image(scans[-1], image)
            if dseg:
                name = scans[-1].name.replace(".nii", "_dseg.nii")
                write_image(folder / name, labels)
    if maps:
        write_table(folder, subjects, COLUMNS)
    return scans


def check_numbers(n, seed, first, voxel_size, stripped, variety):
    """Refuse invalid numbers of :func:`make_cohort`."""
    check_range("n", n, 1)
    check_range("seed", seed, 0)
    check_range("first", first, 0)
    check_range("stripped", stripped, 0, 1)
    check_range("variety", variety, 0, 1)
    if not 0.5 <= voxel_size[0] <= voxel_size[1] <= 10:
        raise InputError(
            "voxel_size must be two numbers from 0.5 to 10 mm, the smaller first, "
            f"not {voxel_size[0]} and {voxel_size[1]}"
        )


def choose_map(files, i, seed):
    """Choose the label map of a subject; all are used equally often."""
    order = np.random.default_rng((seed, i // len(files), 9)).permutation(len(files))
    return files[order[i % len(files)]]


def draw_subject(i, seed, files, stripped, variety=1.0):
    """Draw a subject; return its anatomy, and its values of :data:`COLUMNS`.

    Without label maps, it consists of random shapes.
    """
    rng = np.random.default_rng((seed, i))
    if not files:
        return draw_shapes(rng), {}
    alone, mirrored = bool(rng.random() < stripped), bool(rng.random() < 0.5)
    file = choose_map(files, i, seed)
    anatomy = draw_anatomy(rng, read_map(file), alone, mirrored, variety)
    # Plane by plane, since numpy counts copies of eight bytes each.
    counts = np.sum(
        [np.bincount(p.ravel(), minlength=len(NUMBERS)) for p in anatomy.labels], 0
    )
    volumes = {
        name: round(float(members(numbers) @ counts) * FINE**3 / 1000, 2)
        for name, numbers in MEASURED.items()
    }
    name = name_of(file) + (" mirrored" if mirrored else "")
    facts = {"anatomy": name, "stripped": alone}
    return anatomy, facts | volumes


def draw_anatomy(rng, source, alone, mirrored, variety=1.0):
    """Deform a label map by nearest-neighbour interpolation."""
    mirror = np.diag([-1.0 if mirrored else 1.0, 1, 1, 1])
    to_voxels = source.to_voxels @ mirror @ draw_pose(rng, variety)
    low, high = extent(source, to_voxels, alone)
    shape, affine = field_grid(low, high)
    velocity = np.stack(
        [
            rng.uniform(0.8, 2.4) * smooth_noise(rng, shape, LOBES)
            + rng.uniform(0.3, 1.1) * smooth_noise(rng, shape, GYRI)
            for _ in range(3)
        ],
        -1,
    )
    velocity *= variety
    velocity += rng.uniform(-0.25, 0.35) * swelling(shape, affine)
    points = places(shape, affine) + integrate(velocity * fade(shape))
    points = apply_affine(to_voxels, points).astype("float32")
    axes = [np.arange(a, b, FINE) for a, b in zip(low, high)]
    weights = [
        linear(axis, affine[k, 3] + FIELD_SPACING * np.arange(shape[k]))
        for k, axis in enumerate(axes)
    ]
    labels = nearest(source.labels, np.moveaxis(points, -1, 0), weights)
    return Anatomy(MIRRORED[labels] if mirrored else labels, axes, alone)


def extent(source, to_voxels, alone):
    """Return the box of a head, or of the brain alone: two corners in mm, ``(3,)``.

    It has a margin for deformations, and ends above a neck that is cut off.
    """
    voxels = source.brain if alone else source.head
    points = apply_affine(np.linalg.inv(to_voxels), voxels)
    low, high = points.min(0) - REACH, points.max(0) + REACH
    if source.cut and not alone:
        low[2] = points[voxels[:, 2] == 0, 2].mean()
    return low, high


def nearest(labels, points, weights):
    """Look up labels at points of a coarse grid, interpolated on a fine one.

    Points outside the map get the labels of its edge.

    Shapes: labels ``(x, y, z)``, points, in voxels, float32 ``(3, u, v, w)``,
    weights along each axis as of :func:`planes`.
    """
    last = np.array(labels.shape)[:, None, None] - 1
    strides = np.array(labels.strides)
    slabs = []
    for place in zip(*(planes(axis, weights) for axis in points)):
        indices = np.clip(np.rint(place), 0, last).astype("int32")
        slabs.append(labels.ravel()[np.tensordot(strides, indices, 1)])
    return np.stack(slabs)


def linear(goals, points):
    """Return weights of linear interpolation, csr_array ``(goals, points)``."""
    step = points[1] - points[0]
    away = np.abs(goals[:, None] - points) / step
    return csr_array(np.maximum(1 - away, 0).astype("float32"))


def gaussian(goals, points, sigma):
    """Return normalised Gaussian weights, csr_array ``(goals, points)``."""
    away = np.abs(goals[:, None] - points) / sigma
    away -= np.maximum(away.min(1, keepdims=True) - 1, 0)
    weights = np.exp(-(away**2) / 2) * (away < 3)
    return csr_array((weights / weights.sum(1, keepdims=True)).astype("float32"))


def planes(volume, weights):
    """Interpolate a volume on a finer grid, plane by plane.

    For a grid this is many times faster than interpolation at arbitrary points.

    Shapes: volume float32 ``(x, y, z)``, weights ``(u, x)``, ``(v, y)`` and
    ``(w, z)``, each of the u planes float32 ``(v, w)``.
    """
    fine = [weights[1] @ (weights[2] @ plane.T).T for plane in volume]
    x = weights[0]
    for a, b in itertools.pairwise(x.indptr):
        yield sum(w * fine[k] for w, k in zip(x.data[a:b], x.indices[a:b]))


def average(fine, weights):
    """Average a volume over the voxels of a coarser grid.

    The volume is an iterable of planes, so that only one at a time is in memory.

    Shapes: x planes float32 ``(y, z)``, weights ``(u, x)``, ``(v, y)`` and
    ``(w, z)``, result float32 ``(u, v, w)``.
    """
    volume = np.zeros([w.shape[0] for w in weights], "float32")
    x = weights[0].tocsc()
    for plane, (a, b) in zip(fine, itertools.pairwise(x.indptr)):
        plane = (weights[2] @ (weights[1] @ plane).T).T
        for w, k in zip(x.data[a:b], x.indices[a:b]):
            volume[k] += w * plane
    return volume


def draw_shapes(rng):
    """Draw random shapes.

    A body with organs, each where one of many smooth random fields is the highest;
    sheets, where another field is about 0; and vessels, where two are.
    """
    sides = rng.uniform(110, 190, 3)
    axes = [np.arange(-side / 2, side / 2, FINE) for side in sides]
    x, y, z = (axis / side for axis, side in zip(axes, sides))
    distance = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2, dtype="float32")
    shape = rng.uniform(10, 40)
    body = distance + 0.05 * noise(rng, axes, [shape] * 3) < rng.uniform(0.36, 0.6)
    labels, highest = np.zeros(body.shape, "uint8"), np.full(body.shape, -9, "float32")
    coarse = rng.uniform(6, 25)
    for organ in range(1, int(rng.integers(4, 12))):
        field = noise(rng, axes, [coarse] * 3) - rng.uniform(0, 0.8)
        labels[field > highest] = organ
        np.maximum(field, highest, out=highest)
    for extra in range(12, 12 + int(rng.integers(1, 5))):
        scale = rng.uniform(4, 20)
        thin = np.abs(noise(rng, axes, [scale] * 3)) < rng.uniform(1, 3) / scale
        if rng.random() < 0.5:
            thin &= np.abs(noise(rng, axes, [scale] * 3)) < rng.uniform(2, 4) / scale
        labels[thin] = extra
    kinds = np.array([INDEX[t.numbers[0]] for t in TISSUES.values()], "uint8")
    return Anatomy(kinds[labels * body], axes)


def noise(rng, axes, scales):
    """Draw smooth noise of standard deviation 1."""
    points = [np.arange(a[0] - 3 * s, a[-1] + 4 * s, s) for a, s in zip(axes, scales)]
    white = rng.standard_normal([len(p) for p in points], dtype="float32")
    weights = [gaussian(*every) for every in zip(axes, points, scales)]
    weights = [w / np.sqrt(w.power(2).sum(1).mean()) for w in weights]
    return np.stack(list(planes(white, weights)))


def draw_looks(rng, contrast, priors, variety=1.0):
    """Draw the appearance of each label in a scan of a contrast."""
    tissues = TISSUES.values()
    level = [t.t2 if contrast == "T2w" else t.t1 for t in tissues]
    uneven = np.array([(t.grain, t.patches, t.septa) for t in tissues]).T
    level += variety * rng.uniform(-0.05, 0.05, len(level)) * (np.array(level) > 0)
    uneven *= variety * rng.uniform(0.5, 1.5, uneven.shape)
    if contrast in ("random", "shapes"):
        level[1:] = rng.random(len(level) - 1)
        uneven *= rng.choice([-1, 1, 2], uneven.shape)
    if contrast == "shapes":
        uneven[:, 1:] = rng.uniform(0, [[0.1], [0.15], [0.3]], uneven[:, 1:].shape)
    looks = np.vstack([level, uneven])[:, TISSUE].astype("float32")
    if contrast == "T1w":
        draw_priors(rng, looks, priors, variety)
    return Looks(*looks)


def draw_priors(rng, looks, priors, variety):
    """Draw intensities and textures of tissues from priors, in place."""
    around = variety * rng.uniform(-1.2, 1.2, (256, 2))
    for index, (one, mean, spread, uneven, change) in priors.items():
        if TISSUE[index]:
            looks[0, index] = max(mean + spread * around[one, 0], 0)
            # Most of the texture is coarser than voxels.
            uneven = variety * max(uneven + change * around[one, 1], 0)
            looks[1:3, index] = min(0.3 * uneven, 0.04), 0.5 * uneven


def draw_scan(i, seed, anatomy, contrast, priors, voxel_size, variety=1.0):
    """Draw a scan of a subject; return its image and its label image."""
    rng = np.random.default_rng((seed, i, 1 + CONTRASTS.index(contrast)))
    looks = draw_looks(rng, contrast, priors, variety)
    sizes = draw_sizes(rng, *voxel_size)
    centres = [
        np.arange(axis[0] + rng.uniform(0, EDGE), axis[-1], size)
        for axis, size in zip(anatomy.axes, sizes)
    ]
    spread = rng.uniform(*POINT_SPREAD)
    weights = [
        gaussian(goals, axis, max(spread * size, FINE / 2))
        for goals, axis, size in zip(centres, anatomy.axes, sizes)
    ]
    scan = average(paint(rng, anatomy, looks), weights)
    inside = strip(rng, anatomy, weights, sizes) if anatomy.alone else 1
    scan = np.maximum(scan, 0) / np.percentile(scan, 99.9)
    scan **= np.float32(np.exp(variety * rng.normal(0, 0.1)))
    scan *= np.exp(variety * rng.uniform(0, 0.3) * noise(rng, centres, [60] * 3))
    scan = add_noise(rng, scan, variety * rng.uniform(0.003, 0.02)) * inside
    labels = NUMBERS[pick(anatomy, centres)] * inside
    affine = from_matvec(np.diag(sizes), [axis[0] for axis in centres])
    turns = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(rng.choice(ORIENTATIONS)))
    affine = affine @ inv_ornt_aff(turns, scan.shape)
    image = draw_image(rng, apply_orientation(scan, turns), affine)
    labels = apply_orientation(labels, turns).astype("int16")
    return image, nib.Nifti1Image(labels, affine)


def pick(anatomy, centres):
    """Return the label nearest to the centre of each voxel, uint8 ``(x, y, z)``."""
    near = [
        np.rint((centre - axis[0]) / FINE).astype(int)
        for centre, axis in zip(centres, anatomy.axes)
    ]
    return anatomy.labels[np.ix_(*near)]


def paint(rng, anatomy, looks):
    """Yield the textured intensities of labels as x planes, float32 ``(y, z)``."""
    if anatomy.alone:
        looks = Looks(*(values * members(INSIDE) for values in looks))
    patches = noise(rng, anatomy.axes, [4, 4, 4])
    sheets = np.exp(-((4 * noise(rng, anatomy.axes, [4, 4, 10])) ** 2))
    for labels, patch, sheet in zip(anatomy.labels, patches, sheets):
        grain = rng.standard_normal(labels.shape, dtype="float32")
        plane = looks.brightness[labels] + looks.grain[labels] * grain
        yield plane + looks.patches[labels] * patch + looks.septa[labels] * sheet


def strip(rng, anatomy, weights, sizes):
    """Draw a mask of the brain and the fluid in its folds, bool ``(x, y, z)``."""
    brain = members(BRAIN | VENTRICLES).astype("float32")
    share = average((brain[labels] for labels in anatomy.labels), weights)
    near = gaussian_filter(share, rng.uniform(2, 5) / sizes, truncate=3)
    return largest((near > rng.uniform(0.2, 0.45)) | (share > 0.5))


def main(arguments=None):
    """Write a cohort from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="where to write the volumes")
    parser.add_argument("--n", type=int, required=True, help="number of subjects")
    parser.add_argument("--maps", help="folder of label maps; default: random shapes")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--contrasts",
        nargs="+",
        choices=CONTRASTS[:3],
        default=["T1w"],
        help="contrasts in which each head is scanned",
    )
    parser.add_argument(
        "--voxel_size",
        nargs=2,
        type=float,
        metavar=("SMALLEST", "LARGEST"),
        default=(1.5, 3.0),
        help="sides of voxels, in mm (default: 1.5 3)",
    )
    parser.add_argument(
        "--stripped",
        type=float,
        default=0.0,
        help="share of the subjects that are skull-stripped",
    )
    parser.add_argument(
        "--variety",
        type=float,
        default=1.0,
        help="how much deformation, contrast, texture, bias and noise vary: 0 is not "
        "at all, 1 as between many scanners (default: 1)",
    )
    parser.add_argument(
        "--only", nargs="+", default=(), help="maps to use, by the ends of their names"
    )
    parser.add_argument(
        "--except", nargs="+", default=(), dest="without", help="maps to exclude"
    )
    parser.add_argument(
        "--dseg", action="store_true", help="write the labels of each scan beside it"
    )
    options = parser.parse_args(arguments)
    try:
        make_cohort(**vars(options))
    except (InputError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
