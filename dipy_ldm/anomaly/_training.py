"""How the detector is trained: from lesions that are planted."""

from collections.abc import Sequence
from functools import partial
import math
from typing import Any, NamedTuple

from keras import ops
import numpy as np

from dipy_ldm import _backend
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import check_patch, check_seed, check_sizes, plain
from dipy_ldm.anomaly import _network as anomaly_network
from dipy_ldm.anomaly._lesions import lesion_batches, n_features
from dipy_ldm.data._batches import Batches, window_size
from dipy_ldm.metrics import dice
from dipy_ldm.nn import building
from dipy_ldm.training import _memory as memory
from dipy_ldm.training._options import BASE_FAN_IN
from dipy_ldm.training._trainer import Stage

# Highest learning rates of images and of volumes, where none is given.
RATES = 2e-3, 2e-3
# Pixels or voxels along each side of a window, where nothing else is said.
PATCH = 48
# Windows on which the detector is validated at least, and those in which it is found
# how rare lesions are.
_WINDOWS = 16
# A voxel is in a lesion where that takes at least this share of it.
_INSIDE = 0.5
# How many times a voxel of a lesion counts: few voxels are.
LESION_WEIGHT = 20.0


class Lessons(NamedTuple):
    """What a detector learns from.

    Shapes: images ``(n, *space, channels)``.
    """

    images: np.ndarray
    fingerprint: str
    size: tuple
    held_out: np.ndarray | None = None

    def settings(self) -> dict:
        """Say on what the result depends."""
        return {
            "size": plain(self.size),
            "images": self.fingerprint,
            "the shape of the validation data": np.shape(self.held_out),  # type: ignore
        }


def check(
    detector: Any,
    shape: tuple[int, ...],
    patch: int | Sequence[int] | None,
    training: Any,
) -> None:
    """Refuse a training that can't be done, or would not fit into the memory.

    Shapes: shape ``(n, *space, channels)``.
    """
    check_seed(detector.seed)
    check_sizes(widths=detector.widths, blocks=detector.blocks)
    training.check(shape[0])
    check_patch(patch, len(shape) - 2)
    chosen = detector.hyperparameters()
    size = size_of(shape[1:-1], chosen, patch)
    build = partial(network, chosen, size, shape[-1], training.remat)
    sketch = building.build_without_weights(training.precision.name, build)
    needed = memory.estimate_training([sketch], training.share)
    memory.check_training("the detector", needed, training)


def size_of(
    space: tuple[int, ...], chosen: dict, patch: int | Sequence[int] | None = None
) -> tuple[int, ...]:
    """Say how large the windows are that a detector is given."""
    factor = 2 ** len(chosen["widths"])
    return window_size(space, factor, PATCH if patch is None else patch)


def network(
    chosen: dict,
    space: tuple[int | None, ...],
    channels: int,
    remat: bool = False,
) -> Any:
    """Build the network of a detector, in the current precision."""
    return anomaly_network.seeded_detector(
        chosen["seed"],
        space,
        n_features(len(space), channels),
        widths=chosen["widths"],
        blocks=chosen["blocks"],
        remat=remat,
    )


def stage(detector: Any, lessons: Lessons, training: Any) -> Stage:
    """Describe how a detector is trained."""
    length = training.length(len(lessons.images))
    batches = _batches(detector, lessons.images, lessons.size, training.batch_size)
    nothing = detection_of_nothing(_share(batches))
    held_out = None
    if lessons.held_out is not None:
        held_out = _windows(detector, lessons.held_out, lessons.size)
    return Stage(
        "detector",
        training,
        length,
        detector.hyperparameters() | lessons.settings(),
        build=partial(_compile, detector, lessons.size, training, length),
        batches=batches,
        take=partial(_take_weights, detector),
        publish=partial(_publish, detector, held_out),
        lesson=("loss", nothing),
        verdict=partial(_verdict, nothing),
    )


def _batches(detector, images, size, batch_size, held_out=False) -> Batches:
    return lesion_batches(
        images,
        batch_size,
        seed=detector.seed + int(held_out),
        size=size,
        bounds=detector.intensity_,
        atlas=detector.atlas_,
        bent=not held_out,
    )


def _share(batches):
    """Say which share of the voxels is in lesions."""
    steps = range(-(-_WINDOWS // batches.size))
    return max(1e-6, float(np.mean([batches.of(step)[1].mean() for step in steps])))


def _windows(detector, images, size):
    """Draw windows of images with lesions, the same each time."""
    # They stay in memory, and are looked at after each round.
    images = images[:_WINDOWS]
    batches = _batches(detector, images, size, len(images), held_out=True)
    steps = range(-(-_WINDOWS // len(images)))
    given, masks = zip(*(batches.of(step) for step in steps))
    return np.concatenate(given), np.concatenate(masks) >= _INSIDE


def _compile(detector, size, training, length):
    """Make the network that is trained."""
    chosen, channels = detector.hyperparameters(), detector.shape_[-1]
    made = network(chosen, size, channels, training.remat)
    model = _backend.ReplicatedModel(made.inputs, made.outputs)
    optimizer = training.optimizer(
        length.total, global_clipnorm=1.0, base_fan_in=BASE_FAN_IN
    )
    model.compile(optimizer, loss=detection, auto_scale_loss=False)
    return model


def _take_weights(detector, model):
    """Copy trained weights into the network that detects."""
    detector.network_.set_weights(model.get_weights())


def _publish(detector, held_out, model, number, last):
    """After a round: take the weights, and see what is found."""
    _take_weights(detector, model)
    if held_out is None:
        return {}
    given, masks = held_out
    most = tiles.safe_batch(given.shape[1:-1])
    found = _backend.in_batches(detector.odds, given, most) > 0
    return {"val_dice": dice(found, masks)}


def _verdict(nothing, figures):
    """Say what is wrong with a detector, by its last figures."""
    if figures["loss"] < nothing:
        return None
    return (
        "the detector has learnt nothing of lesions (its loss is "
        f"{figures['loss']:.3g}, and {nothing:.3g} without any training); train for "
        "more steps, or with a lower learning rate."
    )


def detection(y_true, y_pred):
    """Return the cross entropy of lesions, whose voxels count more than others.

    Shapes: y_true ``(batch, *space, 1)``, result ``(batch,)``.
    """
    inside = LESION_WEIGHT * y_true * ops.softplus(-y_pred)
    return ops.mean(
        inside + (1 - y_true) * ops.softplus(y_pred),
        axis=tuple(range(1, len(y_true.shape))),
    )


def detection_of_nothing(share: float) -> float:
    """Return the least loss of a detector that says the same of all voxels."""
    inside, outside = LESION_WEIGHT * share, 1 - share
    both = inside + outside
    return -inside * math.log(inside / both) - outside * math.log(outside / both)
