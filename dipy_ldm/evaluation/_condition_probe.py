"""Linear probes of whether samples have the requested conditions.

A ridge regression predicts a condition from the features of real images. Its accuracy
on other real images is the best to expect of generated ones.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from dipy_ldm import InputError
from dipy_ldm._utils.checks import at_least
from dipy_ldm._utils.subjects import number_subjects
from dipy_ldm._utils.values import level_of, sort_levels
from dipy_ldm.metrics import Interval, binomial, bootstrap
from dipy_ldm.prior import _ridge as regression

# Real images that a probe is fitted to.
MIN_IMAGES, _MAX_IMAGES = 20, 2000
# Penalties of the ridge, in units of the largest variance.
_PENALTIES = np.logspace(-7, 1, 17)


class ProbeResult(NamedTuple):
    """Result of the linear probe of one condition."""

    kind: str
    features: str
    n: int
    requested: dict[str, list]
    predicted: dict[str, list]
    figures: dict[str, dict[str, Interval]]
    guessing: dict[str, float]

    def as_figures(self) -> dict[str, Any]:
        """Return the figures without the values of single images."""
        record = {"kind": self.kind, "features": self.features, "n": self.n}
        return record | {"guessing": self.guessing, "figures": self.figures}


def measure_agreement(
    requested: Sequence[float],
    measured: Sequence[float],
    seed: int = 0,
    subjects: np.ndarray | None = None,
) -> dict[str, Interval]:
    """Measure the agreement of measured and requested values ``(n,)``."""
    a, b = np.asarray(requested, float), np.asarray(measured, float)
    finite = np.isfinite(a) & np.isfinite(b)
    ids = number_subjects(subjects, len(a))[finite]
    at_least("the number of samples with both numbers", len(np.unique(ids)), 4)
    a, b = a[finite], b[finite]
    if np.ptp(a) == 0:
        raise InputError("all requested values are equal", "request different ones")
    if np.ptp(b) == 0:
        raise InputError(
            "all samples have the same measured value", "check the measurements"
        )

    def pairs(statistic: Callable) -> Interval:
        both = np.stack([a, b], 1)
        return bootstrap(lambda p: statistic(*p.T), both, seed=seed, subjects=[ids])

    def correlation(x: np.ndarray, y: np.ndarray) -> float:
        return 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else np.corrcoef(x, y)[0, 1]

    def slope(x: np.ndarray, y: np.ndarray) -> float:
        return 0.0 if np.ptp(x) == 0 else stats.linregress(x, y).slope

    return {
        "r": pairs(correlation).within(-1, 1),
        "slope": pairs(slope),
        "error": pairs(lambda x, y: np.mean(np.abs(y - x))).within(0, np.inf),
    }


def class_accuracy(
    requested: Sequence[Any],
    predicted: Sequence[Any],
    subjects: np.ndarray | None = None,
) -> Interval:
    """Return the share of samples ``(n,)`` predicted as the requested class."""
    pairs = zip(map(level_of, requested), map(level_of, predicted), strict=True)
    right = [a == b for a, b in pairs]
    n = len(right if subjects is None else np.unique(subjects))
    at_least("the number of samples with a class", n, 1)
    share = np.mean(right)
    return binomial(round(share * n), n)._replace(value=float(share))


def _fit_ridge(
    rows: np.ndarray, targets: np.ndarray, subjects: np.ndarray | None = None
) -> tuple[float, Callable[[np.ndarray], np.ndarray]]:
    """Fit a ridge regression, with the penalty chosen by cross-validation.

    Return the cross-validated share of explained variance, and the prediction function.

    Shapes: rows ``(n, features)``, targets ``(n, targets)``, subjects ``(n,)``.
    """
    x, y = np.asarray(rows, float), np.asarray(targets, float)
    subject_ids = number_subjects(subjects, len(x))
    left, spreads, right = regression.decompose(x)
    penalties = max(spreads**2, default=1.0) * _PENALTIES
    fit = regression.fit_ridge(left, spreads, y, penalties, subject_ids)
    slopes = right.T @ ((fit.shrunk / spreads)[:, None] * fit.coefficients)
    explained = 1 - fit.error / max(float(y.var(0).mean()), 1e-12)
    return explained, lambda features: (features - x.mean(0)) @ slopes + y.mean(0)


def probe_all(
    kinds: Mapping[str, str],
    labels: Mapping[str, Mapping[str, Sequence] | None],
    rows: Mapping[str, Mapping[str, np.ndarray]],
    seed: int = 0,
    subjects: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> tuple[dict[str, ProbeResult], list[str]]:
    """Probe all conditions that have enough values."""
    probes, notes = {}, []
    for name, kind in kinds.items():
        values = {n: list((v or {}).get(name, [])) for n, v in labels.items()}
        if not all(values.values()):
            continue
        try:
            probes[name] = _probe(kind, rows, values, seed, subjects)
        except InputError as error:
            notes.append(f"No probe of {name}: {error}")
    return probes, notes


def _probe(
    kind: str,
    rows: Mapping[str, Mapping[str, np.ndarray]],
    labels: Mapping[str, list],
    seed: int = 0,
    subjects: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> ProbeResult:
    """Fit a probe to the reference set, and predict a condition of the other sets."""
    if kind == "direction":
        raise InputError("a probe needs numbers or classes, not directions")
    if not rows:
        raise InputError(
            "no features are independent of the model's own encoder", "add others"
        )
    indices = {
        name: [i for i, value in enumerate(values) if value is not None]
        for name, values in labels.items()
    }
    indices["reference"] = indices["reference"][:_MAX_IMAGES]
    requested = {name: [labels[name][i] for i in at] for name, at in indices.items()}
    if kind == "class":
        requested = {n: list(map(level_of, column)) for n, column in requested.items()}
    subject_ids = {name: column[indices[name]] for name, column in subjects.items()}
    fitted, at = requested.pop("reference"), indices.pop("reference")
    levels = sort_levels(set(fitted)) if kind == "class" else []
    targets = _targets(fitted, levels)
    ridges = {
        name: _fit_ridge(by_set["reference"][at], targets, subject_ids.get("reference"))
        for name, by_set in rows.items()
    }
    best = max(ridges, key=lambda name: ridges[name][0])
    predicted, figures, guessing = {}, {}, {}
    for name, column in requested.items():
        outputs = ridges[best][1](rows[best][name][indices[name]])
        if levels:
            predicted[name] = [levels[i] for i in outputs.argmax(1)]
            accuracy = class_accuracy(column, predicted[name], subject_ids.get(name))
            figures[name] = {"right": accuracy}
            guessing[name] = max(map(column.count, levels)) / len(column)
        else:
            predicted[name] = outputs[:, 0].tolist()
            owners = subject_ids.get(name)
            figures[name] = measure_agreement(column, predicted[name], seed, owners)
    return ProbeResult(kind, best, len(fitted), requested, predicted, figures, guessing)


def _targets(values: list, levels: list) -> np.ndarray:
    """Return regression targets: values, or indicators of levels."""
    if len(values) < MIN_IMAGES:
        raise InputError(
            f"only {len(values)} real images have this value",
            f"at least {MIN_IMAGES} are needed",
        )
    targets = np.array([[v == level for level in levels] or [v] for v in values], float)
    if np.ptp(targets) == 0:
        raise InputError("all real images of the reference half have the same value")
    return targets
