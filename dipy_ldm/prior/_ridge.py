r"""Ridge regression, and with it the conditional mean of latents.

Denoisers learn conditions slowly: the effect of age or of a small lesion is a hundredth
of the differences between brains, and less of the loss. Linear effects need no
training: they are fitted by ridge regression of latents on features of the conditions,
and subtracted from the latents before noise is added, so that the network learns the
residuals. The whole denoiser is then

.. math::

    D(x, t, c) = m(c) + D_r(x - \alpha_t\, m(c), t, c)

with the conditional mean :math:`m(c)`, which is 0 without conditions, and the network's
denoiser :math:`D_r`. A data-dependent mean is due to :footcite:p:`Lee2022`, the choice
of the ridge by leave-one-out errors to :footcite:p:`Allen1974`.

References
----------
.. footbibliography::
"""

from collections.abc import Iterable, Sequence
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
    """A ridge regression in the basis of a decomposition.

    Shapes: shrunk ``(k,)``, coefficients ``(k, targets)``, held_out ``(n, targets)``.
    """

    error: float
    shrunk: np.ndarray
    coefficients: np.ndarray
    held_out: np.ndarray


def decompose(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the SVD of rows about their mean, without directions of no variance.

    Shapes: rows ``(n, features)``, result ``(n, k)``, ``(k,)``, ``(k, features)``.
    """
    basis, spreads, right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    largest = max(spreads.max(initial=0), np.abs(rows).max(initial=0))
    kept = spreads > 1e-6 * largest
    return basis[:, kept], spreads[kept], right[kept]


def shrinkage(spreads: np.ndarray, penalty: float) -> np.ndarray:
    """Return the shrinkage factor of each direction in ridge regression."""
    return spreads**2 / (spreads**2 + penalty)


def residual_blocks(
    basis: np.ndarray, shrunk: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Return the identity minus the hat matrix, for the rows of each subject.

    It maps errors of a fit to all other subjects to residuals.

    Shapes: basis ``(n, k)``, rows ``(subjects, images)``, result ``(subjects, images,
    images)``.
    """
    parts = basis[rows]
    hat = 1 / len(basis) + (shrunk * parts) @ np.swapaxes(parts, 1, 2)
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
            block = residual_blocks(basis, shrunk, rows)
            errors[rows] = np.linalg.solve(block, residuals[rows])
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


# Polynomial degree of continuous conditions; features of higher degrees are smaller,
# and so regularised more.
_DEGREES = 3
_FEATURES = {CONTINUOUS: _DEGREES, DIRECTION: N_HARMONICS}
# Equidistant ranks of a number.
_RANKS = 16
_MIDDLES = (np.arange(_RANKS) + 0.5) / _RANKS
# Candidate ridges, in variances of a feature. The last gives zero weights; float32 is
# not precise enough to evaluate smaller ones than the first.
_RIDGES = (*np.logspace(-2, 2, 17), math.inf)


class ConditionalMean(NamedTuple):
    """The mean of latents given conditions, minus their overall mean.

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

        The ridge predicts the latents of left-out subjects best: the fewer subjects and
        the weaker the effects of conditions, the smaller the weights.

        Shapes: latents ``(n, *space, channels)``, numbers ``(n, conditions)``, subjects
        ``(n,)``.
        """
        rows = latents.reshape(len(latents), -1)
        # Levels with too few subjects are absent.
        present = np.any(_features(numbers, conditions) > 0, axis=0)
        features = _features(numbers, _without_absent(conditions, present))
        vectors, spreads, right = decompose(features)
        coefficients = vectors.T.astype("float32") @ rows
        subjects = np.arange(len(rows)) if subjects is None else subjects
        error = _held_out_error(rows, vectors, coefficients, blocks(subjects))
        # One subject alone does not generalise.
        ridges = _RIDGES if np.ptp(subjects) else _RIDGES[-1:]
        shrunk = [shrinkage(spreads, ridge * len(rows)) for ridge in ridges]
        best = min(shrunk, key=error)
        weights = (right.T * (best / spreads)).astype("float32") @ coefficients
        weights[~present] = 0
        return cls(conditions, weights.reshape(-1, *latents.shape[1:]))

    def predict(self, numbers: np.ndarray) -> np.ndarray:
        """Return the means ``(n, *space, channels)`` given ``(n, conditions)``."""
        present = np.any(self.weights.reshape(len(self.weights), -1), axis=1)
        features = _features(numbers, _without_absent(self.conditions, present))
        return np.tensordot(features.astype("float32"), self.weights, 1)

    def loadings(self) -> np.ndarray:
        """Return the directions in which conditions change the mean, scaled by effect.

        Their squares sum to the variance due to conditions in the training. Shapes:
        result ``(directions, *space, channels)``.
        """
        rows = [np.zeros((0, *self.weights.shape[1:]), "float32")]
        for column, condition in enumerate(self.conditions.values()):
            if condition.size == DIRECTION:
                continue
            counts = list(condition.levels.values()) or [1] * _RANKS
            values = np.arange(len(counts)) if condition.levels else _MIDDLES
            shape = len(counts), len(self.conditions)
            numbers = np.full(shape, UNSPECIFIED, "float32")
            numbers[:, column] = values
            shares = np.array(counts, "float32") / max(sum(counts), 1)
            moved = self.predict(numbers)
            rows.append(np.sqrt(shares).reshape(-1, *[1] * (moved.ndim - 1)) * moved)
        return np.concatenate(rows)


def n_features(condition: Condition) -> int:
    """Count the features of a condition."""
    return _FEATURES.get(condition.size, condition.size)


def _held_out_error(
    rows: np.ndarray,
    vectors: np.ndarray,
    coefficients: np.ndarray,
    subjects: Sequence[np.ndarray],
):
    """Return a function from shrinkage factors to held-out sums of squared errors.

    Errors are those of fits to all other subjects.

    Shapes: rows ``(n, numbers)``, vectors ``(n, k)``, coefficients ``(k, numbers)``.
    """
    mean = rows.mean(0)
    along = (rows @ coefficients.T - mean @ coefficients.T).astype("float64")
    products = (coefficients @ coefficients.T).astype("float64")
    squares_of = [_subject_products(rows, mean, rows_of) for rows_of in subjects]

    def error(shrunk: np.ndarray):
        total = 0.0
        for rows_of, squares in zip(subjects, squares_of):
            fitted = shrunk * vectors[rows_of]
            mixed = fitted @ np.swapaxes(along[rows_of], 1, 2)
            # Inner products of the residuals of each subject.
            squares = squares - mixed - np.swapaxes(mixed, 1, 2)
            squares += fitted @ products @ np.swapaxes(fitted, 1, 2)
            inverse = np.linalg.inv(residual_blocks(vectors, shrunk, rows_of))
            total += ((inverse @ squares) * inverse).sum()
        return total

    return error


def _subject_products(rows: np.ndarray, mean: np.ndarray, subjects: np.ndarray):
    """Return inner products of centred rows per subject, ``(subjects, rows, rows)``."""
    # One by one, since copies of all may exceed the memory.
    centred = (rows[numbers] - mean for numbers in subjects)
    return np.array([block @ block.T for block in centred], "float64")


def _without_absent(conditions: dict[str, Condition], present: np.ndarray):
    """Set the counts of levels whose features ``(features,)`` are not present to 0."""
    flags, result = iter(present), {}
    for name, condition in conditions.items():
        is_present = list(islice(flags, n_features(condition)))
        pairs = zip(condition.levels.items(), is_present)
        levels = {level: n * bool(flag) for (level, n), flag in pairs}
        result[name] = condition._replace(levels=levels)
    return result


def _features(numbers: np.ndarray, conditions: dict[str, Condition]):
    """Return features of mean 0 of encoded conditions; all 0 where unspecified."""
    features = map(_condition_features, numbers.T, conditions.values())
    return np.concatenate([*features], 1)


def _condition_features(column: np.ndarray, condition: Condition):
    if condition.size > 0:
        counts = np.array(list(condition.levels.values()))
        # Rare levels have no effect: their mean would resemble one of their examples.
        counts = np.where(counts >= MIN_GROUP_SIZE, counts, 0)
        levels = (column[:, None] == np.arange(condition.size)) & (counts > 0)
        specified = levels.any(1, keepdims=True)
        return specified * (levels - counts / max(counts.sum(), 1))
    specified = (column != UNSPECIFIED)[:, None]
    if condition.size == DIRECTION:
        return specified * harmonics(column)
    degrees = np.arange(1, _DEGREES + 1)
    # Ranks are uniform, so that these are orthogonal with mean 0.
    values = legendre.legvander(2 * column - 1, _DEGREES)[:, 1:]
    return specified * values * np.sqrt(2 * degrees + 1) / degrees
