"""Ridge regression, with the penalty that predicts subjects best that are left out."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np

from dipy_ldm._utils.subjects import solve_within


class Ridge(NamedTuple):
    """A fit in the basis of a decomposition.

    Shapes: shrunk ``(k,)``, coefficients ``(k, targets)``, left_out ``(n, targets)``.
    """

    error: float
    shrunk: np.ndarray
    coefficients: np.ndarray
    left_out: np.ndarray


def decompose(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decompose rows about their mean, without directions in which nothing varies.

    Shapes: rows ``(n, features)``, result ``(n, k)``, ``(k,)``, ``(k, features)``.
    """
    left, spreads, right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    largest = max(spreads.max(initial=0), np.abs(rows).max(initial=0))
    kept = spreads > 1e-6 * largest
    return left[:, kept], spreads[kept], right[kept]


def shrinkage(spreads: np.ndarray, penalty: float) -> np.ndarray:
    """Return how much of each direction ridge regression takes."""
    return spreads**2 / (spreads**2 + penalty)


def left_out_blocks(
    left: np.ndarray, shrunk: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Return one less the hat matrix for the rows of each subject.

    Residuals are these times the errors of a fit to all other subjects.

    Shapes: left ``(n, k)``, rows ``(subjects, images)``, result ``(subjects, images,
    images)``.
    """
    own = left[rows]
    hat = 1 / len(left) + (shrunk * own) @ np.swapaxes(own, 1, 2)
    return (1 + 1e-9) * np.eye(rows.shape[1]) - hat


def fit_ridge(
    left: np.ndarray,
    spreads: np.ndarray,
    targets: np.ndarray,
    penalties: Iterable[float],
    subjects: np.ndarray,
) -> Ridge:
    """Fit targets with a free offset; all other subjects predict each.

    Shapes: left ``(n, k)``, spreads ``(k,)``, targets ``(n, targets)``, subjects
    ``(n,)``.
    """
    centred = targets - targets.mean(0)
    coefficients = left.T @ centred
    fits = []
    for penalty in penalties:
        shrunk = shrinkage(spreads, penalty)
        residuals = centred - left @ (shrunk[:, None] * coefficients)
        blocks = partial(left_out_blocks, left, shrunk)
        errors = solve_within(blocks, residuals, subjects)
        error = float(np.mean(errors**2))
        fits.append(Ridge(error, shrunk, coefficients, targets - errors))
    return min(fits, key=lambda fit: fit.error)


def fit_kernel_ridge(
    products: np.ndarray,
    targets: np.ndarray,
    penalties: Iterable[float],
    subjects: np.ndarray,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Fit by the products of examples; weights of these, offset, and left out.

    Shapes: products ``(n, n)``, targets ``(n,)``, subjects ``(n,)``, weights ``(n,)``,
    left_out ``(n,)``.
    """
    centred = products - products.mean(0)
    squares, left = np.linalg.eigh(centred - centred.mean(1, keepdims=True))
    kept = squares > 1e-12 * np.abs(products).max(initial=0)
    squares, left = squares[kept], left[:, kept]
    fit = fit_ridge(left, np.sqrt(squares), targets[:, None], penalties, subjects)
    weights = left @ (fit.coefficients[:, 0] * fit.shrunk / squares)
    offset = targets.mean() - (products @ weights).mean()
    return weights, offset, fit.left_out[:, 0]
