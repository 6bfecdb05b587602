"""Latent diffusion for medical images, a plug-in of DIPY.

An autoencoder maps images to latents; a schedule mixes latents with noise; a denoiser
learns to undo it; a sampler walks back.
"""

from importlib import import_module
import os

__version__ = "0.1.0"

__all__ = ["VQVAE", "LatentDiffusion", "__version__"]

_HOMES = {"VQVAE": ".vqvae", "LatentDiffusion": ".latent_diffusion"}


# TensorFlow reads this when it is imported, and leaves oneDNN off on processors without
# AVX512: convolutions then take up to ten times as long, and twice the memory. What the
# user set stays. dipy_ldm.distribution says so where it is too late.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def __getattr__(name):
    # Keras takes seconds to import: it waits until an estimator is asked for (PEP 562).
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
