r"""A low-rank Gaussian of latents, and the best linear estimate that follows from it.

Until a network knows how brains are built, most of its training goes by. What a mean
and a covariance tell of it needs no training: of latents :math:`z` with mean
:math:`\mu` and covariance :math:`\Sigma` that were noised to
:math:`x = \alpha z + \sigma \epsilon`, the best linear estimate is Wiener's,

.. math::

    L(x) = \mu + \alpha \Sigma (\alpha^2 \Sigma + \sigma^2 I)^{-1} (x - \alpha \mu) ,

and at much noise nothing else is to be known: there, denoisers that were trained for
long are hardly better :footcite:p:`Wang2024`. It is given to the network, which learns
what is left.

The covariance is that of probabilistic principal components, with a variance of its
own for each number beside them :footcite:p:`Tipping1999`: a few directions in which
latents vary most, and how much they do there.

References
----------
.. footbibliography::
"""

import math
from typing import NamedTuple, Self

import numpy as np
from scipy import special

# Directions: not more, and for each not fewer examples, so that none is an example's.
MAX_DIRECTIONS = 64
EXAMPLES_PER_DIRECTION = 8
# To the last along which others vary at least so much of what those examples do in
# which it was found. Beyond it, examples of the training are estimated better than
# others are, and a network that is trained beside it trusts it too much.
MIN_RATIO = 0.5
# What is learnt from suffices then, and fits into the memory.
MAX_EXAMPLES = 1024
MAX_VALUES = 2**27
# Parts of the examples, each of which is measured along the directions of the others.
_PARTS = 5
# Of its variance, what is left of each number beside the directions at least.
MIN_REST = 0.05
_TINY = 1e-6
# Probability with which latents that are like the examples are further from the mean
# than the limit, were they Gaussian: for brains of 2 mm it is 2.1 to 2.4 times their
# mean squared distance. 100 of them are within 1.6, and others, of label maps never
# seen, within 1.8; heads with skulls are at 3.4 to 12, brains shifted by 30 mm at 3.2
# to 4.2.
_FALSE_ALARMS = 1e-8
# Share of the variance that may be left about the mean of each place. Of brains in one
# space it is 0.05, of the same 12 mm and 12 degrees apart 0.15: their denoisers are
# better for the estimate. Of bodies in any orientation it is 0.4, and theirs are worse.
MAX_UNALIGNED = 0.25


