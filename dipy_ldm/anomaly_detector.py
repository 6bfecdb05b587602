"""The anomaly detector: find where images differ from the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
import math
from typing import Any, Self, Unpack

from keras import ops
import numpy as np
import numpy.typing as npt

from dipy_ldm import _backend, _schema, _serialization
from dipy_ldm._base import Entry, Estimator, keeps_earlier_fit, show_options
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import check_counts
from dipy_ldm.anomaly._lesions import Atlas
from dipy_ldm.anomaly._network import Parameters
from dipy_ldm.anomaly._training import LESION_WEIGHT, DetectorStage, check
from dipy_ldm.data import _image_checks as image_checks
from dipy_ldm.data._batches import patch_size, read_patches, rescale
from dipy_ldm.nn import _analysis as analysis, _building as building
from dipy_ldm.training import FitOptions, resolve, train
from dipy_ldm.training._precision import Precision, log_precision
from dipy_ldm.training._trainer import TrainingData

# Since the network halves the resolution, its output changes a little when an image is
# shifted by a voxel: the mean over both shifts is better than either.
_SHIFTS = 0, 1
# Names of the atlas in a model file.
_ATLAS = [f"atlas.{name}" for name in Atlas._fields]


class AnomalyDetector(Estimator):
    """Anomaly detector that is trained on synthetic lesions.

    A network gets patches of images, parts of which were made brighter or darker, with
    the mean and deviation of the training images there, and learns to segment these
    parts :footcite:p:`Tan2022`. It needs no annotated lesions and is specific to no
    disease: it detects what is unusual among the training images.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level; each halves the resolution.
    blocks : int
        Residual blocks of each level, in the encoder and in the decoder.
    seed : int
        Random seed.

    Attributes
    ----------
    network_ : keras.Model
        The network.
    atlas_ : Atlas
        Mean and standard deviation of the training images at each place.
    shape_, intensity_, fingerprint_, precision_, step_seconds_
        As in :class:`dipy_ldm.VQVAE`.
    history_ : dict of str to list
        Metrics of each round: ``step``, ``epoch``, ``loss`` and, on validation data,
        ``val_dice``, the Dice coefficient of synthetic lesions in held-out images.

    References
    ----------
    .. footbibliography::
    """

    _kind = "detector"
    _entries = (
        Entry("shape", "shape_", tuple),
        Entry("intensity", "intensity_", tuple),
        Entry("history", "history_"),
        Entry("fingerprint", "fingerprint_"),
        Entry.of_record("precision", "precision_", Precision),
    )

    shape_: tuple[int, ...]
    intensity_: tuple[float, float]
    network_: Any
    # Compiled: from inputs of the network to log odds.
    _detect: Callable

    def __init__(
        self, *, widths: Sequence[int] = (32, 64, 64), blocks: int = 2, seed: int = 0
    ) -> None:
        self.widths = widths
        self.blocks = blocks
        self.seed = seed

    @show_options(FitOptions)
    @keeps_earlier_fit
    def fit(
        self,
        images: npt.ArrayLike,
        *,
        validation_data: npt.ArrayLike | None = None,
        patch: int | Sequence[int] | None = None,
        **options: Unpack[FitOptions],
    ) -> Self:
        """Train on images without lesions.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of any range.
        validation_data : array_like, optional
            Held-out images for validation after each round.
        patch : int or sequence of int, optional
            Side lengths in pixels or voxels of the random patches; shorter sides are
            taken whole. Default: 48.
        **options
            See :class:`dipy_ldm.training.FitOptions`. Default: 10 epochs.

        Returns
        -------
        AnomalyDetector
            The estimator itself.

        Raises
        ------
        InputError
            If the images or an option are invalid, or nothing was learnt.
        """
        images = image_checks.as_array(images)
        parameters, resolved = self._plan_fit(images.shape, patch, options)
        survey = image_checks.trainable_survey(images)
        bounds = survey.low, survey.high
        if validation_data is not None:
            validation_data = image_checks.validated_held_out(
                validation_data, images.shape
            )
            image_checks.check_ranges(validation_data, bounds, "validation image")
        self.precision_ = log_precision(resolved.precision)
        self.shape_ = images.shape[1:]
        self.intensity_, self.fingerprint_ = bounds, survey.fingerprint
        self.atlas_ = Atlas.learn(images, bounds)
        self._fitted_with = parameters._asdict()
        size = parameters.window(images.shape[1:-1], patch)
        data = TrainingData(images, survey, size, validation_data)
        with _backend.distributed(resolved.strategy):
            self._build()
            stage = DetectorStage(
                self.network_, self._log_odds, parameters, self.atlas_, data, resolved
            )
            train(self, stage)
        return self

    @show_options(FitOptions)
    def check(
        self,
        shape: tuple[int, ...],
        *,
        patch: int | Sequence[int] | None = None,
        **options: Unpack[FitOptions],
    ) -> None:
        """Refuse a fit that is invalid or would exceed the memory.

        ``shape`` is that of all images, ``(n, *space, channels)``; other arguments and
        errors are as in :meth:`fit`.
        """
        self._plan_fit(shape, patch, options)

    def _plan_fit(self, shape, patch, options):
        """Check a fit, and return its parameters and resolved options."""
        rank = len(shape) - 2
        parameters = Parameters(**self._resolved(rank))
        resolved = resolve("detector", rank, options)
        check(parameters, shape, patch, resolved)
        return parameters, resolved

    def predict(
        self,
        images: npt.ArrayLike,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Return the probability that each pixel or voxel is in a lesion.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of the shape of the training images.
        batch_size : int, optional
            Images per batch. Default: as many as safely fit into memory.
        tile : int, optional
            Side length in voxels of the tiles in which large images are processed; the
            result is the same.

        Returns
        -------
        ndarray
            Probabilities, float32 ``(n, *space)``, for lesions as frequent as the
            synthetic ones.

        Raises
        ------
        InputError
            If the images or an option are invalid.
        """
        self._check_fitted()
        check_counts(batch_size=batch_size, tile=tile)
        whose = "that the detector was fitted to"
        images = image_checks.validated_images(images, self.shape_, whose)
        space, factor = images.shape[1:-1], Parameters(**self._fitted_with).factor
        tiling = analysis.tiling(
            self.network_, tile, factor, input_factor=factor, output_factor=factor
        )
        size = patch_size(tuple(n + max(_SHIFTS) for n in space), factor)

        def shifted(piece, by):
            corners = np.full((len(piece), len(space)), -by)
            windows = read_patches(piece, range(len(piece)), corners, size)
            inputs = self.atlas_.describe(rescale(windows, self.intensity_), corners)
            odds = tiles.in_tiles(self._log_odds, inputs, **tiling)[..., 0]
            return odds[(slice(None), *(slice(by, by + n) for n in space))]

        def detect(numbers):
            piece = images[numbers]
            image_checks.check_range(piece, self.intensity_, numbers)
            mean = sum(shifted(piece, by) for by in _SHIFTS) / len(_SHIFTS)
            return 1 / (1 + np.exp(-mean))

        batch_size = batch_size or tiles.safe_batch(space)
        return _backend.in_batches(detect, np.arange(len(images)), batch_size)

    def _log_odds(self, inputs):
        """Return log odds of lesions, ``(n, *space, 1)``, from images and atlas."""
        # Undo the weight of lesions in the training loss.
        weighted = ops.convert_to_numpy(self._detect(inputs))
        return weighted - np.float32(math.log(LESION_WEIGHT))

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the weights by their names in a model file."""
        tensors = super().to_tensors()
        return dict(zip(_ATLAS, self.atlas_)) | tensors

    def _restore(self, tensors, document):
        self.atlas_ = Atlas(*(tensors[name].astype("float32") for name in _ATLAS))
        return super()._restore(tensors, document)

    @classmethod
    def _expected_shapes(cls, document, shapes):
        _schema.check_sizes(document["detector"], shapes)
        *space, channels = document["shape"]
        parameters = Parameters(**document["detector"])
        build = partial(parameters.build, (None,) * len(space), channels)
        sketch = building.build_without_weights("float32", build)
        atlas = dict.fromkeys(_ATLAS, (*space, channels))
        return atlas | _serialization.shapes(sketch, "detector")

    def _networks(self):
        return {"detector": self.network_}

    def _build(self):
        """Build the network in full precision."""
        *space, channels = self.shape_
        with building.precision("float32"):
            parameters = Parameters(**self._fitted_with)
            network = parameters.build((None,) * len(space), channels)
        self.network_ = network
        self._detect = _backend.compiled(network, network.inputs, [network])
