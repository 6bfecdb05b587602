"""Pictures of findings."""

from collections.abc import Sequence

import numpy as np

from dipy_ldm import plots
from dipy_ldm.checking._findings import Picture

# Images are enlarged to about so many pixels on a page.
_MIN_PIXELS = 90


def flat(images: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """Make pictures of images: volumes are cut through their middle.

    Shapes: images ``(n, *space, channels)``, result ``(n, h, w, channels)``.
    """
    images = np.asarray(images, "float32")
    images = images if affine is None else plots.planes(images, affine)
    times = max(1, round(_MIN_PIXELS / images.shape[1]))
    return images.repeat(times, axis=1).repeat(times, axis=2)


class Gallery:
    """What shows some of many images, beside a usual one.

    Shapes: images ``(n, *space, channels)``.
    """

    def __init__(self, images: np.ndarray, affine: np.ndarray | None, usual: int):
        self.images = images
        self.affine = affine
        self.usual = usual

    def __call__(self, numbers: Sequence[int], caption: str) -> list[Picture]:
        """Show some images by their numbers, and a usual one as the last."""
        chosen = np.stack([self.images[i] for i in [*numbers, self.usual]])
        picture = plots.montage(flat(chosen, self.affine), columns=self._columns())
        return [Picture(picture, caption)]

    def _columns(self):
        return 5 if self.affine is None else 1


def show_reconstructions(
    images: np.ndarray, reconstructions: np.ndarray, affine: np.ndarray | None
) -> np.ndarray:
    """Show images, and their reconstructions below.

    Shapes: images, made ``(n, *space, channels)``, result ``(height, width,
    channels)``.
    """
    if affine is not None:
        images, reconstructions = images[:3], reconstructions[:3]
        pairs = np.stack([flat(images, affine), flat(reconstructions, affine)], axis=1)
        return plots.montage(pairs.reshape(-1, *pairs.shape[2:]), columns=1)
    both = np.concatenate([flat(images, affine), flat(reconstructions, affine)])
    return plots.montage(both, columns=len(images))
