"""Stages of training, and the function that trains them."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
import logging
import math
import time
from typing import Any, NamedTuple

import keras
import numpy as np

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError, plain
from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.signals import interrupts_noted, stop_deferred
from dipy_ldm._utils.types import Batches, Logs, Tensor
from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._image_checks import Survey, identify
from dipy_ldm.nn import _building as building
from dipy_ldm.training._checkpoint import BestWeights, TrainingRecord
from dipy_ldm.training._options import BASE_FAN_IN, Length, ResolvedOptions

logger = logging.getLogger(__name__)

# A shorter training is taken for a trial: warn if it learnt nothing, but don't fail.
_MIN_STEPS = 100
# Stop a training that has learnt nothing for this share of its length, but not before
# this many steps.
_PATIENCE, _MIN_PATIENCE = 0.2, 100
# A loss must be below this share of the baseline to count as learning.
_LEARNT_RATIO = 0.98


class TrainingData(NamedTuple):
    """Training images, the size of the windows drawn from them, and validation images.

    Shapes: images, held_out ``(n, *space, channels)``, masks ``(n, *space, 1)``.
    """

    images: np.ndarray
    survey: Survey
    size: tuple[int, ...]
    held_out: np.ndarray | None = None
    masks: np.ndarray | None = None
    background: float = 1.0
    augment: Augmentation | None = None
    channels: tuple = ()

    def settings(self) -> dict:
        """Return the settings that affect the result of every stage."""
        return {
            "size": plain(self.size),
            "images": self.survey.fingerprint,
            "validation data": identify(self.held_out),
        }


class Stage:
    """A network in training: subclasses define how it is built and how rounds end.

    ``settings`` are all settings, beside the options, that affect the result.
    ``baseline`` is the value of the metric ``figure`` if nothing is learnt.
    ``averaged`` is the network, if any, with EMA weights, of which the best are kept.
    Training a ``guide`` (autoguidance model) leaves the estimator unfitted.
    """

    title: str
    options: ResolvedOptions
    length: Length
    settings: dict
    batches: Batches
    figure: str = "loss"
    baseline: float
    averaged: keras.Model | None = None
    guide: bool = False

    def build(self) -> Any:
        """Build and compile the network, in the precision of the training."""
        raise NotImplementedError

    def compiled(
        self,
        inputs: Tensor,
        outputs: Tensor,
        loss: str | Callable,
        metrics: list[Callable] | None = None,
        **options,
    ) -> Any:
        """Return a model that is compiled for training with a loss."""
        model = _backend.ReplicatedModel(inputs, outputs)
        # Without clipping, a few early batches would dominate Adam's moments for long.
        usual = {"global_clipnorm": 1.0, "base_fan_in": BASE_FAN_IN}
        optimizer = self.options.optimizer(self.length.total, **usual | options)
        # The optimizer scales the loss itself.
        model.compile(optimizer, loss=loss, metrics=metrics, auto_scale_loss=False)
        return model

    def begin(self, model: keras.Model) -> None:
        """Prepare the network before the first step of a new training."""

    def end_round(
        self, model: keras.Model, number: int, last: bool
    ) -> dict[str, float]:
        """Publish the weights, validate them and return metrics."""
        return {}

    def finish(self, model: keras.Model) -> None:
        """Publish the weights after the last step."""

    def failure(self, figures: dict[str, float]) -> str | None:
        """Return an error message if the stage learnt nothing, else None."""


def train(estimator: Any, stage: Stage) -> None:
    """Train a stage of an estimator by ``keras.Model.fit``, from its checkpoint on."""
    options = stage.options
    # Unfitted until the first round has ended.
    vars(estimator).pop("history_", None)
    settings = stage.settings | options.settings()
    settings |= {"steps of an epoch": stage.length.epoch}
    best = BestWeights(stage.title, stage.averaged)
    record = TrainingRecord(
        options.checkpoint, settings, stage.length, best, options.checkpoint_steps
    )
    extra = {"checkpoint_steps": record.every, "having a checkpoint": bool(record.path)}
    _backend.require_agreement(record.settings | extra)
    precision = building.precision(options.precision.name)
    with _backend.scope(options.strategy), precision:
        model = stage.build()
    record.restore(model)
    if record.done == 0:
        stage.begin(model)
    model.prepare(stage.batches)
    data = _backend.distribute_batches(stage.batches, record.done, options.strategy)
    _backend.release_memory()
    _fit(estimator, model, data, stage, record)
    # A completed training that is resumed has no more rounds to publish the weights.
    stage.finish(model)
    best.restore_to_network(record.history)
    if not stage.guide:
        estimator.history_ = record.history
    if any(_backend.gather_from_workers(model.stop_requested)):
        # The signal came after the last step.
        record.stop()
    _check_result(stage, record)


def _fit(
    estimator: object, model: Any, data: Iterator, stage: Stage, record: TrainingRecord
):
    """Run ``keras.Model.fit`` with the callbacks of the stage and of the user."""
    options = stage.options

    def request_stop(number: int):
        model.stop_requested, record.signal = True, number

    def interrupt():
        model.interrupted = True

    def end_round(number: int, logs: Logs):
        logs |= stage.end_round(model, number, number + 1 == stage.length.rounds)

    def stop_together(number: int, logs: Logs):
        # Keras callbacks run on the chief alone; other workers must stop with it.
        stops = _backend.gather_from_workers(bool(model.stop_training))
        model.stop_training = any(stops)

    is_chief = _backend.is_chief()
    progress = Progress(stage, record.done, disable=not (options.verbose and is_chief))
    after_round = keras.callbacks.LambdaCallback
    callbacks = [
        _StepTimer(estimator, stage.title),
        after_round(on_epoch_end=end_round),
        record.best,
        DivergenceCheck(stage, record),
        record,
        after_round(on_epoch_end=partial(_log_round, estimator, stage, record)),
        progress,
        *(c for c in options.callbacks if _is_of_keras(c) and is_chief),
        after_round(on_epoch_end=stop_together),
    ]
    signals = nullcontext() if record.path is None else stop_deferred(request_stop)
    try:
        with signals, interrupts_noted(interrupt):
            model.fit(
                data,
                # Keras' epochs are our rounds.
                epochs=stage.length.rounds,
                initial_epoch=record.rounds,
                steps_per_epoch=stage.length.round,
                shuffle=False,  # it is already
                callbacks=callbacks,
                verbose=0,
            )
    finally:
        # An interrupted bar would be drawn once more, below the last message.
        progress.on_train_end()


def _is_of_keras(callback: object):
    return isinstance(callback, keras.callbacks.Callback)


def _check_result(stage: Stage, record: TrainingRecord):
    """Raise if a training learnt nothing, or only warn if it was short."""
    last = {name: values[-1] for name, values in record.history.items()}
    if sentence := stage.failure(last | record.best.figures()):
        # Not the planned number of steps: a callback may have stopped the training.
        sentence = f"after {last['step']} steps {sentence}"
        if last["step"] >= _MIN_STEPS:
            raise InputError(sentence)
        logger.warning("%s", sentence)


class _StepTimer(keras.callbacks.Callback):
    """Log the share of time spent in steps, and record ``step_seconds_``."""

    def __init__(self, estimator: Any, title: str):
        super().__init__()
        self.title = title
        self.seconds: list[float] = []
        before = getattr(estimator, "step_seconds_", {})
        estimator.step_seconds_ = before | {title: self.seconds}

    def on_train_begin(self, logs: Logs = None):
        self.began = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: Logs = None):
        self.step_began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Logs = None):
        self.seconds.append(time.monotonic() - self.step_began)

    def on_train_end(self, logs: Logs = None):
        # A completed training that is resumed takes 0 s on a coarse clock.
        total = time.monotonic() - self.began
        share = 100 * sum(self.seconds) / total if total else 0.0
        logger.debug("%s: %.0f s, %.0f %% of it in steps", self.title, total, share)


def _log_round(
    estimator: Any,
    stage: Stage,
    record: TrainingRecord,
    number: int,
    figures: dict[str, float],
):
    """Log a round, and call the user's callbacks."""
    if not stage.guide:
        estimator.history_ = record.history
    text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    logger.debug("%s, round %d: %s", stage.title, number + 1, text)
    if _backend.is_chief():
        # On the chief alone: other workers don't take part in what callbacks compute.
        with _backend.distributed(None):
            for callback in stage.options.callbacks:
                if not _is_of_keras(callback):
                    callback(estimator)


