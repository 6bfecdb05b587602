r"""What can be read in latents of what is told of them, and samples held to it.

A network that is told how wide ventricles shall be makes such, but for an error that is
larger than that with which a straight line reads their width in the latents. What is
asked for is therefore taken for an observation of the clean latents,

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
told changes nothing, nor does what can't be read.

Where ventricles end, a few places tell of, and thousands do not, each of which adds
what a few hundred examples happen to have there. So it is read twice: first alike
everywhere, and then with weights that are the freer at a place, the more it had told,
in the way of an automatic relevance determination :footcite:p:`Tipping2001`.

References
----------
.. footbibliography::
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

from keras import ops
import numpy as np
from scipy.ndimage import gaussian_filter

from dipy_ldm._utils.subjects import solve_within
from dipy_ldm.conditions import FEW, UNSPECIFIED, Condition
from dipy_ldm.diffusion.schedules import rates
from dipy_ldm.prior._gaussian import Gaussian

# Ridges that are tried, in variances of the latents of an example.
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# Of the weights at a place, what is taken for as free as the mean place's at least, and
# how far, in latents, what tells is taken to reach.
_FREE = 0.02
_REACH = 1.0
# Numbers of each example of which products are taken at once.
_NUMBERS = 2**14
# Correlation with what is told, of what is read alike everywhere by a fit to others,
# without which nothing is held to it. Of 16 subjects one in 40 has as much by chance.
_READABLE = 0.5
# Subjects that it takes.
_LEAST = 16
# Where weights are free was found by all examples, those left out among them, so that
# errors of few are larger than they seem: by such a part, over the number of subjects.
_FREE_OF_ALL = 4
# Samples are held so many times as firmly as the variance of the error allows, to which
# what makes one brain's reading err belongs, too: so they are measured to be nearer to
# what was asked for, and vary as much.
_FIRMNESS = 10


class Readings(NamedTuple):
    """What a straight line reads in latents: numbers from -1 to 1, by their ranks.

    One reading for each continuous condition, and one for each level of the others,
    which is 1 where an example has that level, and -1 where it has another.

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
        values, told = _told(numbers, conditions)
        alike = _products(rows, np.ones(rows.shape[1], "float32"))
        space = latents.shape[1:-1]
        given = rows, alike, space, subjects
        found = [_read(*given, *pair) for pair in zip(values.T, told.T)]
        weights, offsets, errors = (np.array(p, "float32") for p in zip(*found))
        return cls(
            conditions,
            weights.reshape(-1, *latents.shape[1:]),
            offsets - weights @ mean,
            errors,
        )

    @staticmethod
    def shapes(
        latent_shape: tuple[int, ...], conditions: dict[str, Condition]
    ) -> list[tuple[int, ...]]:
        """Say which shapes weights, offsets and errors have.

        Shapes: latent_shape ``(*space, channels)``.
        """
        n = sum(condition.size or 1 for condition in conditions.values())
        return [(n, *latent_shape), (n,), (n,)]

    def of(self, latents: Any) -> Any:
        """Read latents.

        Shapes: latents ``(batch, *space, channels)``, result ``(batch, readings)``.
        """
        weights = self.weights.reshape(len(self.weights), -1)
        rows = ops.reshape(latents, (-1, weights.shape[1]))
        return ops.add(ops.matmul(rows, weights.T), self.offsets)

    def hold(
        self, denoise: Callable, gaussian: Gaussian, schedule: str, numbers: np.ndarray
    ) -> Callable:
        """Hold a denoiser to what is told."""
        wanted, told = _told(numbers, self.conditions)
        # Another level says no more than the one that is asked for.
        told &= (self.errors > 0) & ((wanted > -1) | self._continuous())
        if not told.any():
            return denoise
        wanted = np.where(told, wanted, 0)

        def held(x, t):
            clean = denoise(x, t)
            alpha, sigma = map(float, rates(schedule, t))
            ways = gaussian.left(self.weights, alpha, sigma)
            off = ops.subtract(wanted.astype("float32"), self.of(clean))
            off = ops.matmul(off[:, None, :], self._gains(ways, told))[:, 0]
            change = ops.matmul(off, ways)
            return clean + ops.reshape(change, ops.shape(clean))

        return held

    def _continuous(self):
        """Say of each reading whether it is that of a continuous condition."""
        sizes = [condition.size for condition in self.conditions.values()]
        return np.concatenate([[size == 0] * (size or 1) for size in sizes])

    def _gains(self, ways, told):
        """Say how far to go each way, for what is off by 1 in what is told.

        ``(batch, readings, readings)``.
        """
        weights = self.weights.reshape(len(self.weights), -1)
        seen = (weights @ ways.T).astype("float64")
        power = self.errors.astype("float64") ** 2 / _FIRMNESS
        seen = (seen + seen.T) / 2 + np.diag(power)
        gains = np.zeros((*told.shape, told.shape[1]))
        for gain, which in zip(gains, told):
            some = np.ix_(which, which)
            gain[some] = np.linalg.inv(seen[some])
        return gains.astype("float32")