class Gaussian(NamedTuple):
    """Mean and covariance of latents.

    Shapes: mean ``(*space, channels)``, loadings ``(directions, *space, channels)``,
    rest ``(*space, channels)``.
    """

    mean: np.ndarray
    loadings: np.ndarray
    rest: np.ndarray

    @classmethod
    def learn(cls, latents: np.ndarray, subjects: np.ndarray | None = None) -> Self:
        """Fit mean, loadings and remaining variances to examples.

        Variances along directions are those of examples that had no part in finding
        the directions: the fewer examples, the less is claimed to be known.

        Shapes: latents ``(n, *space, channels)``, subjects ``(n,)``.
        """
        n, *shape = latents.shape
        rows = latents.reshape(n, -1)
        if n == 1:
            nothing, none, ones = np.zeros(shape), np.zeros((0, *shape)), np.ones(shape)
            return cls(*(part.astype("float32") for part in (nothing, none, ones)))
        mean = rows.mean(0)
        rows = rows - mean
        products = (rows @ rows.T).astype("float64")
        # About the mean of the others, each. By a float: over a large whole number,
        # float32 is float64 before NumPy 2.
        total = np.einsum("ij,ij->j", rows, rows) * (n / (n - 1) ** 2)
        subjects = np.arange(n) if subjects is None else subjects
        count = min(MAX_DIRECTIONS, n // EXAMPLES_PER_DIRECTION)
        variances = _held_out_variances(products, count, subjects)
        spreads, vectors = _leading_eigenpairs(products, len(variances))
        shown = variances > np.maximum(total.mean(), MIN_RATIO * spreads / (n - 1))
        kept = 1 + max(np.flatnonzero(shown), default=-1)
        vectors *= np.sqrt(variances / spreads)
        loadings = vectors[:, :kept].T.astype("float32") @ rows
        rest = np.maximum(total - (loadings**2).sum(0), MIN_REST * total) + _TINY
        loadings = loadings.reshape(-1, *shape)
        return cls(mean.reshape(shape), loadings, rest.reshape(shape))

    @property
    def deviation(self) -> float:
        """Root mean square of what numbers differ by from their means."""
        along = float(np.linalg.norm(self.loadings)) ** 2
        return math.sqrt((float(self.rest.sum()) + along) / self.rest.size)

    def relative_distances(self, latents: np.ndarray) -> np.ndarray:
        """Return squared distances from the mean, over those of the examples.

        Shapes: latents ``(n, *space, channels)``, result ``(n,)``.
        """
        off = (latents - self.mean).reshape(len(latents), -1)
        return np.square(off).mean(1) / self.deviation**2

    @property
    def max_distance(self) -> float:
        """Relative distance up to which latents are like the examples."""
        along = [np.square(each).sum() for each in self.loadings]
        squares = float(np.square(along).sum() + np.square(self.rest).sum())
        whole = self.deviation**2 * self.rest.size
        # Of so many independent numbers of equal variance (Satterthwaite).
        freedom = whole**2 / squares
        return float(special.chdtri(freedom, _FALSE_ALARMS)) / freedom

    def posterior_covariance_product(
        self, vectors: np.ndarray, alpha: float, sigma: float
    ) -> np.ndarray:
        """Multiply vectors by the covariance of clean latents given noisy ones.

        Shapes: vectors ``(n, *space, channels)``, result ``(n, numbers)``.
        """

        def share(power):
            return power * sigma**2 / (alpha**2 * power + sigma**2)

        vectors = vectors.reshape(len(vectors), -1)
        product = share(self.rest.ravel()) * vectors
        # There may be no directions, of which -1 would not tell the size.
        loadings = self.loadings.reshape(len(self.loadings), self.rest.size)
        # No copy of them: of large volumes they take hundreds of megabytes.
        lengths = np.einsum("ij,ij->i", loadings, loadings)
        # Along the directions instead of what is there already.
        along = vectors @ loadings.T / lengths * share(lengths)
        return product + (along - product @ loadings.T / lengths) @ loadings


def is_aligned(latents: np.ndarray) -> bool:
    """Return whether latents are aligned: alike at each place.

    Otherwise what was learnt of places holds for these examples alone.

    Shapes: latents ``(n, *space, channels)``.
    """
    n, *_, channels = latents.shape
    within = latents.var(0).mean()
    # All of it is that about the mean of each place, and that of these means.
    means = latents.mean(0).reshape(-1, channels)
    whole = within + means.var(0, dtype="float64").mean()
    return bool(within * n / max(1, n - 1) < MAX_UNALIGNED * whole)


def choose_examples(shape: tuple[int, ...]) -> np.ndarray:
    """Choose enough of ``(n, *space, channels)`` examples to learn from, evenly."""
    n, *sizes = shape
    count = min(n, MAX_EXAMPLES, max(2, MAX_VALUES // math.prod(sizes)))
    return np.linspace(0, n - 1, count).round().astype(int)


def _held_out_variances(products, count, subjects):
    """Measure how much examples vary along the directions of other subjects.

    From inner products of all alone: ``(n, n)``.
    """
    n, variances, distinct = len(products), np.zeros(count), np.unique(subjects)
    if len(distinct) == 1:
        return variances
    # Neighbours may be of one subject even if none is known: not to be parted.
    for fold in np.array_split(distinct, min(_PARTS, len(distinct))):
        part = np.flatnonzero(np.isin(subjects, fold))
        rest = np.setdiff1d(np.arange(n), part)
        # About the mean of the others.
        away = np.eye(n) - np.isin(np.arange(n), rest) / len(rest)
        gram = away[rest] @ products @ away[rest].T
        spreads, vectors = _leading_eigenpairs(gram, count)
        along = away[part] @ products @ away[rest].T @ vectors / np.sqrt(spreads)
        # Of few others there are fewer directions.
        variances[: len(spreads)] += (along**2).sum(0) / n
    return np.minimum.accumulate(variances)


def _leading_eigenpairs(products, count):
    """Return the largest eigenvalues of a symmetric matrix, and their vectors."""
    values, vectors = np.linalg.eigh(products)
    return np.maximum(values[::-1][:count], 1e-12), vectors[:, ::-1][:, :count]
