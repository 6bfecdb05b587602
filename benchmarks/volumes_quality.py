"""Measure the quality of generated volumes, as one line of JSON.

Generated volumes are compared with real ones that the model was not trained on
(held-out), voxel by voxel on the model's grid at half its resolution, and in their
structure at full resolution. Beside each figure stands the same one for real volumes,
the best that samples could reach. All of these depend on how many volumes there are,
so that every set that is compared has equally many.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, add_sampling, generate, picture, print_scores, sampling, tell
import numpy as np

import dipy_ldm
from dipy_ldm.data.grid import Grid
from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.evaluation.fidelity import pair_similarity
from dipy_ldm.evaluation.sharpness import interior
from dipy_ldm.metrics import (
    band_energies,
    detail_correlation,
    detail_energy,
    energy_distance,
    halve,
    multiscale_ssim,
    nearest_distance,
    octave_energies,
    psnr,
)
from dipy_ldm.plots import planes, save_montage
from dipy_ldm.validation import InputError, at_least

# Pairs of real volumes, and training volumes beside the held-out ones, are drawn.
SEED = 0
# Draws of training volumes, over which the floor of the energy distance is averaged.
DRAWS = 10
# Volumes of each kind in the picture.
SHOWN = 3


def load_model(path):
    """Load a model and find the grid of its volumes.

    Parameters
    ----------
    path : str
        Model file.

    Returns
    -------
    model : dipy_ldm.LatentDiffusion
        The model.
    grid : Grid
        Its shape and affine.

    Raises
    ------
    InputError
        If it is no model of volumes that knows where its voxels are.
    """
    model = dipy_ldm.LatentDiffusion.load(path)
    shape, affine = model.vqvae.shape_, model.vqvae.affine_
    if len(shape) != 4 or affine is None:
        raise InputError(
            f"{path} is no model of volumes in a space; train one with dipy_train_ldm "
            "on NIfTI files."
        )
    return model, Grid(tuple(shape[:3]), affine)


def load_real(options, model, grid):
    """Load held-out and training volumes, on the grid of the model.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.
    model : dipy_ldm.LatentDiffusion
        The model.
    grid : Grid
        Its grid.

    Returns
    -------
    held_out : ndarray
        As many volumes as can be compared, ``(n, x, y, z, channels)`` in [0, 1].
    train : ndarray
        All training volumes, at least as many.

    Raises
    ------
    InputError
        If files are bad or too few.
    """
    held_out, train = (
        load_volumes(
            files,
            grid=grid,
            channels=model.vqvae.shape_[-1] > 1,
            shuffle=True,
            verbose=True,
        ).images
        for files in (options.real, options.train)
    )
    # Equally many of all, since the figures depend on the number.
    n = min(options.n_samples, len(held_out), len(train))
    at_least("the number of samples, and of volumes of each kind,", n, 2)
    return np.array(held_out[:n]), train


def coarse(volumes):
    """Give volumes at half their resolution, ``(n, x, y, z, channels)``."""
    # One by one: they may be mapped from a file larger than memory.
    return np.stack([halve(volume) for volume in volumes])


def score_distribution(generated, held_out, train):
    """Compare what volumes there are with what volumes there could be.

    Parameters
    ----------
    generated, held_out : ndarray
        Equally many volumes, ``(n, x, y, z, channels)``.
    train : ndarray
        At least as many training volumes.

    Returns
    -------
    dict
        Energy distance between generated and held-out volumes; its floor, that between
        equally many training volumes and the held-out ones; and their ratio.
    """
    rng = np.random.default_rng(SEED)
    distance = energy_distance(generated, held_out)
    draws = [rng.choice(len(train), len(held_out), replace=False) for _ in range(DRAWS)]
    floor = np.mean([energy_distance(train[draw], held_out) for draw in draws])
    return {
        "energy": distance,
        "energy_floor": float(floor),
        "energy_ratio": distance / float(floor),
    }


def measure_novelty(held_out, train):
    """Measure how far held-out volumes are from the training volumes.

    Parameters
    ----------
    held_out, train : ndarray
        Volumes, ``(n, x, y, z, channels)``.

    Returns
    -------
    ndarray
        Euclidean distance of each held-out volume to the nearest training volume.

    Raises
    ------
    InputError
        If one is a training volume.
    """
    distances = nearest_distance(held_out, train)
    copies = np.count_nonzero(distances == 0)
    if copies:
        raise InputError(
            f"{copies} volumes of --real are in --train too; give --real volumes that "
            "the model was not trained on."
        )
    return distances


def score_novelty(generated, train, real):
    """Compare how far generated and real volumes are from the training volumes.

    Parameters
    ----------
    generated, train : ndarray
        Volumes, ``(n, x, y, z, channels)``.
    real : ndarray
        The distances of as many held-out volumes, of :func:`measure_novelty`.

    Returns
    -------
    dict
        Median and minimum of the distance to the nearest training volume, of
        generated and of held-out volumes, and the ratio of the minima.
    """
    samples = nearest_distance(generated, train)
    return {
        "nearest_median": float(np.median(samples)),
        "nearest_median_real": float(np.median(real)),
        "nearest_min": float(samples.min()),
        "nearest_min_real": float(real.min()),
        "nearest_min_ratio": float(samples.min() / real.min()),
    }


def score_diversity(generated, held_out):
    """Measure how alike the volumes of a set are.

    Parameters
    ----------
    generated, held_out : ndarray
        Equally many volumes, ``(n, x, y, z, channels)`` in [0, 1].

    Returns
    -------
    dict
        Mean similarity in pairs of generated and in pairs of held-out volumes, and by
        how much that of the generated ones is greater.
    """
    samples, real = (
        pair_similarity(kind, SEED).value for kind in (generated, held_out)
    )
    return {
        "ms_ssim": samples,
        "ms_ssim_real": real,
        "ms_ssim_excess": samples - real,
    }


def score_octaves(volumes, held_out):
    """Compare how much there is of each octave of spatial frequencies.

    Parameters
    ----------
    volumes, held_out : ndarray
        Volumes, ``(n, x, y, z, channels)``.

    Returns
    -------
    list of float
        Energy over that of the held-out volumes, from the finest octave.
    """
    found, wanted = (octave_energies(kind).mean(0) for kind in (volumes, held_out))
    return [round(float(ratio), 3) for ratio in found / wanted]


def score_bands(volumes, held_out):
    """Compare how much texture there is at each scale, inside of the heads.

    Parameters
    ----------
    volumes, held_out : ndarray
        Volumes in [0, 1], ``(n, x, y, z, channels)``.

    Returns
    -------
    list of float
        Energy over that of the held-out volumes, from the finest band.
    """
    found, wanted = (
        band_energies(kind, np.stack([interior(volume) for volume in kind])).mean(0)
        for kind in (volumes, held_out)
    )
    return [round(float(ratio), 3) for ratio in found / wanted]


def score_detail(reconstructed, held_out):
    """Score the detail of reconstructions, inside of the heads.

    Parameters
    ----------
    reconstructed, held_out : ndarray
        Equally many volumes, ``(n, x, y, z, channels)``.

    Returns
    -------
    dict
        Figures by their names.
    """
    # Where there is anything: virtual brains and most scans lie on black.
    inside = (held_out > held_out.min() + 0.05 * np.ptp(held_out)).any(-1)
    arguments = reconstructed, held_out, inside
    return {
        "vqvae_psnr": float(psnr(*arguments).mean()),
        "vqvae_detail_energy": float(detail_energy(*arguments).mean()),
        "vqvae_detail_correlation": float(detail_correlation(*arguments).mean()),
        "vqvae_octaves": score_octaves(reconstructed, held_out),
        "vqvae_bands": score_bands(reconstructed, held_out),
    }


def score_vqvae(vqvae, held_out):
    """Score an autoencoder: samples can't be better than what it reconstructs.

    Parameters
    ----------
    vqvae : dipy_ldm.VQVAE
        Fitted autoencoder.
    held_out : ndarray
        Volumes, ``(n, x, y, z, channels)``.

    Returns
    -------
    scores : dict
        Figures by their names.
    reconstructed : ndarray
        The volumes as the autoencoder reconstructs them.
    """
    reconstructed = vqvae.predict(held_out)
    used = np.unique(vqvae.codes(vqvae.encode(held_out)))
    scores = {
        "vqvae_mse": float(np.mean((reconstructed - held_out) ** 2)),
        "vqvae_mae": float(np.mean(np.abs(reconstructed - held_out))),
        "vqvae_ms_ssim": float(multiscale_ssim(reconstructed, held_out).mean()),
        **score_detail(reconstructed, held_out),
        "codes_used": len(used),
        "n_codes": len(vqvae.codebook_),
    }
    return scores, reconstructed


def measure(options):
    """Score the model that the command line names.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dict
        Figures by their names.
    """
    model, grid = load_model(options.model)
    held_out, train = load_real(options, model, grid)
    small_held_out, small_train = coarse(held_out), coarse(train)
    novelty = measure_novelty(small_held_out, small_train)
    generated, seconds = generate(model, options)
    generated = generated[: len(held_out)]
    small = coarse(generated)
    tell("scoring")
    scores, reconstructed = score_vqvae(model.vqvae, held_out)
    if options.montage:
        show(options.montage, held_out, reconstructed, generated, grid.affine)
    return {
        "model": options.model,
        **sampling(options),
        "seconds": seconds,
        "n_compared": len(held_out),
        "n_train": len(train),
        **score_distribution(small, small_held_out, small_train),
        **score_novelty(small, small_train, novelty),
        **score_diversity(generated, held_out),
        "octaves": score_octaves(generated, held_out),
        "bands": score_bands(generated, held_out),
        **scores,
    }


def show(path, held_out, reconstructed, generated, affine):
    """Write a picture: rows of real, reconstructed and generated volumes.

    Parameters
    ----------
    path : str
        File to write.
    held_out, reconstructed, generated : ndarray
        Equally many volumes, ``(n, x, y, z, channels)``.
    affine : ndarray
        From voxels to millimetres, ``(4, 4)``.
    """
    rows = [kind[:SHOWN] for kind in (held_out, reconstructed, generated)]
    pictures = planes(np.concatenate(rows), affine)
    save_montage(path, pictures, columns=len(rows[0]), scale=2)


def make_parser():
    """Describe the command line.

    Returns
    -------
    Parser
        Parser of the options of :func:`measure`.
    """
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="model file that was trained on volumes")
    for name, kind in {"--real": "held-out", "--train": "training"}.items():
        parser.add_argument(
            name,
            nargs="+",
            required=True,
            metavar="FILE",
            help=f"{kind} volumes: NIfTI files, folders, wildcards or lists of them",
        )
    add_sampling(parser, n_samples=100, batch_size=None)
    parser.add_argument(
        "--montage",
        metavar="FILE",
        type=picture,
        help="picture of real, reconstructed and generated volumes, a row each",
    )
    return parser


def main(arguments=None):
    """Print the scores as one line of JSON.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command line; that of the process if left out.
    """
    print_scores(make_parser(), measure, arguments)


if __name__ == "__main__":
    main()
