r"""Low-rank Gaussian of latents, and the Wiener estimate that follows from it.

Networks need most of their training to learn the common anatomy, but mean and
covariance can be estimated before: for latents :math:`z` with mean :math:`\mu` and
covariance :math:`\Sigma` and their noisy versions
:math:`x = \alpha z + \sigma \epsilon`, the best linear estimate is Wiener's,

.. math::

    L(x) = \mu + \alpha \Sigma (\alpha^2 \Sigma + \sigma^2 I)^{-1} (x - \alpha \mu) ,

and with much noise, denoisers are hardly better even after long training
:footcite:p:`Wang2024`. The network gets this estimate as an input, and learns the rest.

The covariance is that of probabilistic principal components
:footcite:p:`Tipping1999`, but with a separate residual variance for each number: a few
directions in which latents vary most, and their variances.

References
----------
.. footbibliography::
"""

import math
from typing import NamedTuple, Self

import numpy as np
from scipy import special

# Examples per direction are many, so that no direction reproduces an example.
MAX_DIRECTIONS = 64
EXAMPLES_PER_DIRECTION = 8
# Directions are kept up to the last along which held-out examples have at least this
# share of the variance of the fitted ones. Beyond it, estimates are better for training
# examples than for others, and the network relies on them too much.
MIN_RATIO = 0.5
# Bounds of the examples to fit: enough, and within the memory.
MAX_EXAMPLES = 1024
MAX_VALUES = 2**27
# Folds of the cross-validation of variances.
_PARTS = 5
# Minimum residual variance of each number, as a share of its variance.
MIN_REST = 0.05
_TINY = 1e-6
# Probability that Gaussian latents exceed the distance limit: for brains of 2 mm the
# limit is 2.1 to 2.4 times their mean squared distance. 100 of them are within 1.6, and
# brains of unseen label maps within 1.8; heads with skulls are at 3.4 to 12, brains
# shifted by 30 mm at 3.2 to 4.2.
_FALSE_ALARMS = 1e-8
# Maximum share of the variance within positions. The estimate improves denoisers of
# brains in one space, where it is 0.05, and of brains 12 mm and 12 degrees apart, with
# 0.15; those of bodies in any orientation, with 0.4, are worse with it.
MAX_UNALIGNED = 0.25


