"""The page and the short form: all is said, the worst first."""

import numpy as np

from dipy_ldm.checking import _findings as report
from dipy_ldm.checking._findings import Picture, amber, green, grey, red

FOUND = {
    "Files": [
        red("files", "Bad <b>.", "Mend it.", table=[("what",), ("a.nii is cut.",)]),
        green("units", "All of one unit."),
    ],
    "Images": [
        amber(
            "shapes", "Odd.", "Look.", pictures=[Picture(np.zeros((4, 4, 1)), "It.")]
        ),
        grey("orientation", "Not looked at."),
    ],
}


def test_the_page_has_every_finding():
    html = report.write_page(["a.nii", "b.nii", "c.nii", "d.nii"], FOUND)
    for words in ("Mend it.", "Look.", "All of one unit.", "a.nii is cut.", "It."):
        assert words in html
    assert "<b>" not in html
    assert "a.nii b.nii c.nii and 1 more" in html
    assert "1 red (must be mended before a training), 1 amber" in html
    # The worst at the top, before all in their order.
    assert html.index("files: Bad") < html.index("shapes: Odd") < html.index("<h2>")
    kinds = ("bad", "fair", "good", "plain")
    assert [html.count(f'class="note {kind}"') for kind in kinds] == [2, 2, 1, 1]


def test_in_short_the_worst_is_first_and_the_rest_is_named():
    assert report.summarise_findings(FOUND) == [
        "red: files: Bad <b>.",
        "  Mend it.",
        "amber: shapes: Odd.",
        "  Look.",
        "green: units",
        "grey: orientation",
    ]
