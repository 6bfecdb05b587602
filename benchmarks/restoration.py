"""Measure denoising, inpainting and the detection of lesions.

Noise and holes are created on the grid of the model; lesions in each scan, in its own
space. Each measure prints lines of JSON.
"""

import itertools
from pathlib import Path
import tempfile

from common import load_model, log, make_parser, print_scores
import nibabel as nib
import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.ndimage import binary_dilation, gaussian_filter
from virtual_cohort import Lesion, add_lesion, draw_traits, make_subject

from dipy_ldm import LatentDiffusion
from dipy_ldm._native_space import Scan
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import load_mnist
from dipy_ldm.data._nifti import read_volume
from dipy_ldm.data._paths import find_volumes
from dipy_ldm.data._preprocessing import conform_voxels
from dipy_ldm.data.channels import Channel
from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.diffusion import _inpainting as inpainting
from dipy_ldm.metrics import dice, psnr
from dipy_ldm.workflows._process_scans import find_lesions

# Intensity of the brain as a share of the range, and minimum share of a sphere in it.
_BRAIN, _INSIDE = 0.1, 0.95
# Thresholds of smoothed differences, as shares of the range.
DIFFERENCES = np.linspace(0.01, 0.3, 59)
CHANGES = np.linspace(0.01, 0.5, 99)
# A voxel is in the lesion if it loses this share of the lesion's darkness: white matter
# loses four times as much.
EDGE = 0.2


def add_noise_options(parser):
    """Add the options of :func:`score_noise`."""
    parser.add_argument("model", help="a model file of volumes, or mnist")
    parser.add_argument("--real", nargs="+", help="held-out volumes")
    parser.add_argument("--n", type=int, default=100, help="maximum number of images")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0, 0.02, 0.05, 0.1, 0.2]
    )
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[0, 0.05, 0.1, 0.2, 0.3, 0.5]
    )
    parser.add_argument("--seed", type=int, default=0)


def score_noise(options):
    """Measure the error of denoised images, by noise and strength."""
    model, images = load_clean(options)
    for spread in options.noise:
        log(f"noise {spread:g}")
        noise = np.random.default_rng(options.seed).normal(0, spread, images.shape)
        noisy = np.clip(images + noise, 0, 1).astype("float32")
        scores = {"noise": spread, "noisy": squared_error(noisy, images)}
        for strength in options.strengths:
            denoised = model.denoise(noisy, strength=strength, seed=options.seed)
            scores[f"strength {strength:g}"] = squared_error(denoised, images)
        yield scores


def load_clean(options):
    """Load the model and held-out images.

    Shapes: images ``(n, *space, channels)``.
    """
    if options.model == "mnist":
        model, images = LatentDiffusion.load("mnist"), load_mnist("test")[0]
    elif not options.real:
        raise InputError("name held-out volumes with --real")
    else:
        model, grid = load_model(options.model)
        images = load_volumes(options.real, grid=grid).images
    return model, np.asarray(images[: options.n], "float32")


def squared_error(images, truth):
    """Return the mean squared error."""
    return float(np.mean((images - truth) ** 2, dtype="float64"))


def add_volumes(parser, n):
    """Add the model, held-out volumes, and the seed."""
    parser.add_argument("model", help="a model file of volumes")
    parser.add_argument("--real", nargs="+", required=True, help="held-out volumes")
    parser.add_argument("--n", type=int, default=n, help="maximum number of volumes")
    parser.add_argument("--seed", type=int, default=0)


