"""What a denoiser is told in training."""

import hashlib
import json
import logging
import math
from typing import Any, NamedTuple, Self

import numpy as np

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import Table
from dipy_ldm.conditions import Condition, Told, learn, to_saved
from dipy_ldm.data import _sources as sources
from dipy_ldm.data._conditioning_inputs import ConditioningInputs, prepare_sources
from dipy_ldm.data._sources import Source
from dipy_ldm.data._summary import as_covariates, summarise
from dipy_ldm.prior._conditional_mean import Expectation

logger = logging.getLogger(__name__)

# What is measured of fewer latents is measured several times, with other noise.
_LEAST = 32
_AT_ONCE = 16
# What the gain of sources is called, beside those of conditions.
SOURCE = "source"


class Latents(NamedTuple):
    """Latents, and what is told of them.

    Shapes: clean ``(n, *space, channels)``, subjects ``(n,)``.
    """

    clean: np.ndarray
    given: ConditioningInputs | None = None
    expectation: Expectation | None = None
    subjects: np.ndarray | None = None

    @property
    def told(self):
        """What is told, as arguments of :func:`dipy_ldm.denoiser._noising.noised`."""
        if self.given is None:
            return {}
        of = self.expectation and self.expectation.of
        told = {"conditions": self.given.table, "sources": self.given.sources}
        return told | {"expected": of}

    def left(self, numbers: Any) -> np.ndarray:
        """Return what is not expected of some.

        Shapes: result ``(n, *space, channels)``.
        """
        if self.given is None or self.expectation is None:
            return self.clean[numbers]
        return self.clean[numbers] - self.expectation.of(self.given.table[numbers])

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Measure mean and standard deviation of each channel of what is not expected.

        Shapes: mean, spread ``(channels,)``.
        """
        # About a first guess of the mean, so that no digits cancel.
        start = self.left([0]).reshape(-1, self.clean.shape[-1])[0].astype("float64")
        sums = np.zeros((2, len(start)))
        # In float32, sums of more than some millions stop growing; in float64, all of
        # thousands of volumes take gigabytes, and so some are at once.
        for first in range(0, len(self.clean), _AT_ONCE):
            left = self.left(slice(first, first + _AT_ONCE))
            flat = left.reshape(-1, len(start)).astype("float64") - start
            sums += flat.sum(0), np.square(flat).sum(0)
        mean, square = sums * len(start) / self.clean.size
        return start + mean, np.sqrt(np.maximum(square - mean**2, 0))

    def numbered(self) -> Self:
        """Repeat few of them, and add to what is told the number of the subject."""
        if self.given is None:
            return self
        n = len(self.clean)
        subjects = np.arange(n) if self.subjects is None else self.subjects
        numbers = np.tile(np.arange(n), math.ceil(_LEAST / n))
        columns = self.given.table[numbers], subjects[numbers]
        table = np.column_stack(columns).astype("float32")
        given = self.given._replace(table=table)
        return self._replace(clean=self.clean[numbers], given=given)


class Known(NamedTuple):
    """What is known of all that a denoiser is told."""

    conditions: dict[str, Condition]
    source: Source | None
    factor: int

    @classmethod
    def learn(
        cls,
        conditions: Any,
        source: Any,
        shape: tuple[int, ...],
        factor: int,
        units: dict[str, str] | None,
        meanings: dict[str, dict[str, str]] | None,
        subjects: np.ndarray,
    ) -> Self:
        """Find it out."""
        if isinstance(conditions, Table):
            units, meanings = conditions.units, conditions.meanings
        n_subjects = len(set(subjects.tolist()))
        known = learn(conditions, shape[0], units, meanings, n_subjects)
        if known and units is None:
            logger.info("%s", summarise(as_covariates(conditions, known, subjects)))
        if source is not None and SOURCE in known:
            raise InputError(
                f"a condition must not be called {SOURCE} where there are sources; "
                "give it another name."
            )
        return cls(known, sources.learn(source, shape), factor)

    def tell(
        self, images: Any, conditions: Any, source: Any
    ) -> ConditioningInputs | None:
        """Say what a network is told of images in training.

        Shapes: images ``(n, *space, channels)``.
        """
        if images is None or not (self.conditions or self.source):
            self._refuse_useless(images, conditions, source)
            return None
        told = Told.of(self.conditions, conditions, len(images), lenient=True)
        if told.surprises:
            logger.warning("held-out images: %s", " ".join(told.surprises[:9]))
        seen = sources.check(
            self.source,
            source,
            images.shape[1:-1],
            n=len(images),
            name=f"validation_{SOURCE}",
            lenient=True,
        )
        return ConditioningInputs.of(
            told.numbers, prepare_sources(self.source, seen, self.factor)
        )

    def _refuse_useless(self, images, conditions, source):
        """Refuse what is said of images that are not there, or to nobody."""
        if conditions is not None:
            missing = "validation_data" if self.conditions else "conditions"
            raise InputError(f"validation_conditions are of no use without {missing}.")
        if source is not None:
            missing = "validation_data" if self.source else SOURCE
            raise InputError(f"validation_source is of no use without {missing}.")

    def fingerprints(self, told: ConditioningInputs | None) -> dict[str, str | None]:
        """Say what tells it from that of another training."""
        found: dict[str, str | None] = {"conditions": None, SOURCE: None}
        if told is not None and self.conditions:
            numbers = told.table[:, : len(self.conditions)]
            text = json.dumps(to_saved(self.conditions)).encode()
            digest = hashlib.sha256(text + numbers.tobytes()).hexdigest()
            found["conditions"] = f"{', '.join(self.conditions)} ({digest[:16]})"
        if self.source is not None:
            what = "labels" if self.source.labels else "intensities"
            found[SOURCE] = f"{what} ({self.source.fingerprint[:16]})"
        return found
