"""Stop diverged trainings early, before they have cost hours."""

import math

import keras

from dipy_ldm._utils.checks import InputError
from dipy_ldm.training._options import Length

# Of its length, what a training may go on without having learnt anything; and not
# fewer steps than these.
_PATIENCE, _MIN_PATIENCE = 0.2, 100

# What is hardly better than having learnt nothing is no better.
_MARGIN = 0.98


class DivergenceCheck(keras.callbacks.Callback):
    """Stop a training whose loss is not finite any more, or that learns nothing.

    Before a checkpoint is written that would have it, too.
    """

    def __init__(
        self, title: str, length: Length, figure: str, baseline: float, done: int = 0
    ) -> None:
        super().__init__()
        self.title = title
        self.length = length
        self.figure = figure
        self.baseline = baseline
        self.good_until = done

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Stop where the loss is not finite."""
        if not math.isfinite(logs["loss"]):
            raise InputError(
                f"the loss of the {self.title} became {logs['loss']}; continue "
                "from the last checkpoint with a lower learning rate, or start again "
                "in float32."
            )

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Stop where nothing was learnt for long."""
        done, value = self.length.end(epoch), logs[self.figure]
        # The figures of the first are means from the very beginning on.
        if epoch == 0 or value < _MARGIN * self.baseline:
            self.good_until = done
        steps = done - self.good_until
        if steps >= max(_MIN_PATIENCE, _PATIENCE * self.length.total):
            raise InputError(
                f"the {self.title} has learnt nothing in {steps} steps "
                f"({self.figure} is {value:.3g}; without learning it is "
                f"{self.baseline:.3g}); lower the learning rate, and look at the "
                "training images."
            )
