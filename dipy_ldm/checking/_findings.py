"""Findings of checks, and their report as a page or as text."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import median_abs_deviation

from dipy_ldm import InputError, plots
from dipy_ldm._utils.checks import capitalized
from dipy_ldm._utils.values import listed
from dipy_ldm.evaluation import _page as html

# From the worst: their meaning, and the kind of note on the page.
_STATES = {
    "red": ("must be fixed before a training", "bad"),
    "amber": ("to be reviewed", "fair"),
    "green": ("passed", "good"),
    "grey": ("not checked", "plain"),
}
# Values from which on the central 95 % count as well, and their width for a normal
# distribution, in standard deviations.
_MIN_CENTRAL_VALUES, _CENTRAL_WIDTH = 1000, 3.92


class Finding(NamedTuple):
    """Result of one check: state, message, cure, pictures as HTML, and table."""

    state: str
    title: str
    message: str
    cure: str = ""
    pictures: str = ""
    table: Sequence[Sequence] = ()

    def to_saved(self) -> dict:
        """Return the finding as JSON data, without pictures."""
        head, *rows = self.table or [()]
        table = [dict(zip(head, row, strict=True)) for row in rows]
        record: dict[str, object]
        record = {"title": self.title, "state": self.state, "what": self.message}
        record |= {"cure": self.cure, "table": table}
        return {name: value for name, value in record.items() if value}


green, amber = partial(Finding, "green"), partial(Finding, "amber")
red, grey = partial(Finding, "red"), partial(Finding, "grey")


def refused(title: str, error: InputError) -> Finding:
    """Return a red finding from the error that a training would raise."""
    errors = error.complaints or (error,)
    problem = "; ".join(f"{e.option or ''} {e.problem}".strip() for e in errors)
    cures = dict.fromkeys(e.cure for e in (*errors, error) if e.cure)
    cure = f"{'; '.join(cures)}." if cures else ""
    return red(title, capitalized(f"{problem}."), capitalized(cure))


def worst(findings: Iterable[Finding]) -> str:
    """Return the worst state of some findings."""
    states = {finding.state for finding in findings}
    return next(state for state in _STATES if state in states)


def robust_scores(values: npt.ArrayLike, least: npt.ArrayLike) -> np.ndarray:
    """Return robust z-scores ``(n, figures)``, with a minimal spread of each figure.

    By median and median absolute deviation, which are robust to outliers
    :footcite:p:`Iglewicz1993`.
    """
    values = np.asarray(values, "float64")
    away = values - np.median(values, axis=0)
    spread = median_abs_deviation(values, axis=0, scale="normal")
    if len(values) >= _MIN_CENTRAL_VALUES:
        # The deviation may be 0 where a figure varies, as for the strokes of digits.
        low, high = np.percentile(values, (2.5, 97.5), axis=0)
        spread = np.maximum(spread, (high - low) / _CENTRAL_WIDTH)
    return away / np.maximum(spread, least)


def write_page(
    input_files: Sequence[str], findings: Mapping[str, Sequence[Finding]]
) -> str:
    """Return the HTML page of the findings."""
    every = [finding for group in findings.values() for finding in group]
    counts = Counter(finding.state for finding in every)
    summary = ", ".join(
        f"{counts[state]} {state} ({meaning})"
        for state, (meaning, _) in _STATES.items()
        if counts[state]
    )
    return html.page(
        "Check before training",
        html.text(f"Checked {listed(input_files, 3)}: {summary}."),
        *(
            html.note(f"{f.title}: {f.message} {f.cure}", _STATES[f.state][1])
            for f in _bad(every)
        ),
        *(html.section(title, *map(_part, group)) for title, group in findings.items()),
    )


def _bad(findings: Sequence[Finding]) -> list[Finding]:
    """Return red findings, then amber ones."""
    return [f for state in ("red", "amber") for f in findings if f.state == state]


def _part(finding: Finding) -> str:
    """Return the part of the page on a finding."""
    head, *rows = finding.table or [()]
    return html.part(
        finding.title,
        html.note(finding.message, _STATES[finding.state][1]),
        html.text(*filter(None, [finding.cure])),
        finding.pictures,
        html.table(head, rows) if rows else "",
    )


def summarise_findings(findings: Mapping[str, Sequence[Finding]]) -> list[str]:
    """Return findings as lines of text: problems with their cures, then the rest."""
    every = [finding for group in findings.values() for finding in group]
    lines = []
    for finding in _bad(every):
        lines.append(f"{finding.state}: {finding.title}: {finding.message}")
        lines.append(f"  {finding.cure}")
    titles = {s: [f.title for f in every if f.state == s] for s in ("green", "grey")}
    return lines + [f"{s}: {', '.join(names)}" for s, names in titles.items() if names]


# Height of pictures on a page, to which images are enlarged.
_MIN_PIXELS = 90


def to_pictures(images: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """Return enlarged pictures ``(n, h, w, channels)``, of volumes middle planes."""
    images = plots.pictures(np.asarray(images, "float32"), affine)
    times = max(1, round(_MIN_PIXELS / images.shape[1]))
    return images.repeat(times, axis=1).repeat(times, axis=2)


def gallery(images: np.ndarray, affine: np.ndarray | None, typical: int) -> Callable:
    """Return a function that shows images by index, and a typical one, as HTML."""

    def show(numbers: Sequence[int], caption: str) -> str:
        selected = np.stack([images[i] for i in [*numbers, typical]])
        columns = 5 if affine is None else 1
        picture = plots.montage(to_pictures(selected, affine), columns=columns)
        return html.picture(picture, caption)

    return show
