"""Measure whether lesions that are planted in scans are found by the detector.

In each scan, in its own space, a sphere is made brighter or darker, by turns. It is
compared with where the difference is not 0 that ``dipy_denoise_ldm --lesions --dilate 0
--difference`` writes, beside what is found in the same scans as they are. Prints a line
of JSON for each contrast and diameter.
"""

import itertools
import json
import os
from pathlib import Path
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, run, tell
from inpainting import plant, tissue_of
import nibabel as nib
import numpy as np
from volumes_quality import load_model

from dipy_ldm.data._nifti import read_volume
from dipy_ldm.data._paths import find_volumes
from dipy_ldm.metrics import dice
from dipy_ldm.workflows import _native_space as healing


def make_parser():
    """Describe the command line.

    Returns
    -------
    Parser
        Parser of the options.
    """
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a model file of volumes, with a detector")
    parser.add_argument(
        "--real", nargs="+", required=True, help="scans, not learnt from"
    )
    parser.add_argument("--n", type=int, default=24, help="scans at most")
    parser.add_argument("--diameters", type=float, nargs="+", default=[10])
    parser.add_argument("--contrasts", type=float, nargs="+", default=[0.2])
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def measure(options):
    """Look for lesions, and print the scores.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.
    """
    model, grid = load_model(options.model)
    files = find_volumes(options.real)[: options.n]
    tell("scans as they are")
    alarms = [
        millilitres(*found_in(model, grid, file, options.threshold)) for file in files
    ]
    for diameter, contrast in itertools.product(options.diameters, options.contrasts):
        tell(f"spheres of {diameter:g} mm, {contrast:g}")
        found = [
            look(model, grid, file, number, diameter, contrast, options)
            for number, file in enumerate(files)
        ]
        dices, hits, sizes, whole = map(np.array, zip(*found))
        score = {
            "diameter": diameter,
            "contrast": contrast,
            "dice": dices.mean(),
            "dice_standard_error": dices.std(ddof=1) / len(dices) ** 0.5,
            "found": hits.mean(),
            "dice_of_found": dices[hits].mean() if hits.any() else 0.0,
            "lesion_ml": sizes.mean(),
            "found_ml": whole.mean(),
            "alarm_ml": np.mean(alarms),
            "alarm_ml_median": np.median(alarms),
            "scans_without_alarm": np.mean(np.array(alarms) == 0),
        }
        print(json.dumps({k: round(float(v), 4) for k, v in score.items()}), flush=True)


def look(model, grid, file, number, diameter, contrast, options):
    """Plant a lesion in a scan, and look for it.

    Parameters
    ----------
    model : LatentDiffusion
        The model.
    grid : Grid
        Its grid.
    file : Path
        The scan.
    number : int
        Its number.
    diameter, contrast : float
        Of the lesion, in mm, and as a share of what is there.
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dice : float
        Of what is found.
    hit : bool
        Whether a tenth of it was, at least.
    size, found : float
        Of the lesion and of all that is found, in ml.
    """
    data, affine = read_volume(file)
    rng = np.random.default_rng((options.seed, number))
    changed, lesion = plant(rng, number, data, affine, diameter, contrast)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        nib.save(nib.Nifti1Image(changed[..., 0], affine), path)
        found, _ = found_in(model, grid, path, options.threshold)
    return (
        dice(found, lesion),
        (found & lesion).sum() >= 0.1 * lesion.sum(),
        millilitres(lesion, affine),
        millilitres(found, affine),
    )


def found_in(model, grid, file, threshold):
    """Return what is taken for lesions in a scan, ``(x, y, z)``, and its affine."""
    scan = healing.find_lesions(model, file, grid, False, threshold, None)
    return scan.hole & tissue_of(scan.data), scan.affine


def millilitres(mask, affine):
    """Return the volume of a mask."""
    return np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3])) / 1000


if __name__ == "__main__":
    run(make_parser(), measure)
