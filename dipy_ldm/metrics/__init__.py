"""Quality of images and of sets of them: arrays in, floats out; no models."""

from dipy_ldm.metrics.distributions import (
    energy_distance,
    frechet_distance,
    nearest_distance,
    precision_recall,
)
from dipy_ldm.metrics.images import (
    band_energies,
    detail_correlation,
    detail_energy,
    halve,
    multiscale_ssim,
    octave_energies,
    psnr,
)

__all__ = [
    "band_energies",
    "detail_correlation",
    "detail_energy",
    "energy_distance",
    "frechet_distance",
    "halve",
    "multiscale_ssim",
    "nearest_distance",
    "octave_energies",
    "precision_recall",
    "psnr",
]
