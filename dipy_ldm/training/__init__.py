"""Training: a stage is a value, and one function trains it."""

from dipy_ldm.training._options import Options, Training
from dipy_ldm.training._trainer import Stage, train

__all__ = ["Options", "Stage", "Training", "train"]
