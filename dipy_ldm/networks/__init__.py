"""Networks: encoder, decoder and U-Net, for any number of spatial dimensions.

All are functional Keras graphs over tensors ``(batch, *space, channels)``. The
number of spatial dimensions is that of the shape they are given; nothing else
tells two from three.
"""

from dipy_ldm.networks.autoencoder import decoder, encoder, reach
from dipy_ldm.networks.building import (
    PRECISIONS,
    Drawn,
    check_keras,
    precision,
    seeded,
    sketched,
)
from dipy_ldm.networks.denoiser import unet
from dipy_ldm.networks.memory import kept_bytes

__all__ = [
    "PRECISIONS",
    "Drawn",
    "check_keras",
    "decoder",
    "encoder",
    "kept_bytes",
    "precision",
    "reach",
    "seeded",
    "sketched",
    "unet",
]
