"""Trainings that come to nothing: stopped before they have cost hours."""

import math
from typing import Any

import keras

from dipy_ldm._utils.checks import InputError

# Of its length, what a training may go on without having learnt anything; and not
# fewer steps than these.
_PATIENCE = 0.2
_LEAST = 100

# What is hardly better than having learnt nothing is no better.
_MARGIN = 0.98


class Watch(keras.callbacks.Callback):
    """Stop a training whose loss is no number any more, or that learns nothing.

    Before a checkpoint is written that would have it, too.
    """

    def __init__(
        self, title: str, length: Any, figure: str, nothing: float, done: int = 0
    ) -> None:
        super().__init__()
        self.title = title
        self.length = length
        self.figure = figure
        self.nothing = nothing
        self.good_until = done

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Stop where the loss is no number."""
        if not math.isfinite(logs["loss"]):
            raise InputError(
                f"the loss of the {self.title} became {logs['loss']}; go on from the "
                "checkpoint before with a lower learning rate, or begin anew in "
                "float32."
            )

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Stop where nothing was learnt for long."""
        done = self.length.end(epoch)
        # The figures of the first are means from the very beginning on.
        if epoch == 0 or logs[self.figure] < _MARGIN * self.nothing:
            self.good_until = done
        stood = done - self.good_until
        if stood >= max(_LEAST, _PATIENCE * self.length.total):
            raise InputError(
                f"the {self.title} has learnt nothing in {stood} steps ({self.figure} "
                f"is {logs[self.figure]:.3g}, and {self.nothing:.3g} where nothing is "
                "learnt); give a lower learning rate, and look at the images that it "
                "is given."
            )
