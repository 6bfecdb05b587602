"""What the benchmarks of samples share: their options, and one line of JSON."""

import argparse
import contextlib
import json
from pathlib import Path
import sys
import time

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm.diffusion.samplers import SAMPLERS
from dipy_ldm.metrics import nearest_distance


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence."""

    def error(self, message):
        """Say what is wrong, without the usage, and stop."""
        self.exit(2, f"{self.prog}: {message}\n")


def add_sampling(parser, n_samples, batch_size):
    """Add the options of sampling to a command line.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Parser to add them to.
    n_samples : int
        Default number of samples.
    batch_size : int or None
        Default number of samples in a batch.
    """
    parser.add_argument("--sampler", choices=SAMPLERS, default="dpm++")
    parser.add_argument("--steps", type=int, help="as many as suffice if left out")
    parser.add_argument("--eta", type=float, default=0.0)
    parser.add_argument("--guidance", type=float, help="the usual one if left out")
    parser.add_argument("--n_samples", type=int, default=n_samples)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=batch_size)


def sampling(options):
    """Return the options that decide what the samples are."""
    names = ("sampler", "steps", "eta", "guidance", "seed")
    return {name: getattr(options, name) for name in names}


def generate(model, options, conditions=None):
    """Draw samples and take the time, compilation included.

    Parameters
    ----------
    model : dipy_ldm.LatentDiffusion
        Fitted model.
    options : argparse.Namespace
        With those of :func:`add_sampling`.
    conditions : dict or str, optional
        What is asked for; drawn if None.

    Returns
    -------
    images : ndarray
        Samples, ``(n, *space, channels)``.
    seconds : float
        Time that it took.
    """
    if options.steps is None:
        options.steps = model.default_steps(options.sampler)
    if options.guidance is None:
        options.guidance = model.default_guidance
    tell(f"generating {options.n_samples} images")
    start = time.perf_counter()
    given = sampling(options) | {"batch_size": options.batch_size}
    images = model.predict(options.n_samples, conditions=conditions, **given)
    return images, time.perf_counter() - start


def score_novelty(samples, train, real):
    """Measure how far samples are from the training images.

    Parameters
    ----------
    samples, train : ndarray
        Images, ``(n, *space, channels)``.
    real : ndarray
        The same distances of real images that are no training images, ``(n,)``.

    Returns
    -------
    dict
        Median and minimum of the distance to the nearest training image, of samples and
        of real images, and the ratio of the minima.
    """
    near = nearest_distance(samples, train)
    return {
        "nearest_median": float(np.median(near)),
        "nearest_median_real": float(np.median(real)),
        "nearest_min": float(near.min()),
        "nearest_min_real": float(real.min()),
        "nearest_min_ratio": float(near.min() / real.min()),
    }


def picture(path):
    """Check that a picture can be written, before it takes minutes to make."""
    if Path(path).suffix != ".png":
        raise argparse.ArgumentTypeError(f"{path} must end in .png.")
    if not Path(path).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"make the folder of {path} first.")
    return path


def tell(message):
    """Report progress where it can't be taken for a result."""
    print(message, file=sys.stderr, flush=True)


def run(parser, act, arguments=None):
    """Do what the command line asks for; answer what users can mend with a sentence.

    Parameters
    ----------
    parser : Parser
        Parser of the options.
    act : callable
        What is called with the options.
    arguments : sequence of str, optional
        Command line; that of the process if left out.

    Returns
    -------
    object
        What ``act`` returned.
    """
    options = parser.parse_args(arguments)
    try:
        return act(options)
    except (InputError, OSError) as error:
        parser.error(str(error))


def print_scores(parser, measure, arguments=None):
    """Measure what the command line asks for, and print it as one line of JSON.

    Parameters
    ----------
    parser : Parser
        Parser of the options.
    measure : callable
        From the options to a dict of figures.
    arguments : sequence of str, optional
        Command line; that of the process if left out.
    """

    def act(options):
        # Whatever libraries print, standard output is the JSON line alone.
        with contextlib.redirect_stdout(sys.stderr):
            return measure(options)

    print(json.dumps(run(parser, act, arguments)))
