"""Training: a stage describes what is trained, and ``train`` trains it."""

from dipy_ldm.training._options import FitOptions, ResolvedOptions, resolve
from dipy_ldm.training._trainer import Stage, train

__all__ = ["FitOptions", "ResolvedOptions", "Stage", "resolve", "train"]
