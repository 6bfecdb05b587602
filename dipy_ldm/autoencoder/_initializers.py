"""The cosine transform of pieces of images, and a network's first weights from it."""

from itertools import product
import math

import keras
import numpy as np


def cosines(space: tuple[int, ...], count: int) -> np.ndarray:
    """Return the slowest waves of the cosine transform.

    The discrete one :footcite:p:`Ahmed1974`, orthonormal. Of pieces of natural images
    they are close to the principal components, so that few of them hold most of what
    there is.

    Shapes: result ``(*space, count)``.
    """
    waves = np.zeros((*space, count))
    # Half the number of periods, along each axis.
    numbers = sorted(
        product(*map(range, space)), key=lambda each: (sum(n * n for n in each), each)
    )
    for i, each in enumerate(numbers[:count]):
        sides = [_wave(size, n) for size, n in zip(space, each)]
        waves[..., i] = math.prod(np.ix_(*sides))
    return waves


def _wave(size, number):
    wave = np.cos(np.pi * number * (np.arange(size) + 0.5) / size)
    return wave / np.linalg.norm(wave)


@keras.saving.register_keras_serializable("dipy_ldm")
class Cosines(keras.initializers.Initializer):
    """An initializer of the convolutions that transform pieces, and put them together.

    The channels of the images are taken for one more axis of a piece.

    Shapes: piece ``(*space, channels)``, back ``(*space, channels, coefficients)``.
    """

    def __init__(self, piece: tuple[int, ...], back: bool = False) -> None:
        self.piece = tuple(piece)
        self.back = back

    def __call__(self, shape, dtype=None):
        """Give the kernel."""
        waves = cosines(self.piece, shape[-2] if self.back else shape[-1])
        if self.back:
            waves = waves.reshape(-1, shape[-2]).T
        return keras.ops.convert_to_tensor(waves.reshape(shape), dtype)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {"piece": self.piece, "back": self.back}