class DivergenceCheck(keras.callbacks.Callback):
    """Stop a training with a non-finite loss, or that learns nothing.

    It runs before a checkpoint with such weights is written.
    """

    def __init__(self, stage: Stage, record: TrainingRecord) -> None:
        super().__init__()
        self.stage = stage
        self.record = record
        self.last_learnt = record.done

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Stop if the loss is not finite."""
        if not math.isfinite(logs["loss"]):
            raise InputError(
                f"the loss of the {self.stage.title} became {logs['loss']}",
                "continue from the last checkpoint with a lower learning rate, or "
                "start again in float32",
            )

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Stop if nothing was learnt for many steps."""
        stage, done = self.stage, self.record.done
        value = logs[stage.figure]
        # The first round's metrics are means that include the untrained network.
        if epoch == 0 or value < _LEARNT_RATIO * stage.baseline:
            self.last_learnt = done
        steps = done - self.last_learnt
        if steps >= max(_MIN_PATIENCE, _PATIENCE * stage.length.total):
            raise InputError(
                f"the {stage.title} has learnt nothing in {steps} steps "
                f"({stage.figure} is {value:.3g}; untrained it is "
                f"{stage.baseline:.3g})",
                "lower the learning rate and check the training images",
            )


class Progress(keras.callbacks.Callback):
    """Show a progress bar with the loss and the remaining time of all epochs."""

    def __init__(self, stage: Stage, done: int, *, disable: bool = False) -> None:
        super().__init__()
        self.title, self.length = stage.title, stage.length
        self.options: dict = {"initial": done, "disable": disable}
        self.bar: Any = None

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Open the bar."""
        if self.bar is None:
            self.bar = tqdm(
                desc=f"{self.title}: preparing the first step",
                total=self.length.total,
                unit="step",
                **self.options,
            )

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Advance the progress bar by a step."""
        # The initial description is shown while the first step is compiled.
        epoch = self.bar.n // self.length.epoch + 1
        epochs = math.ceil(self.length.total / self.length.epoch)
        self.bar.set_description(f"{self.title}, epoch {epoch}/{epochs}", refresh=False)
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self.bar.update()

    def on_train_end(self, logs: Logs = None) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
