"""Measure what is made of holes, and whether lesions are found by the difference.

Prints lines of JSON: for each size of the holes how near several ways to fill them come
to the truth, then what denoising makes of planted lesions at each strength.
"""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, run, tell
import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.ndimage import binary_dilation, gaussian_filter
from volumes_quality import load_model

from dipy_ldm.data._nifti import read_volume
from dipy_ldm.data._paths import find_volumes
from dipy_ldm.data._preprocessing import conform_voxels, restore_file
from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.diffusion import masks as holes
from dipy_ldm.metrics import dice, psnr

# Brighter, as a share of the range, is brain; of a sphere, so much must be in it.
_BRAIN, _INSIDE = 0.1, 0.95


def make_parser():
    """Describe the command line.

    Returns
    -------
    Parser
        Parser of the options.
    """
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a model file of volumes")
    parser.add_argument("--real", nargs="+", help="volumes that it has not seen")
    parser.add_argument("--train", nargs="+", help="volumes that it was trained on")
    parser.add_argument("--n", type=int, default=12, help="volumes at most")
    parser.add_argument("--diameters", type=float, nargs="*", default=[10, 20, 30])
    parser.add_argument("--n_samples", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--resamplings", type=int, default=5)
    parser.add_argument("--lesion", type=float, default=10, help="diameter in mm")
    parser.add_argument("--contrast", type=float, default=0.2)
    parser.add_argument(
        "--strengths", type=float, nargs="*", default=[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    )
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--smooth", type=float, default=3.0, help="FWHM in mm")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def compare(options):
    """Fill holes and find lesions, and print the scores.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.
    """
    model, grid = load_model(options.model)
    if options.diameters:
        images = load_volumes(options.real, grid=grid).images[: options.n]
        images = np.asarray(images, "float32")
        train = load_volumes(options.train, grid=grid).images
        mean = np.mean(train, 0, dtype="float64").astype("float32")
    for diameter in options.diameters:
        tell(f"holes of {diameter:g} mm")
        scores = score_holes(model, grid, images, mean, diameter, options)
        for name, score in scores.items():
            print(json.dumps({"diameter": diameter, "by": name} | score), flush=True)
    for strength in options.strengths:
        tell(f"lesions, strength {strength:g}")
        print(json.dumps(score_lesions(model, grid, strength, options)), flush=True)


def score_holes(model, grid, images, mean, diameter, options):
    """Fill a sphere in each image in several ways.

    Parameters
    ----------
    model : dipy_ldm.LatentDiffusion
        The model.
    grid : Grid
        Its grid.
    images : ndarray
        Held-out images, ``(n, *grid.shape, 1)`` in [0, 1].
    mean : ndarray
        Mean of the training images, ``(*grid.shape, 1)``.
    diameter : float
        Of the spheres, in mm.
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dict of str to dict
        Scores of each way.
    """
    rng = np.random.default_rng((options.seed, int(diameter * 1000)))
    inside = np.stack(
        [sphere(rng, image[..., 0] > _BRAIN, grid.affine, diameter) for image in images]
    )
    made = model.inpaint(
        images,
        inside,
        n_samples=options.n_samples,
        steps=options.steps,
        resamplings=options.resamplings,
        seed=options.seed,
    )
    ways = {
        "mean volume": np.where(inside[..., None], mean, images),
        "mean volume, blended": holes.blend(images, mean, inside),
        "linear interpolation": interpolate(images, inside),
        "Laplace equation": holes.fill(images, inside),
        "one sample": made[:, 0],
        "mean of samples": made.mean(1),
    }
    return {name: score(way, images, inside) for name, way in ways.items()}


def sphere(rng, brain, affine, diameter):
    """Draw a sphere that lies in the brain.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws it.
    brain : ndarray of bool
        ``(x, y, z)``.
    affine : ndarray
        From voxels to millimetres, ``(4, 4)``.
    diameter : float
        In mm.

    Returns
    -------
    ndarray of bool
        ``(x, y, z)``.
    """
    index = np.moveaxis(np.indices(brain.shape), 0, -1)
    candidates = np.argwhere(brain)
    while True:
        centre = candidates[rng.integers(len(candidates))] + rng.uniform(-0.5, 0.5, 3)
        offset = (index - centre) @ affine[:3, :3].T
        inside = np.linalg.norm(offset, axis=-1) <= diameter / 2
        if inside.any() and brain[inside].mean() >= _INSIDE:
            return inside


def interpolate(images, inside):
    """Interpolate linearly between the voxels around holes.

    Parameters
    ----------
    images : ndarray
        ``(n, x, y, z, channels)``.
    inside : ndarray of bool
        ``(n, x, y, z)``.

    Returns
    -------
    ndarray
        The images, with the holes filled.
    """
    filled = images.copy()
    for image, hole in zip(filled, inside):
        around = binary_dilation(hole, np.ones((3, 3, 3))) & ~hole
        linear = LinearNDInterpolator(np.argwhere(around), image[around])
        image[hole] = linear(np.argwhere(hole))
    return filled


def score(made, images, inside):
    """Compare what was made with the truth.

    Parameters
    ----------
    made, images : ndarray
        ``(n, x, y, z, channels)`` in [0, 1].
    inside : ndarray of bool
        ``(n, x, y, z)``.

    Returns
    -------
    dict
        Means over all images of PSNR and SSIM in the holes; how many of the voxels
        outside of them differ; gradients across the rim and within the holes, those of
        the truth being 1.
    """
    seam, within = (
        np.sum([gradient(a[..., 0], h, of) for a, h in zip(made, inside)])
        / np.sum([gradient(b[..., 0], h, of) for b, h in zip(images, inside)])
        for of in ("rim", "inside")
    )
    ssim = [similarity(a, b)[h].mean() for a, b, h in zip(made, images, inside)]
    return {
        "psnr": float(np.mean(psnr(made, images, inside))),
        "ssim": float(np.mean(ssim)),
        "changed_outside": int(np.count_nonzero((made != images)[~inside])),
        "rim_gradient": float(seam),
        "inner_gradient": float(within),
    }


def gradient(volume, hole, of):
    """Return the mean absolute difference of neighbours.

    Parameters
    ----------
    volume : ndarray
        ``(x, y, z)``.
    hole : ndarray of bool
        ``(x, y, z)``.
    of : {"rim", "inside"}
        Whether one of the neighbours is in the hole, or both.

    Returns
    -------
    float
        The mean.
    """
    found = []
    for axis in range(volume.ndim):
        a, b = (
            np.take(hole, range(first, hole.shape[axis] - 1 + first), axis)
            for first in (0, 1)
        )
        wanted = a != b if of == "rim" else a & b
        found.append(np.abs(np.diff(volume, axis=axis))[wanted])
    return np.concatenate(found).mean()


def similarity(a, b):
    """Return the structural similarity around each voxel (Gaussian of 1.5 voxels).

    Parameters
    ----------
    a, b : ndarray
        ``(x, y, z, channels)`` in [0, 1].

    Returns
    -------
    ndarray
        ``(x, y, z, channels)``.
    """

    def smooth(volume):
        return gaussian_filter(volume, (1.5, 1.5, 1.5, 0), truncate=3.5)

    a, b = a.astype(float), b.astype(float)
    mean_a, mean_b = smooth(a), smooth(b)
    variances = smooth(a * a) - mean_a**2 + smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    return luminance * (2 * covariance + 9e-4) / (variances + 9e-4)


def score_lesions(model, grid, strength, options):
    """Plant a lesion in each scan, and look for it in what denoising takes away.

    The threshold is the best one of the first half of the scans, and scores are those
    of the others.

    Parameters
    ----------
    model : dipy_ldm.LatentDiffusion
        The model.
    grid : Grid
        Its grid.
    strength : float
        As of ``LatentDiffusion.denoise``.
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dict
        Dice coefficient of what is found; beside it, as millilitres, what is found by
        the same threshold in the same scans without a lesion, and the lesion.
    """
    found = [
        look(model, grid, file, number, strength, options)
        for number, file in enumerate(find_volumes(options.real)[: options.n])
    ]
    half = len(found) // 2
    dices = np.array([scan["dice"] for scan in found])
    best = dices[:half].mean(0).argmax()
    alarms = np.array([scan["alarm"][best] for scan in found[half:]])
    return {
        "strength": strength,
        "contrast": options.contrast,
        "threshold": float(THRESHOLDS[best]),
        "dice": float(dices[half:, best].mean()),
        "dice_best_each": float(dices.max(1).mean()),
        "lesion_ml": float(np.mean([scan["lesion"] for scan in found[half:]])),
        "alarm_ml": float(alarms.mean()),
        "kept": float(np.mean([scan["kept"] for scan in found])),
    }


# Of the smoothed difference, as shares of the range of a scan.
THRESHOLDS = np.linspace(0.01, 0.3, 59)


def look(model, grid, file, number, strength, options):
    """Look for a lesion in a scan, and where there is none.

    Parameters
    ----------
    model, grid, strength, options
        As of :func:`score_lesions`.
    file : Path
        The scan.
    number : int
        Its number: lesions are brighter and darker by turns.

    Returns
    -------
    dict
        Dice coefficients and millilitres of false alarms by threshold, those of the
        lesion, and the share of the lesion that the result has still.
    """
    data, affine = read_volume(file)
    brain = tissue_of(data)
    rng = np.random.default_rng((options.seed, number))
    sizes = options.lesion, options.contrast
    changed, lesion = plant(rng, number, data, affine, *sizes)
    maps = [
        difference(model, grid, scan, affine, strength, options)
        for scan in (data, changed)
    ]
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    sigma = options.smooth / np.sqrt(8 * np.log(2)) / sizes
    smooth, smooth_changed = (np.abs(gaussian_filter(m, sigma)) * brain for m in maps)
    millilitres = np.abs(np.linalg.det(affine[:3, :3])) / 1000
    found = [smooth_changed > threshold for threshold in THRESHOLDS]
    planted = np.abs(changed - data)[..., 0][lesion].mean()
    taken = np.abs(maps[1] - maps[0])[lesion].mean() * scale_of(data)
    return {
        "dice": [dice(mask, lesion) for mask in found],
        "alarm": [(smooth > t).sum() * millilitres for t in THRESHOLDS],
        "lesion": lesion.sum() * millilitres,
        "kept": 1 - taken / planted,
    }


def tissue_of(data):
    """Say what of a scan ``(x, y, z, 1)`` is brain, ``(x, y, z)``."""
    return data[..., 0] > _BRAIN * np.percentile(data[data > 0], 99.5)


def plant(rng, number, data, affine, diameter, contrast):
    """Plant a lesion in a scan.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws where.
    number : int
        That of the scan: lesions are brighter and darker by turns.
    data : ndarray
        The scan, ``(x, y, z, 1)``.
    affine : ndarray
        From its voxels to millimetres, ``(4, 4)``.
    diameter : float
        In mm.
    contrast : float
        As a share of what is there.

    Returns
    -------
    changed : ndarray
        The scan with a lesion, float32.
    lesion : ndarray of bool
        ``(x, y, z)``.
    """
    lesion = sphere(rng, tissue_of(data), affine, diameter)
    sign = 1 if number % 2 == 0 else -1
    changed = data * (1 + sign * contrast * lesion[..., None])
    return changed.astype("float32"), lesion


def difference(model, grid, data, affine, strength, options):
    """Return a scan minus what denoising makes of it, as a share of its range.

    Parameters
    ----------
    model, grid, strength, options
        As of :func:`score_lesions`.
    data : ndarray
        The scan, ``(x, y, z, 1)``.
    affine : ndarray
        From its voxels to millimetres, ``(4, 4)``.

    Returns
    -------
    ndarray
        ``(x, y, z)``.
    """
    image, origin = conform_voxels("the scan", data, affine, grid)
    repeats = options.repeats if strength else 1
    options = {"strength": strength, "seed": options.seed}
    made = [model.denoise(image[None], first=i, **options)[0] for i in range(repeats)]
    result = restore_file(np.mean(made, 0), origin)
    return (data - result)[..., 0] / scale_of(data)


def scale_of(data):
    """Return the range of a scan that becomes 0 to 1."""
    return float(np.percentile(data[data != 0], 99.5))


if __name__ == "__main__":
    run(make_parser(), compare)
