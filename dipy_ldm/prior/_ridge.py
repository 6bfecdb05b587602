"""Ridge regression, with the penalty that predicts subjects best that are left out."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

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
