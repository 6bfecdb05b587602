"""Options of the training of every stage, as given and as resolved."""

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

# Minimum number of batches in a round; short trainings still have this many rounds.
_MIN_ROUND_BATCHES, _MIN_ROUNDS = 100, 10

# Maximum number of weight updates for the warm-up of the learning rate.
_MAX_WARMUP = 500
# Fan-in of a convolution over 3 x 3 pixels of 32 channels. Weights with a larger one,
# as those of 3D convolutions, get lower learning rates.
BASE_FAN_IN = 288


class FitOptions(TypedDict, total=False):
    """Options of every ``fit``.

    A network is trained in rounds of one epoch, or of several if an epoch has few
    batches, and validated after each.

    Parameters
    ----------
    epochs : int
        Passes over the images.
    steps : int, optional
        Weight updates, instead of epochs.
    batch_size : int
        Images in a batch.
    accumulate : int
        Batches whose gradients are averaged for one weight update: equivalent to a
        batch that many times larger, in the memory of one.
    learning_rate : float, optional
        Peak learning rate; it warms up and decays to zero. Default: 0.002, or 0.004
        for the autoencoder of images.
    precision : {"auto", "float32", "bfloat16", "float16"}
        Precision of the computations; ``"auto"`` is the fastest that the devices
        support, or that of the checkpoint. float16 needs GPUs.
    remat : bool
        Gradient checkpointing: recompute activations instead of keeping them. It saves
        memory, above all for the denoiser, and takes about a third more time.
    strategy : str or tf.distribute.Strategy or None
        How training is distributed over devices, see :func:`dipy_ldm.make_strategy`.
        The result is the same.
    checkpoint : str or Path, optional
        File from which training resumes if it exists. It is written after rounds, in at
        most 5 % of the time, and at the end. On SIGTERM, training writes it and exits
        with status 143.
    checkpoint_steps : int
        Number of batches between checkpoints within a round.
    callbacks : callable or keras.callbacks.Callback, or sequence of these
        Functions are called as ``callback(estimator)`` after each round, when
        ``history_`` is up to date and ``predict`` works. Keras callbacks, such as those
        of TensorBoard, MLflow and W&B, get each round as an epoch, with the metrics
        named as in ``history_``.
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
    """Length of an epoch and of a whole training, in batches."""

    epoch: int
    total: int

    @property
    def round(self):
        """Number of batches between validations: a multiple of an epoch.

        Epochs of small cohorts have few batches: validation, revived codes and
        checkpoints after each would take longer than training.
        """
        most = max(1, self.total // self.epoch // _MIN_ROUNDS)
        return self.epoch * min(math.ceil(_MIN_ROUND_BATCHES / self.epoch), most)

    @property
    def rounds(self):
        """Number of rounds; the last may be shorter."""
        return math.ceil(self.total / self.round)

    def end(self, number: int) -> int:
        """Return the number of batches up to the end of a round (counted from 0)."""
        return min(self.total, (number + 1) * self.round)


class ResolvedOptions(NamedTuple):
    """Options of a training, without defaults to be resolved."""

    epochs: int = 1
    steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 2e-3
    precision: Precision = Precision("float32", "as requested")
    remat: bool = False
    strategy: Any = None
    checkpoint: str | Path | None = None
    checkpoint_steps: int = 1000
    callbacks: Sequence[Callable | keras.callbacks.Callback] = ()
    verbose: bool = True

    def check(self, n: int) -> None:
        """Refuse options that are invalid for training on `n` images."""
        names = ("epochs", "steps", "batch_size", "accumulate", "checkpoint_steps")
        check_counts(**{name: getattr(self, name) for name in names})
        check_rate(self.learning_rate)
        if n < self.batch_size:
            raise InputError(
                f"{n} images are fewer than a batch of {self.batch_size}",
                f"use more images or a `batch_size` of at most {n}",
            )

    @property
    def replica_batch_size(self):
        """Batch size of each replica."""
        return _backend.share_of(self.batch_size, self.strategy)

    def length(self, n: int) -> Length:
        """Return the length of a training on `n` images."""
        epoch = n // self.batch_size
        if self.steps is None:
            return Length(epoch, self.epochs * epoch)
        return Length(epoch, self.steps * self.accumulate)

    def settings(self) -> dict:
        """Return all options that affect the result, for the checkpoint."""
        names = ("epochs", "steps", "batch_size", "accumulate", "learning_rate")
        entries = {name: getattr(self, name) for name in names}
        return entries | {"precision": self.precision.name}

    def optimizer(self, batches: int, **options) -> FlatAdam:
        """Return the optimizer for a training of `batches` batches."""
        accumulates = self.accumulate > 1
        return FlatAdam(
            cosine_decay(self.learning_rate, batches, self.accumulate),
            gradient_accumulation_steps=self.accumulate if accumulates else None,
            orthogonal=True,
            # Only in float16 may gradients underflow.
            initial_scale=2.0**15 if self.precision.name == "float16" else None,
            **options,
        )


def resolve(
    stage: str, rank: int, options: Mapping[str, Any], *checkpoints: str | Path | None
) -> ResolvedOptions:
    """Resolve length, learning rate, devices and precision of a training.

    With ``checkpoints`` of earlier stages, an existing one also sets the precision.
    """
    resolved = _presets.of_rank(rank).fit_options(stage, plain(options))
    strategy = _backend.make_strategy(resolved.get("strategy", "auto"))
    name, saved = resolved.get("precision", "auto"), None
    if name == "auto":
        with _backend.distributed(strategy):
            saved = _checkpoint_precision(resolved.get("checkpoint"), *checkpoints)
    precision = choose_precision(name, rank, strategy, saved)
    resolved |= {"strategy": strategy, "precision": precision}
    if "checkpoint" in resolved:
        resolved["checkpoint"] = os.path.expanduser(resolved["checkpoint"])
    if not isinstance(resolved.get("callbacks", ()), Iterable):
        resolved["callbacks"] = [resolved["callbacks"]]
    return ResolvedOptions(**resolved)


def _checkpoint_precision(*checkpoints):
    """Return the precision of the first checkpoint that exists, or None."""
    paths = map(os.path.expanduser, filter(None, checkpoints))
    saved = None
    if path := next(filter(os.path.exists, paths), None):
        _, document = _serialization.load_newest(path, _serialization.read_document)
        saved = document["settings"].get("precision")
    require_same_checkpoint("precision", saved)
    return saved


def require_same_checkpoint(name: str, value: Any) -> None:
    """Refuse to train unless all workers read the same value from a checkpoint."""
    values = _backend.gather_from_workers(value)
    if any(other_value != value for other_value in values):
        raise InputError(
            f"the checkpoint differs between workers ({name}: {values})",
            "write it to a folder that all machines share",
        )


def cosine_decay(
    learning_rate: float, batches: int, accumulate: int = 1
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return a learning rate schedule: linear warm-up, then cosine decay to zero."""
    # A large part of short trainings: in 3D, a full first step would change weights by
    # a tenth of their size.
    warmup = min(_MAX_WARMUP * accumulate, batches // 4)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate * (1 / 100 if warmup else 1),
        decay_steps=max(1, batches - warmup),
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )
