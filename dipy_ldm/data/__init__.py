"""Read and write images, volumes and tables, and draw training batches of them."""

from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._covariates import read_covariates
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._nifti import read_volume, write_volume
from dipy_ldm.data.images import load_images, load_mnist
from dipy_ldm.data.volumes import Volumes, load_volumes

__all__ = [
    "Augmentation",
    "Grid",
    "Volumes",
    "load_images",
    "load_mnist",
    "load_volumes",
    "read_covariates",
    "read_volume",
    "write_volume",
]
