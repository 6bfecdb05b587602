"""Measure how much of a training's time is steps, for cohorts of any size.

Trains by the command, in this process, and prints one line of JSON for each cohort:
the seconds that it took in all, until the first step began, in the first step of each
network (which is compiled there), and in all others; and which share of the time, but
for the first steps, was steps. Scans are variants of a real one that comes with DIPY;
cohorts larger than a few are links to the same files.
"""

import argparse
import contextlib
import json
import os
from pathlib import Path
import tempfile
import time
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from collapse import variants
from common import Parser, run
from dipy.data import get_fnames
import nibabel as nib
import numpy as np

from dipy_ldm.validation import InputError

DIFFERENT = 12


class Clock(NamedTuple):
    """When each step of each network began, and how long it took."""

    began: list
    took: list


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


def watch():
    """Take the time of all steps from now on, whatever Keras trains.

    Returns
    -------
    dict of int to Clock
        A clock for each network that is trained.
    """
    from keras.callbacks import CallbackList

    clocks = {}
    begin, end = CallbackList.on_train_batch_begin, CallbackList.on_train_batch_end

    def on_begin(self, batch, logs=None):
        begin(self, batch, logs)
        clock = clocks.setdefault(id(self._model), Clock([], []))
        clock.began.append(time.perf_counter())

    def on_end(self, batch, logs=None):
        clock = clocks[id(self._model)]
        clock.took.append(time.perf_counter() - clock.began[-1])
        end(self, batch, logs)

    CallbackList.on_train_batch_begin = on_begin
    CallbackList.on_train_batch_end = on_end
    return clocks


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

    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder, "scans")
        scans.mkdir()
        write_cohort(scans, n)
        clocks = watch()
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
    return summarise(n, whole, start, list(clocks.values()))


def summarise(n, whole, start, clocks):
    """Say where the time went.

    Parameters
    ----------
    n : int
        Number of volumes.
    whole : float
        Seconds of the command.
    start : float
        When it began.
    clocks : list of Clock
        Of each network.

    Returns
    -------
    dict
        Seconds, and the share of steps.
    """
    first = sum(clock.took[0] for clock in clocks)
    steps = sum(sum(clock.took[1:]) for clock in clocks)
    before = clocks[0].began[0] - start
    figures = {"whole": whole, "before": before, "first steps": first, "steps": steps}
    rounded = {name: round(value, 1) for name, value in figures.items()}
    shares = {
        "share": round(steps / (whole - first), 3),
        "share after the start": round(steps / (whole - first - before), 3),
    }
    return {"n": n} | rounded | shares


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
