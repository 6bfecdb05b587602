"""What a command is asked for, and what it says of that beside its outputs."""

import math
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm import persistence
from dipy_ldm.conditions import Told, from_saved
from dipy_ldm.validation import InputError
from dipy_ldm.values import level_of, number_of, values_of


class Asked(NamedTuple):
    """Conditions that are asked for, in their own units.

    Parameters
    ----------
    table : dict of str to list
        One value for each image, by the names of all conditions that the model knows:
        a number, the name of a level, or None.
    surprises : list of str
        A sentence on each value that the model did not learn from.
    numbers : range
        Numbers of the images.
    """

    table: dict[str, list]
    surprises: list[str]
    numbers: range

    @classmethod
    def of(
        cls,
        model_path: str | Path,
        given: dict,
        numbers: range,
        strict: bool = False,
    ) -> Self:
        """Look at what is asked for, without a network.

        Parameters
        ----------
        model_path : str or Path
            File of the model.
        given : dict
            One value, or a list with one for each image, by the names of some
            conditions.
        numbers : range
            Numbers of the images.
        strict : bool
            Whether to refuse numbers that were not learnt from.

        Returns
        -------
        Asked
            For each of the images.

        Raises
        ------
        InputError
            If something can't be asked for.
        """
        document = persistence.read_document(model_path, "latent_diffusion")
        known = from_saved(document["conditions"])
        n = len(numbers)
        told = Told.of(known, given or None, n)
        if strict and told.surprises:
            raise InputError(" ".join(told.surprises))
        table = {}
        for name, condition in known.items():
            values = values_of(name, given.get(name))
            read = [_plain(name, condition, value) for value in values]
            table[name] = read * n if len(read) == 1 else read
        return cls(table, told.surprises, numbers)

    @property
    def specified(self) -> bool:
        """Whether anything is asked for of any image."""
        return any(v is not None for values in self.table.values() for v in values)

    def of_some(self, numbers: range) -> dict[str, list] | None:
        """Return what some of the images are asked to be.

        Parameters
        ----------
        numbers : range
            Their numbers.

        Returns
        -------
        dict of str to list or None
            As ``conditions`` of :meth:`dipy_ldm.LatentDiffusion.predict`.
        """
        first = self.numbers.start
        places = slice(numbers.start - first, numbers.stop - first)
        return {name: values[places] for name, values in self.table.items()} or None

    def facts(self, numbers: range) -> dict[str, Any]:
        """Say what images were asked to be.

        Parameters
        ----------
        numbers : range
            Their numbers.

        Returns
        -------
        dict
            For the file beside them. Of one image the values, of more a list of them;
            what is not specified is ``n/a``.
        """
        found: dict[str, Any] = {}
        for name, values in (self.of_some(numbers) or {}).items():
            said = ["n/a" if value is None else value for value in values]
            found[name] = said[0] if len(said) == 1 else said
        warnings = {"Warnings": self.surprises} if self.surprises else {}
        return ({"Conditions": found} if found else {}) | warnings

    def arrays(self, numbers: range) -> dict[str, np.ndarray]:
        """Return what images were asked to be, as arrays.

        Parameters
        ----------
        numbers : range
            Their numbers.

        Returns
        -------
        dict of str to ndarray
            ``condition_name``: numbers with NaN, or text with ``n/a``, where nothing is
            specified.
        """
        found = {}
        for name, values in (self.of_some(numbers) or {}).items():
            nothing = "n/a" if any(isinstance(v, str) for v in values) else math.nan
            whole = [nothing if value is None else value for value in values]
            found[f"condition_{name}"] = np.array(whole)
        return found


def count_of(given: dict) -> int | None:
    """Count the images that conditions are for.

    Parameters
    ----------
    given : dict
        Values of each, or one for all.

    Returns
    -------
    int or None
        None if there is one value of each.
    """
    counts = [len(values) for values in given.values() if isinstance(values, list)]
    return max(counts, default=None)


def _plain(name, condition, value):
    if value is None:
        return None
    return level_of(value) if condition.kind == "class" else number_of(name, value)
