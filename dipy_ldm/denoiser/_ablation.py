"""Whether a denoiser listens to what it is told."""

from collections.abc import Callable, Sequence
import logging
import math

import numpy as np

from dipy_ldm.conditions import UNSPECIFIED

logger = logging.getLogger(__name__)

# A gain of fewer standard errors may be chance.
_ERRORS = 3.0
# Where gains deviate by as much as their mean, 10 subjects reach these errors in 58 %
# of trainings, and 2 to 5 in 35 % (noncentral t): a warning of fewer says nothing.
FEWEST_SUBJECTS = 10


def gains(
    losses: Callable,
    told: np.ndarray,
    who: np.ndarray,
    names: Sequence[str],
    *,
    warn: bool,
) -> dict[str, float]:
    """Measure what the loss gains where each condition by itself is another's.

    Shapes: losses ``(n, conditions)``.
    """
    true, figures = losses(told), {}
    for column, name in enumerate(names):
        known = told[:, column] != UNSPECIFIED
        gain, error = _mean(losses(_exchanged(told, column)) - true, who, known)
        figures[f"val_gain_{name}"] = gain
        n = len(np.unique(who[known]))
        if warn and n >= FEWEST_SUBJECTS and not gain > _ERRORS * error:
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


def _exchanged(told, column):
    """Give each latent the value of one that is half of all away in their order."""
    told = told.copy()
    (known,) = np.nonzero(told[:, column] != UNSPECIFIED)
    order = known[np.argsort(told[known, column], kind="stable")]
    told[order, column] = np.roll(told[order, column], len(order) // 2)
    return told


def _mean(differences, who, known):
    """Return the mean of differences and its standard error, by those they are of."""
    each = [differences[known & (who == number)].mean() for number in set(who[known])]
    if len(each) < 2:
        return 0.0, math.inf
    return float(np.mean(each)), float(np.std(each, ddof=1) / math.sqrt(len(each)))
