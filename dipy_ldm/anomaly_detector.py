"""The detector: where an image is not as those that it was learnt from."""

from collections.abc import Callable, Sequence
import math
from typing import Any, Self, Unpack

from keras import ops
import numpy as np
import numpy.typing as npt

from dipy_ldm import (
    _backend,
    _documents as documents,
    _serialization as persistence,
    presets,
)
from dipy_ldm._base import Entry, Estimator
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import check_counts, scalars
from dipy_ldm.anomaly import _training as learning
from dipy_ldm.anomaly._lesions import Atlas
from dipy_ldm.data._batches import read_windows, scaled_to, window_size
from dipy_ldm.data._checks import (
    as_array,
    as_fitted,
    check_alike,
    check_finite,
    check_range,
    check_trainable,
)
from dipy_ldm.nn import analysis, building
from dipy_ldm.training import Options, Training, train
from dipy_ldm.training._precision import Precision, tell

# The network halves what it is given, so that what it says of an image changes a
# little where that is moved by a voxel: the mean of both is better than either.
_MOVED = 0, 1


class Detector(Estimator):
    """What says where lesions are, by those that were planted in images without any.

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
        Entry("history", "history_", dict),
        Entry("fingerprint", "fingerprint_", str),
        Entry("precision", "precision_", Precision.from_saved, Precision.to_saved),
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

    def fit(
        self,
        images: npt.ArrayLike,
        *,
        validation_data: npt.ArrayLike | None = None,
        patch: int | Sequence[int] | None = None,
        **training: Unpack[Options],
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
        **training
            Options of :class:`dipy_ldm.training.Training`; ``epochs`` is 10 if left
            out.

        Returns
        -------
        Detector
            The estimator itself.

        Raises
        ------
        InputError
            If the images or an option can't be used, or nothing was learnt.
        """
        images = as_array(images)
        if validation_data is not None:
            validation_data = check_alike(validation_data, images.shape)
        chosen = _training(training, images.ndim - 2)
        learning.check(self, images.shape, patch, chosen)
        found = check_trainable(images)
        # Only now: what is refused leaves an estimator as it was.
        self.precision_ = tell(chosen.precision)
        self.shape_ = images.shape[1:]
        self.intensity_ = found.low, found.high
        self.fingerprint_ = found.fingerprint
        self.atlas_ = Atlas.learn(images, self.intensity_)
        self._learnt_with = self.hyperparameters()
        size = learning.size_of(images.shape[1:-1], self.hyperparameters(), patch)
        lessons = learning.Lessons(images, found.fingerprint, size, validation_data)
        with _backend.spread(chosen.strategy):
            self._build()
            train(self, learning.stage(self, lessons, chosen))
        return self

    def check(
        self,
        shape: tuple[int, ...],
        *,
        patch: int | Sequence[int] | None = None,
        **training: Unpack[Options],
    ) -> None:
        """Refuse a fit that can't be done, or would not fit into the memory.

        Parameters
        ----------
        shape : tuple of int
            Shape of all images, ``(n, *space, channels)``.
        patch, **training
            As of :meth:`fit`.

        Raises
        ------
        InputError
            If the memory is too small, or a number makes no sense.
        """
        chosen = _training(training, len(shape) - 2)
        learning.check(self, shape, patch, chosen)

    def predict(
        self,
        images: npt.ArrayLike,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Say of each pixel or voxel how likely it is in a lesion.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of the shape of those that it was fitted
            to.
        batch_size : int, optional
            Images at once; as many as memory surely allows if None.
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
        images = as_fitted(images, self.shape_, "detector")
        space = images.shape[1:-1]
        tiling = self._tiling(tile)
        wider = tuple(length + max(_MOVED) for length in space)
        size = window_size(wider, tiling["given"])

        def moved(some, by):
            corners = np.full((len(some), len(space)), -by)
            windows = read_windows(some, range(len(some)), corners, size)
            windows = scaled_to(windows, self.intensity_)
            given = self.atlas_.describe(windows, corners)
            cut = tuple(slice(by, by + length) for length in space)
            odds = tiles.in_tiles(self.odds, given, **tiling)[..., 0]
            return odds[(slice(None), *cut)]

        def detect(numbers):
            some = check_finite(images[numbers], numbers)
            check_range(some, self.intensity_, numbers)
            mean = sum(moved(some, by) for by in _MOVED) / len(_MOVED)
            return 1 / (1 + np.exp(-mean))

        batch_size = batch_size or tiles.safe_batch(space)
        return _backend.in_batches(detect, np.arange(len(images)), batch_size)

    def odds(self, given: np.ndarray) -> np.ndarray:
        """Let the network say how likely each pixel or voxel is in a lesion.

        Parameters
        ----------
        given : ndarray
            What it is given, ``(n, *space, features)``, as of
            :meth:`dipy_ldm.anomaly._lesions.Atlas.describe`; sides are multiples of
            ``2 ** len(widths)``.

        Returns
        -------
        ndarray
            Logarithms of the odds, ``(n, *space, 1)``.
        """
        # In training, lesions count more than they are.
        weighted = ops.convert_to_numpy(self._detect(given))
        return weighted - np.float32(math.log(learning.LESION_WEIGHT))

    def _tiling(self, tile):
        """Say how large tiles are and how far they overlap."""
        factor = 2 ** len(self._described()["widths"])
        sizes = {"input_factor": factor, "output_factor": factor}
        margin = analysis.receptive_radius(self.network_, **sizes)
        return tiles.tiling(tile, len(self.shape_) - 1, margin, factor) | sizes

    def _tensors(self):
        atlas = {f"atlas.{name}": x for name, x in self.atlas_._asdict().items()}
        return atlas | super()._tensors()

    def _restore(self, tensors, document):
        names = (f"atlas.{name}" for name in Atlas._fields)
        self.atlas_ = Atlas(*(tensors[name].astype("float32") for name in names))
        return super()._restore(tensors, document)

    @classmethod
    def _check_saved(cls, document, shapes):
        """Refuse tensors that are not those of the document, before any is read."""
        documents.check_shapes(shapes, cls._saved_shapes(document, shapes))

    @classmethod
    def _saved_shapes(cls, document, found):
        """Say what shapes tensors have, unless they would be more than there are."""
        detector = cls(**document["detector"])._describe(document)
        chosen = detector.hyperparameters()
        documents.check_sizes(chosen, found)
        space = (None,) * (len(detector.shape_) - 1)

        def build():
            return learning.network(chosen, space, detector.shape_[-1])

        sketch = building.build_without_weights("float32", build)
        atlas = dict.fromkeys(
            (f"atlas.{name}" for name in Atlas._fields), detector.shape_
        )
        return atlas | persistence.shapes(sketch, "detector")

    def _networks(self):
        return [("detector", self.network_)]

    def _is_fitted(self):
        return hasattr(self, "network_")

    def _build(self):
        """Make the network that detects, in full precision."""
        space, channels = self.shape_[:-1], self.shape_[-1]
        with building.precision("float32"):
            self.network_ = learning.network(
                self._described(), (None,) * len(space), channels
            )
        network = self.network_
        self._detect = _backend.compiled(network, network.inputs, [network])


def _training(options: Options, rank: int) -> Training:
    """Collect the options of the training, with the stage's own defaults."""
    usual = {"epochs": 10, "batch_size": presets.of_rank(rank).batch_size}
    return Training(**usual | scalars(options)).settled(rank, rates=learning.RATES)
