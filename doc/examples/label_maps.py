"""Label maps of heads: the tissues of labels, reading and alignment.

Labels are those of FreeSurfer (``aseg``, ``aparc+aseg``, ``wmparc``) and SynthSeg;
outside the brain, those of FreeSurfer or of the 20 whole heads that SynthSeg was
trained on.
"""

from functools import lru_cache
from pathlib import Path
import re
from typing import NamedTuple

import nibabel as nib
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from virtual_cohort import BRAIN_CENTRE

from dipy_ldm import InputError


class Tissue(NamedTuple):
    """Labels of a tissue, and its intensities as shares of the brightest.

    ``grain`` is the variation between voxels, ``patches`` that over several mm, and
    ``septa`` the extra intensity of thin sheets, such as fat between muscles.
    """

    numbers: tuple[int, ...]
    t1: float
    t2: float
    grain: float = 0.02
    patches: float = 0.02
    septa: float = 0.0


# By labels of FreeSurfer and, from 500, of SynthSeg's heads.
TISSUES = {
    "air": Tissue((0, 130), 0, 0, 0, 0),
    "fluid": Tissue((4, 5, 14, 15, 24, 43, 44, 72, 122, 221, 257), 0.15, 0.95),
    "white matter": Tissue((2, 41, 85, 192, *range(250, 256)), 0.66, 0.34),
    "damaged white matter": Tissue((77, 78, 79), 0.5, 0.6),
    "cortex": Tissue((3, 42, 80, 81, 82), 0.44, 0.52),
    "deep grey matter": Tissue((11, 17, 18, 26, 50, 53, 54, 58), 0.45, 0.5),
    "putamen": Tissue((12, 51), 0.5, 0.45),
    "pallidum": Tissue((13, 52), 0.59, 0.33),
    "thalamus": Tissue((9, 10, 48, 49), 0.53, 0.44),
    "ventral diencephalon": Tissue((27, 28, 59, 60), 0.58, 0.38),
    "brain stem": Tissue((16, 126, 512), 0.58, 0.38),
    "cerebellar white matter": Tissue((7, 46), 0.6, 0.36),
    "cerebellar cortex": Tissue((8, 47), 0.42, 0.52),
    "choroid plexus": Tissue((31, 63, 136, 137, 163, 164), 0.25, 0.8),
    "rim of the ventricles": Tissue((25, 57), 0.46, 0.6),
    "vessels": Tissue((30, 62), 0.35, 0.3),
    "arteries": Tissue((502,), 0.6, 0.12, 0.05, 0.1),
    "veins": Tissue((514,), 0.22, 0.25, 0.05, 0.05),
    "eyes": Tissue((134, 506), 0.1, 0.97),
    "nerves": Tissue((128, 508, 530), 0.45, 0.4, 0.03, 0.05),
    "muscle": Tissue((120, 123, 127, 132, 258, 507), 0.32, 0.2, 0.03, 0.04, 0.2),
    "mucosa": Tissue((119, 124, 133, 509), 0.35, 0.6, 0.03, 0.08, 0.15),
    "skin and fat": Tissue((118, 125, 131, 511), 0.7, 0.45, 0.04, 0.08, 0.15),
    "bone": Tissue((121, 129, 135, 165, 515), 0.1, 0.08, 0.02, 0.04),
    "marrow": Tissue((516,), 0.5, 0.4, 0.04, 0.08),
}
# First and last label of parcels, and the label of the whole.
PARCELS = (
    (1000, 1999, 3),
    (2000, 2999, 42),
    (3000, 3999, 2),
    (4000, 4999, 41),
    (5001, 5001, 2),
    (5002, 5002, 41),
    (11100, 11199, 3),
    (12100, 12199, 42),
)
SIDES = {
    **{2: 41, 3: 42, 4: 43, 5: 44, 7: 46, 8: 47, 9: 48, 10: 49, 11: 50, 12: 51, 13: 52},
    **{17: 53, 18: 54, 25: 57, 26: 58, 27: 59, 28: 60, 30: 62, 31: 63, 78: 79, 81: 82},
    **{136: 163, 137: 164},
}

VENTRICLES = {4, 5, 14, 15, 31, 43, 44, 63, 72, 136, 137, 163, 164}
HIPPOCAMPI = {17, 53}
# The tissues from fluid to vessels are inside the skull, except the cord.
INSIDE = {n for t in list(TISSUES.values())[1:16] for n in t.numbers}
INSIDE -= {122, 126, 257, 512}
BRAIN = INSIDE - VENTRICLES - {*TISSUES["fluid"].numbers, *TISSUES["vessels"].numbers}

