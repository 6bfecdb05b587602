"""Data: loaders of images, and the batches that training draws from them."""

from dipy_ldm.data.batches import batches, noised
from dipy_ldm.data.images import load_images
from dipy_ldm.data.mnist import load_mnist

__all__ = ["batches", "load_images", "load_mnist", "noised"]
