"""How sharp images are, and how well the autoencoder reconstructs."""

from typing import Any

import numpy as np

from dipy_ldm.evaluation.fidelity import Sets
from dipy_ldm.metrics import (
    Interval,
    bootstrap,
    multiscale_ssim,
    octave_correlations,
    octave_energies,
    psnr,
)

# Images that are looked at; more would change nothing that can be seen.
_MOST = 500


def measure_sharpness(sets: Sets, seed: int = 0) -> dict[str, list]:
    """Compare how much there is of each octave of spatial frequencies.

    Parameters
    ----------
    sets : Sets
        The images.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict of str to list of Interval
        From the finest octave: the energy of each set over that of the reference, and
        as ``true`` the correlation of reconstructions with what they are made of. Empty
        for images smaller than 8 pixels a side.
    """
    if min(sets.reference.shape[1:-1]) < 8:
        return {}
    reference = octave_energies(sets.reference[:_MOST])
    found = {
        name: _ratios(octave_energies(images[:_MOST]), reference, seed)
        for name, images in sets.compared.items()
    }
    true = octave_correlations(sets.reconstructed[:_MOST], sets.real[:_MOST])
    return found | {"true": [bootstrap(np.mean, octave) for octave in true.T]}


def _ratios(found, wanted, seed):
    return [
        bootstrap(lambda x, y: x.mean() / y.mean(), a, b, seed=seed)
        for a, b in zip(found.T, wanted.T, strict=True)
    ]


def measure_reconstruction(vqvae: Any, sets: Sets) -> dict[str, Interval | int | float]:
    """Say how near reconstructions are to what they are made of.

    Parameters
    ----------
    vqvae : VQVAE
        The autoencoder.
    sets : Sets
        Real images and their reconstructions.

    Returns
    -------
    dict of str to Interval or number
        Mean squared error, peak signal-to-noise ratio in decibels, multi-scale
        structural similarity, and how many of the codes are used and how evenly
        (perplexity: as many as would be used if all were equally often).
    """
    real, made = sets.real[:_MOST], sets.reconstructed[:_MOST]
    errors = [np.mean((a - b) ** 2, dtype=float) for a, b in zip(real, made)]
    decibels = psnr(made, real)
    return {
        "mse": bootstrap(np.mean, errors),
        "psnr": bootstrap(np.mean, decibels[np.isfinite(decibels)]),
        "ms_ssim": bootstrap(np.mean, multiscale_ssim(made, real)),
        **_usage(vqvae, real),
    }


def _usage(vqvae, images):
    low, high = vqvae.intensity_
    latents = vqvae.encode(images * np.float32(high - low) + np.float32(low))
    total = len(vqvae.codebook_)
    counts = np.bincount(np.ravel(vqvae.codes(latents)), minlength=total)
    shares = counts[counts > 0] / counts.sum()
    return {
        "codes_used": int(np.count_nonzero(counts)),
        "n_codes": total,
        "perplexity": float(np.exp(-np.sum(shares * np.log(shares)))),
    }
