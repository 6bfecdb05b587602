"""Measure whether a scan made healthy loses its lesion, and nothing else.

For models of a virtual cohort with covariates (``virtual_cohort.py --covariates``).
Patients that the model has not seen are made with their lesion and without it. Both
scans are denoised towards ``group=control``, and as they are; the difference, of the
same noise, is what the condition changed. Prints a line of JSON for each strength.
"""

import json
import os
from pathlib import Path
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, run, tell
import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter
from volumes_quality import load_model

from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.metrics import dice

sys.path.append(str(Path(__file__).parents[1] / "doc" / "examples"))
from virtual_cohort import Lesion, add_lesion, draw_traits, make_subject

# Of the smoothed difference, as shares of the range.
THRESHOLDS = np.linspace(0.01, 0.5, 99)
# A voxel is in the lesion where that takes so much of it: white matter, which has most
# of the range, loses four times as much.
EDGE = 0.2


def make_parser():
    """Make the parser of the command line.

    Returns
    -------
    Parser
        Parser of the options.
    """
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="model file")
    parser.add_argument("--n", type=int, default=16, help="patients")
    parser.add_argument("--first", type=int, default=1000, help="subject to begin with")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    parser.add_argument("--repeats", type=int, default=2, help="noises for each scan")
    add_lesion(parser)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def make_pairs(n, first, grid, lesion):
    """Make patients with their lesion, and the same scans without it.

    Parameters
    ----------
    n : int
        How many.
    first : int
        Number of the subject from which on patients are looked for.
    grid : Grid
        Of the model.
    lesion : Lesion
        That of patients.

    Returns
    -------
    patients, healthy : ndarray
        ``(n, x, y, z, 1)`` in [0, 1].
    """
    with tempfile.TemporaryDirectory() as folder:
        files: list[Path] = []
        subject = first
        while len(files) < 2 * n:
            traits = draw_traits(subject, lesion=lesion)
            for some in (lesion, None) if traits.lesion else ():
                image, _ = make_subject(subject, traits=traits._replace(lesion=some))
                files.append(Path(folder) / f"{subject}-{'with' * bool(some)}.nii.gz")
                nib.save(image, files[-1])
            subject += 1
        images = np.asarray(load_volumes(files, grid=grid).images, "float32")
    return images[::2], images[1::2]


def score(changed, lesions):
    """Compare what was changed with the lesions.

    The threshold is the best one of one half of the patients for the other half.

    Parameters
    ----------
    changed : ndarray
        Of patients, then of the same scans without lesions, ``(2 n, x, y, z)``.
    lesions : ndarray of bool
        ``(n, x, y, z)``.

    Returns
    -------
    dict
        Dice coefficient, and thresholds of the halves; voxels of a lesion, and those
        that are found in patients and in the same scans without one; mean change where
        the lesion is, of both.
    """
    n = len(lesions)
    smooth = gaussian_filter(changed, (0, 1, 1, 1))
    found = [smooth > threshold for threshold in THRESHOLDS]
    dices = np.array([list(map(dice, some[:n], lesions)) for some in found])
    sizes = np.array([some.sum((1, 2, 3)) for some in found])
    where = [c[m].mean() for c, m in zip(changed, [*lesions, *lesions])]
    halves = np.arange(n) % 2
    best = [dices[:, halves == half].mean(1).argmax() for half in (1, 0)]
    of_others, each = [best[half] for half in halves], np.arange(n)
    return {
        "dice": float(dices[of_others, each].mean()),
        "threshold": [float(THRESHOLDS[i]) for i in best],
        "lesion_voxels": float(lesions.sum((1, 2, 3)).mean()),
        "found_voxels": float(sizes[of_others, each].mean()),
        "alarm_voxels": float(sizes[of_others, n + each].mean()),
        "change": float(np.mean(where[:n])),
        "change_healthy": float(np.mean(where[n:])),
    }


def measure(options):
    """Make scans healthy, and print the scores.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.
    """
    model, grid = load_model(options.model)
    lesion = Lesion(*options.lesion)
    tell("making patients")
    patients, healthy = make_pairs(options.n, options.first, grid, lesion)
    lesions = np.abs(patients - healthy)[..., 0] > EDGE * lesion.darkness
    images = np.concatenate([patients, healthy])
    tell(f"a lesion takes {np.mean((healthy - patients)[..., 0][lesions]):.3f}")
    for strength in options.strengths:
        healed, plain = (
            denoised(model, images, {"group": group}, strength, options)
            for group in ("control", None)
        )
        # Lesions are dark: what is healthy is brighter there.
        figures = score(healed - plain, lesions) | {
            "strength": strength,
            "dice_of_scan": score(healed - images[..., 0], lesions)["dice"],
        }
        print(json.dumps(figures), flush=True)


def denoised(model, images, conditions, strength, options):
    """Denoise scans several times, and return the mean, ``(n, x, y, z)``."""
    every = [
        model.denoise(
            images,
            strength=strength,
            conditions=conditions,
            seed=options.seed,
            first=len(images) * i,
        )
        for i in range(options.repeats)
    ]
    return np.mean(every, axis=0)[..., 0]


if __name__ == "__main__":
    run(make_parser(), measure)
