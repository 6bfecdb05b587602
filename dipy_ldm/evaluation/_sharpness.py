"""How sharp images are, and how well the autoencoder reconstructs."""

from typing import Any

import numpy as np
from scipy import ndimage

from dipy_ldm.evaluation._fidelity import Sets
from dipy_ldm.metrics import (
    Interval,
    band_energies,
    bootstrap,
    multiscale_ssim,
    octave_correlations,
    octave_energies,
    psnr,
)

# Images that are looked at; more would change nothing that can be seen.
_MAX_IMAGES = 500


def measure_sharpness(sets: Sets, seed: int = 0) -> dict[str, list]:
    """Compare how much there is of each octave of spatial frequencies."""
    if min(sets.reference.shape[1:-1]) < 8:
        return {}
    reference = octave_energies(sets.reference[:_MAX_IMAGES])
    ratios = {
        name: _ratios(
            octave_energies(images[:_MAX_IMAGES]), reference, sets, name, seed
        )
        for name, images in sets.compared.items()
    }
    true = octave_correlations(
        sets.reconstructed[:_MAX_IMAGES], sets.real[:_MAX_IMAGES]
    )
    options = {"seed": seed, "subjects": sets.whose("real", first=_MAX_IMAGES)}
    means = [bootstrap(np.mean, octave, **options) for octave in true.T]
    return ratios | {"true": [mean.within(-1, 1) for mean in means]}


def measure_texture(sets: Sets, seed: int = 0) -> dict[str, list]:
    """Compare how much texture volumes have at each scale, inside of what they show.

    Away from the rim, whose contrast hides all else in :func:`measure_sharpness`:
    patches of the size of a latent, for instance.
    """
    reference = _textures(sets.reference)
    return {
        name: _ratios(_textures(volumes), reference, sets, name, seed)
        for name, volumes in sets.compared.items()
    }


def _textures(volumes):
    # One by one: blurred copies of all of them may not fit into the memory.
    energies = [
        band_energies(v[None], interior(v)[None])[0] for v in volumes[:_MAX_IMAGES]
    ]
    return np.array(energies)


def interior(volume: np.ndarray) -> np.ndarray:
    """Find the inside of a head, away from its rim.

    Shapes: volume ``(x, y, z, channels)``, result ``(x, y, z)``.
    """
    blurred = ndimage.gaussian_filter(volume.mean(-1), 1.5)
    head = ndimage.binary_fill_holes(blurred > 0.3 * blurred.max())
    inside = ndimage.binary_erosion(head, iterations=3)
    if inside.any():
        return inside
    return head if head.any() else np.ones(head.shape, bool)


def _ratios(energies, reference, sets, name, seed):
    options = {
        "seed": seed,
        "subjects": sets.whose(name, "reference", first=_MAX_IMAGES),
    }
    return [
        bootstrap(lambda x, y: x.mean() / y.mean(), a, b, **options).within(0, np.inf)
        for a, b in zip(energies.T, reference.T, strict=True)
    ]


def measure_reconstruction(
    vqvae: Any, sets: Sets, seed: int = 0
) -> dict[str, Interval | int | float]:
    """Say how near reconstructions are to what they are made of."""
    real, reconstructed = sets.real[:_MAX_IMAGES], sets.reconstructed[:_MAX_IMAGES]
    errors = [np.mean((a - b) ** 2, dtype=float) for a, b in zip(real, reconstructed)]
    decibels = psnr(reconstructed, real)
    # Of none that is reconstructed to the bit.
    finite = np.isfinite(decibels)
    whose = sets.whose("real", first=_MAX_IMAGES)
    of_finite = [None if labels is None else labels[finite] for labels in whose]

    def mean(values, subjects=whose):
        return bootstrap(np.mean, values, seed=seed, subjects=subjects)

    return {
        "mse": mean(errors).within(0, np.inf),
        "psnr": mean(decibels[finite], of_finite),
        "ms_ssim": mean(multiscale_ssim(reconstructed, real)).within(0, 1),
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
