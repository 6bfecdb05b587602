"""Metrics of images and of sets of images, from arrays, without models."""

from dipy_ldm.metrics.distributions import (
    density_coverage,
    energy_distance,
    frechet_distance,
    kernel_distance,
    nearest_distance,
    precision_recall,
)
from dipy_ldm.metrics.images import (
    detail_correlation,
    detail_energy,
    dice,
    multiscale_ssim,
    octave_correlations,
    octave_energies,
    psnr,
)
from dipy_ldm.metrics.intervals import Interval, binomial, bootstrap

__all__ = [
    "Interval",
    "binomial",
    "bootstrap",
    "density_coverage",
    "detail_correlation",
    "detail_energy",
    "dice",
    "energy_distance",
    "frechet_distance",
    "kernel_distance",
    "multiscale_ssim",
    "nearest_distance",
    "octave_correlations",
    "octave_energies",
    "precision_recall",
    "psnr",
]
