"""Training stage of the anomaly detector, on synthetic lesions."""

from collections.abc import Callable, Sequence
from functools import partial
import math
from typing import Any

import keras
from keras import ops
import numpy as np

from dipy_ldm import _backend
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import check_patch, check_seed, check_sizes, whole
from dipy_ldm._utils.types import Batches, Tensor
from dipy_ldm.anomaly._lesions import Atlas, lesion_batches
from dipy_ldm.anomaly._network import Parameters
from dipy_ldm.metrics import dice
from dipy_ldm.nn import _building as building
from dipy_ldm.training import _memory as memory
from dipy_ldm.training._options import ResolvedOptions
from dipy_ldm.training._trainer import Stage, TrainingData

# Minimum number of windows for validation and for estimating the share of lesions.
_MIN_WINDOWS = 16
# Minimum share of a voxel in a lesion for it to be counted as lesion.
_LESION_SHARE = 0.5
# Weight of lesion voxels in the loss, since they are rare.
LESION_WEIGHT = 20.0


def check(
    parameters: Parameters,
    shape: tuple[int, ...],
    patch: int | Sequence[int] | None,
    options: ResolvedOptions,
) -> None:
    """Refuse invalid parameters, or a training that would not fit into memory.

    Shapes: shape ``(n, *space, channels)``.
    """
    check_seed(parameters.seed)
    check_sizes(widths=parameters.widths)
    whole("blocks", parameters.blocks, 1)
    options.check(shape[0])
    check_patch(patch, len(shape) - 2)
    size = parameters.window(shape[1:-1], patch)
    build = partial(parameters.build, size, shape[-1], options.remat)
    sketch = building.build_without_weights(options.precision.name, build)
    needed = memory.estimate_training([sketch], options.replica_batch_size)
    memory.check_training("the detector", needed, options)


class DetectorStage(Stage):
    """Training of an anomaly detector on images with synthetic lesions."""

    title = "detector"

    def __init__(
        self,
        network: keras.Model,
        log_odds: Callable,
        parameters: Parameters,
        atlas: Atlas,
        data: TrainingData,
        options: ResolvedOptions,
    ) -> None:
        self.network = network
        self.log_odds = log_odds
        self.parameters = parameters
        self.atlas = atlas
        self.data = data
        self.options = options
        self.length = options.length(len(data.images))
        self.settings = parameters._asdict() | data.settings()
        self.batches = self._batches(data.images, options.batch_size)
        self.baseline = baseline_loss(_lesion_share(self.batches))
        self.validation = None
        if data.held_out is not None:
            self.validation = self._windows(data.held_out[:_MIN_WINDOWS])

    def _batches(
        self, images: np.ndarray, batch_size: int, held_out: bool = False
    ) -> Batches:
        survey = self.data.survey
        return lesion_batches(
            images,
            batch_size,
            seed=self.parameters.seed + int(held_out),
            size=self.data.size,
            bounds=(survey.low, survey.high),
            atlas=self.atlas,
            deformed=not held_out,
        )

    def _windows(self, images: np.ndarray):
        """Draw fixed windows of held-out images with lesions."""
        # Kept in memory for the validation of each round.
        batches = self._batches(images, len(images), held_out=True)
        steps = range(-(-_MIN_WINDOWS // len(images)))
        inputs, masks = zip(*(batches.of(step) for step in steps))
        return np.concatenate(inputs), np.concatenate(masks) >= _LESION_SHARE

    def build(self) -> Any:
        """Build the network for windows, in the precision of the training."""
        channels = self.data.images.shape[-1]
        built = self.parameters.build(self.data.size, channels, self.options.remat)
        return self.compiled(built.inputs, built.outputs, lesion_loss)

    def end_round(
        self, model: keras.Model, number: int, last: bool
    ) -> dict[str, float]:
        """Publish the weights, and measure the validation Dice."""
        self.finish(model)
        if self.validation is None:
            return {}
        inputs, masks = self.validation
        batch_size = tiles.safe_batch(inputs.shape[1:-1])
        odds = _backend.in_batches(self.log_odds, inputs, batch_size)
        return {"val_dice": dice(odds > 0, masks)}

    def finish(self, model: keras.Model) -> None:
        """Publish the trained weights."""
        self.network.set_weights(model.get_weights())

    def failure(self, figures: dict[str, float]) -> str | None:
        """Return an error message if the detector learnt nothing, else None."""
        if figures["loss"] < self.baseline:
            return None
        return (
            "the detector has not learnt to find lesions (its loss is "
            f"{figures['loss']:.3g}, and {self.baseline:.3g} for a constant output); "
            "train for more steps, or with a lower learning rate."
        )


def _lesion_share(batches: Batches):
    """Return the share of voxels in lesions."""
    steps = range(-(-_MIN_WINDOWS // batches.size))
    return max(1e-6, float(np.mean([batches.of(step)[1].mean() for step in steps])))


def lesion_loss(y_true: Tensor, y_pred: Tensor):
    """Return the weighted binary cross entropy of each image; `y_pred` are logits.

    Shapes: y_true ``(batch, *space, 1)``, result ``(batch,)``.
    """
    inside = LESION_WEIGHT * y_true * ops.softplus(-y_pred)
    return ops.mean(
        inside + (1 - y_true) * ops.softplus(y_pred),
        axis=tuple(range(1, len(y_true.shape))),
    )


def baseline_loss(share: float) -> float:
    """Return the loss of the best constant prediction."""
    inside, outside = LESION_WEIGHT * share, 1 - share
    total = inside + outside
    return -inside * math.log(inside / total) - outside * math.log(outside / total)
