r"""Linear probe: read conditions from latents, and guide samples towards them.

Samples of a network conditioned on ventricle width deviate more from it than the error
of a linear regression of the width on latents. The requested value is therefore used as
an observation of the clean latents,

.. math::

    y = w^T z + b + \epsilon ,

with a reading :math:`w`, :math:`b` and the variance :math:`\tau^2` of its error
:math:`\epsilon`. Given noisy latents, the clean ones have the covariance
:math:`P = \sigma^2 \Sigma (\alpha^2 \Sigma + \sigma^2 I)^{-1}`, and a denoiser's
estimate :math:`z` of them becomes

.. math::

    z + P w\, (w^T P w + \tau^2)^{-1} (y - w^T z - b) ,

the update of a Kalman filter :footcite:p:`Kalman1960`; such guidance of a denoiser by
an observation is due to :footcite:p:`Boys2023`. Unspecified conditions and those that
the probe does not predict have no effect.

A few positions are informative about ventricle width; thousands of others only add
chance correlations of a few hundred examples. So the probe is fitted twice: first with
equal prior variances, then with a larger prior variance of weights at informative
positions, similar to automatic relevance determination :footcite:p:`Tipping2001`.

References
----------
.. footbibliography::
"""

from collections.abc import Callable
from typing import NamedTuple, Self

from keras import ops
import numpy as np
from scipy.ndimage import gaussian_filter

from dipy_ldm._conditions import CONTINUOUS, MIN_GROUP_SIZE, UNSPECIFIED, Condition
from dipy_ldm._utils.types import Tensor
from dipy_ldm.diffusion.schedules import rates
from dipy_ldm.prior._gaussian import Gaussian
from dipy_ldm.prior._ridge import fit_kernel_ridge

# Candidate ridges, in variances of the latents of an example.
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# Minimum relevance of weights, relative to a mean of 1, and standard deviation of its
# smoothing, in latents.
_MIN_RELEVANCE = 0.02
_REACH = 1.0
# Classes with more levels are not read.
_MAX_LEVELS = 8
# Numbers of each example that are multiplied at once.
MAX_MULTIPLIED = 2**14
# Minimum correlation of held-out predictions of the first fit with the truth; with less
# there is no guidance. For 16 subjects, chance exceeds it in one of 40 cases.
MIN_CORRELATION = 0.5
# Minimum number of subjects.
MIN_SUBJECTS = 16
# Relevance is estimated from all examples, including left-out ones, so that held-out
# errors are too small, by this factor over the number of subjects.
_SHARED_RELEVANCE = 4
# Factor by which guidance is firmer than the error variance implies, since this has
# deviations of individual brains, too: samples were measured to be nearer to the
# request, and to vary as much.
_FIRMNESS = 10


class LinearProbe(NamedTuple):
    """Linear readings of conditions from latents, as numbers from -1 to 1.

    There is one reading for each continuous condition, its rank, and one for each level
    of a class: 1 for examples with that level, -1 for others. Directions are not read,
    since they are not linear, nor are classes with many levels, which would need as
    much memory as everything else.

    Shapes: weights ``(readings, *space, channels)``, offsets ``(readings,)``, errors
    ``(readings,)``.
    """

    conditions: dict[str, Condition]
    weights: np.ndarray
    offsets: np.ndarray
    errors: np.ndarray

    @classmethod
    def learn(
        cls,
        latents: np.ndarray,
        numbers: np.ndarray,
        conditions: dict[str, Condition],
        subjects: np.ndarray | None = None,
    ) -> Self:
        """Fit the readings by ridge regression.

        Ridges and errors are those of predictions by a fit to other subjects.

        Shapes: latents ``(n, *space, channels)``, numbers ``(n, conditions)``, subjects
        ``(n,)``.
        """
        subjects = np.arange(len(latents)) if subjects is None else subjects
        rows = latents.reshape(len(latents), -1)
        mean = rows.mean(0)
        rows = rows - mean
        values, specified = _probe_targets(numbers, conditions)
        uniform = _products(rows, np.ones(rows.shape[1], "float32"))
        space = latents.shape[1:-1]
        fits = [
            _fit_reading(rows, uniform, space, subjects, readings, readable)
            for readings, readable in zip(values.T, specified.T)
        ]
        weights, offsets, errors = (np.array(p, "float32") for p in zip(*fits))
        return cls(
            conditions,
            weights.reshape(-1, *latents.shape[1:]),
            offsets - weights @ mean,
            errors,
        )

    def predict(self, latents: Tensor) -> Tensor:
        """Read ``(batch, readings)`` from latents ``(batch, *space, channels)``."""
        weights = self.weights.reshape(len(self.weights), -1)
        rows = ops.reshape(latents, (-1, weights.shape[1]))
        return ops.add(ops.matmul(rows, weights.T), self.offsets)

    def guide_by_observation(
        self, denoise: Callable, gaussian: Gaussian, schedule: str, numbers: np.ndarray
    ) -> Callable:
        """Guide a denoiser towards observed conditions."""
        targets, specified = _probe_targets(numbers, self.conditions)
        # Levels that are not requested add nothing.
        specified &= (self.errors > 0) & ((targets > -1) | self._continuous())
        if not specified.any():
            return denoise
        targets = np.where(specified, targets, 0)

        def guided(x: Tensor, t: float):
            clean = denoise(x, t)
            alpha, sigma = map(float, rates(schedule, t))
            columns = gaussian.posterior_covariance_product(self.weights, alpha, sigma)
            error = ops.subtract(targets.astype("float32"), self.predict(clean))
            error = ops.matmul(error[:, None, :], self._gains(columns, specified))[:, 0]
            change = ops.matmul(error, columns)
            return clean + ops.reshape(change, ops.shape(clean))

        return guided

    def _continuous(self):
        """Return whether each reading is of a continuous condition."""
        kinds = self.conditions.values()
        return np.repeat([c.size <= 0 for c in kinds], [*map(n_readings, kinds)])

    def _gains(self, columns: np.ndarray, specified: np.ndarray):
        """Return gains of the Kalman filter, ``(batch, readings, readings)``."""
        weights = self.weights.reshape(len(self.weights), -1)
        covariance = (weights @ columns.T).astype("float64")
        power = self.errors.astype("float64") ** 2 / _FIRMNESS
        covariance = (covariance + covariance.T) / 2 + np.diag(power)
        gains = np.zeros((*specified.shape, specified.shape[1]))
        for gain, which in zip(gains, specified):
            pair = np.ix_(which, which)
            gain[pair] = np.linalg.inv(covariance[pair])
        return gains.astype("float32")


