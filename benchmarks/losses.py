"""Compare the autoencoder's losses, or bottlenecks, on volumes.

Prints lines of JSON for each loss, of reconstructions without and with sharpening: how
near those of held-out volumes come to them, and how sharp they are. All see the same
patches in the same order.
"""

import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, picture, run
import numpy as np
from volumes_quality import score_structure, score_vqvae

from dipy_ldm import VQVAE, presets
from dipy_ldm.autoencoder.losses import LOSSES
from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._grid import Grid
from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.plots import planes, save_montage


def sharpness(volumes):
    """Return the mean squared difference of neighbouring voxels."""
    return np.mean([np.mean(np.diff(volumes, axis=axis) ** 2) for axis in (1, 2, 3)])


def make_parser():
    """Describe the command line.

    Returns
    -------
    Parser
        Parser of the options.
    """
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", nargs="+", required=True, help="volumes")
    parser.add_argument("--real", nargs="+", required=True, help="held-out volumes")
    parser.add_argument("--voxel_size", type=float, default=4)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--code_dim", type=int, default=presets.VOLUMES.code_dim)
    parser.add_argument("--n_codebooks", type=int, default=presets.VOLUMES.n_codebooks)
    parser.add_argument("--noise", type=float, default=0.1, help="as it is learnt with")
    parser.add_argument("--n_held_out", type=int, default=20)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=[*LOSSES])
    parser.add_argument("--montage", metavar="FILE", type=picture)
    return parser


def compare(options):
    """Train with each loss and print what comes out.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.
    """
    train = load_volumes(options.train, voxel_size=options.voxel_size, shuffle=True)
    grid = Grid(train.images.shape[1:4], train.affine)
    held_out = load_volumes(options.real, grid=grid).images[: options.n_held_out]
    pictures = [held_out[:1]]
    for loss in options.losses:
        start = time.perf_counter()
        sizes = {"code_dim": options.code_dim, "n_codebooks": options.n_codebooks}
        vqvae = VQVAE(loss=loss, **sizes).fit(
            train.images,
            steps=options.steps,
            batch_size=4,
            patch=options.patch,
            augment=Augmentation(shift=2, intensity=0.05, noise=options.noise),
            learning_rate=options.learning_rate,
        )
        seconds = time.perf_counter() - start
        # As they err least, and as they are decoded.
        for gain in dict.fromkeys([0.0, vqvae.sharpening_]):
            vqvae.sharpening_ = gain
            reconstructed = vqvae.predict(held_out)
            scores = score_vqvae(vqvae, held_out, reconstructed)
            structure = score_structure(held_out, held_out, reconstructed)
            scores["octaves"] = structure["vqvae_octaves"]
            scores["sharpness"] = float(sharpness(reconstructed) / sharpness(held_out))
            told = {"loss": loss} | sizes | {"sharpening": gain} | scores
            print(json.dumps(told | {"seconds": seconds}), flush=True)
        pictures.append(reconstructed[:1])
    if options.montage:
        slices = planes(np.concatenate(pictures), train.affine)
        save_montage(options.montage, slices, columns=1, scale=4)


if __name__ == "__main__":
    run(make_parser(), compare)
