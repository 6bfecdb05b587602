"""Conditioning of a denoiser in training."""

from collections.abc import Sequence
import hashlib
import json
import logging
import math
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from dipy_ldm._conditions import (
    Condition,
    ConditionBatch,
    ConditionsLike,
    learn,
    to_saved,
)
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.subjects import fingerprint, number_disjoint
from dipy_ldm._utils.values import Table, as_table
from dipy_ldm.data import _sources as sources
from dipy_ldm.data._covariates import as_covariates, summarise
from dipy_ldm.data._sources import SOURCE, ConditioningInputs, Source
from dipy_ldm.data._table_rows import align_tables
from dipy_ldm.data.channels import Channel, check_columns, check_same_sources
from dipy_ldm.prior._ridge import ConditionalMean

logger = logging.getLogger("dipy_ldm")

# The validation loss of fewer latents is measured several times, with other noise.
MIN_MEASURED = 32
MAX_SUMMED = 16


class Latents(NamedTuple):
    """Latents and their conditioning.

    Shapes: clean ``(n, *space, channels)``, subjects ``(n,)``.
    """

    clean: np.ndarray
    inputs: ConditioningInputs
    conditional_mean: ConditionalMean | None
    subjects: np.ndarray

    def residual(self, numbers: slice | list[int]) -> np.ndarray:
        """Return latents minus their conditional mean.

        Shapes: result ``(n, *space, channels)``.
        """
        if self.conditional_mean is None:
            return self.clean[numbers]
        mean = self.conditional_mean.predict(self.inputs.table[numbers])
        return self.clean[numbers] - mean

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of each channel of the residuals.

        Shapes: mean, spread ``(channels,)``.
        """
        # About a rough mean, against cancellation.
        start = self.residual([0]).reshape(-1, self.clean.shape[-1])[0].astype(float)
        sums = np.zeros((2, len(start)))
        # Float32 sums saturate beyond some millions; in float64, thousands of volumes
        # would take gigabytes, and so are summed in parts.
        for first in range(0, len(self.clean), MAX_SUMMED):
            residual = self.residual(slice(first, first + MAX_SUMMED))
            flat = residual.reshape(-1, len(start)).astype("float64") - start
            sums += flat.sum(0), np.square(flat).sum(0)
        mean, square = sums * len(start) / self.clean.size
        return start + mean, np.sqrt(np.maximum(square - mean**2, 0))

    def for_validation(self) -> Self:
        """Return latents, repeated if few, with subjects as the last condition."""
        n = len(self.clean)
        numbers = np.tile(np.arange(n), math.ceil(MIN_MEASURED / n))
        columns = self.inputs.table[numbers], self.subjects[numbers]
        table = np.column_stack(columns).astype("float32")
        return self._replace(
            clean=self.clean[numbers],
            inputs=ConditioningInputs(table),
            conditional_mean=None,
            subjects=self.subjects[numbers],
        )


class Examples(NamedTuple):
    """Shape of the images of a fit or validation, and their metadata.

    Without validation images, the shape is empty.
    """

    shape: tuple[int, ...]
    conditions: ConditionsLike = None
    source: npt.ArrayLike | None = None
    subjects: npt.ArrayLike | None = None
    source_channels: Sequence[Channel] = ()

    @property
    def n(self) -> int:
        """Number of images."""
        return self.shape[0] if self.shape else 0


class Conditioning(NamedTuple):
    """Conditions and source of a fit, and their encoded values for all images."""

    conditions: dict[str, Condition]
    source: Source | None
    inputs: ConditioningInputs
    held_out: ConditioningInputs | None
    subjects: np.ndarray
    held_out_subjects: np.ndarray

    @classmethod
    def learn(
        cls,
        examples: Examples,
        held_out: Examples,
        factor: int,
        units: dict[str, str] | None,
        meanings: dict[str, dict[str, str]] | None,
    ) -> Self:
        """Learn from training images; encode their and the held-out conditioning."""
        subjects, held_out_subjects = number_disjoint(
            (examples.n, examples.subjects), (held_out.n, held_out.subjects)
        )
        table, held_out_table = align_tables(
            (examples.conditions, examples.subjects),
            (held_out.conditions, held_out.subjects),
        )
        examples = examples._replace(conditions=table)
        held_out = held_out._replace(conditions=held_out_table)
        conditions = _learn_conditions(examples, units, meanings, subjects)
        shape, channels = examples.shape, examples.source_channels
        check_same_sources(channels, held_out.source_channels, "the validation")
        source = sources.learn(examples.source, shape, bool(channels), conditions)
        check_columns(channels, source.channels if source else 0)
        _refuse_unused(held_out, conditions, source)
        return cls(
            conditions,
            source,
            _encode(examples, conditions, source, factor),
            _encode(held_out, conditions, source, factor) if held_out.shape else None,
            subjects,
            held_out_subjects,
        )

    def settings(self) -> dict:
        """Return the settings on which the result of a training depends."""
        settings: dict[str, str | None] = {"conditions": None, SOURCE: None}
        if self.conditions:
            numbers = self.inputs.table[:, : len(self.conditions)]
            text = json.dumps(to_saved(self.conditions)).encode()
            digest = hashlib.sha256(text + numbers.tobytes()).hexdigest()
            settings["conditions"] = f"{', '.join(self.conditions)} ({digest[:16]})"
        if self.source is not None:
            kind = "labels" if self.source.labels else "intensities"
            settings[SOURCE] = f"{kind} ({self.source.fingerprint[:16]})"
        return settings | {"subjects": fingerprint(self.subjects)}


def _learn_conditions(
    examples: Examples, units: dict | None, meanings: dict | None, subjects: np.ndarray
):
    """Learn conditions; log a summary unless reading a table has logged one."""
    table = examples.conditions
    if isinstance(table, Table):
        units = _merged(table, table.units, units)
        meanings = _merged(table, table.meanings, meanings)
    elif table is not None:
        # Only once, since it warns of codes.
        table = as_table(table)
    learnt = learn(table, examples.n, units, meanings, subjects.tolist())
    if learnt and units is None:
        logger.info("%s", summarise(as_covariates(table, learnt, subjects)))
    return learnt


def _merged(table: Table, entries: dict | None, added: dict | None):
    """Merge entries of a table for its columns with added ones."""
    shared = {name: entry for name, entry in (entries or {}).items() if name in table}
    return shared | (added or {})


def _encode(
    examples: Examples,
    conditions: dict[str, Condition],
    source: Source | None,
    factor: int,
):
    """Encode conditions and sources of a training."""
    n, *space, _ = examples.shape
    if conditions and examples.conditions is None:
        logger.warning(
            "validation_data has no conditions, so that its loss, which selects the "
            "best weights, is higher; pass `validation_conditions`."
        )
    encoded = ConditionBatch.of(conditions, examples.conditions, n, lenient=True)
    if encoded.range_warnings:
        logger.warning("held-out images: %s", " ".join(encoded.range_warnings[:9]))
    name = f"validation_{SOURCE}"
    images = sources.check(
        source, examples.source, tuple(space), n=n, name=name, lenient=True
    )
    return ConditioningInputs.of(encoded.numbers, source, images, factor)


def _refuse_unused(
    held_out: Examples, conditions: dict[str, Condition], source: Source | None
):
    """Refuse validation conditions or sources that have no effect."""
    for name, learnt in (("conditions", conditions), (SOURCE, source)):
        passed = getattr(held_out, name) is not None
        if passed and not (held_out.shape and learnt):
            missing = "validation_data" if learnt else name
            raise InputError(
                f"validation_{name} would have no effect without {missing}",
                "leave it out",
            )
