"""What a command is asked for, and what it says of that beside its outputs."""

import math
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm import _serialization as persistence
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import NONE, level_of, number_of
from dipy_ldm.conditions import Told, from_saved, requested
from dipy_ldm.prior._population import Population, draw


class Asked(NamedTuple):
    """Conditions that are asked for, in their own units."""

    table: dict[str, list]
    surprises: list[str]
    numbers: range
    drawn: list[str] | None = None

    @classmethod
    def of(
        cls,
        model_path: str | Path,
        given: dict | str | None,
        numbers: range,
        strict: bool = False,
        seed: int | None = None,
        same_noise: bool = False,
    ) -> Self:
        """Look at what is asked for, and draw the rest, without a network."""
        document = persistence.read_document(model_path, "latent_diffusion")
        known = from_saved(document["conditions"])
        n = len(numbers)
        given = given or None
        told = Told.of(known, given, n)
        if strict and told.surprises:
            raise InputError(" ".join(told.surprises))
        asked = values = requested(known, given, n)
        drawn = None
        if seed is not None:
            which = Population.from_saved(document.get("population")), given, n
            first = numbers.start
            made = draw(known, *which, seed=seed, first=first, same=same_noise)
            values = requested(known, made, n)
            drawn = [name for name in values if None in asked.get(name, [None])]
        table = {
            name: [_plain(name, condition, v) for v in values.get(name, [None] * n)]
            for name, condition in known.items()
        }
        return cls(table, told.surprises, numbers, drawn)

    @property
    def specified(self) -> bool:
        """Whether anything is asked for of any image."""
        return any(v is not None for values in self.table.values() for v in values)

    def of_some(self, numbers: range) -> dict[str, list] | str | None:
        """Return what some of the images are asked to be."""
        found = self._of(numbers)
        if self.drawn is None or not found:
            return found or None
        # Left out, it would be drawn.
        if not self.specified:
            return NONE
        return {
            n: [NONE if v is None else v for v in some] for n, some in found.items()
        }

    def _of(self, numbers):
        first = self.numbers.start
        places = slice(numbers.start - first, numbers.stop - first)
        return {name: values[places] for name, values in self.table.items()}

    def facts(self, numbers: range) -> dict[str, Any]:
        """Say what images were asked to be."""
        found: dict[str, Any] = {}
        for name, values in self._of(numbers).items():
            said = ["n/a" if value is None else value for value in values]
            found[name] = said[0] if len(said) == 1 else said
        warnings = {"Warnings": self.surprises} if self.surprises else {}
        drawn = {"DrawnConditions": self.drawn} if self.drawn else {}
        return ({"Conditions": found} if found else {}) | drawn | warnings

    def arrays(self, numbers: range) -> dict[str, np.ndarray]:
        """Return what images were asked to be, as arrays."""
        found = {}
        for name, values in self._of(numbers).items():
            nothing = "n/a" if any(isinstance(v, str) for v in values) else math.nan
            whole = [nothing if value is None else value for value in values]
            found[f"condition_{name}"] = np.array(whole)
        return found


def count_of(given: dict | str) -> int | None:
    """Count the images that conditions are for."""
    if isinstance(given, str):
        return None
    counts = [len(values) for values in given.values() if isinstance(values, list)]
    return max(counts, default=None)


def _plain(name, condition, value):
    if condition.leaves_out(value):
        return None
    return level_of(value) if condition.kind == "class" else number_of(name, value)
