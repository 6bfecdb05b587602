"""The layer that estimates clean latents from their mean and covariance."""

import math

import keras
from keras import ops

from dipy_ldm.diffusion import schedules
from dipy_ldm.prior._gaussian import Gaussian


@keras.saving.register_keras_serializable("dipy_ldm")
class LinearEstimate(keras.layers.Layer):
    """Estimate clean latents as well as a linear function of noisy ones can.

    The prior is a Gaussian, which is not trained but set (:meth:`set_prior`). Along its
    directions the estimate is Wiener's, and the rest is estimated number by number.
    """

    def __init__(self, directions: int, schedule: str, target: str, **kwargs) -> None:
        super().__init__(**kwargs | {"dtype": "float32"})
        self.directions = directions
        self.schedule = schedule
        self.target = target

    def build(self, noisy_shape, times_shape):
        """Make room for the Gaussian."""
        shape = tuple(noisy_shape[1:])
        options = {"initializer": "zeros", "trainable": False}
        self.mean = self.add_weight(shape, name="mean", **options)
        sizes = self.directions, *shape
        self.loadings = self.add_weight(sizes, name="loadings", **options)
        self.rest = self.add_weight(shape, name="rest", **options)

    def set_prior(self, gaussian: Gaussian) -> None:
        """Set mean, loadings and remaining variances."""
        for weight, value in zip(self.weights, gaussian, strict=True):
            weight.assign(value)

    def call(self, noisy, times):
        """Map latents ``(batch, *shape)`` and times ``(batch,)`` to four tensors.

        Of the shape of the latents: these, and the clean ones as they are estimated,
        both about 0 and of unit variance on average; and what a network would predict
        for the estimate. For each of the batch, ``(batch, 1, ...)``, the standard
        deviation of its error, but along the directions.
        """
        rates = schedules.SCHEDULES[self.schedule](times, ops)
        alpha, sigma = (ops.expand_dims(rate, 1) for rate in rates)
        size = math.prod(self.mean.shape)
        mean, rest = (ops.reshape(w, (1, size)) for w in (self.mean, self.rest))
        flat = ops.reshape(noisy, (-1, size))
        off = flat - alpha * mean
        clean = off * alpha * rest / (alpha**2 * rest + sigma**2)
        power = rest
        if self.directions:
            loadings = ops.reshape(self.loadings, (self.directions, size))
            squares = ops.square(loadings)
            lengths = ops.sum(squares, 1)
            # In lengths of the loadings, and instead of what is there already.
            along = ops.matmul(off, ops.transpose(loadings))
            along = along * alpha / (alpha**2 * lengths + sigma**2)
            before = ops.matmul(clean, ops.transpose(loadings)) / lengths
            clean = clean + ops.matmul(along - before, loadings)
            power = rest + ops.sum(squares, 0)
        # One scale for all: what is the same elsewhere looks the same to the network.
        power = ops.mean(power)
        scaled = off / ops.sqrt(alpha**2 * power + sigma**2), clean / ops.sqrt(power)
        clean = mean + clean
        noise = (flat - alpha * clean) / sigma
        prediction = schedules.to_target(self.target, clean, noise, alpha, sigma)
        # What clean latents lack, the noise has too much.
        error = sigma * ops.sqrt(rest / (alpha**2 * rest + sigma**2))
        mixed = error, -error * alpha / sigma
        error = schedules.to_target(self.target, *mixed, alpha, sigma)
        spread = ops.sqrt(ops.mean(ops.square(error), 1))
        ones = (1,) * len(self.mean.shape)
        results = [ops.reshape(x, ops.shape(noisy)) for x in (*scaled, prediction)]
        return [*results, ops.reshape(spread, (-1, *ones))]

    def compute_output_shape(self, noisy_shape, times_shape):
        """Return the shape of the latents, three times, and that of the error."""
        ones = (1,) * len(noisy_shape[1:])
        return [*[noisy_shape] * 3, (noisy_shape[0], *ones)]

    def get_config(self):
        """Return the arguments of the constructor."""
        return super().get_config() | {
            "directions": self.directions,
            "schedule": self.schedule,
            "target": self.target,
        }
