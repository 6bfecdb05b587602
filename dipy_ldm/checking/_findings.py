"""Findings: what is told of data and training, with pictures, on a page."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import median_abs_deviation

from dipy_ldm import plots
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import listed
from dipy_ldm.evaluation import _page as html

# From the worst, what they mean, and as what notes they stand on the page.
_STATES = {
    "red": ("must be fixed before a training", "bad"),
    "amber": ("to be looked at", "fair"),
    "green": ("as it should be", "good"),
    "grey": ("could not be looked at", "plain"),
}
# Of so many values also by the width in which 95 % of normal numbers lie.
_MANY, _WIDTH = 1000, 3.92


class Picture(NamedTuple):
    """A picture, ``(height, width, channels)`` in [0, 1], and what it shows."""

    image: np.ndarray
    caption: str


class Finding(NamedTuple):
    """What was found in one respect."""

    state: str
    title: str
    message: str
    cure: str = ""
    pictures: Sequence[Picture] = ()
    table: Sequence[Sequence] = ()

    def to_saved(self) -> dict:
        """Return it as JSON data, without the pictures."""
        head, *rows = self.table or [()]
        table = [dict(zip(head, row, strict=True)) for row in rows]
        record: dict[str, object]
        record = {"title": self.title, "state": self.state, "what": self.message}
        record |= {"cure": self.cure, "table": table}
        return {name: value for name, value in record.items() if value}


# Nothing is wrong; what is to be looked at, and what must be fixed, with its cure; what
# could not be checked, and why.
green, amber = partial(Finding, "green"), partial(Finding, "amber")
red, grey = partial(Finding, "red"), partial(Finding, "grey")


def refused(title: str, error: InputError) -> Finding:
    """Find what a training would refuse, in the sentence that it would do so with."""
    *problems, cure = re.split("; |\n", str(error))
    texts = "; ".join(problems) or cure.rstrip("."), cure if problems else ""
    problem, cure = (text[:1].upper() + text[1:] for text in texts)
    return red(title, f"{problem}.", cure)


def worst(findings: Iterable[Finding]) -> str:
    """Return the worst state of some findings."""
    states = {finding.state for finding in findings}
    return next(state for state in _STATES if state in states)


def robust_scores(values: npt.ArrayLike, least: npt.ArrayLike) -> np.ndarray:
    """Return robust z-scores ``(n, figures)``; ``least`` is of the figures.

    By the median and the median of absolute deviations, on which a few outliers have no
    influence :footcite:p:`Iglewicz1993`.
    """
    values = np.asarray(values, "float64")
    away = values - np.median(values, axis=0)
    spread = median_abs_deviation(values, axis=0, scale="normal")
    if len(values) >= _MANY:
        # What is the same for most and not for some, as the strokes of digits.
        low, high = np.percentile(values, (2.5, 97.5), axis=0)
        spread = np.maximum(spread, (high - low) / _WIDTH)
    return away / np.maximum(spread, least)


def write_page(
    input_files: Sequence[str], findings: Mapping[str, Sequence[Finding]]
) -> str:
    """Write the page."""
    every = [finding for group in findings.values() for finding in group]
    counts = Counter(finding.state for finding in every)
    summary = ", ".join(
        f"{counts[state]} {state} ({meaning})"
        for state, (meaning, _) in _STATES.items()
        if counts[state]
    )
    return html.page(
        "Before a long training",
        html.text(f"Looked at {listed(input_files, 3)}: {summary}."),
        *(
            html.note(f"{f.title}: {f.message} {f.cure}", _STATES[f.state][1])
            for f in _bad(every)
        ),
        *(html.section(title, *map(_part, group)) for title, group in findings.items()),
    )


def _bad(findings):
    """Return red findings, then amber ones."""
    return [f for state in ("red", "amber") for f in findings if f.state == state]


def _part(finding):
    """Write all of a finding."""
    head, *rows = finding.table or [()]
    return html.part(
        finding.title,
        html.note(finding.message, _STATES[finding.state][1]),
        html.text(*filter(None, [finding.cure])),
        *(html.picture(p.image, p.caption) for p in finding.pictures),
        html.table(head, rows) if rows else "",
    )


def summarise_findings(findings: Mapping[str, Sequence[Finding]]) -> list[str]:
    """Summarise findings as text: problems with their cures, then the rest."""
    every = [finding for group in findings.values() for finding in group]
    lines = []
    for finding in _bad(every):
        lines.append(f"{finding.state}: {finding.title}: {finding.message}")
        lines.append(f"  {finding.cure}")
    titles = {s: [f.title for f in every if f.state == s] for s in ("green", "grey")}
    return lines + [f"{s}: {', '.join(names)}" for s, names in titles.items() if names]


# Images are enlarged to about so many pixels on a page.
_MIN_PIXELS = 90


def flat(images: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """Make pictures ``(n, h, w, channels)`` of images, of volumes middle planes."""
    images = plots.pictures(np.asarray(images, "float32"), affine)
    times = max(1, round(_MIN_PIXELS / images.shape[1]))
    return images.repeat(times, axis=1).repeat(times, axis=2)


def gallery(images: np.ndarray, affine: np.ndarray | None, usual: int) -> Callable:
    """Return a function that shows images by number, and a usual one last."""

    def show(numbers, caption):
        chosen = np.stack([images[i] for i in [*numbers, usual]])
        columns = 5 if affine is None else 1
        picture = plots.montage(flat(chosen, affine), columns=columns)
        return [Picture(picture, caption)]

    return show
