"""Encode images to latents and decode latents to images, in tiles."""

from collections.abc import Sequence
from functools import cached_property, partial
import math
from typing import Any, NamedTuple

import keras
from keras import ops
import numpy as np

from dipy_ldm import _backend, _schema, _serialization
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import at_least, check_seed, check_sizes, choose, whole
from dipy_ldm._utils.types import Space
from dipy_ldm.autoencoder import losses
from dipy_ldm.autoencoder._network import encoder_and_decoder
from dipy_ldm.autoencoder._sharpening import RADIUS, sharpened
from dipy_ldm.autoencoder.quantizers import BOTTLENECKS
from dipy_ldm.data._batches import patch_size, read_padded, rescale
from dipy_ldm.data._image_checks import check_range
from dipy_ldm.nn import _analysis as analysis, _building as building
from dipy_ldm.training._memory import DISTANCE_COPIES


class Parameters(NamedTuple):
    """Resolved parameters of an autoencoder."""

    widths: list[int]
    blocks: int
    n_codes: int
    n_codebooks: int
    code_dim: int
    commitment: float
    loss: str
    bottleneck: str
    seed: int

    def check(self) -> None:
        """Refuse invalid parameters."""
        choose("loss", self.loss, losses.LOSSES)
        choose("bottleneck", self.bottleneck, BOTTLENECKS)
        check_seed(self.seed)
        check_sizes(widths=self.widths)
        for name in ("blocks", "n_codes", "n_codebooks", "code_dim"):
            whole(name, getattr(self, name), 1)
        at_least("commitment", self.commitment, 0)

    @property
    def factor(self):
        """Downsampling factor of latents per side."""
        check_sizes(widths=self.widths)
        return 2 ** len(self.widths)

    def latent_shape(self, space: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents of an image, ``(*space, code_dim)``."""
        window = patch_size(space, self.factor)
        return (*(size // self.factor for size in window), self.code_dim)

    def networks(
        self, space: Space, channels: int, remat: bool = False
    ) -> tuple[keras.Model, keras.Model]:
        """Build encoder and decoder, in the current precision."""
        names = ("widths", "blocks", "code_dim", "seed")
        options = {name: getattr(self, name) for name in names}
        return encoder_and_decoder(space, channels, remat=remat, **options)

    def sketch(
        self, precision: str, space: Space, channels: int, remat: bool = False
    ) -> tuple[Any, Any]:
        """Build encoder and decoder without weights, for their shapes alone."""
        build = partial(self.networks, space, channels, remat)
        return building.build_without_weights(precision, build)

    def weight_shapes(self, shape: Sequence[int]) -> _schema.Shapes:
        """Return the shapes of all tensors, for images ``(*space, channels)``."""
        sketches = self.sketch("float32", (None,) * (len(shape) - 1), shape[-1])
        codes = self.n_codebooks * self.n_codes
        shapes: _schema.Shapes = {"codebook": (codes, self.code_dim)}
        for name, sketch in zip(("encoder", "decoder"), sketches):
            shapes |= _serialization.shapes(sketch, name)
        return shapes

    def build(self, space: Space, channels: int, remat: bool = False) -> tuple:
        """Build encoder, quantizer and decoder, in the current precision."""
        encoder, decoder = self.networks(space, channels, remat)
        quantizer = BOTTLENECKS[self.bottleneck](
            self.n_codes, self.commitment, self.n_codebooks, name="quantizer"
        )
        quantizer.build(encoder.output.shape)
        return encoder, quantizer, decoder


def expected_shapes(document: dict, shapes: _schema.Shapes) -> _schema.Shapes:
    """Return the tensor shapes that a document implies; refuse oversized networks."""
    parameters = Parameters(**document["vqvae"])
    choose("bottleneck", parameters.bottleneck, BOTTLENECKS)
    _schema.check_sizes(document["vqvae"], shapes)
    return parameters.weight_shapes(document["shape"])


class Codec:
    """Compiled encoder, quantizer and decoder in float32.

    Shapes: shape ``(*space, channels)`` of the training images.
    """

    def __init__(
        self,
        parameters: Parameters,
        shape: tuple[int, ...],
        intensity: tuple[float, float],
    ) -> None:
        self.parameters = parameters
        self.shape = shape
        self.intensity = intensity
        self.rank = len(shape) - 1
        with building.precision("float32"):
            parts = parameters.build((None,) * self.rank, shape[-1])
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder = parts
        self._encode = _backend.compiled(encoder, encoder.inputs, [encoder])
        self._decode = _backend.compiled(
            lambda latents: decoder(quantizer.quantise(latents)),
            decoder.inputs,
            [quantizer, decoder],
        )

    def copy_weights(self, trained: keras.Model) -> None:
        """Copy the weights of a trained network of the same parts."""
        for part in (self.encoder, self.decoder, self.quantizer):
            part.set_weights(trained.get_layer(part.name).get_weights())

    def encode(
        self, images: np.ndarray, batch_size: int | None = None, tile: int | None = None
    ) -> np.ndarray:
        """Encode images to latents.

        Shapes: images ``(n, *space, channels)``, result ``(n, *latent space,
        code_dim)``.
        """
        tiling = self._encoder_tiling(tile)
        size = patch_size(images.shape[1:-1], self.parameters.factor)

        def encode(numbers: np.ndarray):
            piece = images[numbers]
            check_range(piece, self.intensity, numbers)
            windows = rescale(read_padded(piece, size), self.intensity)
            return tiles.in_tiles(self._encode, windows, **tiling)

        batch_size = batch_size or tiles.safe_batch(images.shape[1:-1])
        return _backend.in_batches(encode, np.arange(len(images)), batch_size)

    def decode(
        self,
        latents: np.ndarray,
        space: tuple[int, ...],
        batch_size: int | None = None,
        tile: int | None = None,
        sharpening: float | np.ndarray = 0.0,
    ) -> np.ndarray:
        """Quantise latents and decode them to images of a size.

        Shapes: latents ``(n, *latent space, code_dim)``, result ``(n, *space,
        channels)``, sharpening ``()`` or ``(channels,)``.
        """
        tiling = self._decoder_tiling(tile, sharpening)
        crop = (slice(None), *map(slice, space))
        low, high = self.intensity

        def sharp(piece: np.ndarray):
            return sharpened(self._decode(piece), sharpening)

        def decode(piece: np.ndarray):
            images = np.clip(tiles.in_tiles(sharp, piece, **tiling)[crop], 0, 1)
            return images * np.float32(high - low) + np.float32(low)

        batch_size = batch_size or tiles.safe_batch(space)
        return _backend.in_batches(decode, latents, batch_size)

    @property
    def codebook(self):
        """All codes, ``(n_codebooks * n_codes, code_dim)``."""
        return ops.convert_to_numpy(self.quantizer.codebook)

    def nearest(self, latents: np.ndarray) -> np.ndarray:
        """Return the indices of the nearest codes, one of each codebook.

        Shapes: latents ``(n, *space, code_dim)``, result ``(n, *space, n_codebooks)``.
        """
        vectors = np.asarray(latents, "float32")
        return ops.convert_to_numpy(self.quantizer.nearest(vectors))

    def needed_memory(
        self,
        space: tuple[int, ...],
        batch_size: int | None = None,
        tile: int | None = None,
        sharpening: float | np.ndarray = 0.0,
    ) -> tuple[float, float]:
        """Estimate the bytes that encoding and decoding take, without their results."""
        batch_size = batch_size or tiles.safe_batch(space)
        encoder, decoder, latents = self._per_voxel
        codes = DISTANCE_COPIES * 4 * self.parameters.n_codes * latents
        factor = self.parameters.factor
        # Two float32 copies: in the range of the images and in [0, 1].
        image_bytes = 8 * self.shape[-1] * math.prod(space)

        def needed(per_voxel: float, tiling: dict[str, int]):
            tile = per_voxel * _max_tile_voxels(space, tiling, factor)
            return _backend.INFERENCE_OVERHEAD + batch_size * (tile + image_bytes)

        return (
            needed(encoder, self._encoder_tiling(tile)),
            needed(max(codes, decoder), self._decoder_tiling(tile, sharpening)),
        )

    @cached_property
    def _per_voxel(self):
        """Bytes of encoder and decoder, and number of latents, per voxel."""
        size = (4 * self.parameters.factor,) * self.rank
        parts = self.parameters.sketch("float32", size, self.shape[-1])
        latents = math.prod(parts[0].output.shape[1:-1])
        counts = *(analysis.memory_needs(part).live for part in parts), latents
        return [count / math.prod(size) for count in counts]

    def _encoder_tiling(self, tile: int | None):
        factor = self.parameters.factor
        return analysis.tiling(self.encoder, tile, factor, input_factor=factor)

    def _decoder_tiling(self, tile: int | None, sharpening: float | np.ndarray):
        factor, margin = self.parameters.factor, RADIUS if np.any(sharpening) else 0
        sizes = {"output_margin": margin, "output_factor": factor}
        return analysis.tiling(self.decoder, tile, factor, **sizes)


def _max_tile_voxels(space: tuple[int, ...], tiling: dict[str, int], factor: int):
    """Return the number of voxels of the largest tile, with its overlaps."""
    tile, margin = tiling["tile"] * factor, tiling["margin"] * factor
    largest = 1
    for size in space:
        # With only two tiles, each has a neighbour on one side alone.
        neighbours = 1 if tile + 2 * margin < size <= 2 * tile else 2
        largest *= min(size, tile + neighbours * margin)
    return largest
