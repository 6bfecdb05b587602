"""The options that the training of every stage takes."""

from collections.abc import Callable, Sequence
import math
from pathlib import Path
from typing import Any, NamedTuple, Self, TypedDict, cast

import keras

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError, check_counts, check_rate
from dipy_ldm.training._checkpoint import began_in
from dipy_ldm.training._optimizer import FlatAdam
from dipy_ldm.training._precision import Precision, settle

# Batches of a round at least; short trainings have so many rounds all the same.
_ROUND = 100
_ROUNDS = 10

# Inputs of a convolution over 3 x 3 pixels of 32 channels: up to there rates are those
# that are given. Over voxels there are many more.
BASE_FAN_IN = 288


class Length(NamedTuple):
    """How long a training is."""

    epoch: int
    total: int

    @property
    def round(self):
        """Batches after which the network is validated: those of whole epochs.

        An epoch of a small cohort has few; to validate after each, to revive codes that
        none of them happened to need and to write checkpoints would take longer than to
        train.
        """
        most = max(1, self.total // self.epoch // _ROUNDS)
        return self.epoch * min(math.ceil(_ROUND / self.epoch), most)

    @property
    def rounds(self):
        """Number of rounds, of which the last may be shorter."""
        return math.ceil(self.total / self.round)

    def end(self, number: int) -> int:
        """Count the batches up to the end of a round, from 0."""
        return min(self.total, (number + 1) * self.round)


class Training(NamedTuple):
    """How a network is trained.

    In rounds: epochs, or several where they have few batches. After each the network
    is validated.
    """

    epochs: int
    steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float | None = None
    precision: str | Precision = "auto"
    remat: bool = False
    strategy: Any = "auto"
    checkpoint: str | Path | None = None
    checkpoint_steps: int = 1000
    callbacks: Sequence[Callable] = ()
    verbose: bool = True

    def check(self, n: int) -> None:
        """Refuse options with which nothing could be trained."""
        check_counts(
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            checkpoint_steps=self.checkpoint_steps,
        )
        check_rate(self.learning_rate)
        if n < self.batch_size:
            raise InputError(
                f"{n} images are fewer than a batch of {self.batch_size}; give more "
                f"images or a `batch_size` of at most {n}."
            )

    def settled(
        self,
        rank: int,
        *checkpoints: str | Path | None,
        rates: tuple[float, float],
    ) -> Self:
        """Choose the devices, and the precision that they have."""
        strategy = _backend.make_strategy(self.strategy)
        began = began_in(self.checkpoint, *checkpoints)
        rate = self.learning_rate
        return self._replace(
            strategy=strategy,
            precision=settle(cast(str, self.precision), rank, strategy, began),
            learning_rate=rates[rank == 3] if rate is None else rate,
        )

    @property
    def share(self):
        """Images of a batch for each replica, given a settled strategy."""
        return _backend.share_of(self.batch_size, self.strategy)

    def length(self, n: int) -> Length:
        """Say how long the training is."""
        epoch = n // self.batch_size
        if self.steps is None:
            return Length(epoch, self.epochs * epoch)
        return Length(epoch, self.steps * self.accumulate)

    def settings(self) -> dict:
        """Say on what the result depends."""
        names = ("epochs", "steps", "batch_size", "accumulate", "learning_rate")
        chosen = {name: getattr(self, name) for name in names}
        return chosen | {"precision": cast(Precision, self.precision).name}

    def optimizer(self, steps: int, **options) -> FlatAdam:
        """Make what changes the weights."""
        precision = self.settings()["precision"]
        return FlatAdam(
            cosine_decay(cast(float, self.learning_rate), steps),
            gradient_accumulation_steps=self.accumulate
            if self.accumulate > 1
            else None,
            orthogonal=True,
            # Of other precisions no gradient is too small.
            initial_scale=2.0**15 if precision == "float16" else None,
            **options,
        )


# The same for type checkers and editors: what may be given to fit by name.
# mypy wants a literal of it.
Options = TypedDict("Options", Training.__annotations__, total=False)  # type: ignore


def cosine_decay(
    learning_rate: float, steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return a learning rate that warms up and falls to zero along a cosine."""
    # Of short trainings a large part: with three dimensions a full first step changes
    # weights by a tenth of their size.
    warmup = min(500, steps // 4)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate * (1 / 100 if warmup else 1),
        decay_steps=max(1, steps - warmup),
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )
