"""Findings: their text, and the worst of them."""

import json

import numpy as np
import pytest

from dipy_ldm._utils import values
from dipy_ldm._utils.checks import InputError
from dipy_ldm.checking import _findings as findings
from dipy_ldm.checking._findings import (
    amber,
    gallery,
    green,
    grey,
    red,
    to_pictures,
)


def test_the_worst_state_counts():
    good, unknown = green("a", "Good."), grey("b", "Unknown.")
    odd, bad = amber("c", "Odd.", "Look."), red("d", "Bad.", "Mend it.")
    assert findings.worst([good, odd, bad, unknown]) == "red"
    assert findings.worst([good, odd, unknown]) == "amber"
    assert findings.worst([unknown, good]) == "green"
    assert findings.worst([unknown]) == "grey"


def test_refused_splits_message_and_cure():
    finding = findings.refused("held out", InputError("of 6; 1 is left", "add some"))
    assert finding == red("held out", "Of 6; 1 is left.", "Add some.")
    lines = [InputError("line 2: x"), InputError("line 3: y")]
    error = InputError(cure="mend it", complaints=lines)
    finding = findings.refused("tables", error)
    assert finding == red("tables", "Line 2: x; line 3: y.", "Mend it.")
    assert findings.refused("init", InputError("it is bad.")).message == "It is bad."


def test_a_finding_is_saved_without_its_pictures():
    table = [("file", "mm"), ("a.nii", 2.0)]
    finding = red("units", "Bad.", "Mend it.", table=table, pictures="<figure>")
    saved = finding.to_saved()
    assert saved["table"] == [{"file": "a.nii", "mm": 2.0}]
    assert json.loads(json.dumps(saved)) == saved
    assert set(green("a", "Good.").to_saved()) == {"title", "state", "what"}


def test_names_are_listed_up_to_a_few_and_counted():
    texts = [values.listed(range(n), 2) for n in (1, 2, 3)]
    assert texts == ["0", "0, 1", "0, 1 and 1 more"]
    assert values.counted(1, "file") == "1 file"
    assert values.counted(1200, "file") == "1,200 files"


AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
IMAGES = np.random.default_rng(0).random((6, 28, 20, 1))
VOLUMES = np.random.default_rng(0).random((6, 8, 9, 10, 1))


def test_small_pictures_are_enlarged():
    assert to_pictures(IMAGES, None).shape == (6, 84, 60, 1)
    # Axial, coronal and sagittal planes side by side.
    assert to_pictures(VOLUMES, AFFINE).shape[0] == 6
    assert to_pictures(VOLUMES, AFFINE).shape[1] >= 80


@pytest.mark.parametrize(("images", "affine"), [(IMAGES, None), (VOLUMES, AFFINE)])
def test_gallery_ends_with_a_typical_image(images, affine):
    picture = gallery(images, affine, typical=4)([1], "Far out")
    assert "<figcaption>Far out</figcaption>" in picture
    assert picture != gallery(images, affine, typical=1)([4], "Far out")


FINDINGS = {
    "Files": [
        red("files", "Bad <b>.", "Mend it.", table=[("what",), ("a.nii is cut.",)]),
        green("units", "All of one unit."),
    ],
    "Images": [
        amber("shapes", "Odd.", "Look.", pictures="<figure>It."),
        grey("orientation", "Not looked at."),
    ],
}


def test_the_page_has_every_finding():
    html = findings.write_page(["a.nii", "b.nii", "c.nii", "d.nii"], FINDINGS)
    for words in ("Mend it.", "Look.", "All of one unit.", "a.nii is cut.", "It."):
        assert words in html
    assert "<b>" not in html
    assert "a.nii, b.nii, c.nii and 1 more" in html
    assert "1 red (must be fixed before a training), 1 amber" in html
    # The worst at the top, before all in their order.
    assert html.index("files: Bad") < html.index("shapes: Odd") < html.index("<h2>")
    kinds = ("bad", "fair", "good", "plain")
    assert [html.count(f'class="note {kind}"') for kind in kinds] == [2, 2, 1, 1]


def test_summarise_findings_lists_the_worst_first():
    assert findings.summarise_findings(FINDINGS) == [
        "red: files: Bad <b>.",
        "  Mend it.",
        "amber: shapes: Odd.",
        "  Look.",
        "green: units",
        "grey: orientation",
    ]
