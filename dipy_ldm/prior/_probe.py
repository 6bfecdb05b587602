r"""A linear probe reads conditions from latents, and guides samples towards them.

A network that is conditioned on the width of ventricles errs by more than a straight
line that reads their width in the latents. What is requested is therefore taken for an
observation of the clean latents,

.. math::

    y = w^T z + b + \epsilon ,

with a reading :math:`w`, :math:`b` and the variance :math:`\tau^2` of its error
:math:`\epsilon`. Of what is known of latents that were noised, the clean ones have the
covariance :math:`P = \sigma^2 \Sigma (\alpha^2 \Sigma + \sigma^2 I)^{-1}`, and a
denoiser's estimate :math:`z` of them becomes

.. math::

    z + P w\, (w^T P w + \tau^2)^{-1} (y - w^T z - b) ,

as that of a Kalman filter by a measurement :footcite:p:`Kalman1960`; that a denoiser
may be guided by an observation this way is due to :footcite:p:`Boys2023`. What is not
specified changes nothing, nor does what can't be read.

Where ventricles end, a few places tell of, and thousands do not, each of which adds
what a few hundred examples happen to have there. So it is read twice: first alike
everywhere, and then with weights that are the freer at a place, the more it showed,
in the way of an automatic relevance determination :footcite:p:`Tipping2001`.

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

# Ridges that are tried, in variances of the latents of an example.
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# Relevance of the weights at any place at least, where the mean is 1, and how far, in
# latents, what tells is taken to reach.
_MIN_RELEVANCE = 0.02
_REACH = 1.0
# Of classes with more levels nothing is read.
_MAX_LEVELS = 8
# Numbers of each example of which products are taken at once.
MAX_MULTIPLIED = 2**14
# Correlation with the truth, of what is read alike everywhere by a fit to others,
# without which nothing is held to it. Of 16 subjects one in 40 has as much by chance.
MIN_CORRELATION = 0.5
# Subjects that it takes.
MIN_SUBJECTS = 16
# Relevance was found by all examples, those left out among them, so that errors of few
# are larger than they seem: by such a part, over the number of subjects.
_SHARED_RELEVANCE = 4
# Samples are held so many times as firmly as the variance of the error allows, to which
# what makes one brain's reading err belongs, too: so they are measured to be nearer to
# what was asked for, and vary as much.
_FIRMNESS = 10


class LinearProbe(NamedTuple):
    """Linear readings of latents: numbers from -1 to 1, by their ranks.

    One reading for each continuous condition, and one for each level of a class, which
    is 1 where an example has that level, and -1 where it has another. Directions, whose
    reading would be no straight line, are not read, nor are classes of many levels,
    which would take as much memory as everything else.

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
        """Learn to read by ridge regression.

        Ridges and errors are those of what is read by a fit to the other subjects.

        Shapes: latents ``(n, *space, channels)``, numbers ``(n, conditions)``, subjects
        ``(n,)``.
        """
        subjects = np.arange(len(latents)) if subjects is None else subjects
        rows = latents.reshape(len(latents), -1)
        mean = rows.mean(0)
        rows = rows - mean
        values, specified = _probe_targets(numbers, conditions)
        uniform = _products(rows, np.ones(rows.shape[1], "float32"))
        examples = rows, uniform, latents.shape[1:-1], subjects
        fits = [_learn_reading(*examples, *pair) for pair in zip(values.T, specified.T)]
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
        # Another level says no more than the one that is asked for.
        specified &= (self.errors > 0) & ((targets > -1) | self._continuous())
        if not specified.any():
            return denoise
        targets = np.where(specified, targets, 0)

        def guided(x, t):
            clean = denoise(x, t)
            alpha, sigma = map(float, rates(schedule, t))
            columns = gaussian.posterior_covariance_product(self.weights, alpha, sigma)
            off = ops.subtract(targets.astype("float32"), self.predict(clean))
            off = ops.matmul(off[:, None, :], self._gains(columns, specified))[:, 0]
            change = ops.matmul(off, columns)
            return clean + ops.reshape(change, ops.shape(clean))

        return guided

    def _continuous(self):
        """Return whether each reading is of a continuous condition."""
        kinds = self.conditions.values()
        return np.repeat([c.size <= 0 for c in kinds], [*map(n_readings, kinds)])

    def _gains(self, columns, specified):
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


def _probe_targets(numbers, conditions):
    """Return true readings, and which are specified: ``(n, readings)``."""
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


def _learn_reading(rows, uniform, space, subjects, values, specified):
    """Learn to read one number: weights, offset and error.

    Shapes: rows ``(n, numbers)``, uniform ``(n, n)``, their products.
    """
    examples = np.flatnonzero(specified)
    targets, n_subjects = values[examples], len(np.unique(subjects[examples]))
    nothing = np.zeros(rows.shape[1]), 0.0, 0.0
    if n_subjects < MIN_SUBJECTS or np.ptp(targets) == 0:
        return nothing
    dual, _, predicted = _fit(uniform, targets, examples, subjects)
    pair = predicted, targets
    if np.ptp(predicted) == 0 or np.corrcoef(*pair)[0, 1] < MIN_CORRELATION:
        return nothing
    relevance = _relevance(dual.astype("float32") @ rows, space)
    products = _products(rows, relevance)
    dual, offset, predicted = _fit(products, targets, examples, subjects)
    # What is read lies too near to the mean, which is made up for.
    slope, start = np.polyfit(targets, predicted, 1)
    error = np.std(predicted - slope * targets - start) / slope
    error *= 1 + _SHARED_RELEVANCE / n_subjects
    weights = (dual / slope).astype("float32") @ rows * relevance
    return weights, (offset - start) / slope, error


def _fit(products, targets, examples, subjects):
    """Fit a kernel ridge regression whose ridge is best for left-out examples.

    Its dual weights are of all examples, 0 of those of which nothing is specified.
    """
    own = products[np.ix_(examples, examples)]
    penalties = np.multiply(_RIDGES, own.trace() / len(examples))
    dual = np.zeros(len(products))
    fit = fit_kernel_ridge(own, targets, penalties, subjects[examples])
    dual[examples], offset, held_out = fit
    return dual, offset, held_out


def _products(rows, relevance):
    """Multiply each example with each, its numbers weighted: ``(n, n)``."""
    products = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], MAX_MULTIPLIED):
        # No copy of all of them: of large volumes they take hundreds of megabytes.
        part = rows[:, start : start + MAX_MULTIPLIED]
        products += (part * relevance[start : start + MAX_MULTIPLIED]) @ part.T
    return products


def _relevance(weights, space):
    """Return the prior variance of each weight, by the energy of weights around it."""
    energy = np.square(weights).reshape(*space, -1).sum(-1)
    relevance = gaussian_filter(energy, _REACH) / energy.mean() + _MIN_RELEVANCE
    return np.repeat(relevance.ravel(), weights.size // energy.size)
