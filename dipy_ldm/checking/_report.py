"""The page of findings, and the same in a few lines."""

from collections.abc import Mapping, Sequence

from dipy_ldm.checking._findings import STATES, Finding
from dipy_ldm.evaluation import _html as html

_KINDS = {"red": "bad", "amber": "fair", "green": "good", "grey": "plain"}
_MEANINGS = {
    "red": "must be mended before a training",
    "amber": "to be looked at",
    "green": "as it should be",
    "grey": "could not be looked at",
}


def write_page(
    input_files: Sequence[str], findings: Mapping[str, Sequence[Finding]]
) -> str:
    """Write the page."""
    every = [finding for group in findings.values() for finding in group]
    counts = ", ".join(
        f"{sum(f.state == state for f in every)} {state} ({meaning})"
        for state, meaning in _MEANINGS.items()
        if any(f.state == state for f in every)
    )
    bad = [f for state in STATES[:2] for f in every if f.state == state]
    return html.page(
        "Before a long training",
        html.text(f"Looked at {_shortened(input_files)}: {counts}."),
        *map(_note, bad),
        *(html.section(title, *map(_part, group)) for title, group in findings.items()),
    )


def _shortened(input_files):
    few, more = input_files[:3], len(input_files) - 3
    return " ".join(map(str, few)) + (f" and {more} more" if more > 0 else "")


def _note(finding):
    """Write a finding in one box, for the top of the page."""
    return html.note(
        " ".join([f"{finding.title}: {finding.message}", finding.cure]),
        _KINDS[finding.state],
    )


def _part(finding):
    """Write all of a finding."""
    pieces = [html.note(finding.message, _KINDS[finding.state])]
    if finding.cure:
        pieces.append(html.text(finding.cure))
    pieces += [html.picture(p.image, p.caption) for p in finding.pictures]
    if finding.table:
        head, *rows = finding.table
        pieces.append(html.table(head, rows))
    return html.part(finding.title, *pieces)


def summarise_findings(findings: Mapping[str, Sequence[Finding]]) -> list[str]:
    """Write what is wrong and how to mend it, and name the rest."""
    every = [finding for group in findings.values() for finding in group]
    lines = []
    for state in STATES[:2]:
        for finding in (f for f in every if f.state == state):
            lines.append(f"{state}: {finding.title}: {finding.message}")
            lines.append(f"  {finding.cure}")
    for state in STATES[2:]:
        titles = [finding.title for finding in every if finding.state == state]
        if titles:
            lines.append(f"{state}: {', '.join(titles)}")
    return lines
