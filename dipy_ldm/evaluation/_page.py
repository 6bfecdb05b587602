"""Self-contained HTML reports: text, tables, plots and pictures.

Each function returns a piece of HTML, and :func:`page` assembles pieces into one file
without scripts or network access: plots are SVG in the colours of the page, pictures
are embedded. It adapts to narrow screens, dark mode and print.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
import io
import math
import os
from pathlib import Path
import re
from string import Template
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any
import webbrowser

from PIL import Image
import numpy as np
import numpy.typing as npt

from dipy_ldm import __version__
from dipy_ldm._utils.files import replacing
from dipy_ldm.metrics import Interval

if TYPE_CHECKING:  # matplotlib takes half a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholder colours of matplotlib (also in page.mplstyle), and the CSS variables that
# replace them.
_COLOURS = {
    "#010101": "var(--first)",
    "#020202": "var(--second)",
    "#030303": "var(--third)",
    "#040404": "var(--line)",
    "#050505": "var(--soft)",
    "#060606": "var(--ink)",
}
_FIRST, _SECOND, _THIRD, _, _SOFT, _ = _COLOURS
# Dashes, for readers who cannot distinguish the colours.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": _FIRST, "linestyle": "-"},
    {"color": _SECOND, "linestyle": (0, (4, 2))},
    {"color": _THIRD, "linestyle": (0, (1, 1.5))},
)
# Points: about the width of a telephone in pixels.
_WIDTH, _HEIGHT = 360, 210
_FOLDER = Path(__file__).parent


class Report:
    """A result that can be shown as a page in notebooks, files and browsers."""

    def conclusions(self) -> list[tuple[str, str]]:
        """Return the conclusions as sentences, each with good, fair, bad or plain."""
        raise NotImplementedError

    def to_html(self) -> str:
        """Return the report as an HTML page."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return the conclusions."""
        return "\n".join(sentence for sentence, _ in self.conclusions())

    def _repr_html_(self):
        # In a frame, since the styles of page and notebook conflict.
        source = escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{source}" width="100%" height="600"></iframe>'

    def save_as_html(self, path: str | Path) -> None:
        """Write the page as one self-contained HTML file."""
        with replacing(os.path.expanduser(path)) as partial:
            partial.write_text(self.to_html(), "utf-8", errors="backslashreplace")

    def open_in_browser(self) -> None:
        """Show the page in a browser, from a temporary file that is not deleted."""
        path = Path(mkdtemp(prefix="dipy_ldm-"), "report.html")
        self.save_as_html(path)
        webbrowser.open(path.as_uri())


def page(title: str, *parts: str) -> str:
    """Assemble a page from its parts."""
    template = Template((_FOLDER / "page.html").read_text("utf-8"))
    body = "".join(parts)
    return template.substitute(title=escape(title), body=body, version=__version__)


def report(
    title: str,
    conclusions: Iterable[tuple[str, str]],
    about: Mapping[str, Any],
    notes: Iterable[str],
    template: str,
    **pieces: str,
) -> str:
    """Assemble a report: conclusions, facts, notes, and a template with its pieces."""
    boxes = (note(sentence, kind) for sentence, kind in conclusions)
    body = _fill((_FOLDER / template).read_text("utf-8"), pieces)
    return page(title, *boxes, definitions(about), text(*notes), body)


def _fill(template: str, pieces: Mapping[str, str]) -> str:
    """Substitute pieces, and remove sections whose pieces are all empty."""

    def fill(section: re.Match) -> str:
        names = re.findall(r"\$(\w+)", section[0])
        is_empty = names and not any(pieces[name] for name in names)
        return "" if is_empty else Template(section[0]).substitute(pieces)

    return re.sub("<section>.*?</section>", fill, template, flags=re.DOTALL)


def section(title: str, *parts: str, level: int = 2) -> str:
    """Put parts below a heading; return "" if all are empty."""
    body = "".join(parts)
    return f"<h{level}>{escape(title)}</h{level}>\n{body}" if body else ""


part = partial(section, level=3)


def text(*paragraphs: str) -> str:
    """Return paragraphs."""
    return "".join(f"<p>{escape(paragraph)}</p>\n" for paragraph in paragraphs)


def note(sentence: str, kind: str = "plain") -> str:
    """Return a highlighted box."""
    mark = {"good": "✓ ", "fair": "! ", "bad": "✗ ", "plain": ""}[kind]
    return f'<div class="note {kind}">{escape(mark + sentence)}</div>\n'


def definitions(entries: Mapping[str, Any]) -> str:
    """Return a list of names and values."""
    rows = (
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in entries.items()
    )
    return f"<dl>{''.join(rows)}</dl>\n"


