"""Measure what conditions tell of latents before anything is trained.

For models of a virtual cohort with covariates (``virtual_cohort.py --covariates``). Of
some volumes it is learnt what is to be expected of latents, and taken from those of
volumes that were held out; and once more with the conditions of these few exchanged at
random. Prints a line of JSON for each number of volumes.
"""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, run
from conditions import load_known
import numpy as np
from volumes_quality import load_model

from dipy_ldm.conditions import Told
from dipy_ldm.prior._conditional_mean import ConditionalMean


def make_parser():
    """Make the parser of the command line."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="model file that knows the conditions")
    parser.add_argument("--train", required=True, help="folder of volumes")
    parser.add_argument("--real", required=True, help="folder of held-out volumes")
    parser.add_argument("--n", type=int, nargs="+", default=[6, 8, 12, 20, 100, 400])
    parser.add_argument("--draws", type=int, default=5, help="of volumes")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def measure(options):
    """Learn from few and many volumes, and print what is left.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.
    """
    model, grid = load_model(options.model)
    known = model.conditions_
    train, real = (encode(model, at, grid) for at in (options.train, options.real))
    rng = np.random.default_rng(options.seed)
    for n in options.n:
        found: dict[str, list] = {"left": [], "permuted": []}
        for _ in range(options.draws if n < len(train[0]) else 1):
            some = rng.permutation(len(train[0]))[:n]
            latents, numbers = (array[some] for array in train)
            given = {"left": numbers, "permuted": rng.permutation(numbers)}
            for name, told in given.items():
                found[name].append(left(latents, told, known, *real))
        ends = {name: [min(shares), max(shares)] for name, shares in found.items()}
        print(json.dumps({"n": n} | ends), flush=True)


def encode(model, folder, grid):
    """Return latents of unit variance, and the numbers that are told of them."""
    images, values = load_known(folder, grid)
    latents = model._scaled(model.vqvae_.encode(images))
    return latents, Told.of(model.conditions_, values, len(images)).numbers


def left(latents, numbers, known, others, told):
    """Say what is left of the squared distance of other latents from the mean.

    Parameters
    ----------
    latents, numbers : ndarray
        What is learnt from.
    known : dict of str to Condition
        What is known of the conditions.
    others, told : ndarray
        Other latents, and the numbers that are told of them.

    Returns
    -------
    float
        Share that is left when what is expected was taken away.
    """
    mean = latents.mean(0)
    expected = ConditionalMean.learn(latents - mean, numbers, known).predict(told)
    away = others - mean
    return float(np.mean((away - expected) ** 2) / np.mean(away**2))


if __name__ == "__main__":
    run(make_parser(), measure)
