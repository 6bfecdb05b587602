"""Custom Keras layers."""

from collections.abc import Sequence
from functools import reduce
import math

import keras
from keras import ops
import numpy as np

from dipy_ldm._conditions import CONTINUOUS, DIRECTION
from dipy_ldm._utils.directions import N_HARMONICS, harmonics
from dipy_ldm._utils.types import Tensor


@keras.saving.register_keras_serializable("dipy_ldm")
class TimeEmbedding(keras.layers.Layer):
    """Encode times in [0, 1] as sines and cosines :footcite:p:`Vaswani2017`."""

    def __init__(self, width: int, **kwargs) -> None:
        # Sines of large arguments need float32.
        super().__init__(**kwargs | {"dtype": "float32"})
        self.width = width

    def call(self, t: Tensor):
        """Map times ``(batch,)`` to features ``(batch, width)``."""
        return _waves(t, self.width // 2, 1000.0)

    def compute_output_shape(self, input_shape: tuple):
        """Return ``(batch, width)``."""
        return (input_shape[0], self.width)


@keras.saving.register_keras_serializable("dipy_ldm")
class ConditionFeatures(keras.layers.Layer):
    """Encode conditions as features, a unit vector for each condition.

    Classes are one-hot. Continuous conditions are sines and cosines
    :footcite:p:`Tancik2020` of frequencies too low to distinguish single examples.
    Directions are spherical harmonics. One more feature per condition marks missing
    values.
    """

    # Waves of a continuous condition; frequencies from 1 to FASTEST radians per range.
    WAVES = 8
    FASTEST = 30.0

    def __init__(self, sizes: Sequence[int], **kwargs) -> None:
        super().__init__(**kwargs | {"dtype": "float32"})
        self.sizes = list(sizes)

    def call(self, numbers: Tensor):
        """Map numbers ``(batch, conditions)``, -1 for missing, to features."""
        features = [
            self._features(numbers[:, i], size) for i, size in enumerate(self.sizes)
        ]
        return ops.concatenate(features, axis=-1)

    def compute_output_shape(self, input_shape: tuple):
        """Return ``(batch, features)``."""
        return (input_shape[0], sum(map(self.count, self.sizes)))

    @classmethod
    def count(cls, size: int) -> int:
        """Count the features of a condition; the first marks missing values."""
        widths = {CONTINUOUS: 2 * cls.WAVES, DIRECTION: N_HARMONICS}
        return 1 + widths.get(size, size)

    def _features(self, number: Tensor, size: int):
        if size > 0:
            return ops.one_hot(ops.cast(number + 1, "int32"), size + 1)
        specified = ops.cast(number >= 0, "float32")[:, None]
        if size == DIRECTION:
            values = harmonics(number, ops) / math.sqrt(N_HARMONICS)
        else:
            values = _waves(number, self.WAVES, self.FASTEST) / math.sqrt(self.WAVES)
        return ops.concatenate([1 - specified, specified * values], axis=-1)


@keras.saving.register_keras_serializable("dipy_ldm")
class SourceFeatures(keras.layers.Layer):
    """Encode a source image as features of each voxel.

    Labels are one-hot; intensities get one more channel that marks where they exist.
    All features are 0 where there is no source.
    """

    def __init__(self, labels: int, **kwargs) -> None:
        super().__init__(**kwargs | {"dtype": "float32"})
        self.labels = labels

    def call(self, images: Tensor):
        """Map ``(batch, *space, channels)``, -1 for missing, to features."""
        if self.labels:
            return ops.one_hot(ops.cast(images[..., 0], "int32"), self.labels)
        specified = ops.cast(images[..., :1] >= 0, "float32")
        return ops.concatenate([specified * images, specified], axis=-1)

    def compute_output_shape(self, input_shape: tuple):
        """Return ``(batch, *space, features)``."""
        return (*input_shape[:-1], self.labels or input_shape[-1] + 1)


def _waves(t: Tensor, count: int, fastest: float):
    """Return sines and cosines at `count` frequencies from 1 to `fastest`."""
    frequencies = ops.exp(
        ops.arange(count, dtype="float32") * (math.log(fastest) / (count - 1))
    )
    angles = t[:, None] * frequencies
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)


