"""Latent diffusion for medical images, a plug-in of DIPY.

An autoencoder maps images to latents; a schedule mixes latents with noise; a denoiser
learns to undo it; a sampler walks back.
"""

from importlib import import_module
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers see
    from dipy_ldm._backend import make_strategy
    from dipy_ldm._utils.checks import InputError
    from dipy_ldm.latent_diffusion import LatentDiffusion
    from dipy_ldm.vqvae import VQVAE

__version__ = "0.2.0"

__all__ = ["VQVAE", "InputError", "LatentDiffusion", "__version__", "make_strategy"]

_HOMES = {
    "VQVAE": ".vqvae",
    "LatentDiffusion": ".latent_diffusion",
    "InputError": "._utils.checks",
    "make_strategy": "._backend",
}


# TensorFlow reads this when it is imported, and leaves oneDNN off on processors without
# AVX512: convolutions then take up to ten times as long, and twice the memory. What the
# user set stays. dipy_ldm._backend says so where it is too late.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# And this: its greetings would be red in notebooks, and hide what a user should read.
# Whoever looks for a GPU sees them with 0.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def __getattr__(name):
    # Keras takes seconds to import: it waits until an estimator is asked for (PEP 562).
    if name in _HOMES:
        from dipy_ldm._utils.startup import gc_disabled

        with gc_disabled():
            return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