# Centres of left structures in the template's space, in mm.
LANDMARKS = {
    8: (-26, -64, -34),
    10: (-12, -19, 7),
    11: (-14, 10, 9),
    12: (-25, 2, 0),
    17: (-26, -23, -14),
    18: (-23, -5, -19),
}
LANDMARKS |= {SIDES[n]: (-x, y, z) for n, (x, y, z) in LANDMARKS.items()}

EXTENSION = re.compile(r"\.(nii(\.gz)?|mg[hz])$")

# In memory, labels are indices of these, as uint8.
NUMBERS = np.array([number for tissue in TISSUES.values() for number in tissue.numbers])
INDEX = {number: index for index, number in enumerate(NUMBERS.tolist())}
TISSUE = np.repeat(range(len(TISSUES)), [len(t.numbers) for t in TISSUES.values()])
PARTNERS = SIDES | {right: left for left, right in SIDES.items()}
MIRRORED = np.array([INDEX[PARTNERS.get(n, n)] for n in NUMBERS.tolist()], "uint8")


class LabelMap(NamedTuple):
    """Labels, uint8 indices of :data:`NUMBERS`, ``(x, y, z)``, and their position.

    ``to_voxels`` maps from the template's millimetres to voxels, ``(4, 4)``; ``head``
    and ``brain`` are voxels on their surfaces, ``(n, 3)``. ``cut`` is whether the map
    ends at the neck rather than in air.
    """

    labels: np.ndarray
    to_voxels: np.ndarray
    head: np.ndarray
    brain: np.ndarray
    cut: bool


def find_maps(folder, only=(), without=()):
    """Find the label maps of a folder, sorted by name.

    ``only`` and ``without`` are ends of the names, without ``.nii.gz``, of maps to use
    or to exclude.
    """
    files = [
        file for file in sorted(Path(folder).glob("*")) if EXTENSION.search(file.name)
    ]
    if not files:
        raise InputError(
            f"there are no label maps (.nii, .nii.gz, .mgz) in {folder}",
            "name the folder that has them",
        )
    for end in (*only, *without):
        if not any(name_of(file).endswith(end) for file in files):
            raise InputError(
                f"no label map in {folder} has a name that ends in {end}",
                f"the first is {name_of(files[0])}",
            )
    files = [
        file
        for file in files
        if name_of(file).endswith(tuple(only) or "")
        and not name_of(file).endswith(tuple(without))
    ]
    if not files:
        raise InputError("all label maps are left out", "leave out fewer")
    return files


def name_of(file):
    """Return the name of a file without its extension."""
    return EXTENSION.sub("", file.name)


@lru_cache(maxsize=32)
def read_map(file):
    """Read a label map, NIfTI or MGH.

    Parcels are merged, islands outside the head are removed, and fluid is added around
    a brain that has none.
    """
    values, affine = read_integers(file)
    labels = look_up(file, values)
    inside = members(INSIDE)[labels]
    if not members(BRAIN)[labels].any():
        raise InputError(
            f"{file} has no label of a brain",
            "leave it out, or use FreeSurfer's labels",
        )
    labels[inside & ~largest(inside)] = 0
    fluid = labels == INDEX[24]
    if fluid.sum() < 0.05 * inside.sum():
        sigma = 5 / voxel_sizes(affine)
        share = inside.astype("float32")
        near = ndimage.gaussian_filter(share, sigma, mode="constant") > 0.3
        labels[near & (labels == 0)] = INDEX[24]
    return place(labels, align(labels, affine))


def largest(mask):
    """Return the largest connected component of a mask."""
    pieces, _ = ndimage.label(mask)
    return pieces == 1 + np.bincount(pieces[mask])[1:].argmax()


def place(labels, to_world):
    """Pad a head with air, except where the map cuts off the neck.

    The first planes at a cut neck, which may be half empty, are removed.
    """
    areas = np.count_nonzero(labels, axis=(0, 1))
    cut = bool(areas[0] > 0.1 * areas.max())
    lost = 2 if cut else -1
    labels = np.pad(labels[:, :, max(lost, 0) :], ((1, 1), (1, 1), (max(-lost, 0), 1)))
    # NIfTI is read in Fortran order, but labels are looked up in C order.
    labels = np.ascontiguousarray(labels)
    offset = from_matvec(np.eye(3), [1, 1, -lost])
    head, brain = ends(labels > 0), ends(members(BRAIN)[labels])
    return LabelMap(labels, offset @ np.linalg.inv(to_world), head, brain, cut)


