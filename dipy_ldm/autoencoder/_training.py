"""How the autoencoder is trained: its stage, and the life of its codes."""

from collections.abc import Sequence
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
from dipy_ldm.data.channels import channel_slices, continuous_columns, to_saved
from dipy_ldm.metrics import detail_correlation
from dipy_ldm.nn import _building as building
from dipy_ldm.training import _memory as memory
from dipy_ldm.training._options import ResolvedOptions
from dipy_ldm.training._trainer import Stage, TrainingData

# Pieces of images that are encoded at least for codes to be revived.
_MIN_PIECES = 16
# With less perplexity all latents have one code, and nearly so with little more.
_MIN_PERPLEXITY = 1.5
# Voxels that are measured at once: so few that the training before took more memory.
_MAX_MEASURED_VOXELS = 2**18
# For each value of an image that is measured beside its reconstruction: both, their
# detail and what that is made of, 16 copies as measured on processors.
_MEASURING_BYTES = 64


def check(
    parameters: Parameters,
    shape: tuple[int, ...],
    patch: int | Sequence[int] | None,
    options: ResolvedOptions,
) -> None:
    """Refuse a training that can't be done, or would not fit into the memory.

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
    needed = memory.estimate_training([encoder, decoder], options.share, distances)
    if not any(np.less(size, shape[1:-1])):
        return needed
    # Steps see windows; validation and sharpening, whole images.
    build = partial(Codec, parameters, shape[1:], (0.0, 1.0))
    codec = building.build_without_weights("float32", build)
    measuring = _backend.ONCE_APPLYING + _MEASURING_BYTES * math.prod(shape[1:])
    return max(needed, measuring, *codec.needed_memory(shape[1:-1], 1))


class AutoencoderStage(Stage):
    """An autoencoder in training: codes start in the data; dead ones are revived."""

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
        # Weights to begin with, by their names in a model file.
        self.initial = initial
        self.data = data
        self.options = options
        self.length = options.length(len(data.images))
        # Of images in [0, 1].
        self.baseline = data.survey.variance / data.survey.scale**2
        self.validation = None
        if data.held_out is not None:
            check_ranges(data.held_out, codec.intensity, "validation image")
            self.validation = self.affordable(data.held_out)
        self.settings = codec.parameters._asdict() | data.settings()
        self.settings |= self._loss_settings()
        columns, n = channel_slices(data.channels), codec.shape[-1]
        self.batches = batches(
            data.images,
            options.batch_size,
            seed=codec.parameters.seed,
            size=data.size,
            bounds=codec.intensity,
            masks=data.masks,
            background=data.background,
            augment=data.augment,
            fixed=[i for c, own in columns for i in range(n)[own] if not c.brightens],
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

    def affordable(self, images: np.ndarray) -> np.ndarray:
        """Keep so many images that validation takes about a tenth of a round's time."""
        size, batch_size = self.data.size, self.options.batch_size
        learnt = self.length.end(0) * batch_size * math.prod(size)
        # A step takes as long as three reconstructions.
        most = 0.1 * 3 * learnt / math.prod(images.shape[1:-1])
        return images[: max(1, math.ceil(most))]

    def build(self) -> Any:
        """Build all parts in a row, in the precision of the training."""
        channels = self.codec.shape[-1]
        parameters = self.codec.parameters
        encoder, quantizer, decoder = parameters.build(
            self.data.size, channels, self.options.remat
        )
        images = encoder.inputs[0]
        reconstructed = decoder(quantizer(encoder(images)))
        columns = channel_slices(self.data.channels)
        parts = [(own, c.loss) for c, own in columns if c.loss]
        loss = losses.reconstruction_loss(
            parameters.loss, channels, self.baseline, parts
        )
        metrics = [losses.mean_squared_error(channels)]
        return self.compiled(images, reconstructed, loss, metrics)

    def begin(self, model: keras.Model) -> None:
        """Initialise the codes from encoded images, unless there are codes."""
        for name in ("encoder", "decoder"):
            network = model.get_layer(name)
            weights = _serialization.weights(network, name) | self.initial
            _serialization.set_weights(network, name, weights)
        quantizer = model.get_layer("quantizer")
        codes = self.initial.get("codebook")
        if codes is None:
            self.codec.take_weights(model)
            rng = np.random.default_rng(self.codec.parameters.seed)
            codes = quantizer.initial(self._draw(rng), rng)
        quantizer.codebook.assign(_backend.broadcast_from_chief(codes))

    def end_round(
        self, model: keras.Model, number: int, last: bool
    ) -> dict[str, float]:
        """Revive dead codes, take the weights and validate."""
        quantizer = model.get_layer("quantizer")
        figures, dead = quantizer.figures()
        self.finish(model)
        # A code revived after the last round would not be trained any more.
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
        self.codec.take_weights(model)

    def verdict(self, figures: dict[str, float]) -> str | None:
        """Return the message for an autoencoder that learnt nothing, or None."""
        if figures["perplexity"] < _MIN_PERPLEXITY:
            return (
                f"nearly all latents have the same code (perplexity "
                f"{figures['perplexity']:.1f}): nothing of the images is left in them; "
                "train for more steps, or with a lower learning rate."
            )
        images, summary = self.affordable(self.data.images), self.data.survey
        # Not by the figures of the last round, which are means over all its steps.
        mse = score(self.codec, images)["mse"]
        # Where images hardly differ, their mean is hard to beat, and need not be.
        mean = max(summary.spread, 0.05 * summary.variance) / summary.scale**2
        if mse < mean:
            return None
        # What is learnt from windows of a few voxels, which are border all around, does
        # not hold for whole images.
        in_parts = any(np.less(self.data.size, images.shape[1:-1]))
        larger = "with larger patches, " if in_parts else ""
        return (
            f"the autoencoder's reconstructions are no nearer to the images than the "
            f"mean of all images is (mean squared error {mse:.3g} and {mean:.3g}); "
            f"train for more steps, {larger}or with another learning rate (0.001 to "
            "0.002 for volumes)."
        )

    def sharpening(self) -> float:
        """Return how much sharper decoded volumes should be; 0 for images."""
        columns = continuous_columns(self.data.channels, self.codec.shape[-1])
        if self.codec.rank < 3 or not columns.any():
            return 0.0

        def measured(*pair):
            return measure_detail(*(images[..., columns] for images in pair))

        images = self.affordable(self.data.images)
        figures = _measure_reconstructions(measured, self.codec, images)
        return sharpening_gain(figures.sum(axis=0))

    def _draw(self, rng):
        return partial(draw_vectors, self.codec, self.data.images, self.data.size, rng)


