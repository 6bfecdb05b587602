"""Network of the anomaly detector, and its parameters."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
from keras import layers

from dipy_ldm._utils.types import Space, Tensor
from dipy_ldm.anomaly._lesions import n_features
from dipy_ldm.data._batches import patch_size
from dipy_ldm.nn._building import (
    conv,
    norm_position,
    residual,
    seeded,
    small_random_bias,
    to_output,
)
from dipy_ldm.nn._layers import DepthToSpace

# Default side of a window in pixels or voxels.
_PATCH = 48
# Initial log odds of a lesion, since lesions are rare.
_INITIAL_LOG_ODDS = -3.0


class Parameters(NamedTuple):
    """Parameters of a detector."""

    widths: list[int]
    blocks: int
    seed: int

    @property
    def factor(self):
        """Factor that must divide the sides of the network's input."""
        return 2 ** len(self.widths)

    def window(
        self, space: tuple[int, ...], patch: int | Sequence[int] | None
    ) -> tuple[int, ...]:
        """Return the size of the windows that a detector is trained on."""
        return patch_size(space, self.factor, _PATCH if patch is None else patch)

    def build(self, space: Space, channels: int, remat: bool = False) -> keras.Model:
        """Build the network in the current precision, with weights from the seed.

        A U-Net :footcite:p:`Ronneberger2015` of the autoencoder's blocks, which
        downsamples first: most time would be spent at full resolution. The output at a
        position depends on its neighbourhood alone, whether the input is a window, a
        tile or a whole image.

        Shapes: result ``(batch, *space, 1)``.
        """

        def stack_blocks(x: Tensor, width: int):
            for _ in range(self.blocks):
                x = residual(x, width, norm_position, remat)
            return x

        with seeded(self.seed):
            inputs = keras.Input((*space, n_features(len(space), channels)))
            x, skips = inputs, []
            for width in self.widths:
                bias = small_random_bias()
                x = conv(x, width, size=4, strides=2, bias_initializer=bias)
                x = stack_blocks(x, width)
                skips.append(x)
            skips.pop()
            for width in reversed(self.widths[:-1]):
                x = conv(x, width, upsampled=True, bias_initializer=small_random_bias())
                x = stack_blocks(layers.Concatenate()([x, skips.pop()]), width)
            start = keras.initializers.Constant(_INITIAL_LOG_ODDS)
            options = {"kernel_initializer": "zeros", "bias_initializer": start}
            x = to_output(x, 2 ** len(space), norm_position, **options)
            return keras.Model(inputs, DepthToSpace(2)(x), name="detector")
