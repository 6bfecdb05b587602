"""Decode a large volume tile by tile, and print time and memory as one line of JSON.

The autoencoder is that of the defaults for volumes of the size. It is not trained, and
what it decodes is noise: time, memory and the error of tiling don't depend on it. All
weights are drawn at random, since those of a new network that are zero would hide how
far a voxel looks.
"""

import os
import resource
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, print_scores, tell
import numpy as np

from dipy_ldm import VQVAE, presets
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data.cohort import Cohort


def main(arguments=None):
    """Measure what the command line asks for."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--side", type=int, default=256, help="voxels along a side of the volume"
    )
    parser.add_argument(
        "--compare",
        type=int,
        default=208,
        help="voxels along a side of the volume that is decoded whole too; 0 for none, "
        "and up to 200 there is but one tile",
    )
    parser.add_argument(
        "--tile", type=int, help="voxels along a side of a tile; chosen if left out"
    )
    print_scores(parser, measure, arguments)


def measure(options):
    """Decode the volume, then the smaller one twice.

    Parameters
    ----------
    options : argparse.Namespace
        As :func:`main` defines them.

    Returns
    -------
    dict
        Figures.
    """
    if options.side < 1 or options.compare < 0 or (options.tile or 1) < 1:
        raise InputError("--side and --tile must be at least 1, --compare 0.")
    vqvae = build(options.side)
    scores = {"side": options.side, "start_gib": peak_gib()}
    # Before anything is decoded whole: the peak is that of the process.
    _, scores["seconds"] = decode(vqvae, options.side, options.tile)
    scores["peak_gib"] = peak_gib()
    if options.compare:
        scores |= compare(vqvae, options.compare, options.tile)
    return scores


def build(side):
    """Build the autoencoder of the defaults, with random weights."""
    shape = (side, side, side, 1)
    data = Cohort(np.broadcast_to(np.float32(0), (1, *shape)), affine=np.eye(4))
    chosen = presets.settle(data)
    sizes = {name: getattr(chosen, name) for name in ("code_dim", "n_codebooks")}
    patches = np.random.default_rng(0).random((2, 16, 16, 16, 1), "float32")
    vqvae = VQVAE(widths=chosen.widths_vqvae, **sizes)
    vqvae.fit(patches, epochs=1, batch_size=2, verbose=False)
    rng = np.random.default_rng(1)
    vqvae.decoder_.set_weights([draw(rng, w) for w in vqvae.decoder_.get_weights()])
    # To the middle of the range of intensities, beyond which differences are clipped.
    kernel, bias, waves = vqvae.decoder_.weights[-3:]
    kernel.assign(kernel / 4)
    waves.assign(waves / 16)
    bias.assign(np.full(bias.shape, 0.5))
    return vqvae


def draw(rng, weight):
    """Draw a kernel that keeps the variance; leave scales and biases alone."""
    if weight.ndim == 1:
        return weight
    spread = np.sqrt(1 / np.prod(weight.shape[:-1]))
    return rng.normal(0, spread, weight.shape)


def decode(vqvae, side, tile):
    """Decode noise; return the volume, and the seconds that it took."""
    tell(f"decoding {side} x {side} x {side} voxels")
    shape = vqvae.latent_shape((side, side, side, 1))
    latents = np.random.default_rng(2).normal(0, 1, (1, *shape)).astype("float32")
    start = time.perf_counter()
    volume = vqvae.decode(latents, space=(side, side, side), tile=tile)
    return volume, time.perf_counter() - start


def compare(vqvae, side, tile):
    """Tell how much a volume in tiles differs from the same decoded whole."""
    tiled, seconds = decode(vqvae, side, tile)
    whole, seconds_whole = decode(vqvae, side, side)
    return {
        "compared_side": side,
        "compared_seconds": seconds,
        "compared_seconds_whole": seconds_whole,
        "difference": float(np.abs(tiled - whole).max() / np.ptp(whole)),
        "clipped": float(np.isin(whole, vqvae.intensity_).mean()),
    }


def peak_gib():
    """Return the most memory that this process has had so far, in GiB."""
    # Linux counts in kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
