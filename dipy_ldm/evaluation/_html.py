"""One page of HTML that can be sent to a reviewer: a small vocabulary.

Each function returns a piece of HTML, and :func:`page` puts pieces into one file that
needs no network and no script: plots are SVG (:mod:`dipy_ldm.evaluation._charts`) and
pictures are inside. It is readable on a telephone, in the dark, and on paper.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
import io
import math
from typing import Any

from PIL import Image
import numpy as np

from dipy_ldm import __version__
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
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; }
svg .soft { fill: var(--soft); }
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


def page(title: str, *parts: str) -> str:
    """Put pieces together."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{''.join(parts)}"
        f'<p class="soft">dipy_ldm {escape(__version__)}</p>\n</body>\n</html>\n'
    )


def section(title: str, *parts: str) -> str:
    """Put pieces below a heading; nothing if there are none."""
    body = "".join(parts)
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


def part(title: str, *parts: str) -> str:
    """Put pieces below a lower heading; nothing if there are none."""
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
    """List what is known, each under its name."""
    rows = (
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in entries.items()
    )
    return f"<dl>{''.join(rows)}</dl>\n"


def folded(summary: str, *parts: str) -> str:
    """Hide pieces until they are asked for."""
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


def number(value: float | None) -> str:
    """Write a number with three digits that matter."""
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else "∞"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, power = f"{value:.2e}".split("e")
        return f"{mantissa}·10{_raised(int(power))}".replace("-", "−")
    return f"{float(f'{value:.3g}'):,}".removesuffix(".0").replace("-", "−")


def _raised(power):
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


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
    """Put figures side by side, as many as there is room for."""
    return "".join(f'<div class="pair">{figure}</div>' for figure in figures)


def _data_uri(image):
    pixels = np.uint8(np.round(np.clip(image, 0, 1) * 255)).squeeze()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
