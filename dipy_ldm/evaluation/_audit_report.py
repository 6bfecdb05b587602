"""Audit results: conclusions, the public report, and the private page of pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm.data.channels import Channel
from dipy_ldm.evaluation import (
    _memorization as memorization,
    _page as page,
)
from dipy_ldm.evaluation._page import Report, number
from dipy_ldm.metrics import Interval
from dipy_ldm.plots import montage, pictures

# Width of a pair on the page, in pixels.
_MIN_PAIR_WIDTH = 320
_RATIO = "nearest-neighbour ratio"
_LOSSES = {
    "denoiser": "denoising loss",
    "reference": "denoising loss of the reference model",
    "autoencoder": "reconstruction error of the autoencoder",
}
_REFERENCE_NOTES = {
    False: (
        "A reference model that was not trained on these images (--reference) would "
        "measure this effect."
    ),
    True: (
        "The reference model, stated not to be trained on these images, measures this "
        "effect: only a higher AUC than that of the reference model is a leak."
    ),
}


class Pair(NamedTuple):
    """A suspicious pair: indices of the images, neighbour ratio, distance, features."""

    generated: int
    train: int
    nearness: float
    distance: float
    features: str


@dataclass(eq=False, repr=False)
class Audit(Report):
    """Result of an audit; notebooks show it as a page.

    Parameters
    ----------
    n, n_held_out : int
        Number of generated and of held-out images.
    searches : dict of str to Search
        Nearest neighbours, by the name of the features.
    findings : dict of str to Finding
        Copies and their significance, by the name of the features.
    members : dict of str to Membership
        Membership inference by the denoising loss, by that of the reference model if
        there is one, and by the error of the autoencoder.
    classes : dict of str to dict
        Copies for each level of each categorical condition that was requested.
    pairs : list of Pair
        Suspicious pairs, the most suspicious first.
    generated : ndarray
        Generated images in [0, 1], ``(n, *space, channels)``.
    notes : list of str
        How the images were compared.
    """

    n: int
    n_held_out: int
    searches: dict[str, memorization.Search]
    findings: dict[str, memorization.Finding]
    members: dict[str, memorization.Membership]
    classes: dict[str, dict[str, memorization.Level]]
    pairs: list[Pair]
    generated: np.ndarray
    notes: list[str]

    def conclusions(self) -> list[tuple[str, str]]:
        """Return the conclusions as sentences, each with good, fair, bad or plain."""
        return conclude(self)

    def to_html(self) -> str:
        """Return the public page, which neither shows nor names training images."""
        return write_page(self, {})

    @property
    def spaces_with_copies(self) -> list[str]:
        """Names of the features with significantly many copies."""
        limit = memorization.FALSE_ALARM_RATE / len(self.findings)
        return [name for name, f in self.findings.items() if f.chance < limit]


def write_page(audit: Audit, about: Mapping[str, Any]) -> str:
    """Return the public page of an audit, which shows or names no training image."""
    proof = "A pass proves nothing: see below what this audit does not detect."
    suspects = [
        [f"{p.generated}", p.nearness, p.distance, p.features] for p in audit.pairs
    ]
    return page.report(
        "Audit of a latent diffusion model",
        [*conclude(audit), (proof, "plain")],
        about,
        audit.notes,
        "audit.html",
        findings=_findings(audit),
        features=page.text(*(f"{n}: {s.says}" for n, s in audit.searches.items())),
        histograms=_histograms(audit),
        classes=_classes(audit),
        suspects=page.table(["sample", _RATIO, "distance", "features"], suspects),
        **_members(audit.members),
    )


def write_pairs(
    audit: Audit,
    train: Callable[[int], np.ndarray],
    names: Mapping[int, str],
    affine: np.ndarray | None,
    about: Mapping[str, Any],
    samples: Sequence[str] = (),
    channels: Sequence[Channel] = (),
) -> str:
    """Return the private page of the most suspicious pairs, not for publication.

    Names are of training images, by index; samples without names are numbered.
    """
    drawn = []
    for pair in audit.pairs:
        sample = samples[pair.generated] if samples else f"Sample {pair.generated}"
        caption = (
            f"{sample} and {names[pair.train]}: {_RATIO} {number(pair.nearness)}, "
            f"distance {number(pair.distance)} in {pair.features}."
        )
        images = np.stack([audit.generated[pair.generated], train(pair.train)])
        pair_of_pictures = pictures(images, affine, channels)
        both = montage(pair_of_pictures, columns=2 if affine is None else 1)
        drawn.append(page.picture(both, caption, -(-_MIN_PAIR_WIDTH // both.shape[1])))
    return page.page(
        "Private: the most suspicious pairs of an audit",
        page.note(
            "This page shows training images with their names. Keep it as confidential "
            "as the data; publish the other page only.",
            "bad",
        ),
        page.definitions(about),
        page.text(
            "Each generated image is followed by its nearest training image. If both "
            "show the same patient, the sample is a copy, whatever the figures are."
        ),
        # Pairs of three planes each are too wide to stand side by side.
        page.row(drawn) if affine is None else "".join(drawn),
    )


def conclude(audit: Audit) -> list[tuple[str, str]]:
    """Return the conclusions as sentences."""
    sentences = [_conclude_features(audit, *item) for item in audit.findings.items()]
    separating = [
        name
        for name, member in audit.members.items()
        if name != "reference" and member.auc.low > 0.5
    ]
    return sentences + [_conclude_membership(audit.members, n) for n in separating]


def _conclude_membership(
    members: Mapping[str, memorization.Membership], name: str
) -> tuple[str, str]:
    """Return a sentence on membership inference by one loss."""
    auc = members[name].auc
    start = (
        f"Membership inference: the {_LOSSES[name]} separates training images from "
        f"held-out ones (AUC {number(auc.value)})"
    )
    leak = "a leak, though not a copy"
    if name != "denoiser":  # the reference model has no such loss
        return f"{start}: a leak, unless the two sets differ in other ways.", "bad"
    if "reference" not in members:
        return f"{start}: {leak}.", "bad"
    other = members["reference"].auc
    less = f"better than a reference model not trained on them ({number(other.value)})"
    if other.high < auc.low:
        return f"{start}, {less}: {leak}.", "bad"
    end = (
        f"but so does that of a reference model not trained on them "
        f"({number(other.value)}): the two sets differ, and no leak is shown."
    )
    return f"{start}, {end}", "plain"


def _conclude_features(
    audit: Audit, name: str, finding: memorization.Finding
) -> tuple[str, str]:
    """Return a sentence on the search for copies in one feature space."""
    # With few held-out images, the 1 % quantile is the minimum.
    least = finding.expected * (audit.n_held_out + 1) < 1.5
    nearer = (
        f"{_percent(finding.share)} of {audit.n} samples are closer to a training "
        f"image than {'any held-out image' if least else '99 % of held-out images'} "
        f"({100 * finding.expected:.1f} % expected"
    )
    p = "p < 0.001" if finding.chance < 1e-3 else f"p = {number(finding.chance)}"
    start = f"{name.capitalize()}:"
    if name not in audit.spaces_with_copies:
        return f"{start} {nearer}; {p}: not significant).", "good"
    copied = f"{_percent(finding.copies)} are far closer than any held-out image"
    return f"{start} copies beyond chance. {copied}, {nearer}; {p}).", "bad"


def _percent(share: Interval) -> str:
    value, low, high = (f"{100 * x:.1f}" for x in share)
    return f"{value} % [{low}, {high}]"


def _findings(audit: Audit) -> str:
    head = [
        *("features", "copies", "nearer", "nearer by distance", "nearer, expected"),
        *("p", "median distance", "of held-out"),
    ]
    rows = []
    for name, finding in audit.findings.items():
        search = audit.searches[name]
        small = "<\N{NO-BREAK SPACE}0.001" if finding.chance < 1e-3 else finding.chance
        row = [name, finding.copies, finding.share, finding.by_distance]
        far = search.generated.distance, search.held_out.distance
        rows.append([*row, finding.expected, small, *map(np.median, far)])
    return page.table(head, rows)


def _histograms(audit: Audit) -> str:
    return page.row(
        page.part(
            f"{_RATIO.capitalize()} in {name}",
            page.histograms(
                {"generated": s.generated.ratio, "held-out": s.held_out.ratio},
                _RATIO,
            ),
        )
        for name, s in audit.searches.items()
    )


def _classes(audit: Audit) -> str:
    """Tabulate copies for each level of each categorical condition."""
    head = [
        f"{kind}, {name}" for kind in ("copies", "nearer") for name in audit.searches
    ]
    written = ""
    for name, levels in audit.classes.items():
        rows = (
            [title, level.n, *level.copies.values(), *level.nearer.values()]
            for title, level in levels.items()
        )
        table = page.table([name, "samples", *head], rows)
        written += page.part(f"Copies by {name}", table)
    return written


def _members(members: Mapping[str, memorization.Membership]) -> dict[str, str]:
    losses = members["denoiser"]
    head = ["inferred from the", "AUC"]
    rows: list[list] = [[_LOSSES[name], member.auc] for name, member in members.items()]
    guessed = "fewer than 100 held-out images are too few for a true positive rate."
    if all(member.true_positive_rate for member in members.values()):
        rate = f"{100 * losses.false_rate:.2g} %"
        head.append(f"true positives at {rate} false positives")
        for row, member in zip(rows, members.values()):
            row.append(member.true_positive_rate)
        guessed = (
            f"the true positive rate is {rate} at a false positive rate of {rate}."
        )
    drawn = {"training": losses.train, "held-out": losses.held_out}
    return {
        "guessed": guessed,
        "members": page.table(head, rows),
        "losses": page.histograms(drawn, "denoising loss"),
        "reference": _REFERENCE_NOTES["reference" in members],
    }