def ridge_regression(
    products: np.ndarray,
    wanted: np.ndarray,
    ridge: float,
    subjects: np.ndarray | None = None,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Fit a ridge regression with a free offset, by the products of examples.

    Shapes: products ``(n, n)``, wanted ``(n,)``, subjects ``(n,)``, shares ``(n,)``,
    left_out ``(n,)``.
    """
    inverse = np.linalg.inv(products + ridge * np.eye(len(products)))
    sums = inverse.sum(1)
    offset = sums @ wanted / sums.sum()
    inverse -= np.outer(sums, sums) / sums.sum()
    shares = inverse @ wanted
    subjects = np.arange(len(wanted)) if subjects is None else subjects

    def block(rows):
        return inverse[rows[:, :, None], rows[:, None, :]]

    errors = solve_within(block, shares[:, None], subjects)[:, 0]
    return shares, offset, wanted - errors


def _told(numbers, conditions):
    """Say what readings should be, and of which that is told: ``(n, readings)``."""
    values, told = [], []
    for column, condition in zip(numbers.T, conditions.values()):
        said = column != UNSPECIFIED
        if condition.size:
            levels = column[:, None] == np.arange(condition.size)
            counts = np.array(list(condition.levels.values()))
            values.append(np.where(levels, 1.0, -1.0))
            told.append(said[:, None] & (counts >= FEW))
        else:
            values.append(2.0 * column[:, None] - 1)
            told.append(said[:, None])
    return np.concatenate(values, 1), np.concatenate(told, 1)


def _read(rows, alike, space, subjects, values, told):
    """Learn to read one number: weights, offset and error."""
    known = np.flatnonzero(told)
    people = len(np.unique(subjects[known]))
    nothing = np.zeros(rows.shape[1]), 0.0, 0.0
    if people < _LEAST or np.ptp(values[known]) == 0:
        return nothing
    shares, _, left_out = _fit(alike, values, known, subjects)
    wanted = values[known]
    if np.ptp(left_out) == 0 or np.corrcoef(left_out, wanted)[0, 1] < _READABLE:
        return nothing
    free = _free(shares.astype("float32") @ rows, space)
    shares, offset, left_out = _fit(_products(rows, free), values, known, subjects)
    # What is read lies too near to the mean, which is made up for.
    slope, start = np.polyfit(wanted, left_out, 1)
    error = np.std(left_out - slope * wanted - start) / slope
    error *= 1 + _FREE_OF_ALL / people
    weights = (shares / slope).astype("float32") @ rows * free
    return weights, (offset - start) / slope, error


def _fit(products, values, known, subjects):
    """Fit with the ridge that is best for what is left out.

    Shares are those of all examples, 0 of those of which nothing is known.
    """
    some, wanted = products[np.ix_(known, known)], values[known]
    ridges = np.multiply(_RIDGES, some.trace() / len(known))
    fits = [ridge_regression(some, wanted, r, subjects[known]) for r in ridges]
    errors = [np.square(fit[2] - wanted).mean() for fit in fits]
    found, offset, left_out = fits[int(np.argmin(errors))]
    shares = np.zeros(len(products))
    shares[known] = found
    return shares, offset, left_out


def _products(rows, free):
    """Multiply each example with each, its numbers weighted: ``(n, n)``."""
    products = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], _NUMBERS):
        # No copy of all of them: of large volumes they take hundreds of megabytes.
        some = rows[:, start : start + _NUMBERS]
        products += (some * free[start : start + _NUMBERS]) @ some.T
    return products


def _free(weights, space):
    """Say of each number how free its weight is, by what its place has told."""
    energy = np.square(weights).reshape(*space, -1).sum(-1)
    free = gaussian_filter(energy, _REACH) / energy.mean() + _FREE
    return np.repeat(free.ravel(), weights.size // energy.size)