class Gaussian(NamedTuple):
    """Mean and covariance of latents.

    Shapes: mean ``(*space, channels)``, loadings ``(directions, *space, channels)``,
    rest ``(*space, channels)``, the residual variances.
    """

    mean: np.ndarray
    loadings: np.ndarray
    rest: np.ndarray

    @classmethod
    def learn(cls, latents: np.ndarray, subjects: np.ndarray | None = None) -> Self:
        """Fit mean, loadings and residual variances to examples.

        Variances along directions are those of held-out examples: the fewer examples,
        the smaller these are.

        Shapes: latents ``(n, *space, channels)``, subjects ``(n,)``.
        """
        n, *shape = latents.shape
        rows = latents.reshape(n, -1)
        if n == 1:
            mean, rest = np.zeros(shape, "float32"), np.ones(shape, "float32")
            return cls(mean, np.zeros((0, *shape), "float32"), rest)
        mean = rows.mean(0)
        rows = rows - mean
        products = (rows @ rows.T).astype("float64")
        # About the mean of the others. The factor is a float, since NumPy 1 converts
        # float32 divided by a large integer to float64.
        total = np.einsum("ij,ij->j", rows, rows) * (n / (n - 1) ** 2)
        subjects = np.arange(n) if subjects is None else subjects
        count = min(MAX_DIRECTIONS, n // EXAMPLES_PER_DIRECTION)
        variances = _held_out_variances(products, count, subjects)
        spreads, vectors = _leading_eigenpairs(products, len(variances))
        reliable = variances > np.maximum(total.mean(), MIN_RATIO * spreads / (n - 1))
        kept = 1 + max(np.flatnonzero(reliable), default=-1)
        vectors *= np.sqrt(variances / spreads)
        loadings = vectors[:, :kept].T.astype("float32") @ rows
        rest = np.maximum(total - (loadings**2).sum(0), MIN_REST * total) + _TINY
        loadings = loadings.reshape(-1, *shape)
        return cls(mean.reshape(shape), loadings, rest.reshape(shape))

    @property
    def deviation(self) -> float:
        """Root mean square deviation of numbers from their means."""
        along = float(np.linalg.norm(self.loadings)) ** 2
        return math.sqrt((float(self.rest.sum()) + along) / self.rest.size)

    def relative_distances(self, latents: np.ndarray) -> np.ndarray:
        """Return squared distances from the mean, relative to those of the examples.

        Shapes: latents ``(n, *space, channels)``, result ``(n,)``.
        """
        deviations = (latents - self.mean).reshape(len(latents), -1)
        return np.square(deviations).mean(1) / self.deviation**2

    @property
    def max_distance(self) -> float:
        """Relative distance up to which latents resemble the examples."""
        along = [np.square(loading).sum() for loading in self.loadings]
        squares = float(np.square(along).sum() + np.square(self.rest).sum())
        total = self.deviation**2 * self.rest.size
        # Effective number of independent numbers (Satterthwaite).
        freedom = total**2 / squares
        return float(special.chdtri(freedom, _FALSE_ALARMS)) / freedom

    def posterior_covariance_product(
        self, vectors: np.ndarray, alpha: float, sigma: float
    ) -> np.ndarray:
        """Multiply vectors by the covariance of clean latents given noisy ones.

        Shapes: vectors ``(n, *space, channels)``, result ``(n, numbers)``.
        """

        def share(power: np.ndarray):
            return power * sigma**2 / (alpha**2 * power + sigma**2)

        vectors = vectors.reshape(len(vectors), -1)
        product = share(self.rest.ravel()) * vectors
        # Explicit size, since -1 fails without directions.
        loadings = self.loadings.reshape(len(self.loadings), self.rest.size)
        # Without a copy: loadings of large volumes take hundreds of megabytes.
        lengths = np.einsum("ij,ij->i", loadings, loadings)
        # Along the directions, replace the product of the residual variances.
        along = vectors @ loadings.T / lengths * share(lengths)
        return product + (along - product @ loadings.T / lengths) @ loadings


def is_aligned(latents: np.ndarray) -> bool:
    """Return whether latents are aligned, that is, similar at each position.

    Otherwise statistics of positions do not generalise to other examples.

    Shapes: latents ``(n, *space, channels)``.
    """
    n, *_, channels = latents.shape
    within = latents.var(0).mean()
    # The total variance is that within positions plus that of their means.
    means = latents.mean(0).reshape(-1, channels)
    total = within + means.var(0, dtype="float64").mean()
    return bool(within * n / max(1, n - 1) < MAX_UNALIGNED * total)


def choose_examples(shape: tuple[int, ...]) -> np.ndarray:
    """Choose enough of ``(n, *space, channels)`` examples to fit, evenly spaced."""
    n, *sizes = shape
    count = min(n, MAX_EXAMPLES, max(2, MAX_VALUES // math.prod(sizes)))
    return np.linspace(0, n - 1, count).round().astype(int)


def _held_out_variances(products: np.ndarray, count: int, subjects: np.ndarray):
    """Return variances of examples along the directions of other subjects.

    Shapes: products ``(n, n)``, inner products of the examples; result ``(count,)``.
    """
    n, variances, distinct = len(products), np.zeros(count), np.unique(subjects)
    if len(distinct) == 1:
        return variances
    # Contiguous folds, since neighbours may share a subject even if none is known.
    for fold in np.array_split(distinct, min(_PARTS, len(distinct))):
        part = np.flatnonzero(np.isin(subjects, fold))
        rest = np.setdiff1d(np.arange(n), part)
        # Centre about the mean of the others.
        centre = np.eye(n) - np.isin(np.arange(n), rest) / len(rest)
        gram = centre[rest] @ products @ centre[rest].T
        spreads, vectors = _leading_eigenpairs(gram, count)
        along = centre[part] @ products @ centre[rest].T @ vectors / np.sqrt(spreads)
        # Few others have fewer directions.
        variances[: len(spreads)] += (along**2).sum(0) / n
    return np.minimum.accumulate(variances)


def _leading_eigenpairs(products: np.ndarray, count: int):
    """Return the largest eigenvalues of a symmetric matrix and their eigenvectors."""
    values, vectors = np.linalg.eigh(products)
    return np.maximum(values[::-1][:count], 1e-12), vectors[:, ::-1][:, :count]
