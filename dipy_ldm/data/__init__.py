"""Data: loaders of images, and (in ``batches``) what training draws from them."""

from dipy_ldm.data.images import load_images
from dipy_ldm.data.mnist import load_mnist

__all__ = ["load_images", "load_mnist"]