def table(head: Sequence[str], rows: Iterable[Sequence], caption: str = "") -> str:
    """Return a table, which scrolls if it is wider than the page."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = (f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    below = f'<p class="soft">{escape(caption)}</p>' if caption else ""
    return (
        f'<div class="wide"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{below}\n"
    )


def _cell(value: Any) -> str:
    if isinstance(value, Interval):
        bounds = f"{number(value.low)} to {number(value.high)}"
        return f"<td>{number(value.value)}<small>{bounds}</small></td>"
    return f"<td>{escape(value) if isinstance(value, str) else number(value)}</td>"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None) -> str:
    """Format a number with three significant digits."""
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
    """Return an embedded picture ``(height, width, channels)`` with its caption."""
    height, width = image.shape[:2]
    pixels = np.uint8(np.round(np.clip(image, 0, 1) * 255)).squeeze()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width * scale}" '
        f'height="{height * scale}" alt="{escape(caption, quote=True)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def row(figures: Iterable[str]) -> str:
    """Put figures side by side, except for empty ones."""
    return "".join(f'<div class="pair">{figure}</div>' for figure in figures if figure)


def histograms(series: Mapping[str, npt.ArrayLike], label: str, bins: int = 30) -> str:
    """Plot histograms of finite values as outlines, one for each set that has any."""
    arrays = {name: np.asarray(values, float) for name, values in series.items()}
    finite = {name: array[np.isfinite(array)] for name, array in arrays.items()}
    values = {name: array for name, array in finite.items() if array.size}
    if not values:
        return ""
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins)

    def draw(axes: "Axes") -> None:
        for (name, numbers), style in zip(values.items(), _STYLES):
            shares = np.histogram(numbers, edges)[0] / len(numbers)
            axes.stairs(shares, edges, label=name, **style)
        axes.margins(x=0)
        axes.set_ylim(0)

    return _plot(draw, label, "share")


def scatter(x: npt.ArrayLike, y: npt.ArrayLike, label: str, y_label: str) -> str:
    """Plot y by x, ``(n,)``, and the line where both are equal."""

    def draw(axes: "Axes") -> None:
        axes.scatter(x, y, s=14, color=_FIRST, alpha=0.6, linewidth=0)
        ends = np.min(axes.dataLim.min), np.max(axes.dataLim.max)
        axes.plot(ends, ends, color=_FIRST)

    return _plot(draw, label, y_label)


def intervals(rows: Mapping[str, Mapping[str, Interval]]) -> str:
    """Plot the intervals of all sets, each figure on its own scale."""
    sets = list(dict.fromkeys(name for row in rows.values() for name in row))

    def draw(figure: "Figure") -> None:
        frames = figure.subplots(len(rows), squeeze=False)[:, 0]
        for axes, (title, row) in zip(frames, rows.items()):
            for line, (name, style) in enumerate(zip(sets, _STYLES)):
                if name in row:
                    value, *ends = row[name]
                    look = {"color": style["color"], "label": name}
                    axes.plot(ends, [-line, -line], color=style["color"], alpha=0.6)
                    axes.plot(value, -line, "o", markersize=7, **look)
            axes.axvline(0, color=_SECOND, linewidth=1)
            axes.set_yticks(range(0, -len(sets), -1), [])
            axes.set_ylim(0.5 - len(sets), 0.5)
            axes.set_title(title, loc="left", pad=3)
        _legend(figure, frames[0])

    return _svg(draw, 24 + len(rows) * (38 + 11 * len(sets)), ", ".join(rows))


def _plot(draw: Callable, label: str, y_label: str) -> str:
    """Plot into one frame with labels, and a legend if there are several series."""

    def draw_all(figure):
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel(label, loc="right")
        axes.set_title(y_label, loc="left", color=_SOFT)
        axes.yaxis.get_major_locator().set_params(nbins=4)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            _legend(figure, axes)

    return _svg(draw_all, _HEIGHT, f"{y_label} by {label}")


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=3, borderpad=0, columnspacing=1
    )


def _svg(draw: Callable, height: float, title: str) -> str:
    # Imported here, since it takes half a second.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=_FOLDER / "page.mplstyle"):
        figure = Figure((_WIDTH / 72, height / 72), layout="constrained")
        draw(figure)
        file = io.StringIO()
        names = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=names)
    drawing = file.getvalue().partition("<svg")[2].partition(">")[2]
    # Nothing needs clipping, and clip ids repeat those of other plots.
    drawing = re.sub(r' (id="\w+_\d+"|clip-path="[^"]*")', "", drawing)
    drawing = drawing.replace("xlink:href", "href")
    for colour, variable in _COLOURS.items():
        drawing = drawing.replace(colour, variable)
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{drawing}</figure>\n'
    )
