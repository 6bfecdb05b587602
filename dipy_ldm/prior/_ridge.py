r"""Ridge regression, and by it the conditional mean of latents.

Denoisers learn conditions slowly: what an age or a small lesion changes is a hundredth
of what brains differ by, and less of the loss. But what a straight line knows needs no
training. It is learnt at once, by ridge regression of the latents on features of the
conditions, and taken from the latents before they are diffused, so that the network
learns what is left. The denoiser of all is then

.. math::

    D(x, t, c) = m(c) + D_r(x - \alpha_t\, m(c), t, c)

with the conditional mean :math:`m(c)`, which is 0 without conditions, and the network's
denoiser :math:`D_r`; nothing else needs to know of it. A mean that follows from what is
given, instead of one for all, is due to :footcite:p:`Lee2022`, the choice of the ridge
by what is left out to :footcite:p:`Allen1974`.

References
----------
.. footbibliography::
"""

from collections.abc import Iterable
from itertools import islice
import math
from typing import NamedTuple, Self

import numpy as np
from numpy.polynomial import legendre

from dipy_ldm._conditions import (
    CONTINUOUS,
    DIRECTION,
    MIN_GROUP_SIZE,
    UNSPECIFIED,
    Condition,
)
from dipy_ldm._utils.directions import N_HARMONICS, harmonics
from dipy_ldm._utils.subjects import blocks


class Ridge(NamedTuple):
    """A fit in the basis of a decomposition.

    Shapes: shrunk ``(k,)``, coefficients ``(k, targets)``, held_out ``(n, targets)``.
    """

    error: float
    shrunk: np.ndarray
    coefficients: np.ndarray
    held_out: np.ndarray


