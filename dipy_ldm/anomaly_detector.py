"""The detector: where an image is not as those that it was learnt from."""

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
from dipy_ldm.data import _image_checks as checks
from dipy_ldm.data._batches import patch_size, read_patches, rescale
from dipy_ldm.nn import _analysis as analysis, _building as building
from dipy_ldm.training import FitOptions, resolve, train
from dipy_ldm.training._precision import Precision, log_precision
from dipy_ldm.training._trainer import TrainingData

# The network halves what it is given, so that what it says of an image changes a
# little where that is moved by a voxel: the mean of both is better than either.
_SHIFTS = 0, 1
# Names of the atlas in a model file.
_ATLAS = [f"atlas.{name}" for name in Atlas._fields]


class AnomalyDetector(Estimator):
    """Anomaly detector that is trained on synthetic lesions.

    A network is shown windows of images in which parts were made brighter or darker,
    beside what images are like at that place, and learns to say which parts
    :footcite:p:`Tan2022`. It needs no lesion that somebody has marked, and knows none
    of any disease: it finds what has no place in images like those that it was shown.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level; each halves the resolution.
    blocks : int
        Residual blocks of each level, on the way down and on the way up.
    seed : int
        Seed of everything random.

    Attributes
    ----------
    network_ : keras.Model
        The network.
    atlas_ : Atlas
        Mean and standard deviation of the training images at each place.
    shape_, intensity_, fingerprint_, precision_, step_seconds_
        As of :class:`dipy_ldm.VQVAE`.
    history_ : dict of str to list
        Figures of each round: ``step``, ``epoch``, ``loss``, and of validation
        ``val_dice``, the Dice coefficient of lesions planted in images that are held
        out.

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
    # Compiled: what the network is given to logarithms of odds.
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
        """Learn what images without lesions are like.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of any range.
        validation_data : array_like, optional
            Images on which it is validated after each round.
        patch : int or sequence of int, optional
            Pixels or voxels along each side of the windows that are drawn of them; 48
            if None, or all that there are.
        **options
            See :class:`dipy_ldm.training.FitOptions`. Default: 10 epochs.

        Returns
        -------
        AnomalyDetector
            The estimator itself.

        Raises
        ------
        InputError
            If the images or an option can't be used, or nothing was learnt.
        """
        images = checks.as_array(images)
        parameters, resolved = self._plan_fit(images.shape, patch, options)
        survey = checks.check_trainable(images)
        bounds = survey.low, survey.high
        if validation_data is not None:
            validation_data = checks.check_validation(validation_data, images.shape)
            checks.check_ranges(validation_data, bounds, "validation image")
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
        """Refuse a fit that can't be done, or would not fit into the memory.

        The shape is that of all images, ``(n, *space, channels)``; the rest, and what
        is raised, is as of :meth:`fit`.
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
        """Return how likely each pixel or voxel is in a lesion.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of the shape of those that it was fitted
            to.
        batch_size : int, optional
            Images at once; as many as safely fit into memory if None.
        tile : int, optional
            Voxels along a side of the tiles in which large images are worked on; the
            result is the same.

        Returns
        -------
        ndarray
            Probabilities, float32 ``(n, *space)``, as if lesions were as frequent as
            those that were planted.

        Raises
        ------
        InputError
            If the images or an option can't be used.
        """
        self._check_fitted()
        check_counts(batch_size=batch_size, tile=tile)
        whose = "that the detector was fitted to"
        images = checks.require_shape(images, self.shape_, whose)
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
            piece = checks.check_range(images[numbers], self.intensity_, numbers)
            mean = sum(shifted(piece, by) for by in _SHIFTS) / len(_SHIFTS)
            return 1 / (1 + np.exp(-mean))

        batch_size = batch_size or tiles.safe_batch(space)
        return _backend.in_batches(detect, np.arange(len(images)), batch_size)

    def _log_odds(self, inputs):
        """Return the log odds of a lesion, ``(n, *space, 1)``, by images and atlas."""
        # In training, lesions count more than they are.
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
        """Make the network that detects, in full precision."""
        *space, channels = self.shape_
        with building.precision("float32"):
            parameters = Parameters(**self._fitted_with)
            network = parameters.build((None,) * len(space), channels)
        self.network_ = network
        self._detect = _backend.compiled(network, network.inputs, [network])
