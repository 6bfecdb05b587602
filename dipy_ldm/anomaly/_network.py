"""The network of the anomaly detector."""

from collections.abc import Sequence

import keras
from keras import layers

from dipy_ldm.nn._blocks import (
    conv,
    norm_position,
    residual,
    small_random_bias,
    to_output,
)
from dipy_ldm.nn._building import seeded
from dipy_ldm.nn._layers import DepthToSpace

# Where lesions are rare, what is said of each voxel before anything is learnt.
_RARELY = -3.0


def seeded_detector(
    seed: int,
    space: tuple[int | None, ...],
    channels: int,
    *,
    widths: Sequence[int],
    blocks: int,
    remat: bool = False,
) -> keras.Model:
    """Build the network of the detector, with weights that follow from a seed.

    A U-Net :footcite:p:`Ronneberger2015` of the autoencoder's blocks, down first: most
    of the time would be spent at the full resolution. What is said of a place depends
    on its neighbourhood alone, whether a window, a tile or all is given.

    Shapes: result ``(batch, *space, 1)``.
    """

    def several(x, width):
        for _ in range(blocks):
            x = residual(x, width, norm_position, remat)
        return x

    with seeded(seed):
        inputs = keras.Input((*space, channels))
        x, skips = inputs, []
        for width in widths:
            x = conv(x, width, size=4, strides=2, bias_initializer=small_random_bias())
            x = several(x, width)
            skips.append(x)
        skips.pop()
        for width in reversed(widths[:-1]):
            x = conv(x, width, upsampled=True, bias_initializer=small_random_bias())
            x = several(layers.Concatenate()([x, skips.pop()]), width)
        start = keras.initializers.Constant(_RARELY)
        options = {"kernel_initializer": "zeros", "bias_initializer": start}
        x = to_output(x, 2 ** len(space), norm_position, **options)
        return keras.Model(inputs, DepthToSpace(2)(x), name="detector")
