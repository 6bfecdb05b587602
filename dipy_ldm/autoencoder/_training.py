"""Training stage of the autoencoder, and initialisation and revival of codes."""

from collections.abc import Callable, Sequence
from functools import partial
import math
from typing import Any

import keras
import numpy as np

from dipy_ldm import _backend, _serialization
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import check_patch, plain
from dipy_ldm.autoencoder import losses
from dipy_ldm.autoencoder._codec import Codec, Parameters
from dipy_ldm.autoencoder._sharpening import measure_detail, sharpening_gain
from dipy_ldm.data._batches import batches, patch_size, read_patches
from dipy_ldm.data._image_checks import check_ranges, survey
from dipy_ldm.data.channels import (
    channel_slices,
    continuous_columns,
    empty_columns,
    to_saved,
)
from dipy_ldm.metrics import detail_correlation
from dipy_ldm.nn import _building as building
from dipy_ldm.training import _memory as memory
from dipy_ldm.training._options import ResolvedOptions
from dipy_ldm.training._trainer import Stage, TrainingData

# Minimum number of patches that are encoded to revive codes.
_MIN_PATCHES = 16
# Below this perplexity nearly all latents have the same code.
_MIN_PERPLEXITY = 1.5
# Voxels that are measured at once: few enough to need less memory than training.
_MAX_MEASURED_VOXELS = 2**18
# Bytes per value for comparing an image with its reconstruction: 16 copies, measured
# on CPUs.
_MEASURING_BYTES = 64


def check(
    parameters: Parameters,
    shape: tuple[int, ...],
    patch: int | Sequence[int] | None,
    options: ResolvedOptions,
) -> None:
    """Refuse invalid parameters, or a training that would not fit into memory.

    Shapes: shape ``(n, *space, channels)``.
    """
    parameters.check()
    options.check(shape[0])
    check_patch(patch, len(shape) - 2)
    needed = needed_memory(parameters, shape, patch, options)
    memory.check_training("the autoencoder", needed, options)


def needed_memory(
    parameters: Parameters,
    shape: tuple[int, ...],
    patch: int | Sequence[int] | None,
    options: ResolvedOptions,
) -> float:
    """Estimate the bytes that training an autoencoder takes.

    Shapes: shape ``(n, *space, channels)``.
    """
    size = patch_size(shape[1:-1], parameters.factor, patch)
    encoder, decoder = parameters.sketch(
        options.precision.name, size, shape[-1], options.remat
    )
    distances = 4 * parameters.n_codes * math.prod(encoder.output.shape[1:-1])
    needed = memory.estimate_training(
        [encoder, decoder], options.replica_batch_size, distances
    )
    if not any(np.less(size, shape[1:-1])):
        return needed
    # Training uses windows, but validation and sharpening use whole images.
    build = partial(Codec, parameters, shape[1:], (0.0, 1.0))
    codec = building.build_without_weights("float32", build)
    measuring = _backend.INFERENCE_OVERHEAD + _MEASURING_BYTES * math.prod(shape[1:])
    return max(needed, measuring, *codec.needed_memory(shape[1:-1], 1))


