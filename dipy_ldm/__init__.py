"""Latent diffusion for medical images, a plug-in of DIPY.

An autoencoder encodes images to latents; a schedule mixes latents with noise; a
denoiser learns to remove it; a sampler generates latents from noise.
"""

from importlib import import_module
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers
    from dipy_ldm._backend import make_strategy
    from dipy_ldm._utils.checks import InputError
    from dipy_ldm.anomaly_detector import AnomalyDetector
    from dipy_ldm.data.volumes import load_volumes
    from dipy_ldm.latent_diffusion import LatentDiffusion
    from dipy_ldm.vqvae import VQVAE

__version__ = "0.2.0"

__all__ = [
    "VQVAE",
    "AnomalyDetector",
    "InputError",
    "LatentDiffusion",
    "__version__",
    "load_volumes",
    "make_strategy",
]

_MODULES = {
    "VQVAE": ".vqvae",
    "LatentDiffusion": ".latent_diffusion",
    "AnomalyDetector": ".anomaly_detector",
    "load_volumes": ".data.volumes",
    "InputError": "._utils.checks",
    "make_strategy": "._backend",
}


# TensorFlow reads this on import, and disables oneDNN on processors without AVX512:
# convolutions then take up to ten times as long, and twice the memory. A value set by
# the user stays. dipy_ldm._backend warns where TensorFlow was imported before.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Start-up messages of TensorFlow appear in red in notebooks and bury real warnings; 0
# shows them, for example to find out why a GPU is not used.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def __getattr__(name):
    # Estimators are imported on first access, since Keras takes seconds (PEP 562).
    if name in _MODULES:
        from dipy_ldm._utils.startup import gc_disabled

        with gc_disabled():
            return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
