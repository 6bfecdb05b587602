"""History, best weights and checkpoints of a training."""

import json
import logging
from pathlib import Path
import signal
import time
from typing import Any

import keras
from keras import ops
import numpy as np

from dipy_ldm import _backend, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import make_folder
from dipy_ldm._utils.signals import Terminated
from dipy_ldm._utils.types import Logs
from dipy_ldm.training._options import Length, require_same_checkpoint

logger = logging.getLogger(__name__)

# The metric that selects the best weights, and their name in a checkpoint.
_LOSS = "val_loss"
_BEST = "lowest"
# Warn of overfitting if the validation loss rises by more than this factor.
_OVERFITTING_RISE = 1.02


class BestWeights(keras.callbacks.Callback):
    """Keep the weights of the round with the lowest ``val_loss``."""

    def __init__(self, title: str, network: keras.Model | None) -> None:
        super().__init__()
        self.title = title
        self.network = network
        self.tensors: dict[str, np.ndarray] = {}
        self.loss = np.inf

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Keep the weights if the loss is the lowest so far."""
        loss = logs.get(_LOSS, np.inf)
        if self.network is not None and loss < self.loss:
            self.loss = loss
            weights = _serialization.weights(self.network, _BEST)
            # Copies, since weights are updated in place.
            self.tensors = {name: np.array(weight) for name, weight in weights.items()}

    def restore(self, tensors: dict[str, np.ndarray], history: dict[str, list]) -> None:
        """Restore the kept weights from a checkpoint."""
        prefix = f"{_BEST}."
        self.tensors = {n: x for n, x in tensors.items() if n.startswith(prefix)}
        if self.tensors:
            self.loss = min(history[_LOSS])

    def figures(self) -> dict[str, float]:
        """Return the loss of the kept weights."""
        return {_LOSS: self.loss} if self.tensors else {}

    def restore_to_network(self, history: dict[str, list[Any]]) -> None:
        """Restore the kept weights, and warn if the loss has risen since."""
        if not self.tensors:
            return
        _serialization.set_weights(self.network, _BEST, self.tensors)
        losses, steps = history[_LOSS], history["step"]
        if losses[-1] > _OVERFITTING_RISE * self.loss:
            logger.warning(
                "%s: the validation loss rose from %.3g after %d steps to %.3g after "
                "%d. Restored the weights with the lowest. Training longer overfits; "
                "use more images.",
                self.title,
                self.loss,
                steps[losses.index(self.loss)],
                losses[-1],
                steps[-1],
            )


class TrainingRecord(keras.callbacks.Callback):
    """Keep the history, and write checkpoints from which training resumes.

    A checkpoint holds the weights, the optimizer state (with the EMA weights), the best
    weights, the metrics of the current round and the history. Batches are functions of
    the step, so a resumed training equals an uninterrupted one. The previous checkpoint
    is kept, too.
    """

    # Checkpoints after rounds take at most this share of the time, plus these seconds.
    TIME_SHARE = 0.05
    FREE_SECONDS = 5.0

    def __init__(
        self,
        path: str | Path | None,
        settings: dict,
        length: Length,
        best: BestWeights,
        every: int = 1000,
    ) -> None:
        super().__init__()
        self.path = Path(path) if path else None
        if self.path and _backend.is_chief():
            make_folder(self.path.parent)
        self.settings = json.loads(json.dumps(settings))
        self.length = length
        self.best = best
        self.every = every
        self.history: dict[str, list] = {}
        self.done = 0
        # Workers that stop with the one that got a signal don't know which it was.
        self.signal = int(signal.SIGTERM)
        self._figures: list[np.ndarray] = []
        self._seconds_writing = 0.0

    @property
    def rounds(self):
        """Number of completed rounds."""
        if self.done == self.length.total:
            return self.length.rounds
        return self.done // self.length.round

    def restore(self, model: keras.Model) -> None:
        """Restore a compiled model from the checkpoint, if there is one."""
        model.optimizer.build(model.trainable_variables)
        if self.path is not None and self.path.exists():
            readable_path, (tensors, document) = _serialization.load_newest(self.path)
            self.history, self.done = document["history"], document["steps"]
        require_same_checkpoint("steps", self.done)
        if self.done == 0:
            return
        self._require_same_settings(document["settings"])
        state = _numbered(model=model.variables, optimizer=model.optimizer.variables)
        if any(
            name not in tensors or tensors[name].shape != tuple(variable.shape)
            for name, variable in state.items()
        ):
            raise InputError(
                f"{self.path} was written by an earlier version", "remove it"
            )
        if readable_path != self.path and _backend.is_chief():
            readable_path.replace(self.path)
        for name, variable in state.items():
            variable.assign(tensors[name])
        self.best.restore(tensors, self.history)
        # The metrics are created when training begins, and get these values then.
        self._figures = [
            tensors[name] for name in sorted(tensors) if name.startswith("metric.")
        ]

    def _require_same_settings(self, settings: dict):
        # A diverged training may resume with a lower learning rate.
        changed = [
            f"{name} was {settings.get(name)} and is {self.settings.get(name)}"
            for name in sorted((settings | self.settings).keys() - {"learning_rate"})
            if settings.get(name) != self.settings.get(name)
        ]
        if changed:
            raise InputError(
                f"{self.path} is the checkpoint of another training "
                f"({'; '.join(changed)})",
                "resume with the same data and options, or remove it",
            )

    def on_train_begin(self, logs: Logs = None) -> None:
        """Start the timer."""
        self._start = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Restore the metrics of a partial round."""
        self._first, self._end = epoch * self.length.round, self.length.end(epoch)
        if self.done > self._first:
            variables = self.model.metrics_variables
            if len(variables) != len(self._figures):
                raise InputError(f"{self.path} is damaged", "remove it")
            for variable, value in zip(variables, self._figures):
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Write a checkpoint every `every` steps, and before stopping on a signal."""
        self.done += 1
        if self.done == self._end:
            # End the round early if it was resumed, or is shorter than the others.
            self.model.stop_training = True
        elif self.model.stopping:
            self._write()
            self.stop()
        elif (self.done - self._first) % self.every == 0:
            self._write()

    def on_epoch_end(self, number: int, logs: Logs = None) -> None:
        """Record the metrics of the round and write the checkpoint."""
        done = self.done
        if done == self._end:
            # Unless a callback has stopped the training within the round.
            self.model.stop_training = False
        whole_epochs, remainder = divmod(done, self.length.epoch)
        epoch = done / self.length.epoch if remainder else whole_epochs
        figures = {name: float(value) for name, value in logs.items()}
        for name, value in ({"step": done, "epoch": epoch} | figures).items():
            self.history.setdefault(name, []).append(value)
        if self.model.stopping or done == self.length.total or self._may_write():
            self._write()
        if self.model.stopping:
            self.stop()

    def _may_write(self):
        """Return whether a checkpoint may be written; the chief decides."""
        budget = self.FREE_SECONDS + self.TIME_SHARE * (time.monotonic() - self._start)
        return _backend.gather_from_workers(self._seconds_writing < budget)[0]

    def _write(self):
        """Write the checkpoint; called on all workers, since some values are summed."""
        if self.path is None:
            return
        start = time.monotonic()
        self.model.sync_weights()
        state = _numbered(
            model=self.model.variables,
            optimizer=self.model.optimizer.variables,
            metric=self.model.metrics_variables,
        )
        tensors = {name: ops.convert_to_numpy(v) for name, v in state.items()}
        tensors |= self.best.tensors
        if _backend.is_chief():
            document = {"settings": self.settings, "history": self.history}
            document["steps"] = self.done
            previous = _serialization.previous_path(self.path)
            _serialization.save(self.path, "checkpoint", tensors, document, previous)
            logger.debug("%s holds %s steps", self.path, self.done)
        self._seconds_writing += time.monotonic() - start

    def stop(self) -> None:
        """Stop the training on a signal."""
        raise Terminated(
            f"stopped by {signal.Signals(self.signal).name}; the checkpoint is "
            "written, from which the same training can be resumed.",
            self.signal,
        )


def _numbered(**kinds):
    """Name variables by kind and index, so that names sort in their order."""
    return {
        f"{kind}.{i:05d}": variable
        for kind, variables in kinds.items()
        for i, variable in enumerate(variables)
    }
