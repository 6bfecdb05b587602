"""The options that the training of every stage takes, as asked for and as resolved."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import math
import os
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import keras

from dipy_ldm import _backend, _presets, _serialization
from dipy_ldm._utils.checks import InputError, check_counts, check_rate, plain
from dipy_ldm.training._optimizer import FlatAdam
from dipy_ldm.training._precision import Precision, choose_precision

# Batches of a round at least; short trainings have so many rounds all the same.
_MIN_ROUND, _MIN_ROUNDS = 100, 10

# Weight updates in which the rate warms up, at most.
_MAX_WARMUP = 500
# Inputs of a convolution over 3 x 3 pixels of 32 channels: up to there rates are those
# that are given. Over voxels there are many more.
BASE_FAN_IN = 288


class FitOptions(TypedDict, total=False):
    """Options of every ``fit``.

    A network is trained in rounds: epochs, or several where they have few batches.
    After each it is validated.

    Parameters
    ----------
    epochs : int
        Passes over the images.
    steps : int, optional
        Weight updates, instead of epochs.
    batch_size : int
        Images in a batch.
    accumulate : int
        Batches whose gradients are averaged for one weight update: as one batch that
        many times larger, in the memory of one.
    learning_rate : float, optional
        Highest learning rate; it warms up and falls to zero. Default: 0.002, and 0.004
        for the autoencoder of images.
    precision : {"auto", "float32", "bfloat16", "float16"}
        Precision of the computations; ``"auto"`` is the fastest that the devices
        compute well, or that of the checkpoint. float16 is for GPUs alone.
    remat : bool
        Compute parts of the network twice instead of keeping them: less memory, above
        all for the denoiser, for about a third more time.
    strategy : str or tf.distribute.Strategy or None
        How training is spread over devices, as of :func:`dipy_ldm.make_strategy`. The
        result is the same.
    checkpoint : str or Path, optional
        File from which training continues if it exists. It is written after rounds, in
        at most a twentieth of the time, and at the end. SIGTERM then ends the training
        with a checkpoint and status 143.
    checkpoint_steps : int
        Batches after which it is written within a round.
    callbacks : callable or keras.callbacks.Callback, or sequence of these
        Functions are called as ``callback(estimator)`` after each round; ``history_``
        is up to date then, and ``predict`` works. Callbacks of Keras, such as those of
        TensorBoard, MLflow and W&B, get each round as an epoch, with the figures under
        their names in ``history_``.
    verbose : bool
        Show a progress bar.
    """

    epochs: int
    steps: int | None
    batch_size: int
    accumulate: int
    learning_rate: float | None
    precision: str
    remat: bool
    strategy: Any
    checkpoint: str | Path | None
    checkpoint_steps: int
    callbacks: (
        Callable
        | keras.callbacks.Callback
        | Sequence[Callable | keras.callbacks.Callback]
    )
    verbose: bool


class Length(NamedTuple):
    """How long a training is, in batches."""

    epoch: int
    total: int

    @property
    def round(self):
        """Batches after which the network is validated: those of whole epochs.

        An epoch of a small cohort has few; to validate after each, to revive codes that
        none of them happened to need and to write checkpoints would take longer than to
        train.
        """
        most = max(1, self.total // self.epoch // _MIN_ROUNDS)
        return self.epoch * min(math.ceil(_MIN_ROUND / self.epoch), most)

    @property
    def rounds(self):
        """Number of rounds, of which the last may be shorter."""
        return math.ceil(self.total / self.round)

    def end(self, number: int) -> int:
        """Count the batches up to the end of a round, from 0."""
        return min(self.total, (number + 1) * self.round)


class ResolvedOptions(NamedTuple):
    """Options of a training, of which none is left open."""

    epochs: int = 1
    steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 2e-3
    precision: Precision = Precision("float32", "as asked for")
    remat: bool = False
    strategy: Any = None
    checkpoint: str | Path | None = None
    checkpoint_steps: int = 1000
    callbacks: Sequence[Callable | keras.callbacks.Callback] = ()
    verbose: bool = True

    def check(self, n: int) -> None:
        """Refuse options with which nothing could be trained on so many images."""
        names = ("epochs", "steps", "batch_size", "accumulate", "checkpoint_steps")
        check_counts(**{name: getattr(self, name) for name in names})
        check_rate(self.learning_rate)
        if n < self.batch_size:
            raise InputError(
                f"{n} images are fewer than a batch of {self.batch_size}; give more "
                f"images or a `batch_size` of at most {n}."
            )

    @property
    def share(self):
        """Images of a batch for each replica."""
        return _backend.share_of(self.batch_size, self.strategy)

    def length(self, n: int) -> Length:
        """Return how long the training on so many images is."""
        epoch = n // self.batch_size
        if self.steps is None:
            return Length(epoch, self.epochs * epoch)
        return Length(epoch, self.steps * self.accumulate)

    def settings(self) -> dict:
        """Return all on which the result depends, as a checkpoint has it."""
        names = ("epochs", "steps", "batch_size", "accumulate", "learning_rate")
        chosen = {name: getattr(self, name) for name in names}
        return chosen | {"precision": self.precision.name}

    def optimizer(self, batches: int, **options) -> FlatAdam:
        """Make the optimizer of a training of so many batches."""
        several = self.accumulate > 1
        return FlatAdam(
            cosine_decay(self.learning_rate, batches, self.accumulate),
            gradient_accumulation_steps=self.accumulate if several else None,
            orthogonal=True,
            # Of other precisions no gradient is too small.
            initial_scale=2.0**15 if self.precision.name == "float16" else None,
            **options,
        )


def resolve(
    stage: str, rank: int, options: Mapping[str, Any], *checkpoints: str | Path | None
) -> ResolvedOptions:
    """Resolve length, learning rate, devices and precision of a training.

    Training may also have begun in other checkpoints than its own.
    """
    chosen = _presets.of_rank(rank).fit_options(stage, plain(options))
    strategy = _backend.make_strategy(chosen.get("strategy", "auto"))
    name, began = chosen.get("precision", "auto"), None
    if name == "auto":
        with _backend.distributed(strategy):
            began = _precision_before(chosen.get("checkpoint"), *checkpoints)
    precision = choose_precision(name, rank, strategy, began)
    chosen |= {"strategy": strategy, "precision": precision}
    if "checkpoint" in chosen:
        chosen["checkpoint"] = os.path.expanduser(chosen["checkpoint"])
    if not isinstance(chosen.get("callbacks", ()), Iterable):
        chosen["callbacks"] = [chosen["callbacks"]]
    return ResolvedOptions(**chosen)


def _precision_before(*checkpoints):
    """Return the precision in which a training began, if there is a checkpoint."""
    paths = map(os.path.expanduser, filter(None, checkpoints))
    began = None
    if path := next(filter(os.path.exists, paths), None):
        _, document = _serialization.load_newest(path, _serialization.read_document)
        began = document["settings"].get("precision")
    require_same_checkpoint("precision", began)
    return began


def require_same_checkpoint(name: str, value: Any) -> None:
    """Refuse to go on unless all workers read the same in a checkpoint."""
    values = _backend.gather_from_workers(value)
    if any(one != value for one in values):
        raise InputError(
            f"the checkpoint is not the same for all workers ({name} in it: {values}); "
            "write to a folder that all machines share."
        )


def cosine_decay(
    learning_rate: float, batches: int, accumulate: int = 1
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return a learning rate that warms up and falls to zero along a cosine."""
    # Of short trainings a large part: with three dimensions a full first step changes
    # weights by a tenth of their size.
    warmup = min(_MAX_WARMUP * accumulate, batches // 4)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate * (1 / 100 if warmup else 1),
        decay_steps=max(1, batches - warmup),
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )
