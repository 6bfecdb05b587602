"""A stage, and the one function that trains it."""

from collections.abc import Callable
from contextlib import nullcontext
import logging
import math
import time
from typing import Any, NamedTuple

import keras
from tqdm import tqdm

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.signals import deferred, noted
from dipy_ldm.data._batches import Batches
from dipy_ldm.nn import building
from dipy_ldm.training._best_weights import Lowest
from dipy_ldm.training._checkpoint import Record
from dipy_ldm.training._divergence import Watch
from dipy_ldm.training._options import Length, Training

logger = logging.getLogger(__name__)

# Steps of a training that is meant in earnest: a shorter one is a trial of the way, and
# what is wrong with its result is said, no more.
_TRIAL = 100


class Stage(NamedTuple):
    """What is trained: the autoencoder, the guide or the denoiser."""

    title: str
    training: Training
    length: Length
    settings: dict
    build: Callable
    batches: Batches
    publish: Callable
    lesson: tuple
    verdict: Callable
    take: Callable | None = None
    begin: Callable | None = None
    network: keras.Model | None = None


def train(estimator: Any, stage: Stage) -> None:
    """Train a stage with stock ``keras.Model.fit``, from its checkpoint on."""
    training = stage.training
    settings = stage.settings | training.settings()
    settings |= {"steps of an epoch": stage.length.epoch}
    lowest = Lowest(stage.title, stage.network)
    given = settings, stage.length, lowest, training.checkpoint_steps
    record = Record(training.checkpoint, *given)
    _backend.require_agreement(record.facts())
    precision = building.precision(training.settings()["precision"])
    with _backend.scope(training.strategy), precision:
        model = stage.build()
    record.restore(model)
    if stage.begin and record.done == 0:
        stage.begin(model)
    model.prepare(stage.batches)
    data = _backend.distribute_batches(stage.batches, record.done, training.strategy)
    _backend.release_memory()
    _fit(estimator, model, data, stage, record)


def _fit(estimator, model, data, stage, record):
    """Run ``keras.Model.fit`` with the callbacks that a stage wants around it."""
    training = stage.training

    def ask(number):
        model.stop_requested, record.signal = True, number

    def interrupt():
        model.interrupted = True

    figure, nothing = stage.lesson
    verbose = training.verbose and _backend.is_chief()
    progress = Progress(stage.title, stage.length, record.done, disable=not verbose)
    callbacks = [
        _Clock(estimator, stage.title),
        _Publish(stage),
        record.lowest,
        Watch(stage.title, stage.length, figure, nothing, record.done),
        record,
        _Tell(estimator, stage.title, record, training.callbacks),
        progress,
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
    # Not with the last round alone: of a training that had ended there is none.
    if stage.take:
        stage.take(model)
    record.lowest.give_back(record.history)
    estimator.history_ = record.history
    if any(_backend.gather_from_workers(model.stop_requested)):
        # After the last step.
        record.end()
    last = {name: values[-1] for name, values in record.history.items()}
    figures = last | record.lowest.figures()
    if sentence := stage.verdict(figures):
        sentence = f"after {stage.length.total} steps {sentence}"
        if stage.length.total >= _TRIAL:
            raise InputError(sentence)
        logger.warning("%s", sentence)


class _Clock(keras.callbacks.Callback):
    """Let the log know how much of the time training proper took.

    And the estimator, how long each step of this process took: ``step_seconds_``.
    """

    def __init__(self, estimator, title):
        super().__init__()
        self.title = title
        self.each: list[float] = []
        known = getattr(estimator, "step_seconds_", {})
        estimator.step_seconds_ = known | {title: self.each}

    def on_train_begin(self, logs=None):
        self.began = time.monotonic()

    def on_train_batch_begin(self, batch, logs=None):
        self.step_began = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.each.append(time.monotonic() - self.step_began)

    def on_train_end(self, logs=None):
        took = time.monotonic() - self.began
        logger.debug(
            "%s: %.0f s, %.0f %% of it in steps",
            self.title,
            took,
            100 * sum(self.each) / took,
        )


class _Publish(keras.callbacks.Callback):
    """Let the stage have its say after each round."""

    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == self.params["epochs"]
        logs |= self.stage.publish(self.model, epoch, last)


class _Tell(keras.callbacks.Callback):
    """Let the log and the user's callbacks know of each round."""

    def __init__(self, estimator, title, record, callbacks):
        super().__init__()
        self.estimator = estimator
        self.title = title
        self.record = record
        self.callbacks = callbacks

    def on_epoch_end(self, epoch, logs=None):
        self.estimator.history_ = self.record.history
        figures = ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
        logger.debug("%s, round %d: %s", self.title, epoch + 1, figures)
        if _backend.is_chief():
            # What they look at is not spread: the others don't take part.
            with _backend.spread(None):
                for callback in self.callbacks:
                    callback(self.estimator)


class Progress(keras.callbacks.Callback):
    """Show a bar with the loss and the time that is left of all epochs."""

    def __init__(
        self, title: str, length: Length, done: int, *, disable: bool = False
    ) -> None:
        super().__init__()
        self.title = title
        self.length = length
        self.done = done
        self.disable = disable
        self.bar: Any = None

    def on_epoch_begin(self, epoch, logs=None) -> None:
        """Open the bar."""
        if self.bar is None:
            self.bar = tqdm(
                desc=f"{self.title}: preparing the first step",
                total=self.length.total,
                initial=self.done,
                unit="step",
                disable=self.disable,
            )

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Move on by a step, and say which epoch it is in."""
        # The first takes seconds, in which its description is what there is to see.
        epoch = self.done // self.length.epoch + 1
        epochs = math.ceil(self.length.total / self.length.epoch)
        self.done += 1
        self.bar.set_description(f"{self.title}, epoch {epoch}/{epochs}", refresh=False)
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self.bar.update()

    def on_train_end(self, logs=None) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
