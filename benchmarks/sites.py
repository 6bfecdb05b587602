"""Measure how well scans are harmonised from one site to another.

One command does everything, in a folder: it simulates heads scanned at site A, others
at site B, and some at both, so that the truth is known; trains a model conditioned on
the site, by which scans of A are denoised towards B; and one on pairs of heads scanned
at both::

    python benchmarks/sites.py sites

Baselines are the unchanged scan, and its intensities mapped to site B by quantiles. It
prints a line of JSON for each method. Existing files are kept.
"""

from pathlib import Path

from common import COHORT_SCRIPT, Parser, call, load_model, print_scores, train_once
import numpy as np
from source import BRAIN, score

from dipy_ldm.data.volumes import load_volumes

# Quantiles of intensities to match.
QUANTILES = np.linspace(0, 1, 257)


def make_parser():
    """Describe the command line."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of all files")
    parser.add_argument("--n", type=int, default=60, help="heads of each site")
    parser.add_argument("--n_held_out", type=int, default=16, help="scanned at both")
    parser.add_argument("--voxel_size", type=float, default=4.0, help="in mm")
    parser.add_argument("--steps_vqvae", type=int, default=1500)
    parser.add_argument("--steps_ldm", type=int, default=2500)
    parser.add_argument("--widths_ldm", type=int, nargs="+", default=[32, 64])
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.6]
    )
    parser.set_defaults(measure=compare)
    return parser


def compare(options):
    """Draw heads, train and measure; yield the scores."""
    root = options.folder
    scans = {
        name: draw(root / name, site, n, first)
        for name, site, n, first in (
            ("A", "A", options.n, 0),
            ("B", "B", options.n, options.n),
            ("both-B", "B", options.n, 0),
            ("held_out-A", "A", options.n_held_out, 5000),
            ("held_out-B", "B", options.n_held_out, 5000),
        )
    }
    inputs = scans["A"], scans["B"], "--conditions", "site"
    model, grid = load_model(train(options, "of-sites", *inputs))
    before, truth, usual = (
        np.asarray(load_volumes([scans[name]], grid=grid).images)
        for name in ("held_out-A", "held_out-B", "B")
    )
    yield {"way": "as it is"} | measure(before, truth)
    yield {"way": "quantiles"} | measure(match_quantiles(before, usual), truth)
    for strength in options.strengths:
        how = {"strength": strength, "conditions": {"site": "B"}}
        images = np.asarray(model.denoise(before, **how))
        yield {"way": f"denoised, {strength:g}"} | measure(images, truth)
    images = np.asarray(model.vqvae.predict(truth))
    yield {"way": "autoencoder of the truth"} | measure(images, truth)
    pairs = scans["both-B"], "--source_files", scans["A"]
    model, grid = load_model(train(options, "of-pairs", *pairs))
    before, truth = (
        np.asarray(load_volumes([scans[name]], grid=grid).images)
        for name in ("held_out-A", "held_out-B")
    )
    several = [model.predict(source=before, seed=seed) for seed in range(3)]
    yield {"way": "of pairs"} | measure(several[0], truth)
    yield {"way": "of pairs, mean of 3"} | measure(np.mean(several, 0), truth)


def draw(folder, site, n, first):
    """Draw missing heads; return their folder."""
    if len(list(folder.glob("*.nii.gz"))) < n:
        call(COHORT_SCRIPT, folder, "--n", n, "--first", first, "--site", site)
    return folder


def train(options, name, *inputs):
    """Train a model in a folder of its own, if it does not exist."""
    own = type(options)(**vars(options) | {"folder": options.folder / name})
    names = ("voxel_size", "steps_vqvae", "steps_ldm")
    return train_once(own, names, *inputs)


def match_quantiles(images, usual):
    """Match the intensity quantiles of each brain to those of a site.

    Shapes: images and usual ``(n, x, y, z, 1)``.
    """
    target = np.quantile(usual[usual > BRAIN], QUANTILES)
    mapped = []
    for image in images:
        own = np.quantile(image[image > BRAIN], QUANTILES)
        # Linear below the brain, so that the background stays 0.
        mapped.append(np.interp(image, [0, *own], [0, *target]))
    return np.stack(mapped).astype("float32")


def measure(images, truth):
    """Measure the similarity of images to the truth, and the error of their contrast.

    The contrast is the ratio of the quartiles of the brain.
    """
    ratios = []
    for each in (images, truth):
        inside = [image[brain > BRAIN] for image, brain in zip(each, truth)]
        ratios.append([np.divide(*np.quantile(x, (0.25, 0.75))) for x in inside])
    off = np.abs(np.diff(ratios, axis=0)).mean()
    return score(images, truth) | {"contrast_off": round(float(off), 4)}


if __name__ == "__main__":
    print_scores(make_parser())
