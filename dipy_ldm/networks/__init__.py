"""Networks: encoder, decoder, U-Net and detector, for any number of spatial dimensions.

All are functional Keras graphs over tensors ``(batch, *space, channels)``. The
number of spatial dimensions is that of the shape they are given; nothing else
tells two from three.
"""

from dipy_ldm.networks.autoencoder import (
    DESIGN,
    autoencoder_parts,
    decoder,
    encoder,
    encoder_and_decoder,
    factor_of,
)
from dipy_ldm.networks.building import (
    PRECISIONS,
    Drawn,
    check_keras,
    precision,
    seeded,
    sketched,
)
from dipy_ldm.networks.denoiser import (
    Picture,
    know,
    linear_estimate,
    seeded_unet,
    unet,
    unnormalised,
)
from dipy_ldm.networks.detector import seeded_detector
from dipy_ldm.networks.memory import Needs, needs
from dipy_ldm.networks.receptive_field import factor, reach

__all__ = [
    "DESIGN",
    "PRECISIONS",
    "Drawn",
    "Needs",
    "Picture",
    "autoencoder_parts",
    "check_keras",
    "decoder",
    "encoder",
    "encoder_and_decoder",
    "factor",
    "factor_of",
    "know",
    "linear_estimate",
    "needs",
    "precision",
    "reach",
    "seeded",
    "seeded_detector",
    "seeded_unet",
    "sketched",
    "unet",
    "unnormalised",
]
