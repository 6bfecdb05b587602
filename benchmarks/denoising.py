"""Measure how near denoised images come to the clean ones, by noise and strength.

Prints one line of JSON for each noise level. Noise is added on the grid of the model,
and what is made of it at each strength is compared with the image without noise.
"""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, run, tell
import numpy as np
from volumes_quality import load_model

from dipy_ldm import LatentDiffusion
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import load_mnist
from dipy_ldm.data.volumes import load_volumes


def make_parser():
    """Describe the command line.

    Returns
    -------
    Parser
        Parser of the options.
    """
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a model file of volumes, or mnist")
    parser.add_argument("--real", nargs="+", help="volumes that it has not seen")
    parser.add_argument("--n", type=int, default=100, help="images at most")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0, 0.02, 0.05, 0.1, 0.2]
    )
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[0, 0.05, 0.1, 0.2, 0.3, 0.5]
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def load(options):
    """Load the model, and clean images that it has not seen.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    model : dipy_ldm.LatentDiffusion
        The model.
    images : ndarray
        Images, ``(n, *space, channels)`` in [0, 1].

    Raises
    ------
    InputError
        If the images can't be found.
    """
    if options.model == "mnist":
        model, images = LatentDiffusion.load("mnist"), load_mnist("test")[0]
    elif not options.real:
        raise InputError("name volumes that the model has not seen, with --real.")
    else:
        model, grid = load_model(options.model)
        images = load_volumes(options.real, grid=grid).images
    return model, np.asarray(images[: options.n], "float32")


def compare(options):
    """Denoise at each noise level and strength, and print the errors.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.
    """
    model, images = load(options)
    for spread in options.noise:
        tell(f"noise {spread:g}")
        noise = np.random.default_rng(options.seed).normal(0, spread, images.shape)
        noisy = np.clip(images + noise, 0, 1).astype("float32")
        scores = {"noise": spread, "noisy": error(noisy, images)}
        for strength in options.strengths:
            denoised = model.denoise(noisy, strength=strength, seed=options.seed)
            scores[f"strength {strength:g}"] = error(denoised, images)
        print(json.dumps(scores), flush=True)


def error(found, wanted):
    """Return the mean squared error."""
    return float(np.mean((found - wanted) ** 2, dtype="float64"))


if __name__ == "__main__":
    run(make_parser(), compare)
