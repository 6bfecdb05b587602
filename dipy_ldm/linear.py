"""All that is learnt of latents at once, before any network is trained."""

from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm.conditions import Condition
from dipy_ldm.expectation import Expectation
from dipy_ldm.gaussian import Gaussian, aligned, enough
from dipy_ldm.readings import Readings


class Linear(NamedTuple):
    """What linear functions know of latents; each part may be missing.

    Parameters
    ----------
    expectation : Expectation, optional
        What is to be expected of latents, by what is told.
    gaussian : Gaussian, optional
        What they are like beside that.
    readings : Readings, optional
        What is read in them of what is told.
    """

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
    ) -> Self:
        """Learn what there is to be known.

        Parameters
        ----------
        latents : ndarray
            Latents of mean 0, ``(n, *space, channels)``.
        numbers : ndarray or None
            What is told of each, ``(n, conditions)``, as of
            :class:`dipy_ldm.conditions.Told`; None where nothing is told.
        conditions : dict of str to Condition
            What is known of each.
        volumes : bool
            Whether they are those of volumes: of images there is an expectation alone.

        Returns
        -------
        Linear
            What was learnt.
        """
        expectation = None
        if conditions:
            expectation = Expectation.learn(latents, numbers, conditions)
        if not volumes:
            return cls(expectation)
        some = enough(latents.shape)
        left = latents[some]
        if expectation is not None:
            left = left - expectation.of(numbers[some])
        if not aligned(left):
            return cls(expectation)
        gaussian, readings = Gaussian.learn(left), None
        # Of large volumes both would take gigabytes.
        del left
        if conditions:
            readings = Readings.learn(latents[some], numbers[some], conditions)
        return cls(expectation, gaussian, readings)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Name the parts, as they are saved.

        Returns
        -------
        dict of str to ndarray
            Tensors of those that there are, by their names.
        """
        there = (part for part in self if part is not None)
        return {k: tensor for part in there for k, tensor in part.to_tensors().items()}

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, np.ndarray], conditions: dict[str, Condition]
    ) -> Self:
        """Take the parts from a model file.

        Parameters
        ----------
        tensors : dict of str to ndarray
            What the file has.
        conditions : dict of str to Condition
            What is known of each.

        Returns
        -------
        Linear
            Those that the file has.
        """
        return cls(
            Expectation.from_tensors(tensors, conditions),
            Gaussian.from_tensors(tensors),
            Readings.from_tensors(tensors, conditions),
        )

    @staticmethod
    def shapes(
        found: dict[str, tuple[int, ...]],
        latent_shape: tuple[int, ...],
        conditions: dict[str, Condition],
    ) -> dict[str, tuple[int, ...]]:
        """Say which shapes the parts in a model file must have.

        Parameters
        ----------
        found : dict of str to tuple of int
            Shapes in the file.
        latent_shape : tuple of int
            Shape of a latent, ``(*space, channels)``.
        conditions : dict of str to Condition
            What is known of each.

        Returns
        -------
        dict of str to tuple of int
            Shapes by the names of the tensors, of those parts that the file has.
        """
        given = found, latent_shape
        return {
            **Expectation.shapes(*given, conditions),
            **Gaussian.shapes(*given),
            **Readings.shapes(*given, conditions),
        }