def ends(mask):
    """Return the first and last voxels of a mask in each column, int16 ``(n, 3)``."""
    edges = np.diff(mask, axis=2, prepend=False, append=False)
    return np.argwhere(edges).astype("int16")


def read_integers(file):
    """Read integers, int32 ``(x, y, z)``, and their affine, ``(4, 4)``.

    Axes are RAS+; the volume is cropped to nonzero voxels.
    """
    try:
        image = nib.as_closest_canonical(nib.funcs.squeeze_image(nib.load(file)))
        data = np.asarray(image.dataobj)
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise InputError(
            f"{file} can't be read", "leave it out, or copy it again"
        ) from error
    if data.ndim != 3:
        raise InputError(
            f"{file} has {data.ndim} dimensions, but a label map has 3",
            "use one volume per file",
        )
    if data.dtype.kind not in "iufb" or not np.array_equal(data, np.rint(data)):
        raise InputError(
            f"{file} has fractions, but labels are whole numbers",
            "use the segmentation, resampled by nearest neighbour if at all",
        )
    if not data.any():
        raise InputError(f"{file} is empty", "leave it out")
    low, high = corners(data != 0)
    affine = image.affine.copy()
    affine[:3, 3] = apply_affine(affine, low)
    box = tuple(slice(a, b + 1) for a, b in zip(low, high))
    return data[box].astype("int32"), affine


def corners(mask):
    """Return the first and the last voxel of a mask along each axis, ``(2, 3)``."""
    sides = [np.flatnonzero(mask.any(axis=pair)) for pair in ((1, 2), (0, 2), (0, 1))]
    return np.array([[side[0] for side in sides], [side[-1] for side in sides]])


def look_up(file, values):
    """Map labels to indices of :data:`NUMBERS`, uint8."""
    unknown = len(NUMBERS)
    indices = np.full(max(values.max(), PARCELS[-1][1], NUMBERS.max()) + 2, unknown)
    for first, last, whole in PARCELS:
        indices[first : last + 1] = INDEX[whole]
    indices[NUMBERS] = np.arange(unknown)
    # Negative labels are looked up at the last index, which is unknown.
    labels = indices.astype("uint8")[np.maximum(values, -1)]
    if labels.max() == unknown:
        others = [str(n) for n in np.unique(values[labels == unknown])]
        raise InputError(
            f"{file} has labels that are not in the table "
            f"({', '.join(others[:5])}{', ...' * (len(others) > 5)})",
            f"add them to TISSUES in {__file__}, or set them to 0",
        )
    return labels


def align(labels, affine):
    """Return a rigid alignment of structures to the template, ``(4, 4)``.

    It maps from voxels to the template's millimetres, by least squares. With fewer than
    three structures, the brain is only shifted.
    """
    voxels = {n: np.argwhere(labels == INDEX[n]) for n in LANDMARKS}
    voxels = {n: indices for n, indices in voxels.items() if len(indices)}
    rotation = np.eye(3)
    if len(voxels) >= 3:
        centres = apply_affine(affine, [indices.mean(0) for indices in voxels.values()])
        goals = np.array([LANDMARKS[n] for n in voxels], float)
        centre, goal = centres.mean(0), goals.mean(0)
        rotation = Rotation.align_vectors(goals - goal, centres - centre)[0].as_matrix()
    else:
        centre = apply_affine(affine, np.argwhere(members(BRAIN)[labels]).mean(0))
        goal = BRAIN_CENTRE
    return from_matvec(rotation, goal - rotation @ centre) @ affine


def read_priors(folder):
    """Read T1 intensities of tissues from SynthSeg's arrays, if the folder has them.

    For each index of :data:`NUMBERS`, mean and spread of the intensity and of the
    texture, as shares of the brightest; empty without these arrays.
    """
    names = (
        *("generation_labels", "generation_classes_contrast_specific"),
        *("prior_means_t1", "prior_stds_t1"),
    )
    files = [Path(folder) / f"{name}.npy" for name in names]
    if not all(file.is_file() for file in files):
        return {}
    labels, classes, means, textures = map(np.load, files)
    return {
        INDEX[label]: (one, *(means[:, one] / 255), *(textures[:, one] / 255))
        for label, one in zip(labels.tolist(), classes.tolist())
    }


def members(numbers):
    """Return for each index of :data:`NUMBERS` whether it is among these labels."""
    return np.isin(NUMBERS, list(numbers))
