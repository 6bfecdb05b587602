"""The weights of the round in which held-out images were predicted best."""

import logging
from typing import Any

import keras
import numpy as np

from dipy_ldm import _serialization

logger = logging.getLogger(__name__)

_FIGURE = "val_loss"
_NAME = "lowest"
# A rise by less is hardly one; by more, time was spent on memorising images.
_RISE = 1.02


class BestWeights(keras.callbacks.Callback):
    """Keep the weights of the round in which ``val_loss`` was lowest."""

    def __init__(self, title: str, network: keras.Model | None) -> None:
        super().__init__()
        self.title = title
        self.network = network
        self.tensors: dict[str, np.ndarray] = {}
        self.loss = np.inf

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Keep the weights if the loss is the lowest so far."""
        loss = logs.get(_FIGURE, np.inf)
        if self.network is not None and loss < self.loss:
            self.loss = loss
            weights = _serialization.weights(self.network, _NAME)
            # Copies: the weights may be changed in place.
            self.tensors = {name: np.array(weight) for name, weight in weights.items()}

    def restore(self, tensors: dict[str, np.ndarray], history: dict[str, list]) -> None:
        """Restore the kept weights from a checkpoint."""
        ours = (name for name in tensors if name.startswith(f"{_NAME}."))
        self.tensors = {name: tensors[name] for name in ours}
        if self.tensors:
            self.loss = min(history[_FIGURE])

    def figures(self) -> dict[str, float]:
        """Return what the loss of the weights is."""
        return {_FIGURE: self.loss} if self.tensors else {}

    def restore_to_network(self, history: dict[str, list[Any]]) -> None:
        """Restore the kept weights, and warn if the loss has risen since."""
        if not self.tensors:
            return
        _serialization.set_weights(self.network, _NAME, self.tensors)
        losses, steps = history[_FIGURE], history["step"]
        if losses[-1] > _RISE * self.loss:
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
