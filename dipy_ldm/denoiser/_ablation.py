"""Condition ablation: what each condition by itself does for the loss."""

from collections.abc import Callable, Sequence
import logging
import math

import numpy as np

from dipy_ldm.conditions import UNSPECIFIED

logger = logging.getLogger(__name__)

# A gain of fewer standard errors may be chance.
MIN_STANDARD_ERRORS = 3.0
# Where gains deviate by as much as their mean, 10 subjects reach these errors in 58 %
# of trainings, and 2 to 5 in 35 % (noncentral t): a warning of fewer says nothing.
FEWEST_SUBJECTS = 10


def ablation_gains(
    losses: Callable,
    encoded: np.ndarray,
    subjects: np.ndarray,
    names: Sequence[str],
    *,
    warn: bool,
) -> dict[str, float]:
    """Measure how much the loss rises where a condition is shuffled, one at a time.

    Shapes: losses ``(n, conditions)``.
    """
    true, figures = losses(encoded), {}
    for column, name in enumerate(names):
        specified = encoded[:, column] != UNSPECIFIED
        gain, error = _mean(
            losses(_exchanged(encoded, column)) - true, subjects, specified
        )
        figures[f"val_gain_{name}"] = gain
        n = len(np.unique(subjects[specified]))
        if warn and n >= FEWEST_SUBJECTS and not gain > MIN_STANDARD_ERRORS * error:
            logger.warning(
                "the model does not listen to the condition %s, as far as can be told "
                "from held-out images of %d subjects: with others' values its loss is "
                "%.2g higher (standard error %.2g).",
                name,
                n,
                gain,
                error,
            )
    return figures


def _exchanged(encoded, column):
    """Give each latent the value of one that is half of all away in their order."""
    encoded = encoded.copy()
    (specified,) = np.nonzero(encoded[:, column] != UNSPECIFIED)
    order = specified[np.argsort(encoded[specified, column], kind="stable")]
    encoded[order, column] = np.roll(encoded[order, column], len(order) // 2)
    return encoded


def _mean(differences, subjects, specified):
    """Return the mean of differences and its standard error, by those they are of."""
    each = [
        differences[specified & (subjects == number)].mean()
        for number in set(subjects[specified])
    ]
    if len(each) < 2:
        return 0.0, math.inf
    return float(np.mean(each)), float(np.std(each, ddof=1) / math.sqrt(len(each)))