class AutoencoderStage(Stage):
    """Training of the autoencoder: k-means initialises codes, dead ones are revived."""

    title = "autoencoder"
    figure = "mse"

    def __init__(
        self,
        codec: Codec,
        data: TrainingData,
        options: ResolvedOptions,
        initial: dict[str, np.ndarray],
    ) -> None:
        self.codec = codec
        # Initial weights, by their names in a model file.
        self.initial = initial
        self.data = data
        self.options = options
        self.length = options.length(len(data.images))
        # The variance of images in [0, 1]: the error of predicting the mean.
        self.baseline = data.survey.variance / data.survey.scale**2
        self.validation = None
        if data.held_out is not None:
            check_ranges(data.held_out, codec.intensity, "validation image")
            self.validation = self.validation_subset(data.held_out)
        self.settings = codec.parameters._asdict() | data.settings()
        self.settings |= self._loss_settings()
        n = codec.shape[-1]
        self.batches = batches(
            data.images,
            options.batch_size,
            seed=codec.parameters.seed,
            size=data.size,
            bounds=codec.intensity,
            masks=data.masks,
            background=data.background,
            augment=data.augment,
            fixed=[
                column
                for channel, columns in channel_slices(data.channels)
                for column in range(n)[columns]
                if not channel.brightens
            ],
            empty=empty_columns(data.channels, n) if data.channels else None,
        )

    def _loss_settings(self):
        masks, channels = self.data.masks, to_saved(self.data.channels)
        return {
            "background": plain(self.data.background),
            "augment": plain(self.data.augment),
            "masks": None if masks is None else survey(masks).fingerprint,
            "init": _serialization.checksum(self.initial) if self.initial else None,
            **({"channels": channels} if channels else {}),
        }

    def validation_subset(self, images: np.ndarray) -> np.ndarray:
        """Return the first images, so that validation takes about 10 % of a round."""
        size, batch_size = self.data.size, self.options.batch_size
        trained_voxels = self.length.end(0) * batch_size * math.prod(size)
        # A step takes as long as three reconstructions.
        most = 0.1 * 3 * trained_voxels / math.prod(images.shape[1:-1])
        return images[: max(1, math.ceil(most))]

    def build(self) -> Any:
        """Build the autoencoder in the precision of the training."""
        channels = self.codec.shape[-1]
        parameters = self.codec.parameters
        encoder, quantizer, decoder = parameters.build(
            self.data.size, channels, self.options.remat
        )
        images = encoder.inputs[0]
        reconstructed = decoder(quantizer(encoder(images)))
        slices = channel_slices(self.data.channels)
        parts = [(columns, c.loss) for c, columns in slices if c.loss]
        loss = losses.reconstruction_loss(
            parameters.loss, channels, self.baseline, parts
        )
        metrics = [losses.mean_squared_error(channels)]
        return self.compiled(images, reconstructed, loss, metrics)

    def begin(self, model: keras.Model) -> None:
        """Set the initial weights and codes; codes default to k-means of latents."""
        for name in ("encoder", "decoder"):
            network = model.get_layer(name)
            weights = _serialization.weights(network, name) | self.initial
            _serialization.set_weights(network, name, weights)
        quantizer = model.get_layer("quantizer")
        codes = self.initial.get("codebook")
        if codes is None:
            self.codec.copy_weights(model)
            rng = np.random.default_rng(self.codec.parameters.seed)
            codes = quantizer.initial(self._draw(rng), rng)
        quantizer.codebook.assign(_backend.broadcast_from_chief(codes))

    def end_round(
        self, model: keras.Model, number: int, last: bool
    ) -> dict[str, float]:
        """Revive dead codes, publish the weights and validate."""
        quantizer = model.get_layer("quantizer")
        figures, dead = quantizer.figures()
        self.finish(model)
        # A code revived after the last round would stay untrained.
        figures["revived"] = 0 if last else len(dead)
        if figures["revived"]:
            rng = np.random.default_rng([self.codec.parameters.seed, number + 1])
            codes = quantizer.revived(dead, self._draw(rng), rng)
            quantizer.codebook.assign(_backend.broadcast_from_chief(codes))
            self.finish(model)
        if self.validation is not None:
            scores = score(self.codec, self.validation)
            figures |= {f"val_{name}": value for name, value in scores.items()}
        return figures

    def finish(self, model: keras.Model) -> None:
        """Publish the trained weights."""
        self.codec.copy_weights(model)

    def failure(self, figures: dict[str, float]) -> str | None:
        """Return an error message if the autoencoder learnt nothing, else None."""
        if figures["perplexity"] < _MIN_PERPLEXITY:
            return (
                f"nearly all latents have the same code (perplexity "
                f"{figures['perplexity']:.1f}), so they encode nothing of the images; "
                "train for more steps, or with a lower learning rate."
            )
        images, summary = self.validation_subset(self.data.images), self.data.survey
        # Not the metrics of the last round, which are means over all its steps.
        mse = score(self.codec, images)["mse"]
        # If images hardly differ, the mean image is hard to beat, and need not be.
        mean = max(summary.spread, 0.05 * summary.variance) / summary.scale**2
        if mse < mean:
            return None
        # Training on very small patches, which are mostly border, does not generalise
        # to whole images.
        in_windows = any(np.less(self.data.size, images.shape[1:-1]))
        larger = "with larger patches, " if in_windows else ""
        return (
            f"the autoencoder's reconstructions are no better than the mean image "
            f"(mean squared error {mse:.3g}, and {mean:.3g} for the mean); "
            f"train for more steps, {larger}or with another learning rate (0.001 to "
            "0.002 for volumes)."
        )

    def sharpening(self) -> float:
        """Return the sharpening gain for decoded volumes; 0 for 2D images."""
        columns = continuous_columns(self.data.channels, self.codec.shape[-1])
        if self.codec.rank < 3 or not columns.any():
            return 0.0

        def measured(images: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
            return measure_detail(images[..., columns], reconstructed[..., columns])

        images = self.validation_subset(self.data.images)
        figures = _measure_reconstructions(measured, self.codec, images)
        return sharpening_gain(figures.sum(axis=0))

    def _draw(self, rng: np.random.Generator):
        return partial(draw_vectors, self.codec, self.data.images, self.data.size, rng)


def draw_vectors(
    codec: Codec,
    images: np.ndarray,
    size: tuple[int, ...],
    rng: np.random.Generator,
    count: int,
) -> np.ndarray:
    """Encode random patches and draw `count` of their latent vectors.

    Shapes: images ``(n, *space, channels)``, result ``(count, code_dim)``.
    """
    per_patch = math.prod(codec.parameters.latent_shape(size)[:-1])
    n_patches = max(-(-count // per_patch), _MIN_PATCHES)
    image_indices = np.sort(rng.choice(len(images), min(n_patches, len(images)), False))
    slack = np.maximum(np.subtract(images.shape[1:-1], size), 0)
    corners = rng.integers(0, slack + 1, (len(image_indices), len(size)))

    def encode(i: np.ndarray) -> np.ndarray:
        return codec.encode(read_patches(images, image_indices[i], corners[i], size))

    # On one device: other batches change the last bit, and k-means may amplify that.
    with _backend.distributed(None):
        latents = _backend.in_batches(
            encode, np.arange(len(image_indices)), tiles.safe_batch(size)
        )
    vectors = latents.reshape(-1, latents.shape[-1])
    order = rng.choice(len(vectors), min(count, len(vectors)), False)
    # If there are too few, repeat them evenly.
    vectors = vectors[np.resize(order, count)]
    # Background patches have equal vectors, but codes must differ: add noise.
    spread = 1e-3 * (vectors.std() or 1)
    return vectors + spread * rng.standard_normal(vectors.shape)


def score(codec: Codec, images: np.ndarray) -> dict[str, float]:
    """Return mean squared error and detail correlation of reconstructions.

    Shapes: images ``(n, *space, channels)``.
    """
    axes = tuple(range(1, images.ndim))

    def scores(piece: np.ndarray, reconstructed: np.ndarray):
        detail = np.zeros(len(piece))
        # A constant image has no detail.
        varied = np.ptp(piece, axes) > 0
        if varied.any():
            detail[varied] = detail_correlation(reconstructed[varied], piece[varied])
        squares = np.mean((reconstructed - piece) ** 2, axes, dtype="float64")
        return np.stack([squares, detail], -1)

    figures = _measure_reconstructions(scores, codec, images)
    mse, detail = figures.mean(axis=0)
    low, high = codec.intensity
    return {"mse": float(mse / ((high - low) ** 2 or 1)), "detail": float(detail)}


def _measure_reconstructions(measure: Callable, codec: Codec, images: np.ndarray):
    """Compare images with their reconstructions, in batches."""

    def measured(numbers: np.ndarray):
        piece = np.asarray(images[numbers], "float32")
        reconstructed = codec.decode(codec.encode(piece), piece.shape[1:-1])
        return measure(piece, reconstructed)

    batch = tiles.safe_batch(images.shape[1:-1], _MAX_MEASURED_VOXELS)
    return _backend.in_batches(measured, np.arange(len(images)), batch)
