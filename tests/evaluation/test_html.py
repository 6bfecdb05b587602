"""Pages: plain HTML that holds what it was given, and needs nothing else."""

from html.parser import HTMLParser
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from dipy_ldm.evaluation import _charts as charts, _html as page
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
        page.facts({"model": "a.safetensors"}),
        page.section("Part", page.part("Smaller", page.text("One.", "Two."))),
        page.folded("More", page.table(["a", "b"], [["x", 1.0]], "Caption")),
        page.row([page.picture(np.zeros((4, 6, 1)), "Black.", 2)]),
    )
    check(html)
    assert html.startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert 'width="12" height="8" alt="Black."' in html


def test_what_users_name_is_no_html():
    names = "<b>&\"'"
    html = page.page(
        names,
        page.note(names),
        page.text(names),
        page.facts({names: names}),
        page.table([names], [[names]], names),
        page.picture(np.zeros((2, 2, 3)), names),
        charts.histograms({names: [1, 2]}, names),
        charts.gauges({names: {names: Interval(1, 0, 2)}}),
        charts.curves({names: ([0, 1], [1, 2])}, names, names),
    )
    check(html)
    assert "<b>" not in html


def test_headings_without_anything_below_are_left_out():
    assert page.section("Empty", "", "") == page.part("Empty") == ""


@pytest.mark.parametrize(
    ("value", "wanted"),
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
def test_numbers_have_three_digits(value, wanted):
    assert page.number(value) == wanted


def test_a_picture_is_the_picture():
    import base64
    import io

    from PIL import Image

    image = np.arange(12).reshape(3, 4, 1) / 11
    html = page.picture(image, "Grey.")
    data = base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels, np.round(image[..., 0] * 255))


def svg(html):
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", html)[0])


def test_plots_are_svg_within_their_frame():
    rng = np.random.default_rng(0)
    three = {name: rng.standard_normal(50) for name in ("a", "b", "c")}
    plots = [
        charts.histograms(three, "value"),
        charts.curves({n: (range(50), v) for n, v in three.items()}, "x", "y"),
        charts.curves({"a": (range(9), 10.0 ** np.arange(9))}, "x", "y", log=True),
        charts.scatter(three["a"], three["b"], "asked", "measured"),
        charts.gauges({"KID": {"a": Interval(-0.1, -0.2, 0.3)}, "p": {}}),
        # What has no extent at all.
        charts.histograms({"a": [2, 2, 2]}, "value"),
        charts.scatter([1, 1], [1, 1], "asked", "measured"),
        charts.gauges({"KID": {"a": Interval(0, 0, 0)}}),
    ]
    for plot in plots:
        root = svg(plot)
        _, _, width, height = map(float, root.get("viewBox").split())
        for line in root.iter("polyline"):
            points = [p.split(",") for p in line.get("points").split()]
            x, y = np.array(points, float).T
            assert 0 <= x.min() <= x.max() <= width
            assert 0 <= y.min() <= y.max() <= height
        for circle in root.iter("circle"):
            assert 0 <= float(circle.get("cx")) <= width
            assert 0 <= float(circle.get("cy")) <= height


def test_histograms_of_nothing_are_nothing():
    assert charts.histograms({"a": []}, "value") == ""


def test_a_histogram_has_the_shares():
    root = svg(charts.histograms({"a": [0.0, 0, 0, 1]}, "value", bins=2))
    (line,) = root.iter("polyline")
    y = [float(point.split(",")[1]) for point in line.get("points").split()]
    bottom = y[0]
    assert (bottom - y[1]) / (bottom - y[3]) == pytest.approx(3, rel=0.01)