# Whether upsampling and convolution are merged into one transposed convolution.
TRANSPOSED_UPSAMPLING = True


class _Convolution(keras.layers.Layer):
    """Convolution with optional upsampling, and biases with float32 gradients."""

    # Along an axis: from a kernel of size 3 on repeated positions to the equivalent
    # kernel of size 4 and stride 2.
    _KERNEL_SUMS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], "float32")

    def __init__(self, *args, upsampled: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.upsampled = upsampled

    def call(self, inputs: Tensor):
        """Convolve, with bias gradients summed in float32.

        On CPUs, TensorFlow's ``bias_add`` (which Keras uses) and JAX sum them in the
        compute precision: in bfloat16, 16,384 ones add up to 256.
        ``tests/test_upstream.py`` fails when this workaround is no longer needed.
        """
        x = self.convolution_op(inputs, self.kernel)
        if self.use_bias:
            x = self._add_bias(x)
        return self.activation(x)

    def convolution_op(self, inputs: Tensor, kernel: Tensor):
        """Convolve without biases, upsampled before if asked to."""
        if not self.upsampled:
            return super().convolution_op(inputs, kernel)
        if self.transposed(inputs.shape):
            return ops.conv_transpose(
                inputs, self._strided_kernel(kernel), 2, padding="same"
            )
        for axis in range(1, self.rank + 1):
            inputs = ops.repeat(inputs, 2, axis)
        return super().convolution_op(inputs, kernel)

    def transposed(self, input_shape: Sequence[int | None]) -> bool:
        """Return whether this is computed as a transposed convolution.

        This sums weights that apply to the same position beforehand: 8 products remain
        of the 27 per voxel.

        Shapes: input_shape ``(batch, *space, channels)``.
        """
        if not (TRANSPOSED_UPSAMPLING and self.upsampled):
            return False
        is_small = any(side is not None and side < 4 for side in input_shape[1:-1])
        return not is_small and keras.config.backend() != "jax"

    def compute_output_shape(self, input_shape: tuple):
        """Return the output shape, twice as large if upsampled."""
        if self.upsampled:
            batch, *space, channels = input_shape
            doubled = (None if side is None else 2 * side for side in space)
            input_shape = (batch, *doubled, channels)
        return super().compute_output_shape(input_shape)

    def get_config(self):
        """Return the arguments of the constructor."""
        return super().get_config() | {"upsampled": self.upsampled}

    def _add_bias(self, x: Tensor):
        bias = ops.reshape(self.bias, (*(1,) * (self.rank + 1), self.filters))
        if self.compute_dtype == "float32":
            return ops.add(x, bias)
        if keras.config.backend() == "tensorflow":
            # In this order: Keras turns `add(x, bias)` into `bias_add`. The gradient of
            # a plain addition is summed in float32.
            return ops.add(bias, x)
        # XLA fuses this.
        total = ops.cast(x, "float32") + ops.cast(bias, "float32")
        return ops.cast(total, self.compute_dtype)

    def _strided_kernel(self, kernel: Tensor):
        """Return the kernel of the transposed convolution of stride 2."""
        axes = range(self.rank)
        # Kernels of transposed convolutions have output channels before input channels.
        kernel = ops.transpose(kernel, (*axes, self.rank + 1, self.rank))
        *_, outputs, channels = kernel.shape
        sums = reduce(np.kron, [self._KERNEL_SUMS for _ in axes])
        sums = ops.convert_to_tensor(sums, kernel.dtype)
        kernel = ops.matmul(sums, ops.reshape(kernel, (-1, outputs * channels)))
        return ops.reshape(kernel, (*(4 for _ in axes), outputs, channels))


@keras.saving.register_keras_serializable("dipy_ldm")
class Conv2D(_Convolution, keras.layers.Conv2D):
    """``keras.layers.Conv2D`` with upsampling and float32 bias gradients."""


@keras.saving.register_keras_serializable("dipy_ldm")
class Conv3D(_Convolution, keras.layers.Conv3D):
    """``keras.layers.Conv3D`` with upsampling and float32 bias gradients."""


# By the number of spatial dimensions.
CONVOLUTIONS: dict[int, type] = {2: Conv2D, 3: Conv3D}


@keras.saving.register_keras_serializable("dipy_ldm")
class Recomputed(keras.layers.Layer):
    """Recompute a network's activations for the gradient instead of keeping them.

    Gradient checkpointing :footcite:p:`Chen2016`. ``keras.RematScope`` fails for whole
    networks in a graph: TensorFlow's custom gradients refuse the argument ``training``
    that Keras adds.
    """

    def __init__(self, block: keras.Model, **kwargs) -> None:
        super().__init__(**kwargs)
        self.block = block

    def call(self, inputs: Tensor, training: bool = False):
        """Apply the network to a list of tensors."""

        # Keras does not pass `training` on when it recomputes.
        def apply(*tensors):
            return self.block(list(tensors), training=training)

        return keras.remat(apply)(*inputs)

    def compute_output_spec(self, inputs: Tensor, training: bool = False):
        """Return the output spec of the network."""
        return self.block.compute_output_spec(inputs)

    def get_config(self):
        """Return the arguments of the constructor."""
        block = keras.saving.serialize_keras_object(self.block)
        return super().get_config() | {"block": block}


@keras.saving.register_keras_serializable("dipy_ldm")
class DepthToSpace(keras.layers.Layer):
    """Rearrange channels into space :footcite:p:`Shi2016`."""

    def __init__(self, times: int, **kwargs) -> None:
        # Float32, since the output is images.
        super().__init__(**kwargs | {"dtype": "float32"})
        self.times = times

    def call(self, x: Tensor):
        """Map ``(batch, *space, channels)`` to ``(batch, *space * times, fewer)``."""
        batch, *space, _ = ops.shape(x)
        rank, channels = len(space), self._channels(x.shape)
        x = ops.reshape(x, (batch, *space, *(self.times,) * rank, channels))
        # Each spatial axis is followed by the axis within its positions.
        pairs = [axis for i in range(1, rank + 1) for axis in (i, i + rank)]
        x = ops.transpose(x, (0, *pairs, 2 * rank + 1))
        return ops.reshape(x, (batch, *(self.times * side for side in space), channels))

    def compute_output_shape(self, input_shape: tuple):
        """Return the larger shape."""
        batch, *space, _ = input_shape
        upsampled = (None if side is None else self.times * side for side in space)
        return (batch, *upsampled, self._channels(input_shape))

    def _channels(self, shape: tuple):
        return shape[-1] // self.times ** (len(shape) - 2)


@keras.saving.register_keras_serializable("dipy_ldm")
class Cut(keras.layers.Layer):
    """Crop an image to a size, at the end of each axis.

    In bfloat16 on CPUs, the gradient of ``keras.layers.Cropping*D`` is 60 times slower.
    """

    def __init__(self, space: Sequence[int], **kwargs) -> None:
        super().__init__(**kwargs)
        self.space = tuple(space)

    def call(self, x: Tensor):
        """Map ``(batch, *larger, channels)`` to ``(batch, *space, channels)``."""
        batch, *_, channels = ops.shape(x)
        return ops.slice(x, (0,) * len(x.shape), (batch, *self.space, channels))

    def compute_output_shape(self, input_shape: tuple):
        """Return the smaller shape."""
        return (input_shape[0], *self.space, input_shape[-1])


class Sum(keras.layers.Layer):
    """Sum the outputs of several networks for the same input."""

    def __init__(self, networks: list[keras.Model], **kwargs) -> None:
        super().__init__(**kwargs | {"dtype": "float32"})
        self.networks = networks

    def call(self, inputs: Tensor):
        """Apply the networks to a tensor."""
        first, *rest = (network(inputs) for network in self.networks)
        return sum(rest, start=first)

    def compute_output_shape(self, input_shape: tuple):
        """Return the output shape of the first network."""
        return self.networks[0].compute_output_shape(input_shape)
