"""Train autoencoders briefly on few scans in many ways, and see that none collapses.

Prints one line of JSON for each training: how well reconstructions correlate with the
volumes, their error, and that of the mean of all volumes. Scans are variants of real
ones: a diffusion-weighted brain that comes with DIPY, mostly background, or a template
that comes with nilearn (``virtual_cohort.py`` makes files of it).
"""

import argparse
import itertools
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, run
from dipy.data import get_fnames
import numpy as np

from dipy_ldm import VQVAE, presets
from dipy_ldm._utils.checks import InputError
from dipy_ldm.autoencoder.losses import LOSSES
from dipy_ldm.data import load_volumes
from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._checks import survey


def variants(image, n, seed=0):
    """Make scans of one: moved, of another contrast, and with noise.

    Parameters
    ----------
    image : ndarray
        Volume, ``(x, y, z, channels)``, of values in [0, 1].
    n : int
        Number of scans.
    seed : int
        Seed of the changes.

    Returns
    -------
    ndarray
        Float32 ``(n, x, y, z, channels)``.
    """
    rng = np.random.default_rng(seed)
    scans = []
    for _ in range(n):
        scan = np.roll(image, rng.integers(-2, 3, 3), (0, 1, 2))
        scan = scan ** rng.uniform(0.7, 1.4) + rng.normal(0, 0.01, image.shape)
        scans.append(np.clip(scan, 0, 1))
    return np.stack(scans).astype("float32")


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
    parser.add_argument("--train", nargs="+", help="volumes, instead of DIPY's")
    parser.add_argument("--voxel_size", type=float, default=8)
    parser.add_argument("--n", nargs="+", type=int, default=[6, 20])
    parser.add_argument("--steps", nargs="+", type=int, default=[120])
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument(
        "--learning_rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3, 4e-3]
    )
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=["squared"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    return parser


def compare(options):
    """Train in each way and print what comes out.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.
    """
    files = options.train or [get_fnames(name="aniso_vox")]
    loaded = load_volumes(files, voxel_size=options.voxel_size, shuffle=True).images
    ways = itertools.product(
        options.n, options.steps, options.losses, options.learning_rates, options.seeds
    )
    for n, steps, loss, rate, seed in ways:
        volumes = np.array(loaded[:n]) if options.train else variants(loaded[0], n)
        way = {"n": len(volumes), "steps": steps, "loss": loss, "learning_rate": rate}
        found = score(volumes, loss, seed, steps, rate, options.batch_size)
        print(json.dumps(way | {"seed": seed} | found), flush=True)


def score(volumes, loss, seed, steps, rate, batch_size):
    """Train an autoencoder and measure its reconstructions.

    Parameters
    ----------
    volumes : ndarray
        Volumes in [0, 1].
    loss : str
        Loss.
    seed, steps, batch_size : int
        Of the training.
    rate : float
        Learning rate.

    Returns
    -------
    dict
        Figures, and what the training said at its end, if anything.
    """
    start = time.perf_counter()
    sizes = {
        name: getattr(presets.VOLUMES, name) for name in ("code_dim", "n_codebooks")
    }
    vqvae, said = VQVAE(loss=loss, seed=seed, **sizes), None
    try:
        vqvae.fit(
            volumes,
            steps=steps,
            batch_size=batch_size,
            learning_rate=rate,
            augment=Augmentation(shift=2, intensity=0.05, noise=0.1),
            verbose=False,
        )
    except InputError as error:
        said = str(error)
    reconstructed = vqvae.predict(volumes)
    pair = volumes.ravel(), reconstructed.ravel()
    return {
        "correlation": round(float(np.corrcoef(*pair)[0, 1]), 3),
        "mse": round(float(np.mean((volumes - reconstructed) ** 2)), 5),
        "mean volume": round(survey(volumes).spread, 5),
        "said": said,
        "seconds": round(time.perf_counter() - start),
    }


if __name__ == "__main__":
    run(make_parser(), compare)
