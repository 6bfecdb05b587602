"""One page of HTML that can be sent to a reviewer: a small vocabulary.

Each function returns a piece of HTML, and :func:`page` puts pieces into one file that
needs no network and no script: plots are SVG in the colours of the page, and pictures
are inside. It is readable on a telephone, in the dark, and on paper.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
import io
import math
from pathlib import Path
import re
from tempfile import mkdtemp
from typing import Any
import webbrowser

from PIL import Image
import numpy as np
import numpy.typing as npt

from dipy_ldm import __version__
from dipy_ldm._utils.files import replacing
from dipy_ldm.metrics import Interval

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d646d; --line: #d5d9de;
  --paper: #fff; --card: #f5f6f8; --first: #1f5fbf; --second: #8a8f98;
  --third: #c2620a; --good: #1b7a3d; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a2a9b3;
  --line: #3a4048; --paper: #14171a; --card: #1e2226; --first: #7fb1ff;
  --second: #9aa1ab; --third: #f0a04b; --good: #6fcf8f; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-top: 1px solid var(--line);
  padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; } p.soft, figcaption { color: var(--soft); font-size: .9rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto;
  image-rendering: pixelated; border-radius: 4px; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .93rem; }
th, td { text-align: right; padding: .3rem .7rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td small { display: block; color: var(--soft); white-space: nowrap; }
.note { background: var(--card); border-left: 5px solid var(--second);
  padding: .7rem 1rem; margin: 1rem 0; border-radius: 4px; }
.note.good { border-color: var(--good); } .note.bad { border-color: var(--bad); }
.note.fair { border-color: var(--third); }
.pair { display: inline-block; margin: .3rem .8rem .3rem 0; vertical-align: top;
  width: 21rem; max-width: 100%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem;
  margin: 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
summary { cursor: pointer; }
"""

# What matplotlib draws in, and the colours of the page, of which it knows nothing.
_COLOURS = {
    "#010101": "var(--first)",
    "#020202": "var(--second)",
    "#030303": "var(--third)",
    "#040404": "var(--line)",
    "#050505": "var(--soft)",
    "#060606": "var(--ink)",
}
_FIRST, _SECOND, _THIRD, _LINE, _SOFT, _INK = _COLOURS
# Dashes are for those who can't tell the colours.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": _FIRST, "linestyle": "-"},
    {"color": _SECOND, "linestyle": (0, (4, 2))},
    {"color": _THIRD, "linestyle": (0, (1, 1.5))},
)
# Points: about as wide as a telephone has pixels.
_WIDTH, _HEIGHT = 360, 210
_PLOT = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dipy_ldm",
    "font.size": 11,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "axes.labelcolor": _SOFT,
    "axes.edgecolor": _SECOND,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "grid.color": _LINE,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "patch.linewidth": 1.8,
}


class Report:
    """A result that is a page, in notebooks, in a file and in a browser."""

    def conclusions(self) -> list[tuple[str, str]]:
        """Return the conclusions as sentences, each with good, fair, bad or plain."""
        raise NotImplementedError

    def to_html(self) -> str:
        """Return the page."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return the conclusions."""
        return "\n".join(sentence for sentence, _ in self.conclusions())

    def _repr_html_(self):
        # In a frame of its own: a page has a style, and so has a notebook.
        source = escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{source}" width="100%" height="600"></iframe>'

    def save_as_html(self, path: str | Path) -> None:
        """Write the page, one file that needs no network."""
        with replacing(path) as partial:
            partial.write_text(self.to_html(), "utf-8", errors="backslashreplace")

    def open_in_browser(self) -> None:
        """Show the page in a browser, from a file that stays until the machine ends."""
        path = Path(mkdtemp(prefix="dipy_ldm-"), "report.html")
        self.save_as_html(path)
        webbrowser.open(path.as_uri())


def page(title: str, *parts: str) -> str:
    """Assemble a page from its parts."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{''.join(parts)}"
        f'<p class="soft">dipy_ldm {escape(__version__)}</p>\n</body>\n</html>\n'
    )


def report(
    title: str,
    conclusions: Iterable[tuple[str, str]],
    about: Mapping[str, Any],
    notes: Iterable[str],
    *parts: str,
) -> str:
    """Assemble a report: conclusions, facts and notes, then further parts."""
    boxes = (note(sentence, kind) for sentence, kind in conclusions)
    return page(title, *boxes, facts(about), text(*notes), *parts)


def section(title: str, *parts: str) -> str:
    """Put parts below a heading; nothing if there are none."""
    body = "".join(parts)
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


def part(title: str, *parts: str) -> str:
    """Put parts below a lower heading; nothing if there are none."""
    body = "".join(parts)
    return f"<h3>{escape(title)}</h3>\n{body}" if body else ""


def text(*paragraphs: str) -> str:
    """Write paragraphs."""
    return "".join(f"<p>{escape(paragraph)}</p>\n" for paragraph in paragraphs)


def note(sentence: str, kind: str = "plain") -> str:
    """Write what must not be overlooked."""
    mark = {"good": "✓ ", "fair": "! ", "bad": "✗ ", "plain": ""}[kind]
    return f'<div class="note {kind}">{escape(mark + sentence)}</div>\n'


def facts(entries: Mapping[str, Any]) -> str:
    """List facts by their names."""
    rows = (
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in entries.items()
    )
    return f"<dl>{''.join(rows)}</dl>\n"


def folded(summary: str, *parts: str) -> str:
    """Fold parts below a summary."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>\n"


