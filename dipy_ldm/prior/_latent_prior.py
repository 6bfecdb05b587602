"""The latent prior: statistics of latents, fitted before a network is trained."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._conditions import MIN_GROUP_SIZE, UNSPECIFIED, Condition
from dipy_ldm.prior._gaussian import Gaussian, choose_examples, is_aligned
from dipy_ldm.prior._probe import LinearProbe, n_readings
from dipy_ldm.prior._ridge import ConditionalMean, n_features

# Names of the tensors of each part in a model file.
_NAMES = (
    ("expectation",),
    ("gaussian.mean", "gaussian.loadings", "gaussian.rest"),
    ("reading.weights", "reading.offsets", "reading.errors"),
)


class LatentPrior(NamedTuple):
    """Conditional mean, low-rank Gaussian and linear probe; each may be missing."""

    conditional_mean: ConditionalMean | None = None
    gaussian: Gaussian | None = None
    probe: LinearProbe | None = None

    @classmethod
    def learn(
        cls,
        latents: np.ndarray,
        numbers: np.ndarray,
        conditions: dict[str, Condition],
        subjects: np.ndarray,
        *,
        volumes: bool,
    ) -> Self:
        """Fit all parts that the latents allow.

        Shapes: latents ``(n, *space, channels)``, numbers ``(n, conditions)``, subjects
        ``(n,)``.
        """
        mean = None
        if conditions:
            shared = _without_rare_levels(numbers, conditions, subjects)
            mean = ConditionalMean.learn(latents, shared, conditions, subjects)
        if not volumes:
            return cls(mean)
        examples = choose_examples(latents.shape)
        residual = latents[examples]
        if mean is not None:
            residual = residual - mean.predict(shared[examples])
        if not is_aligned(residual):
            return cls(mean)
        gaussian, probe = Gaussian.learn(residual, subjects[examples]), None
        # Free it first: together they would take gigabytes for large volumes.
        del residual
        if any(map(n_readings, conditions.values())):
            probe = LinearProbe.learn(
                latents[examples], shared[examples], conditions, subjects[examples]
            )
        return cls(mean, gaussian, probe)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return all tensors by their names in a model file."""
        tensors: dict[str, np.ndarray] = {}
        part: Any
        for names, part in zip(_NAMES, self):
            if part is not None:
                # The first field may be the conditions, which are not a tensor.
                tensors |= zip(names, part[-len(names) :])
        return tensors

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, np.ndarray], conditions: dict[str, Condition]
    ) -> Self:
        """Build the prior from the tensors of a model file."""

        def take(kind: Callable, names: Sequence[str]) -> Any:
            if names[0] not in tensors:
                return None
            # Sums of squares would overflow the 16 bits that a file may have.
            return kind(*(tensors[n].astype("float32", copy=False) for n in names))

        conditional_mean, gaussian, probe = _NAMES
        return cls(
            take(partial(ConditionalMean, conditions), conditional_mean),
            take(Gaussian, gaussian),
            take(partial(LinearProbe, conditions), probe),
        )

    @staticmethod
    def shapes(
        saved: dict[str, tuple[int, ...]],
        latent_shape: tuple[int, ...],
        conditions: dict[str, Condition],
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes that the tensors in a model file must have."""
        features = sum(map(n_features, conditions.values()))
        readings = sum(map(n_readings, conditions.values()))
        directions = LatentPrior.network_options(saved)["directions"] or 0
        parts: tuple[list[tuple[int, ...]], ...] = (
            [(features, *latent_shape)],
            [latent_shape, (directions, *latent_shape), latent_shape],
            [(readings, *latent_shape), (readings,), (readings,)],
        )
        return {
            name: shape
            for names, shapes in zip(_NAMES, parts)
            if names[0] in saved
            for name, shape in zip(names, shapes)
        }

    @staticmethod
    def network_options(saved: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        """Return the options of the networks in a model file."""
        (conditional_mean,), (mean, loadings, _), _ = _NAMES
        directions = (saved.get(loadings) or (0,))[0] if mean in saved else None
        return {"with_mean": conditional_mean in saved, "directions": directions}


def _without_rare_levels(
    numbers: np.ndarray, conditions: dict[str, Condition], subjects: np.ndarray
):
    """Set levels with few subjects to unspecified, however many images they have."""
    numbers = numbers.copy()
    for column, condition in enumerate(conditions.values()):
        for level in range(condition.size):
            rows = numbers[:, column] == level
            if len(np.unique(subjects[rows])) < MIN_GROUP_SIZE:
                numbers[rows, column] = UNSPECIFIED
    return numbers
