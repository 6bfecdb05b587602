"""A stage, and the one function that trains it."""

from contextlib import nullcontext
import logging
import math
import time
from typing import Any, NamedTuple

import keras
import numpy as np

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError, plain
from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.signals import deferred, noted
from dipy_ldm._utils.types import Batches
from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._image_checks import Survey, identify
from dipy_ldm.nn import _building as building
from dipy_ldm.training._checkpoint import BestWeights, TrainingRecord
from dipy_ldm.training._options import BASE_FAN_IN, Length, ResolvedOptions

logger = logging.getLogger(__name__)

# Steps of a training that is meant in earnest: a shorter one is a trial of the way, and
# what is wrong with its result is said, no more.
_MIN_STEPS = 100
# Of its length, what a training may go on without having learnt anything; and not
# fewer steps than these.
_PATIENCE, _MIN_PATIENCE = 0.2, 100
# What is hardly better than having learnt nothing is no better.
_MARGIN = 0.98


class TrainingData(NamedTuple):
    """Images to learn from, in windows of a size, and some for validation.

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
        """Return all on which the result of every stage depends."""
        return {
            "size": plain(self.size),
            "images": self.survey.fingerprint,
            "validation data": identify(self.held_out),
        }


class Stage:
    """A network in training: subclasses say how it is built and how rounds end.

    ``settings`` is all, beside the options, on which the result depends. ``figure`` is
    judged by its ``baseline``: its value where nothing is learnt. ``averaged`` is the
    network, if any, with averaged weights, of which the best are kept. After a stage of
    a ``guide`` the estimator is not fitted yet.
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
        self, inputs: Any, outputs: Any, loss: Any, metrics: Any = None, **options
    ) -> Any:
        """Return a network that is compiled for its training, by a loss."""
        model = _backend.ReplicatedModel(inputs, outputs)
        # Without a bound, few early batches would rule Adam's moments for long.
        usual = {"global_clipnorm": 1.0, "base_fan_in": BASE_FAN_IN}
        optimizer = self.options.optimizer(self.length.total, **usual | options)
        # It scales the loss itself.
        model.compile(optimizer, loss=loss, metrics=metrics, auto_scale_loss=False)
        return model

    def begin(self, model: keras.Model) -> None:
        """Prepare the network for its very first step."""

    def end_round(
        self, model: keras.Model, number: int, last: bool
    ) -> dict[str, float]:
        """Publish the weights and validate them; return figures."""
        return {}

    def finish(self, model: keras.Model) -> None:
        """Publish the weights after the last step."""

    def verdict(self, figures: dict[str, float]) -> str | None:
        """Return the message for a stage that learnt nothing, or None."""


def train(estimator: Any, stage: Stage) -> None:
    """Train a stage of an estimator by ``keras.Model.fit``, from its checkpoint on."""
    options = stage.options
    # Until a round has ended, there is nothing that could be used.
    vars(estimator).pop("history_", None)
    settings = stage.settings | options.settings()
    settings |= {"steps of an epoch": stage.length.epoch}
    best = BestWeights(stage.title, stage.averaged)
    record = TrainingRecord(
        options.checkpoint, settings, stage.length, best, options.checkpoint_steps
    )
    alike = {"checkpoint_steps": record.every, "having a checkpoint": bool(record.path)}
    _backend.require_agreement(record.settings | alike)
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
    # Not with the last round alone: of a training that had ended there is none.
    stage.finish(model)
    best.restore_to_network(record.history)
    if not stage.guide:
        estimator.history_ = record.history
    if any(_backend.gather_from_workers(model.stop_requested)):
        # After the last step.
        record.end()
    _judge(stage, record)


def _fit(estimator, model, data, stage, record):
    """Run ``keras.Model.fit`` with the callbacks that a stage wants around it."""
    options = stage.options

    def ask(number):
        model.stop_requested, record.signal = True, number

    def interrupt():
        model.interrupted = True

    def end_round(number, logs):
        logs |= stage.end_round(model, number, number + 1 == stage.length.rounds)

    def report(number, logs):
        _report(estimator, stage, record, number, logs)

    def stop_together(number, logs):
        # Those of Keras are the chief's alone, and the others would wait for it.
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
        after_round(on_epoch_end=report),
        progress,
        *(c for c in options.callbacks if _is_of_keras(c) and is_chief),
        after_round(on_epoch_end=stop_together),
    ]
    heeded = nullcontext() if record.path is None else deferred(ask)
    try:
        with heeded, noted(interrupt):
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
        # Or else an interrupted bar is drawn once more, below the last word.
        progress.on_train_end()


