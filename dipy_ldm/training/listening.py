"""What a denoiser is told of in training, and whether it listens."""

from collections.abc import Callable, Sequence
import hashlib
import json
import logging
import math
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm.conditions import UNSPECIFIED, Condition, Told, to_saved
from dipy_ldm.validation import InputError

logger = logging.getLogger(__name__)

# What is measured of fewer latents is measured several times, with other noise.
_LEAST = 32
# A gain of fewer standard errors may be chance.
_ERRORS = 3.0


class Latents(NamedTuple):
    """Latents, and what is told of them.

    Parameters
    ----------
    clean : ndarray
        Of unit variance, ``(n, *space, channels)``.
    conditions : ndarray, optional
        Numbers, ``(n, conditions)``; None where there are no conditions.
    """

    clean: np.ndarray
    conditions: np.ndarray | None = None

    def numbered(self) -> Self:
        """Repeat few of them, and add to their conditions the number of each.

        Returns
        -------
        Latents
            As many as suffice; where there are no conditions, the same.
        """
        if self.conditions is None:
            return self
        n = len(self.clean)
        numbers = np.tile(np.arange(n), math.ceil(_LEAST / n))
        told = np.column_stack([self.conditions[numbers], numbers])
        return type(self)(self.clean[numbers], told.astype("float32"))


def tell_of(
    known: dict[str, Condition], conditions: Any, images: np.ndarray | None
) -> np.ndarray | None:
    """Say what a network is told of images in training.

    Parameters
    ----------
    known : dict of str to Condition
        What is known of each condition.
    conditions : dict, DataFrame or array_like
        What is known of the images. Levels that are not in ``known`` are left out.
    images : ndarray or None
        Images, ``(n, *space, channels)``.

    Returns
    -------
    ndarray or None
        ``(n, conditions)``, float32; None where there are no images or conditions.

    Raises
    ------
    InputError
        If the conditions can't be those of the images.
    """
    if images is None or not known:
        if conditions is None:
            return None
        missing = "validation_data" if known else "conditions"
        raise InputError(f"validation_conditions are of no use without {missing}.")
    told = Told.of(known, conditions, len(images), lenient=True)
    if told.surprises:
        logger.warning("held-out images: %s", " ".join(told.surprises[:9]))
    return told.numbers


def fingerprint(known: dict[str, Condition], told: np.ndarray | None) -> str | None:
    """Say what tells conditions from those of another training.

    Parameters
    ----------
    known : dict of str to Condition
        What is known of each.
    told : ndarray or None
        As of :func:`tell_of`.

    Returns
    -------
    str or None
        Names, and the start of a hash; None where there are no conditions.
    """
    if told is None:
        return None
    text = json.dumps(to_saved(known)).encode()
    digest = hashlib.sha256(text + told.tobytes()).hexdigest()
    return f"{', '.join(known)} ({digest[:16]})"


def gains(
    losses: Callable,
    told: np.ndarray,
    who: np.ndarray,
    names: Sequence[str],
    *,
    warn: bool,
) -> dict[str, float]:
    """Measure what the loss gains where each condition by itself is another's.

    Parameters
    ----------
    losses : callable
        From conditions ``(n, conditions)`` to the loss of each latent, ``(n,)``.
    told : ndarray
        True conditions.
    who : ndarray
        Number of each latent, equal for those that were repeated.
    names : sequence of str
        Names of the conditions.
    warn : bool
        Whether to say of which conditions a gain can't be told from chance.

    Returns
    -------
    dict of str to float
        ``val_gain_name`` of each: 0 where the denoiser does not listen.
    """
    true, figures = losses(told), {}
    for column, name in enumerate(names):
        known = told[:, column] != UNSPECIFIED
        gain, error = _mean(losses(_exchanged(told, column)) - true, who, known)
        figures[f"val_gain_{name}"] = gain
        if warn and not gain > _ERRORS * error:
            logger.warning(
                "the model does not listen to the condition %s, as far as can be told "
                "from %d held-out images: with others' values its loss is %.2g higher "
                "(standard error %.2g).",
                name,
                len(np.unique(who[known])),
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
