"""A fitted autoencoder at work: images to latents and back."""

from collections.abc import Callable
from typing import Any

from keras import ops
import numpy as np
import numpy.typing as npt

from dipy_ldm import _backend, presets
from dipy_ldm._base import Estimator
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import check_counts, check_sizes, check_space
from dipy_ldm.autoencoder import _network as autoencoder_network
from dipy_ldm.autoencoder._sharpening import REACH, sharpened
from dipy_ldm.autoencoder._training import estimate_coding
from dipy_ldm.data._batches import read_whole, scaled_to, window_size
from dipy_ldm.data._checks import (
    as_array,
    check_channels,
    check_finite,
    check_latents,
    check_range,
)
from dipy_ldm.nn import analysis


class Codec(Estimator):
    """What encodes and decodes images, once it is fitted.

    Attributes
    ----------
    encoder_, decoder_ : keras.Model
        The networks.
    quantizer_ : keras.layers.Layer
        What replaces latents by codes.
    shape_ : tuple of int
        Shape of an image, ``(*space, channels)``.
    intensity_ : tuple of float
        Values that become 0 and 1.
    sharpening_ : float
        How much sharper what is decoded is made.
    """

    encoder_: Any
    quantizer_: Any
    decoder_: Any
    shape_: tuple[int, ...]
    intensity_: tuple[float, float]
    sharpening_: float
    # Compiled: arrays in [0, 1] to latents, and latents to such arrays.
    _encode: Callable
    _decode: Callable

    @property
    def factor(self):
        """How many times smaller than images latents are, per side."""
        chosen = self._described()
        check_sizes(widths=chosen["widths"], blocks=chosen["blocks"])
        return autoencoder_network.factor_of(chosen["widths"])

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Say what shape the latents have.

        Parameters
        ----------
        shape : tuple of int
            Shape of an image, ``(*space, channels)``.

        Returns
        -------
        tuple of int
            Shape of its latents, ``(*ceil(space / factor), code_dim)``.
        """
        window = window_size(shape[:-1], self.factor)
        channels = self._described()["code_dim"]
        channels = channels or presets.of_rank(len(window)).code_dim
        return (*(size // self.factor for size in window), channels)

    def encode(
        self,
        images: npt.ArrayLike,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Map images to latents, before quantisation.

        Large images are encoded tile by tile, to the same, as they are decoded.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``.
        batch_size : int, optional
            Images that are encoded at once; as many as memory surely allows if
            None.
        tile : int, optional
            Voxels along a side of a tile, as of :meth:`decode`.

        Returns
        -------
        ndarray
            Latents, float32 ``(n, *ceil(space / factor), code_dim)``.

        Raises
        ------
        InputError
            If the images or an option can't be used.
        """
        self._check_fitted()
        check_counts(batch_size=batch_size, tile=tile)
        images = as_array(images, rank=len(self.shape_) - 1)
        check_channels("images", images, self.shape_[-1])

        tiling = self._tiling(self.encoder_, tile, input_factor=self.factor)

        def encode(numbers):
            some = check_finite(images[numbers], numbers)
            windows = self._to_network(check_range(some, self.intensity_, numbers))
            return tiles.in_tiles(self._encode, windows, **tiling)

        return _backend.in_batches(
            encode,
            np.arange(len(images)),
            batch_size or tiles.safe_batch(images.shape[1:-1]),
        )

    def decode(
        self,
        latents: np.ndarray,
        *,
        space: tuple[int, ...] | None = None,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Quantise latents and map them to images.

        Large images are decoded tile by tile. Tiles overlap by all that a voxel
        depends on, so that the result is the same.

        Parameters
        ----------
        latents : ndarray
            Latents, ``(n, *space / factor, code_dim)``.
        space : tuple of int, optional
            Size of the images, where it is not that of the training images.
        batch_size : int, optional
            Latents that are decoded at once; as many as memory surely allows if
            None.
        tile : int, optional
            Voxels along a side of a tile, without the overlap; chosen by the size
            of the images if None.

        Returns
        -------
        ndarray
            Images, float32 ``(n, *space, channels)``, in the intensity range of
            the training images.

        Raises
        ------
        InputError
            If the latents or an option can't be used.
        """
        self._check_fitted()
        check_counts(batch_size=batch_size, tile=tile)
        space = self.shape_[:-1] if space is None else tuple(space)
        check_space(space, len(self.shape_) - 1)
        latents = check_latents(latents, self.latent_shape((*space, 1)), space)
        tiling = self._tiling(self.decoder_, tile, output_factor=self.factor)
        cut = tuple(map(slice, space))
        low, high = self.intensity_

        def sharply(piece):
            return sharpened(self._decode(piece), self.sharpening_)

        def decode(piece):
            images = tiles.in_tiles(sharply, piece, **tiling)[(slice(None), *cut)]
            return np.clip(images, 0, 1) * np.float32(high - low) + np.float32(low)

        batch_size = batch_size or tiles.safe_batch(space)
        return _backend.in_batches(decode, latents, batch_size)

    def predict(
        self,
        images: npt.ArrayLike,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Reconstruct images.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``.
        batch_size : int, optional
            Images that are reconstructed at once; as many as memory surely allows
            if None.
        tile : int, optional
            Voxels along a side of a tile, as of :meth:`decode`.

        Returns
        -------
        ndarray
            Reconstructions, float32, of the shape of ``images``.

        Raises
        ------
        InputError
            If the images or an option can't be used.
        """
        check_counts(batch_size=batch_size, tile=tile)
        latents = self.encode(images, batch_size=batch_size, tile=tile)
        space = np.shape(images)[1:-1]
        return self.decode(latents, space=space, batch_size=batch_size, tile=tile)

    def codes(self, latents: np.ndarray) -> np.ndarray:
        """Tell which codes each latent vector is nearest to.

        Parameters
        ----------
        latents : ndarray
            Latents, ``(n, *space, code_dim)``.

        Returns
        -------
        ndarray of int
            Rows of ``codebook_``, one of each codebook, ``(n, *space, n_codebooks)``;
            the sum of these codes is what is decoded.

        Raises
        ------
        InputError
            If the latents have other channels than codes.
        """
        self._check_fitted()
        check_channels("latents", latents, self._described()["code_dim"])
        return ops.convert_to_numpy(self.quantizer_.nearest(latents))

    def needed_memory(
        self,
        space: tuple[int, ...] | None = None,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> tuple[float, float]:
        """Estimate what encoding and decoding images take, beside their results.

        Parameters
        ----------
        space : tuple of int, optional
            Size of the images, where it is not that of the training images.
        batch_size, tile : int, optional
            As of :meth:`decode`.

        Returns
        -------
        encoding, decoding : float
            Bytes.
        """
        self._check_fitted()
        space = self.shape_[:-1] if space is None else space
        into = self._tiling(self.encoder_, tile, input_factor=self.factor)
        back = self._tiling(self.decoder_, tile, output_factor=self.factor)
        encoding, decoding = (
            estimate_coding(
                self._described(),
                space,
                self.shape_[-1],
                tile=tiling["tile"] * self.factor,
                margin=tiling["margin"] * self.factor,
                batch_size=batch_size or tiles.safe_batch(space),
            )
            for tiling in (into, back)
        )
        return encoding[0], decoding[1]

    @property
    def codebook_(self):
        """The codes, ``(n_codebooks * n_codes, code_dim)``."""
        self._check_fitted()
        return ops.convert_to_numpy(self.quantizer_.codebook)

    def _is_fitted(self):
        return hasattr(self, "encoder_")

    def _tiling(self, network, tile, **sizes):
        """Say how large tiles are and how far they overlap, for a network's sizes."""
        beyond = REACH if network is self.decoder_ and self.sharpening_ else 0
        margin = analysis.receptive_radius(network, beyond=beyond, **sizes)
        return tiles.tiling(tile, len(self.shape_) - 1, margin, self.factor) | sizes

    def _to_network(self, images):
        """Bring images to [0, 1], and their sizes to multiples of the factor."""
        size = window_size(images.shape[1:-1], self.factor)
        return scaled_to(read_whole(images, size), self.intensity_)
