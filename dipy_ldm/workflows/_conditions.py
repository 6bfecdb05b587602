"""What a command is asked for, and what it says of that beside its outputs."""

import math
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._conditions import ConditionBatch, from_saved, requested
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import NONE, level_of, number_of
from dipy_ldm.prior._population import Population, draw


class RequestedConditions(NamedTuple):
    """Conditions that are asked for, in their own units."""

    table: dict[str, list]
    surprises: list[str]
    numbers: range
    drawn: list[str] | None = None

    @classmethod
    def of(
        cls,
        model_path: str | Path,
        request: dict | str | None,
        numbers: range,
        strict: bool = False,
        seed: int | None = None,
        same_noise: bool = False,
    ) -> Self:
        """Look at what is asked for, and draw the rest, without a network."""
        document = _serialization.read_document(model_path, "latent_diffusion")
        conditions = from_saved(document["conditions"])
        n = len(numbers)
        request = request or None
        batch = ConditionBatch.of(conditions, request, n)
        if strict and batch.surprises:
            raise InputError(" ".join(batch.surprises))
        explicit = values = requested(conditions, request, n)
        drawn = None
        if seed is not None:
            which = Population.from_saved(document.get("population")), request, n
            first = numbers.start
            completed = draw(
                conditions, *which, seed=seed, first=first, same=same_noise
            )
            values = requested(conditions, completed, n)
            drawn = [name for name in values if None in explicit.get(name, [None])]
        table = {
            name: [_plain(name, condition, v) for v in values.get(name, [None] * n)]
            for name, condition in conditions.items()
        }
        return cls(table, batch.surprises, numbers, drawn)

    @property
    def specified(self) -> bool:
        """Whether anything is asked for of any image."""
        return any(v is not None for values in self.table.values() for v in values)

    def subset(self, numbers: range) -> dict[str, list] | str | None:
        """Return what some of the images are asked to be."""
        columns = self._of(numbers)
        if self.drawn is None or not columns:
            return columns or None
        # Left out, it would be drawn.
        if not self.specified:
            return NONE
        return {
            n: [NONE if v is None else v for v in values]
            for n, values in columns.items()
        }

    def _of(self, numbers):
        first = self.numbers.start
        places = slice(numbers.start - first, numbers.stop - first)
        return {name: values[places] for name, values in self.table.items()}

    def facts(self, numbers: range) -> dict[str, Any]:
        """Say what images were asked to be."""
        conditions: dict[str, Any] = {}
        for name, values in self._of(numbers).items():
            shown = ["n/a" if value is None else value for value in values]
            conditions[name] = shown[0] if len(shown) == 1 else shown
        warnings = {"Warnings": self.surprises} if self.surprises else {}
        drawn = {"DrawnConditions": self.drawn} if self.drawn else {}
        return ({"Conditions": conditions} if conditions else {}) | drawn | warnings

    def arrays(self, numbers: range) -> dict[str, np.ndarray]:
        """Return what images were asked to be, as arrays."""
        columns = {}
        for name, values in self._of(numbers).items():
            nothing = "n/a" if any(isinstance(v, str) for v in values) else math.nan
            whole = [nothing if value is None else value for value in values]
            columns[f"condition_{name}"] = np.array(whole)
        return columns


def count_of(request: dict | str) -> int | None:
    """Count the images that conditions are for."""
    if isinstance(request, str):
        return None
    counts = [len(values) for values in request.values() if isinstance(values, list)]
    return max(counts, default=None)


def _plain(name, condition, value):
    if condition.leaves_out(value):
        return None
    return level_of(value) if condition.kind == "class" else number_of(name, value)