def _is_of_keras(callback):
    return isinstance(callback, keras.callbacks.Callback)


def _judge(stage, record):
    """Refuse what came of a training, or warn of it if that was short."""
    last = {name: values[-1] for name, values in record.history.items()}
    if sentence := stage.verdict(last | record.best.figures()):
        # A callback may have ended it.
        sentence = f"after {last['step']} steps {sentence}"
        if last["step"] >= _MIN_STEPS:
            raise InputError(sentence)
        logger.warning("%s", sentence)


class _StepTimer(keras.callbacks.Callback):
    """Log how much of the time was spent in steps, and keep ``step_seconds_``."""

    def __init__(self, estimator, title):
        super().__init__()
        self.title = title
        self.seconds: list[float] = []
        before = getattr(estimator, "step_seconds_", {})
        estimator.step_seconds_ = before | {title: self.seconds}

    def on_train_begin(self, logs=None):
        self.began = time.monotonic()

    def on_train_batch_begin(self, batch, logs=None):
        self.step_began = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.monotonic() - self.step_began)

    def on_train_end(self, logs=None):
        # Where clocks are coarse, a training that had ended takes no time at all.
        took = time.monotonic() - self.began
        share = 100 * sum(self.seconds) / took if took else 0.0
        logger.debug("%s: %.0f s, %.0f %% of it in steps", self.title, took, share)


def _report(estimator, stage, record, number, figures):
    """Log a round, and call the user's functions."""
    if not stage.guide:
        estimator.history_ = record.history
    text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    logger.debug("%s, round %d: %s", stage.title, number + 1, text)
    if _backend.is_chief():
        # What they look at is not spread: the others don't take part.
        with _backend.distributed(None):
            for callback in stage.options.callbacks:
                if not _is_of_keras(callback):
                    callback(estimator)


class DivergenceCheck(keras.callbacks.Callback):
    """Stop a training whose loss is not finite any more, or that learns nothing.

    Before a checkpoint is written that would have it, too.
    """

    def __init__(self, stage: Stage, record: TrainingRecord) -> None:
        super().__init__()
        self.stage = stage
        self.record = record
        self.good_until = record.done

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Stop where the loss is not finite."""
        if not math.isfinite(logs["loss"]):
            raise InputError(
                f"the loss of the {self.stage.title} became {logs['loss']}; continue "
                "from the last checkpoint with a lower learning rate, or start again "
                "in float32."
            )

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Stop where nothing was learnt for long."""
        stage, done = self.stage, self.record.done
        value = logs[stage.figure]
        # The figures of the first are means from the very beginning on.
        if epoch == 0 or value < _MARGIN * stage.baseline:
            self.good_until = done
        steps = done - self.good_until
        if steps >= max(_MIN_PATIENCE, _PATIENCE * stage.length.total):
            raise InputError(
                f"the {stage.title} has learnt nothing in {steps} steps "
                f"({stage.figure} is {value:.3g}; without learning it is "
                f"{stage.baseline:.3g}); lower the learning rate, and look at the "
                "training images."
            )


class Progress(keras.callbacks.Callback):
    """Show a bar with the loss and the time that is left of all epochs."""

    def __init__(self, stage: Stage, done: int, *, disable: bool = False) -> None:
        super().__init__()
        self.title, self.length = stage.title, stage.length
        self.options: dict = {"initial": done, "disable": disable}
        self.bar: Any = None

    def on_epoch_begin(self, epoch, logs=None) -> None:
        """Open the bar."""
        if self.bar is None:
            self.bar = tqdm(
                desc=f"{self.title}: preparing the first step",
                total=self.length.total,
                unit="step",
                **self.options,
            )

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Advance the progress bar by a step."""
        # The first takes seconds, in which its description is what there is to see.
        epoch = self.bar.n // self.length.epoch + 1
        epochs = math.ceil(self.length.total / self.length.epoch)
        self.bar.set_description(f"{self.title}, epoch {epoch}/{epochs}", refresh=False)
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self.bar.update()

    def on_train_end(self, logs=None) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
