"""Data: loaders of images and volumes, and (in ``batches``) what training draws."""

from dipy_ldm.data.images import load_images
from dipy_ldm.data.mnist import load_mnist
from dipy_ldm.data.volumes import load_volumes

__all__ = ["load_images", "load_mnist", "load_volumes"]
