"""Shared by the benchmarks: command lines, JSON lines, models and scans."""

import argparse
import contextlib
import json
import os
from pathlib import Path
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

import dipy_ldm
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._grid import Grid
from dipy_ldm.diffusion.samplers import SAMPLERS
from dipy_ldm.metrics import nearest_distance

COHORT_SCRIPT = Path(__file__).parents[1] / "doc" / "examples" / "virtual_cohort.py"
LABEL_COHORT_SCRIPT = COHORT_SCRIPT.with_name("label_cohort.py")
sys.path.append(str(COHORT_SCRIPT.parent))  # some benchmarks import these scripts
# For python -c: the command, from this checkout.
TRAIN = "from dipy_ldm.workflows import cli; cli.train()"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message):
        """Print the error without the usage, and exit."""
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser(description, measures):
    """Return a parser with a subcommand for each measure, by options and function."""
    parser = Parser(description=description.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="MEASURE")
    for name, (add_options, measure) in measures.items():
        summary = measure.__doc__.partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=summary)
        add_options(command)
        command.set_defaults(measure=measure)
    return parser


def print_scores(parser, arguments=None):
    """Run the measure of a command line; print each result as a line of JSON."""
    options, stdout = parser.parse_args(arguments), sys.stdout
    try:
        # Keep the output of libraries out of standard output.
        with contextlib.redirect_stdout(sys.stderr):
            scores = options.measure(options)
            for line in [scores] if isinstance(scores, dict) else scores:
                print(json.dumps(line), file=stdout, flush=True)
    except (InputError, OSError) as error:
        parser.error(str(error))


def log(message):
    """Log progress to standard error."""
    print(message, file=sys.stderr, flush=True)


def call(*arguments):
    """Run Python, with its output on standard error."""
    command = [sys.executable, *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def train_once(options, names, *arguments):
    """Train or resume a model if its file does not exist; return the file.

    ``arguments`` are training files and options; ``names`` are options to pass on with
    their values.
    """
    model = options.folder / "ldm.safetensors"
    if not model.exists():
        how = [f"--{name}={getattr(options, name)}" for name in names]
        how += ["--widths_ldm", *options.widths_ldm, "--out_dir", options.folder]
        call("-c", TRAIN, *arguments, *how, "--resume")
    return model


def draw_brains(folder, pattern, n, first, *options):
    """Draw brains without skull from label maps, unless enough files exist."""
    if len(list(folder.glob(pattern))) < n:
        counts = "--n", n, "--first", first
        call(LABEL_COHORT_SCRIPT, folder, *counts, "--stripped", 1, *options)


def add_sampling(parser, n_samples, batch_size):
    """Add the options of sampling to a command line."""
    parser.add_argument("--sampler", choices=SAMPLERS, default="dpm++")
    parser.add_argument("--steps", type=int, help="default: that of the sampler")
    parser.add_argument("--eta", type=float, default=0.0)
    parser.add_argument("--guidance", type=float, help="default: that of the model")
    parser.add_argument("--n_samples", type=int, default=n_samples)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=batch_size)


def sampling(options):
    """Return the options on which the samples depend."""
    names = ("sampler", "steps", "eta", "guidance", "seed")
    return {name: getattr(options, name) for name in names}


def generate(model, options, conditions=None):
    """Draw samples and measure the time, including compilation.

    Shapes: images ``(n, *space, channels)``.
    """
    if options.steps is None:
        options.steps = SAMPLERS[options.sampler].default_steps
    if options.guidance is None:
        options.guidance = model.default_guidance
    log(f"generating {options.n_samples} images")
    start = time.perf_counter()
    arguments = sampling(options) | {"batch_size": options.batch_size}
    images = model.predict(options.n_samples, conditions=conditions, **arguments)
    return images, time.perf_counter() - start


def score_novelty(samples, train, real):
    """Measure how far samples are from the training images.

    Shapes: samples, train ``(n, *space, channels)``, real ``(n,)``.
    """
    near = nearest_distance(samples, train)
    return {
        "nearest_median": float(np.median(near)),
        "nearest_median_real": float(np.median(real)),
        "nearest_min": float(near.min()),
        "nearest_min_real": float(real.min()),
        "nearest_min_ratio": float(near.min() / real.min()),
    }


def png_path(path):
    """Check that a picture can be written, before long computations."""
    if Path(path).suffix != ".png":
        raise argparse.ArgumentTypeError(f"{path} must end in .png.")
    if not Path(path).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"create the folder of {path} first.")
    return path


def load_model(path):
    """Load a model of volumes, and return it with its grid."""
    model = dipy_ldm.LatentDiffusion.load(path)
    shape, affine = model.vqvae.shape_, model.vqvae.affine_
    if len(shape) != 4 or affine is None:
        raise InputError(
            f"{path} is not a model of volumes with an affine",
            "train one with dipy_train_ldm on NIfTI files",
        )
    return model, Grid(tuple(shape[:3]), affine)


def vary_scan(image, n, seed=0):
    """Shift a volume in [0, 1], change its contrast and add noise, ``n`` times.

    Shapes: image ``(x, y, z, channels)``, result ``(n, x, y, z, channels)``.
    """
    rng = np.random.default_rng(seed)
    scans = []
    for _ in range(n):
        scan = np.roll(image, rng.integers(-2, 3, 3), (0, 1, 2))
        scan = scan ** rng.uniform(0.7, 1.4) + rng.normal(0, 0.01, image.shape)
        scans.append(np.clip(scan, 0, 1))
    return np.stack(scans).astype("float32")