def n_readings(condition: Condition) -> int:
    """Count the readings of a condition."""
    if condition.size > _MAX_LEVELS:
        return 0
    return max(condition.size, 1)


def _probe_targets(numbers: np.ndarray, conditions: dict[str, Condition]):
    """Return true readings and whether they are specified, ``(n, readings)``."""
    values, specified = [], []
    for column, condition in zip(numbers.T, conditions.values()):
        if not n_readings(condition):
            continue
        column = column[:, None]
        if condition.size > 0:
            targets = np.where(column == np.arange(condition.size), 1.0, -1.0)
            readable = np.array(list(condition.levels.values())) >= MIN_GROUP_SIZE
        else:
            targets = 2.0 * column - 1
            readable = condition.size == CONTINUOUS
        values.append(targets)
        specified.append((column != UNSPECIFIED) & readable)
    return np.concatenate(values, 1), np.concatenate(specified, 1)


def _fit_reading(
    rows: np.ndarray,
    uniform: np.ndarray,
    space: tuple[int, ...],
    subjects: np.ndarray,
    values: np.ndarray,
    specified: np.ndarray,
):
    """Fit one reading; return its weights, offset and error.

    Shapes: rows ``(n, numbers)``, uniform ``(n, n)``, their products.
    """
    examples = np.flatnonzero(specified)
    targets, n_subjects = values[examples], len(np.unique(subjects[examples]))
    no_reading = np.zeros(rows.shape[1]), 0.0, 0.0
    if n_subjects < MIN_SUBJECTS or np.ptp(targets) == 0:
        return no_reading
    dual, _, predicted = _fit(uniform, targets, examples, subjects)
    if np.ptp(predicted) == 0:
        return no_reading
    if np.corrcoef(predicted, targets)[0, 1] < MIN_CORRELATION:
        return no_reading
    relevance = _relevance(dual.astype("float32") @ rows, space)
    products = _products(rows, relevance)
    dual, offset, predicted = _fit(products, targets, examples, subjects)
    # Undo the shrinkage of predictions towards the mean.
    slope, intercept = np.polyfit(targets, predicted, 1)
    error = np.std(predicted - slope * targets - intercept) / slope
    error *= 1 + _SHARED_RELEVANCE / n_subjects
    weights = (dual / slope).astype("float32") @ rows * relevance
    return weights, (offset - intercept) / slope, error


def _fit(
    products: np.ndarray,
    targets: np.ndarray,
    examples: np.ndarray,
    subjects: np.ndarray,
):
    """Fit kernel ridge regression with the ridge that predicts left-out subjects best.

    Dual weights are those of all examples, 0 for unspecified ones.
    """
    block = products[np.ix_(examples, examples)]
    penalties = np.multiply(_RIDGES, block.trace() / len(examples))
    dual = np.zeros(len(products))
    dual[examples], offset, held_out = fit_kernel_ridge(
        block, targets, penalties, subjects[examples]
    )
    return dual, offset, held_out


def _products(rows: np.ndarray, relevance: np.ndarray):
    """Return inner products of examples, weighted by relevance, ``(n, n)``."""
    products = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], MAX_MULTIPLIED):
        # In parts: a copy of large volumes would take hundreds of megabytes.
        part = rows[:, start : start + MAX_MULTIPLIED]
        products += (part * relevance[start : start + MAX_MULTIPLIED]) @ part.T
    return products


def _relevance(weights: np.ndarray, space: tuple[int, ...]):
    """Return the prior variance of each weight, by the energy of weights around it."""
    energy = np.square(weights).reshape(*space, -1).sum(-1)
    relevance = gaussian_filter(energy, _REACH) / energy.mean() + _MIN_RELEVANCE
    return np.repeat(relevance.ravel(), weights.size // energy.size)
