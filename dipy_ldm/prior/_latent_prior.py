"""All that is learnt of latents at once, before any network is trained."""

from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm.conditions import FEW, UNSPECIFIED, Condition
from dipy_ldm.prior._conditional_mean import Expectation
from dipy_ldm.prior._gaussian import Gaussian, aligned, enough
from dipy_ldm.prior._probe import Readings

# Of what each part has learnt, in a model file.
_NAMES = (
    ("expectation",),
    ("gaussian.mean", "gaussian.loadings", "gaussian.rest"),
    ("reading.weights", "reading.offsets", "reading.errors"),
)


class Linear(NamedTuple):
    """What linear functions know of latents; each part may be missing."""

    expectation: Expectation | None = None
    gaussian: Gaussian | None = None
    readings: Readings | None = None

    @classmethod
    def learn(
        cls,
        latents: np.ndarray,
        numbers: Any,
        conditions: dict[str, Condition],
        *,
        volumes: bool,
        subjects: np.ndarray | None = None,
    ) -> Self:
        """Learn what there is to be known.

        Shapes: latents ``(n, *space, channels)``, numbers ``(n, conditions)``, subjects
        ``(n,)``.
        """
        if subjects is None:
            subjects = np.arange(len(latents))
        expectation = None
        if conditions:
            shared = _of_several(numbers, conditions, subjects)
            expectation = Expectation.learn(latents, shared, conditions, subjects)
        if not volumes:
            return cls(expectation)
        some = enough(latents.shape)
        left = latents[some]
        if expectation is not None:
            left = left - expectation.of(numbers[some])
        if not aligned(left):
            return cls(expectation)
        gaussian, readings = Gaussian.learn(left, subjects[some]), None
        # Of large volumes both would take gigabytes.
        del left
        if conditions:
            given = latents[some], shared[some], conditions, subjects[some]
            readings = Readings.learn(*given)
        return cls(expectation, gaussian, readings)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Name all that was learnt, as it is saved."""
        tensors: dict[str, np.ndarray] = {}
        part: Any
        for names, part in zip(_NAMES, self):
            if part is not None:
                # What is known of conditions, which comes first, is no tensor.
                tensors |= zip(names, part[-len(names) :])
        return tensors

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, np.ndarray], conditions: dict[str, Condition]
    ) -> Self:
        """Take the parts from a model file."""

        def take(kind, names, *given):
            there = names[0] in tensors
            return kind(*given, *(tensors[name] for name in names)) if there else None

        expectation, gaussian, readings = _NAMES
        return cls(
            take(Expectation, expectation, conditions),
            take(Gaussian, gaussian),
            take(Readings, readings, conditions),
        )

    @staticmethod
    def shapes(
        found: dict[str, tuple[int, ...]],
        latent_shape: tuple[int, ...],
        conditions: dict[str, Condition],
    ) -> dict[str, tuple[int, ...]]:
        """Say which shapes the parts in a model file must have.

        Shapes: latent_shape ``(*space, channels)``.
        """
        parts = (
            Expectation.shapes(latent_shape, conditions),
            Gaussian.shapes(latent_shape, Linear.known(found)["directions"] or 0),
            Readings.shapes(latent_shape, conditions),
        )
        pairs = (pair for pair in zip(_NAMES, parts) if pair[0][0] in found)
        return {name: shape for some in pairs for name, shape in zip(*some)}

    @staticmethod
    def known(found: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        """Say what networks of a model file are given of it."""
        (expectation,), (mean, loadings, _), _ = _NAMES
        directions = (found.get(loadings) or (0,))[0] if mean in found else None
        return {"expects": expectation in found, "directions": directions}


def _of_several(numbers, conditions, subjects):
    """Leave levels out that few subjects have, however many images they have."""
    numbers = numbers.copy()
    for column, condition in enumerate(conditions.values()):
        for level in range(condition.size):
            having = numbers[:, column] == level
            if len(np.unique(subjects[having])) < FEW:
                numbers[having, column] = UNSPECIFIED
    return numbers