def decompose(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decompose rows about their mean, without directions in which nothing varies.

    Shapes: rows ``(n, features)``, result ``(n, k)``, ``(k,)``, ``(k, features)``.
    """
    basis, spreads, right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    largest = max(spreads.max(initial=0), np.abs(rows).max(initial=0))
    kept = spreads > 1e-6 * largest
    return basis[:, kept], spreads[kept], right[kept]


def shrinkage(spreads: np.ndarray, penalty: float) -> np.ndarray:
    """Return how much of each direction ridge regression takes."""
    return spreads**2 / (spreads**2 + penalty)


def residual_blocks(
    basis: np.ndarray, shrunk: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Return one less the hat matrix for the rows of each subject.

    Residuals are these times the errors of a fit to all other subjects.

    Shapes: basis ``(n, k)``, rows ``(subjects, images)``, result ``(subjects, images,
    images)``.
    """
    own = basis[rows]
    hat = 1 / len(basis) + (shrunk * own) @ np.swapaxes(own, 1, 2)
    return (1 + 1e-9) * np.eye(rows.shape[1]) - hat


def fit_ridge(
    basis: np.ndarray,
    spreads: np.ndarray,
    targets: np.ndarray,
    penalties: Iterable[float],
    subjects: np.ndarray,
) -> Ridge:
    """Fit ridge regression, with the penalty that predicts left-out subjects best.

    Shapes: basis ``(n, k)``, spreads ``(k,)``, targets ``(n, targets)``, subjects
    ``(n,)``.
    """
    centred = targets - targets.mean(0)
    coefficients = basis.T @ centred
    rows_of_subjects = blocks(subjects)
    fits = []
    for penalty in penalties:
        shrunk = shrinkage(spreads, penalty)
        residuals = centred - basis @ (shrunk[:, None] * coefficients)
        errors = np.empty_like(residuals)
        for rows in rows_of_subjects:
            own = residual_blocks(basis, shrunk, rows)
            errors[rows] = np.linalg.solve(own, residuals[rows])
        error = float(np.mean(errors**2))
        fits.append(Ridge(error, shrunk, coefficients, targets - errors))
    return min(fits, key=lambda fit: fit.error)


def fit_kernel_ridge(
    products: np.ndarray,
    targets: np.ndarray,
    penalties: Iterable[float],
    subjects: np.ndarray,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Fit kernel ridge regression; return weights, offset and held-out predictions.

    Shapes: products ``(n, n)``, targets ``(n,)``, subjects ``(n,)``, weights ``(n,)``,
    held_out ``(n,)``.
    """
    centred = products - products.mean(0)
    squares, basis = np.linalg.eigh(centred - centred.mean(1, keepdims=True))
    kept = squares > 1e-12 * np.abs(products).max(initial=0)
    squares, basis = squares[kept], basis[:, kept]
    fit = fit_ridge(basis, np.sqrt(squares), targets[:, None], penalties, subjects)
    weights = basis @ (fit.coefficients[:, 0] * fit.shrunk / squares)
    offset = targets.mean() - (products @ weights).mean()
    return weights, offset, fit.held_out[:, 0]


# Of each continuous condition; the higher ones are smaller, and so fitted with less
# trust.
_DEGREES = 3
_FEATURES = {CONTINUOUS: _DEGREES, DIRECTION: N_HARMONICS}
# Ranks of a number, at equal distances.
_RANKS = 16
_MIDDLES = (np.arange(_RANKS) + 0.5) / _RANKS
# Ridges that are tried, in variances of a feature. The last leaves nothing; of smaller
# ones than the first, float32 has not the digits that tell how good they are.
_RIDGES = (*np.logspace(-2, 2, 17), math.inf)


class ConditionalMean(NamedTuple):
    """The mean of latents given conditions, less the mean of all.

    Shapes: weights ``(features, *space, channels)``.
    """

    conditions: dict[str, Condition]
    weights: np.ndarray

    @classmethod
    def learn(
        cls,
        latents: np.ndarray,
        numbers: np.ndarray,
        conditions: dict[str, Condition],
        subjects: np.ndarray | None = None,
    ) -> Self:
        """Fit the weights by ridge regression.

        The ridge is that with which each latent is predicted best by those of other
        subjects: the fewer there are, and the less conditions say, the less is
        expected.

        Shapes: latents ``(n, *space, channels)``, numbers ``(n, conditions)``, subjects
        ``(n,)``.
        """
        rows = latents.reshape(len(latents), -1)
        # Levels that too few subjects have are not there.
        present = (_features(numbers, conditions) > 0).any(0)
        features = _features(numbers, _without_absent(conditions, present))
        vectors, spreads, right = decompose(features)
        coefficients = vectors.T.astype("float32") @ rows
        subjects = np.arange(len(rows)) if subjects is None else subjects
        error = _held_out_error(rows, vectors, coefficients, blocks(subjects))
        # Of one subject alone nothing is to be known of others.
        ridges = _RIDGES if np.ptp(subjects) else _RIDGES[-1:]
        shrunk = [shrinkage(spreads, ridge * len(rows)) for ridge in ridges]
        best = min(shrunk, key=error)
        weights = (right.T * (best / spreads)).astype("float32") @ coefficients
        weights[~present] = 0
        return cls(conditions, weights.reshape(-1, *latents.shape[1:]))

    def predict(self, numbers: np.ndarray) -> np.ndarray:
        """Return the means ``(n, *space, channels)`` given ``(n, conditions)``."""
        present = self.weights.reshape(len(self.weights), -1).any(1)
        features = _features(numbers, _without_absent(self.conditions, present))
        return np.tensordot(features.astype("float32"), self.weights, 1)

    def loadings(self) -> np.ndarray:
        """Return in which directions conditions move the mean, and how far.

        Their squares add up to the variance that is due to conditions, as they were in
        the training. Shapes: result ``(directions, *space, channels)``.
        """
        rows = [np.zeros((0, *self.weights.shape[1:]), "float32")]
        for column, condition in enumerate(self.conditions.values()):
            if condition.size == DIRECTION:
                continue
            counts = list(condition.levels.values()) or [1] * _RANKS
            places = np.arange(len(counts)) if condition.levels else _MIDDLES
            shape = len(counts), len(self.conditions)
            numbers = np.full(shape, UNSPECIFIED, "float32")
            numbers[:, column] = places
            shares = np.array(counts, "float32") / max(sum(counts), 1)
            moved = self.predict(numbers)
            rows.append(np.sqrt(shares).reshape(-1, *[1] * (moved.ndim - 1)) * moved)
        return np.concatenate(rows)


def n_features(condition: Condition) -> int:
    """Count the features of a condition."""
    return _FEATURES.get(condition.size, condition.size)


def _held_out_error(rows, vectors, coefficients, subjects):
    """Return how to measure fits to all other subjects, by their shrinkage.

    The sum of squared errors for the rows of each subject.

    Shapes: rows ``(n, numbers)``, vectors ``(n, k)``, coefficients ``(k, numbers)``.
    """
    mean = rows.mean(0)
    along = (rows @ coefficients.T - mean @ coefficients.T).astype("float64")
    products = (coefficients @ coefficients.T).astype("float64")
    squares_of = [_subject_products(rows, mean, rows_of) for rows_of in subjects]

    def error(shrunk):
        total = 0.0
        for rows_of, squares in zip(subjects, squares_of):
            fitted = shrunk * vectors[rows_of]
            mixed = fitted @ np.swapaxes(along[rows_of], 1, 2)
            # Products of the residuals of a subject with each other.
            squares = squares - mixed - np.swapaxes(mixed, 1, 2)
            squares += fitted @ products @ np.swapaxes(fitted, 1, 2)
            back = np.linalg.inv(residual_blocks(vectors, shrunk, rows_of))
            total += ((back @ squares) * back).sum()
        return total

    return error


def _subject_products(rows, mean, subjects):
    """Multiply rows of each subject, about the mean: ``(subjects, rows, rows)``."""
    # One by one: copies of all of them may not fit into the memory.
    off = (rows[numbers] - mean for numbers in subjects)
    return np.array([each @ each.T for each in off], "float64")


def _without_absent(conditions, present):
    """Give levels no examples whose features ``(features,)`` are not present."""
    flags, result = iter(present), {}
    for name, condition in conditions.items():
        own = list(islice(flags, n_features(condition)))
        pairs = zip(condition.levels.items(), own)
        levels = {level: n * bool(flag) for (level, n), flag in pairs}
        result[name] = condition._replace(levels=levels)
    return result


def _features(numbers, conditions):
    """Turn numbers into features of mean 0; all are 0 where nothing is specified."""
    pairs = zip(numbers.T, conditions.values())
    return np.concatenate([_condition_features(*pair) for pair in pairs], 1)


def _condition_features(column, condition):
    if condition.size > 0:
        counts = np.array(list(condition.levels.values()))
        # Of rare levels nothing is expected: it would be nearly one of their examples.
        counts = np.where(counts >= MIN_GROUP_SIZE, counts, 0)
        levels = (column[:, None] == np.arange(condition.size)) & (counts > 0)
        specified = levels.any(1, keepdims=True)
        return specified * (levels - counts / max(counts.sum(), 1))
    specified = (column != UNSPECIFIED)[:, None]
    if condition.size == DIRECTION:
        return specified * harmonics(column)
    degrees = np.arange(1, _DEGREES + 1)
    # Ranks are spread evenly, and so these are orthogonal, of mean 0.
    values = legendre.legvander(2 * column - 1, _DEGREES)[:, 1:]
    return specified * values * np.sqrt(2 * degrees + 1) / degrees