def add_hole_options(parser):
    """Add the options of :func:`score_holes`."""
    add_volumes(parser, 12)
    parser.add_argument(
        "--train", nargs="+", required=True, help="training volumes of the model"
    )
    parser.add_argument("--diameters", type=float, nargs="+", default=[10, 20, 30])
    parser.add_argument("--n_samples", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--resamplings", type=int, default=5)


def score_holes(options):
    """Measure how well spheres are inpainted, by the model and by simpler methods."""
    model, grid = load_model(options.model)
    images = load_volumes(options.real, grid=grid).images[: options.n]
    images = np.asarray(images, "float32")
    train = load_volumes(options.train, grid=grid).images
    mean = np.mean(train, 0, dtype="float64").astype("float32")
    for diameter in options.diameters:
        log(f"holes of {diameter:g} mm")
        results = fill_holes(model, grid, images, mean, diameter, options)
        for name, score in results.items():
            yield {"diameter": diameter, "by": name} | score


def fill_holes(model, grid, images, mean, diameter, options):
    """Fill a sphere in each image by several methods.

    Shapes: images ``(n, *grid.shape, 1)``, mean ``(*grid.shape, 1)``.
    """
    rng = np.random.default_rng((options.seed, int(diameter * 1000)))
    inside = np.stack(
        [sphere(rng, image[..., 0] > _BRAIN, grid.affine, diameter) for image in images]
    )
    samples = model.inpaint(
        images,
        inside,
        n_samples=options.n_samples,
        steps=options.steps,
        resamplings=options.resamplings,
        seed=options.seed,
    )
    fillings = {
        "mean volume": np.where(inside[..., None], mean, images),
        "mean volume, blended": inpainting.blend(images, mean, inside),
        "linear interpolation": interpolate(images, inside),
        "Laplace equation": inpainting.fill(images, inside),
        "one sample": samples[:, 0],
        "mean of samples": samples.mean(1),
    }
    return {
        name: score_filling(filling, images, inside)
        for name, filling in fillings.items()
    }


def sphere(rng, brain, affine, diameter):
    """Draw a sphere that lies in the brain.

    Shapes: brain ``(x, y, z)``, result ``(x, y, z)``.
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

    Shapes: images ``(n, x, y, z, channels)``, inside ``(n, x, y, z)``.
    """
    filled = images.copy()
    for image, hole in zip(filled, inside):
        around = binary_dilation(hole, np.ones((3, 3, 3))) & ~hole
        linear = LinearNDInterpolator(np.argwhere(around), image[around])
        image[hole] = linear(np.argwhere(hole))
    return filled


def score_filling(filled, images, inside):
    """Compare filled holes with the truth.

    Shapes: filled, images ``(n, x, y, z, channels)``, inside ``(n, x, y, z)``.
    """
    rim, within = (
        np.sum([gradient(a[..., 0], h, of) for a, h in zip(filled, inside)])
        / np.sum([gradient(b[..., 0], h, of) for b, h in zip(images, inside)])
        for of in ("rim", "inside")
    )
    ssim = [similarity(a, b)[h].mean() for a, b, h in zip(filled, images, inside)]
    return {
        "psnr": float(np.mean(psnr(filled, images, inside))),
        "ssim": float(np.mean(ssim)),
        "changed_outside": int(np.count_nonzero((filled != images)[~inside])),
        "rim_gradient": float(rim),
        "inner_gradient": float(within),
    }


def gradient(volume, hole, of):
    """Return the mean absolute difference of neighbours.

    Shapes: volume ``(x, y, z)``, hole ``(x, y, z)``.
    """
    differences = []
    for axis in range(volume.ndim):
        a, b = (
            np.take(hole, range(first, hole.shape[axis] - 1 + first), axis)
            for first in (0, 1)
        )
        pairs = a != b if of == "rim" else a & b
        differences.append(np.abs(np.diff(volume, axis=axis))[pairs])
    return np.concatenate(differences).mean()


def similarity(a, b):
    """Return the structural similarity around each voxel (Gaussian of 1.5 voxels).

    Shapes: a, b ``(x, y, z, channels)``, result ``(x, y, z, channels)``.
    """

    def smooth(volume):
        return gaussian_filter(volume, (1.5, 1.5, 1.5, 0), truncate=3.5)

    a, b = a.astype(float), b.astype(float)
    mean_a, mean_b = smooth(a), smooth(b)
    variances = smooth(a * a) - mean_a**2 + smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    return luminance * (2 * covariance + 9e-4) / (variances + 9e-4)


def add_difference_options(parser):
    """Add the options of :func:`score_differences`."""
    add_volumes(parser, 12)
    parser.add_argument("--diameter", type=float, default=10, help="in mm")
    parser.add_argument("--contrast", type=float, default=0.2)
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    )
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--smooth", type=float, default=3.0, help="FWHM in mm")


def score_differences(options):
    """Detect synthetic lesions in what denoising removes from scans."""
    model, grid = load_model(options.model)
    for strength in options.strengths:
        log(f"lesions, strength {strength:g}")
        yield score_strength(model, grid, strength, options)


def score_strength(model, grid, strength, options):
    """Add a lesion to each scan, and detect it in what denoising removes.

    The threshold is the best of the first half of the scans; scores are those of the
    second half.
    """
    scores = [
        score_scan(model, grid, file, number, strength, options)
        for number, file in enumerate(find_volumes(options.real)[: options.n])
    ]
    half = len(scores) // 2
    dices = np.array([scan["dice"] for scan in scores])
    best = dices[:half].mean(0).argmax()
    alarms = np.array([scan["alarm"][best] for scan in scores[half:]])
    return {
        "strength": strength,
        "contrast": options.contrast,
        "threshold": float(DIFFERENCES[best]),
        "dice": float(dices[half:, best].mean()),
        "dice_best_each": float(dices.max(1).mean()),
        "lesion_ml": float(np.mean([scan["lesion"] for scan in scores[half:]])),
        "alarm_ml": float(alarms.mean()),
        "kept": float(np.mean([scan["kept"] for scan in scores])),
    }