def table(head: Sequence[str], rows: Iterable[Sequence], caption: str = "") -> str:
    """Make a table, which scrolls by itself where it is wider than the page."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = (f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    below = f'<p class="soft">{escape(caption)}</p>' if caption else ""
    return (
        f'<div class="wide"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{below}\n"
    )


def _cell(value):
    if isinstance(value, Interval):
        bounds = f"{number(value.low)} to {number(value.high)}"
        return f"<td>{number(value.value)}<small>{bounds}</small></td>"
    return f"<td>{escape(value) if isinstance(value, str) else number(value)}</td>"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None) -> str:
    """Write a number with three digits that matter."""
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else "∞"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, power = f"{value:.2e}".split("e")
        raised = str(int(power)).translate(_RAISED)
        return f"{mantissa}·10{raised}".replace("-", "−")
    return f"{float(f'{value:.3g}'):,}".removesuffix(".0").replace("-", "−")


def picture(image: np.ndarray, caption: str, scale: int = 1) -> str:
    """Show a picture, which is a part of the page.

    Shapes: image ``(height, width, channels)``.
    """
    height, width = image.shape[:2]
    return (
        f'<figure><img src="{_data_uri(image)}" width="{width * scale}" '
        f'height="{height * scale}" alt="{escape(caption, quote=True)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def row(figures: Iterable[str]) -> str:
    """Put figures side by side."""
    return "".join(f'<div class="pair">{figure}</div>' for figure in figures)


def _data_uri(image):
    pixels = np.uint8(np.round(np.clip(image, 0, 1) * 255)).squeeze()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def histograms(series: Mapping[str, npt.ArrayLike], label: str, bins: int = 30) -> str:
    """Draw how values are distributed, one outline for each set."""
    values = {name: np.ravel(np.asarray(v, float)) for name, v in series.items()}
    pooled = np.concatenate(list(values.values()))
    if not pooled.size:
        return ""
    edges = np.histogram_bin_edges(pooled, bins)

    def draw(axes):
        for (name, numbers), style in zip(values.items(), _STYLES):
            shares = np.histogram(numbers, edges)[0] / len(numbers)
            axes.stairs(shares, edges, label=name, **style)
        axes.margins(x=0)
        axes.set_ylim(0)

    return _plot(draw, label, "share", len(series))


def curves(
    series: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    label: str,
    y_label: str,
) -> str:
    """Draw curves of whole numbers."""

    def draw(axes):
        for (name, (x, y)), style in zip(series.items(), _STYLES):
            axes.plot(x, y, label=name, **style)
        axes.margins(x=0)
        axes.xaxis.get_major_locator().set_params(integer=True)

    return _plot(draw, label, y_label, len(series))


def scatter(x: npt.ArrayLike, y: npt.ArrayLike, label: str, y_label: str) -> str:
    """Draw points, and the line where both are equal.

    Shapes: x, y ``(n,)``.
    """

    def draw(axes):
        axes.scatter(x, y, s=14, color=_FIRST, alpha=0.6, linewidth=0)
        ends = axes.dataLim.min.min(), axes.dataLim.max.max()
        axes.plot(ends, ends, color=_FIRST)

    return _plot(draw, label, y_label, 1)


def gauges(rows: Mapping[str, Mapping[str, Interval]]) -> str:
    """Draw each figure on its own scale, for all sets."""
    sets = list(dict.fromkeys(name for row in rows.values() for name in row))

    def draw(figure):
        for axes, (title, row) in zip(
            figure.subplots(len(rows), squeeze=False), rows.items()
        ):
            _gauge(axes[0], title, row, sets)
        _legend(figure, figure.axes[0])

    return _svg(draw, 24 + len(rows) * (22 + 11 * len(sets)), ", ".join(rows))


def _gauge(axes, title, row, sets):
    for name, style in zip(sets, _STYLES):
        if name in row:
            value, low, high = row[name]
            y, colour = -sets.index(name), style["color"]
            axes.axhline(y, color=_LINE, linewidth=1)
            axes.plot(
                [low, high],
                [y, y],
                color=colour,
                linewidth=4,
                alpha=0.45,
            )
            axes.plot(value, y, "o", color=colour, markersize=7, label=name)
    axes.axvline(0, color=_SECOND, linewidth=1)
    axes.margins(x=0)
    axes.set_ylim(0.5 - len(sets), 0.5)
    axes.set_axis_off()
    axes.set_title(title, loc="left", pad=3)
    highest = number(max((high for _, _, high in row.values()), default=0.0))
    axes.set_title(highest, loc="right", pad=3, color=_SOFT)


def _plot(draw, label, y_label, n_series):
    """Draw into one frame with labels, and a legend if there are several series."""

    def draw_all(figure):
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel(label, loc="right")
        axes.set_title(y_label, loc="left", color=_SOFT)
        axes.yaxis.get_major_locator().set_params(nbins=4)
        if n_series > 1:
            _legend(figure, axes)

    return _svg(draw_all, _HEIGHT, f"{y_label} by {label}")


def _legend(figure, axes):
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=3, borderpad=0, columnspacing=1
    )


def _svg(draw: Callable, height: float, title: str) -> str:
    # Not where no page is written: it takes half a second.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_PLOT):
        figure = Figure((_WIDTH / 72, height / 72), layout="constrained")
        draw(figure)
        file = io.StringIO()
        names = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=names)
    drawing = file.getvalue().partition("<svg")[2].partition(">")[2]
    # Nothing lies outside of the frames, and names of clips are those of other plots.
    drawing = re.sub(r' (id="\w+_\d+"|clip-path="[^"]*")', "", drawing)
    drawing = drawing.replace("xlink:href", "href")
    for colour, of_page in _COLOURS.items():
        drawing = drawing.replace(colour, of_page)
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{drawing}</figure>\n'
    )
