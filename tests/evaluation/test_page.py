"""Report pages: valid HTML, complete, without external files."""

from html.parser import HTMLParser
import re
from xml.etree import ElementTree

import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.evaluation import _page as page
from dipy_ldm.metrics import Interval

VOID = {"meta", "img", "br"}


class Nesting(HTMLParser):
    """Complain of what is not closed in the order in which it was opened."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(html):
    parser = Nesting()
    parser.feed(html)
    assert parser.open == []
    # Nothing from elsewhere: neither addresses nor scripts.
    assert not re.search(r"<script|<link|https?://|url\(", html)


def test_a_page_is_whole_and_needs_no_network():
    html = page.page(
        "Title",
        page.note("Good", "good"),
        page.definitions({"model": "a.safetensors"}),
        page.section("Part", page.part("Smaller", page.text("One.", "Two."))),
        page.table(["a", "b"], [["x", 1.0]], "Caption"),
        page.row([page.picture(np.zeros((4, 6, 1)), "Black.", 2)]),
    )
    check(html)
    assert html.startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert 'width="12" height="8" alt="Black."' in html


def test_names_are_escaped():
    names = "<b>&\"'"
    html = page.page(
        names,
        page.note(names),
        page.text(names),
        page.definitions({names: names}),
        page.table([names], [[names]], names),
        page.picture(np.zeros((2, 2, 3)), names),
        page.histograms({names: [1, 2]}, names),
        page.intervals({names: {names: Interval(1, 0, 2)}}),
    )
    check(html)
    assert "<b>" not in html


def test_empty_sections_are_omitted():
    assert page.section("Empty", "", "") == page.part("Empty") == ""
    template = "<section>$a</section><section>B $b$c</section><section>D</section>"
    filled = page._fill(template, {"a": "", "b": "", "c": "1"})
    assert filled == "<section>B 1</section><section>D</section>"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (12345, "12,345"),
        (0.0, "0"),
        (1.0, "1"),
        (0.12345, "0.123"),
        (-2.5, "−2.5"),
        (1234.5, "1,230"),
        (0.000123, "1.23·10⁻⁴"),
        (-2.5e7, "−2.50·10⁷"),
    ],
)
def test_numbers_have_three_digits(value, expected):
    assert page.number(value) == expected


def test_a_picture_is_the_picture():
    import base64
    import io

    from PIL import Image

    image = np.arange(12).reshape(3, 4, 1) / 11
    html = page.picture(image, "Grey.")
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    npt.assert_array_equal(pixels, np.round(image[..., 0] * 255))


def svg(html):
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", html, re.DOTALL)[0])


def points(path):
    return np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d")), float)


def shown(root):
    """Yield the points of all lines, and the places of all marks."""
    marks = {path for defs in root.iter("defs") for path in defs.iter("path")}
    yield from (points(path) for path in root.iter("path") if path not in marks)
    for mark in root.iter("use"):
        yield np.array([[float(mark.get("x")), float(mark.get("y"))]])


def test_plots_are_svg_within_their_frame(rng):
    three = {name: rng.standard_normal(50) for name in ("a", "b", "c")}
    plots = [
        page.histograms(three, "value"),
        page.scatter(three["a"], three["b"], "asked", "measured"),
        page.intervals({"KID": {"a": Interval(-0.1, -0.2, 0.3)}, "p": {}}),
        # What has no extent at all.
        page.histograms({"a": [2, 2, 2]}, "value"),
        page.scatter([1, 1], [1, 1], "asked", "measured"),
        page.intervals({"KID": {"a": Interval(0, 0, 0)}}),
    ]
    # The same each time.
    assert plots[1] == page.scatter(three["a"], three["b"], "asked", "measured")
    for plot in plots:
        check(plot)
        root = svg(plot)
        _, _, width, height = map(float, root.get("viewBox").split())
        assert root.get("aria-label")
        for x, y in (places.T for places in shown(root)):
            assert 0 <= x.min() <= x.max() <= width
            assert 0 <= y.min() <= y.max() <= height


def test_plots_have_the_colours_of_the_page():
    html = page.histograms({name: [0.0, 1.0] for name in "abc"}, "value")
    html += page.intervals({"KID": {"a": Interval(1, 0, 2)}})
    names = ("first", "second", "third", "line", "soft", "ink")
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", html))
    assert colours == {"none", *(f"var(--{name})" for name in names)}


def test_a_histogram_has_the_shares():
    assert page.histograms({"a": []}, "value") == ""
    root = svg(page.histograms({"a": [0.0, 0, 0, 1]}, "value", bins=2))
    (line,) = (x for x in root.iter("path") if "--first" in (x.get("style") or ""))
    y = points(line)[:, 1]
    bottom = y[0]
    assert (bottom - y[1]) / (bottom - y[3]) == pytest.approx(3, rel=0.01)