def score_scan(model, grid, file, number, strength, options):
    """Detect the lesion in a scan with one, and in the same scan without."""
    data, affine = read_volume(file)
    brain = tissue_of(data)
    rng = np.random.default_rng((options.seed, number))
    sizes = options.diameter, options.contrast
    changed, lesion = add_sphere(rng, number, data, affine, *sizes)
    maps = [
        difference(model, grid, scan, affine, strength, options)
        for scan in (data, changed)
    ]
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    sigma = options.smooth / np.sqrt(8 * np.log(2)) / sizes
    smooth, smooth_changed = (np.abs(gaussian_filter(m, sigma)) * brain for m in maps)
    millilitres = np.abs(np.linalg.det(affine[:3, :3])) / 1000
    masks_by_threshold = [smooth_changed > threshold for threshold in DIFFERENCES]
    contrast = np.abs(changed - data)[..., 0][lesion].mean()
    removed = np.abs(maps[1] - maps[0])[lesion].mean() * scale_of(data)
    return {
        "dice": [dice(mask, lesion) for mask in masks_by_threshold],
        "alarm": [(smooth > t).sum() * millilitres for t in DIFFERENCES],
        "lesion": lesion.sum() * millilitres,
        "kept": 1 - removed / contrast,
    }


def tissue_of(data):
    """Return which voxels ``(x, y, z)`` of a scan ``(x, y, z, 1)`` are brain."""
    return data[..., 0] > _BRAIN * np.percentile(data[data > 0], 99.5)


def add_sphere(rng, number, data, affine, diameter, contrast):
    """Make a sphere of a scan brighter or, in every second scan, darker.

    Shapes: data ``(x, y, z, 1)``, lesion ``(x, y, z)``.
    """
    lesion = sphere(rng, tissue_of(data), affine, diameter)
    sign = 1 if number % 2 == 0 else -1
    changed = data * (1 + sign * contrast * lesion[..., None])
    return changed.astype("float32"), lesion


def difference(model, grid, data, affine, strength, options):
    """Return a scan minus its denoised version, as a share of its range.

    Shapes: data ``(x, y, z, 1)``, result ``(x, y, z)``.
    """
    image, origin = conform_voxels("the scan", data, affine, grid)
    repeats = options.repeats if strength else 1
    options = {"strength": strength, "seed": options.seed}
    results = [
        model.denoise(image[None], first=i, **options)[0] for i in range(repeats)
    ]
    result = Channel("T1w").bring_back(np.mean(results, 0), origin)
    return (data - result)[..., 0] / scale_of(data)


def scale_of(data):
    """Return the intensity of a scan that is mapped to 1."""
    return float(np.percentile(data[data != 0], 99.5))


def add_detector_options(parser):
    """Add the options of :func:`score_detector`."""
    add_volumes(parser, 24)
    parser.add_argument("--diameters", type=float, nargs="+", default=[10])
    parser.add_argument("--contrasts", type=float, nargs="+", default=[0.2])
    parser.add_argument("--threshold", type=float, default=0.5)


def score_detector(options):
    """Detect synthetic lesions in scans with the anomaly detector."""
    model, grid = load_model(options.model)
    files = find_volumes(options.real)[: options.n]
    log("scans as they are")
    alarms = [
        millilitres(*detect_lesions(model, grid, file, options.threshold))
        for file in files
    ]
    for diameter, contrast in itertools.product(options.diameters, options.contrasts):
        log(f"spheres of {diameter:g} mm, {contrast:g}")
        scores = [
            score_detected(model, grid, file, number, diameter, contrast, options)
            for number, file in enumerate(files)
        ]
        dices, detected, lesion_ml, detected_ml = map(np.array, zip(*scores))
        score = {
            "diameter": diameter,
            "contrast": contrast,
            "dice": dices.mean(),
            "dice_standard_error": dices.std(ddof=1) / len(dices) ** 0.5,
            "found": detected.mean(),
            "dice_of_found": dices[detected].mean() if detected.any() else 0.0,
            "lesion_ml": lesion_ml.mean(),
            "found_ml": detected_ml.mean(),
            "alarm_ml": np.mean(alarms),
            "alarm_ml_median": np.median(alarms),
            "scans_without_alarm": np.mean(np.array(alarms) == 0),
        }
        yield {name: round(float(value), 4) for name, value in score.items()}


def score_detected(model, grid, file, number, diameter, contrast, options):
    """Add a lesion to a scan, and score its detection."""
    data, affine = read_volume(file)
    rng = np.random.default_rng((options.seed, number))
    changed, lesion = add_sphere(rng, number, data, affine, diameter, contrast)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        nib.save(nib.Nifti1Image(changed[..., 0], affine), path)
        mask, _ = detect_lesions(model, grid, path, options.threshold)
    return (
        dice(mask, lesion),
        (mask & lesion).sum() >= 0.1 * lesion.sum(),
        millilitres(lesion, affine),
        millilitres(mask, affine),
    )