def draw_vectors(
    codec: Codec,
    images: np.ndarray,
    size: tuple[int, ...],
    rng: np.random.Generator,
    count: int,
) -> np.ndarray:
    """Encode patches until there are enough vectors, and draw from them.

    Shapes: images ``(n, *space, channels)``, result ``(count, code_dim)``.
    """
    per_piece = math.prod(codec.parameters.latent_shape(size)[:-1])
    pieces = max(-(-count // per_piece), _MIN_PIECES)
    chosen = np.sort(rng.choice(len(images), min(pieces, len(images)), False))
    slack = np.maximum(np.subtract(images.shape[1:-1], size), 0)
    corners = rng.integers(0, slack + 1, (len(chosen), len(size)))

    def encode(places):
        return codec.encode(read_patches(images, chosen[places], corners[places], size))

    # On one device, however many there are: with other pieces the last bit is another,
    # and with that k-means may come to other codes.
    with _backend.distributed(None):
        latents = _backend.in_batches(
            encode, np.arange(len(chosen)), tiles.safe_batch(size)
        )
    vectors = latents.reshape(-1, latents.shape[-1])
    order = rng.choice(len(vectors), min(count, len(vectors)), False)
    # Where there are too few, each is drawn as often as any other.
    vectors = vectors[np.resize(order, count)]
    # Backgrounds encode to equal vectors; codes must differ.
    spread = 1e-3 * (vectors.std() or 1)
    return vectors + spread * rng.standard_normal(vectors.shape)


def score(codec: Codec, images: np.ndarray) -> dict[str, float]:
    """Measure how near reconstructions come to images.

    Shapes: images ``(n, *space, channels)``.
    """
    axes = tuple(range(1, images.ndim))

    def scores(piece, reconstructed):
        detail = np.zeros(len(piece))
        # In an image of one value there is none.
        varied = np.ptp(piece, axes) > 0
        if varied.any():
            detail[varied] = detail_correlation(reconstructed[varied], piece[varied])
        squares = np.mean((reconstructed - piece) ** 2, axes, dtype="float64")
        return np.stack([squares, detail], -1)

    figures = _measure_reconstructions(scores, codec, images)
    mse, detail = figures.mean(axis=0)
    low, high = codec.intensity
    return {"mse": float(mse / ((high - low) ** 2 or 1)), "detail": float(detail)}


def _measure_reconstructions(measure, codec, images):
    """Measure images beside their reconstructions, few at once."""

    def measured(numbers):
        piece = np.asarray(images[numbers], "float32")
        reconstructed = codec.decode(codec.encode(piece), piece.shape[1:-1])
        return measure(piece, reconstructed)

    batch = tiles.safe_batch(images.shape[1:-1], _MAX_MEASURED_VOXELS)
    return _backend.in_batches(measured, np.arange(len(images)), batch)
