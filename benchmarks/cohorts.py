"""Measure how much of a training's time is steps, for cohorts of any size.

Trains by the command, in this process, and prints one line of JSON for each cohort: the
seconds that it took in all and in the steps of each network, of which the first
compiles it; and which share of the time was steps. Scans are variants of a real one
that comes with DIPY; cohorts larger than a few are links to the same files.
"""

import argparse
import contextlib
import json
import logging
import os
from pathlib import Path
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from collapse import variants
from common import Parser, run
from dipy.data import get_fnames
import nibabel as nib
import numpy as np

from dipy_ldm._utils.checks import InputError

DIFFERENT = 12


class Listener(logging.Handler):
    """Hears how much of the time of each network the training says was steps."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.steps = {}

    def emit(self, record):
        """Take the seconds of steps from what is said at the end of a network."""
        if str(record.msg).endswith("in steps"):
            title, seconds, percent = record.args
            self.steps[title] = round(seconds * percent / 100, 1)


def write_cohort(folder, n):
    """Write scans, and links to them.

    Parameters
    ----------
    folder : Path
        Where.
    n : int
        Number of files.
    """
    scan = nib.load(get_fnames(name="aniso_vox"))
    image = np.asarray(scan.dataobj, "float32")[..., None]
    image = np.clip(image / np.quantile(image, 0.999), 0, 1)
    for number, variant in enumerate(variants(image, min(n, DIFFERENT))):
        made = nib.Nifti1Image(variant[..., 0], scan.affine)
        nib.save(made, folder / f"sub-{number:04}_T1w.nii.gz")
    for number in range(DIFFERENT, n):
        original = folder / f"sub-{number % DIFFERENT:04}_T1w.nii.gz"
        (folder / f"sub-{number:04}_T1w.nii.gz").symlink_to(original)


def measure(n, options):
    """Train on a cohort, and take the time.

    Parameters
    ----------
    n : int
        Number of volumes.
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dict
        Seconds, and the share of steps.
    """
    from dipy_ldm.workflows.train import TrainLDMFlow

    listener, logger = Listener(), logging.getLogger("dipy_ldm")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(listener)
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder, "scans")
        scans.mkdir()
        write_cohort(scans, n)
        start = time.perf_counter()
        flow = TrainLDMFlow(mix_names=False, force=True)
        # A training that is too short to come to anything says so at its end.
        with contextlib.suppress(InputError):
            flow.run(
                [str(scans)],
                voxel_size=[options.voxel_size],
                steps_vqvae=options.steps_vqvae,
                steps_ldm=options.steps_ldm,
                cache_dir=str(Path(folder, "cache")),
                out_dir=folder,
            )
        whole = time.perf_counter() - start
    logger.removeHandler(listener)
    steps = listener.steps
    share = round(sum(steps.values()) / whole, 3)
    return {"n": n, "whole": round(whole, 1), "steps": steps, "share": share}


def make_parser():
    """Describe the command line.

    Returns
    -------
    Parser
        Parser of the options.
    """
    parser = Parser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--n", nargs="+", type=int, default=[6, 24, 5000])
    parser.add_argument("--voxel_size", type=float, default=8)
    parser.add_argument("--steps_vqvae", type=int, default=2000)
    parser.add_argument("--steps_ldm", type=int, default=6000)
    return parser


def compare(options):
    """Train on each cohort and print what it took."""
    for n in options.n:
        print(json.dumps(measure(n, options)), flush=True)


if __name__ == "__main__":
    run(make_parser(), compare)