def detect_lesions(model, grid, file, threshold):
    """Return the mask of detected lesions of a scan, ``(x, y, z)``, and its affine."""
    scan = Scan.read(model.vqvae_._channels(), [file], grid)
    (lesions,) = find_lesions(model, scan, threshold, None)
    (origin,) = scan.origins
    return lesions & tissue_of(origin.data), origin.affine


def millilitres(mask, affine):
    """Return the volume of a mask in millilitres."""
    return np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3])) / 1000


def add_condition_options(parser):
    """Add the options of :func:`score_condition`."""
    parser.add_argument("model", help="model file")
    parser.add_argument("--n", type=int, default=16, help="patients")
    parser.add_argument("--first", type=int, default=1000, help="number of the first")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    parser.add_argument("--repeats", type=int, default=2, help="samples for each scan")
    add_lesion(parser)
    parser.add_argument("--seed", type=int, default=0)


def score_condition(options):
    """Denoise patients as controls, and compare the changes with their lesions."""
    model, grid = load_model(options.model)
    lesion = Lesion(*options.lesion)
    log("simulating patients")
    patients, healthy = make_pairs(options.n, options.first, grid, lesion)
    lesions = np.abs(patients - healthy)[..., 0] > EDGE * lesion.darkness
    images = np.concatenate([patients, healthy])
    log(f"mean loss in lesions: {np.mean((healthy - patients)[..., 0][lesions]):.3f}")
    for strength in options.strengths:
        healed, plain = (
            mean_denoised(model, images, {"group": group}, strength, options)
            for group in ("control", None)
        )
        # Lesions are dark, so healthy tissue is brighter.
        yield score_changes(healed - plain, lesions) | {
            "strength": strength,
            "dice_of_scan": score_changes(healed - images[..., 0], lesions)["dice"],
        }


def make_pairs(n, first, grid, lesion):
    """Simulate patients with their lesion, and the same scans without it.

    Shapes: patients, healthy ``(n, x, y, z, 1)``.
    """
    with tempfile.TemporaryDirectory() as folder:
        files: list[Path] = []
        subject = first
        while len(files) < 2 * n:
            traits = draw_traits(subject, lesion=lesion)
            for variant in (lesion, None) if traits.lesion else ():
                image, _ = make_subject(subject, traits=traits._replace(lesion=variant))
                files.append(
                    Path(folder) / f"{subject}-{'with' * bool(variant)}.nii.gz"
                )
                nib.save(image, files[-1])
            subject += 1
        images = np.asarray(load_volumes(files, grid=grid).images, "float32")
    return images[::2], images[1::2]


def score_changes(changed, lesions):
    """Compare the change by a condition with the lesions.

    The threshold for each half of the patients is the best of the other half.

    Shapes: changed ``(2 n, x, y, z)``, lesions ``(n, x, y, z)``.
    """
    n = len(lesions)
    smooth = gaussian_filter(changed, (0, 1, 1, 1))
    masks_by_threshold = [smooth > threshold for threshold in CHANGES]
    dices = np.array(
        [list(map(dice, mask[:n], lesions)) for mask in masks_by_threshold]
    )
    sizes = np.array([mask.sum((1, 2, 3)) for mask in masks_by_threshold])
    in_lesions = [c[m].mean() for c, m in zip(changed, [*lesions, *lesions])]
    halves = np.arange(n) % 2
    best = [dices[:, halves == half].mean(1).argmax() for half in (1, 0)]
    chosen, each = [best[half] for half in halves], np.arange(n)
    return {
        "dice": float(dices[chosen, each].mean()),
        "threshold": [float(CHANGES[i]) for i in best],
        "lesion_voxels": float(lesions.sum((1, 2, 3)).mean()),
        "found_voxels": float(sizes[chosen, each].mean()),
        "alarm_voxels": float(sizes[chosen, n + each].mean()),
        "change": float(np.mean(in_lesions[:n])),
        "change_healthy": float(np.mean(in_lesions[n:])),
    }


def mean_denoised(model, images, conditions, strength, options):
    """Denoise scans several times, and return the mean, ``(n, x, y, z)``."""
    repeats = [
        model.denoise(
            images,
            strength=strength,
            conditions=conditions,
            seed=options.seed,
            first=len(images) * i,
        )
        for i in range(options.repeats)
    ]
    return np.mean(repeats, axis=0)[..., 0]


MEASURES = {
    "noise": (add_noise_options, score_noise),
    "holes": (add_hole_options, score_holes),
    "difference": (add_difference_options, score_differences),
    "detector": (add_detector_options, score_detector),
    "condition": (add_condition_options, score_condition),
}


if __name__ == "__main__":
    print_scores(make_parser(__doc__, MEASURES))
