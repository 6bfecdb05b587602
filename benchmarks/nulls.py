"""Measure how often intervals of pages contain the truth, for sets that do not differ.

Features of both sets are drawn from one normal distribution, or with ``--shift`` from
two; each figure with an interval is computed for many pairs of sets::

    python benchmarks/nulls.py --n 40 --draws 200

The truth is 0.5 for areas under the curve of classifiers, and for other figures their
mean over all draws. It prints a line of JSON for each figure.
"""

from collections import defaultdict

from common import Parser, print_scores
import numpy as np

from dipy_ldm.evaluation._fidelity import measure_fidelity
from dipy_ldm.evaluation.two_sample import MIN_IMAGES, logistic_test

CHANCE = 0.5


def make_parser():
    """Describe the command line."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=40, help="images of each set")
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--draws", type=int, default=200, help="pairs of sets")
    parser.add_argument(
        "--shift", type=float, default=0.0, help="of the first feature, in deviations"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--figures", nargs="+", choices=MEASURES, default=list(MEASURES)
    )
    parser.set_defaults(measure=measure)
    return parser


def measure_classifier(rows, seed):
    """Return the area under the curve of the two-sample test, if there are enough."""
    if len(rows["reference"]) < MIN_IMAGES:
        return {}
    return {"auc": logistic_test(rows["reference"], rows["generated"], seed=seed)}


def measure_distances(rows, seed):
    """Return distances, precision, recall, density and coverage."""
    return measure_fidelity(rows, seed)["generated"]


MEASURES = {"classifier": measure_classifier, "distances": measure_distances}


def measure(options):
    """Yield the share of intervals that contain the truth, for each figure."""
    rng, intervals = np.random.default_rng(options.seed), defaultdict(list)
    for seed in range(options.draws):
        shape = options.n, options.features
        rows = {name: rng.normal(size=shape) for name in ("reference", "generated")}
        rows["generated"][:, 0] += options.shift
        for kind in options.figures:
            for name, interval in MEASURES[kind](rows, seed).items():
                if interval is not None:
                    intervals[name].append(interval)
    for name, drawn in intervals.items():
        sizes = {"n": options.n, "features": options.features, "draws": len(drawn)}
        yield {"figure": name, **sizes, "shift": options.shift, **score(name, drawn)}


def score(name, intervals):
    """Return where intervals ``(draws, 3)`` lie, and true and claimed deviation."""
    values, lows, highs = np.transpose(intervals)
    truth = CHANCE if name == "auc" else values.mean()
    return {
        "truth": truth,
        "below": np.mean(highs < truth),
        "above": np.mean(lows > truth),
        "covered": np.mean((lows <= truth) & (truth <= highs)),
        "deviation": values.std(),
        "claimed": np.mean(highs - lows) / 3.92,
    }


if __name__ == "__main__":
    print_scores(make_parser())
