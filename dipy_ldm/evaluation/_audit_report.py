"""What an audit says, and its page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm.data.channels import Channel
from dipy_ldm.evaluation import (
    _memorization as copies,
    _page as page,
    features as learnt,
)
from dipy_ldm.evaluation._page import Report, number

# Pixels of a pair on the page, at least.
_WIDTH = 320
_RATIO = "nearest-neighbour ratio"
_LOSSES = {
    "denoiser": "loss of the denoiser",
    "reference": "the same of the reference",
    "autoencoder": "error of the autoencoder",
}
_BESIDE = {
    False: (
        "No model that never saw the training images stands beside this one "
        "(--reference), which would say how much that is."
    ),
    True: (
        "The reference, which is said to have never seen these images, separates as "
        "many for that reason: only what the model separates beyond it is a leak."
    ),
}


class Pair(NamedTuple):
    """A suspicious pair: numbers of the images, ratio, distance, and features."""

    generated: int
    train: int
    nearness: float
    distance: float
    features: str


@dataclass(eq=False, repr=False)
class Audit(Report):
    """What was found; in notebooks its page.

    Parameters
    ----------
    n, n_held_out : int
        Generated images, and held-out ones.
    searches : dict of str to Search
        Neighbours, by the name of the features.
    findings : dict of str to Finding
        What they say.
    members : dict of str to Membership
        By the denoising loss, by that of the reference if there is one, and by the
        error of the autoencoder.
    classes : dict of str to dict
        Of each class that samples were asked for, what was found of its levels.
    pairs : list of Pair
        The most suspicious ones first.
    generated : ndarray
        Generated images in [0, 1], ``(n, *space, channels)``.
    projection : Projection
        To the invariant features.
    notes : list of str
        Sentences on what was done.
    """

    n: int
    n_held_out: int
    searches: dict[str, copies.Search]
    findings: dict[str, copies.Finding]
    members: dict[str, copies.Membership]
    classes: dict[str, dict[str, copies.Level]]
    pairs: list[Pair]
    generated: np.ndarray
    projection: learnt.Projection
    notes: list[str]

    def conclusions(self) -> list[tuple[str, str]]:
        """Return the conclusions as sentences, each with good, fair, bad or plain."""
        return conclude(self)

    def to_html(self) -> str:
        """Return the page, which neither shows nor names a training image."""
        return write_page(self, {})

    @property
    def spaces_with_copies(self):
        """Names of the features in which there are copies beyond chance."""
        limit = copies.FALSE_ALARM_RATE / len(self.findings)
        return [name for name, f in self.findings.items() if f.chance < limit]


def write_page(audit: Audit, about: Mapping[str, Any]) -> str:
    """Write the page of an audit, which neither shows nor names a training image."""
    proof = "A pass proves nothing: see below what is not found."
    # Without their neighbours.
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
        nearness=_histograms(audit),
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
    """Write a page of the most suspicious pairs, which is not to be published.

    Names are those of training images by their numbers; samples have names or none.
    """
    from dipy_ldm.plots import montage, pictures

    drawn = []
    for pair in audit.pairs:
        sample = samples[pair.generated] if samples else f"Sample {pair.generated}"
        caption = (
            f"{sample} and {names[pair.train]}: {_RATIO} {number(pair.nearness)}, "
            f"distance {number(pair.distance)} in {pair.features}."
        )
        images = np.stack([audit.generated[pair.generated], train(pair.train)])
        shown = pictures(images, affine, channels)
        both = montage(shown, columns=2 if affine is None else 1)
        drawn.append(page.picture(both, caption, -(-_WIDTH // both.shape[1])))
    return page.page(
        "Private: the most suspicious pairs of an audit",
        page.note(
            "This page shows training images and names them. Keep it as you keep the "
            "data; what may be published is the other page.",
            "bad",
        ),
        page.facts(about),
        page.text(
            "First a generated image, then its nearest training image. Look at them: "
            "where they are the same patient, it is a copy, whatever the figures say."
        ),
        # Three planes are wider than what stands side by side.
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


def _conclude_membership(members, name):
    """Return a sentence on training images that a loss separates from others."""
    auc = members[name].auc
    start = (
        f"Training images can be distinguished from others by the {_LOSSES[name]} "
        f"(AUC {number(auc.value)})"
    )
    leak = "that is no copy, but it is a leak"
    if name != "denoiser":  # beside which no reference stands
        return f"{start}: {leak} unless the images differ by themselves.", "bad"
    if "reference" not in members:
        return f"{start}: {leak}.", "bad"
    other = members["reference"].auc
    less = f"a model that never saw them tells less ({number(other.value)})"
    if other.high < auc.low:
        return f"{start}, and {less}: {leak}.", "bad"
    end = (
        f"so they can by that of a model that never saw them ({number(other.value)}): "
        "the images differ by themselves, and no leak is shown."
    )
    return f"{start}, and {end}", "plain"


def _conclude_features(audit, name, finding):
    """Return a sentence on the search in one feature space."""
    # Of few held-out images, the 1 % quantile is the least.
    least = finding.expected * (audit.n_held_out + 1) < 1.5
    nearer = (
        f"{_percent(finding.share)} of {audit.n} samples are nearer to a training "
        f"image than {'any held-out image is' if least else '99 % of held-out images'} "
        f"({100 * finding.expected:.1f} % expected"
    )
    p = "p < 0.001" if finding.chance < 1e-3 else f"p = {number(finding.chance)}"
    start = f"{name.capitalize()}:"
    if name not in audit.spaces_with_copies:
        return f"{start} {nearer}; {p}: not significant).", "good"
    copied = f"{_percent(finding.copies)} are far nearer than any held-out image"
    return f"{start} there are copies beyond chance. {copied}, {nearer}; {p}).", "bad"


def _percent(share):
    value, low, high = (f"{100 * x:.1f}" for x in share)
    return f"{value} % ({low} to {high})"


def _findings(audit):
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


def _histograms(audit):
    return page.row(
        page.part(
            f"{_RATIO.capitalize()} in {name}",
            page.histograms(
                {"generated": s.generated.nearness, "held-out": s.held_out.nearness},
                _RATIO,
            ),
        )
        for name, s in audit.searches.items()
    )


def _classes(audit):
    """Tabulate copies for each level of each class."""
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


def _members(members):
    losses = members["denoiser"]
    head = ["by the", "AUC"]
    rows = [[_LOSSES[name], member.auc] for name, member in members.items()]
    guessed = "of fewer than 100 held-out images no share that is found can be told."
    if all(member.true_positive_rate for member in members.values()):
        rate = f"{100 * losses.false_rate:.2g} %"
        head.append(f"found at {rate} false")
        for row, member in zip(rows, members.values()):
            row.append(member.true_positive_rate)
        guessed = (
            f"{rate} of the training images are found where {rate} of the others are "
            "taken for such."
        )
    drawn = {"training": losses.train, "held-out": losses.held_out}
    return {
        "guessed": guessed,
        "members": page.table(head, rows),
        "losses": page.histograms(drawn, "loss of the denoiser"),
        "beside": _BESIDE["reference" in members],
    }
