"""Plots of a page, as SVG in the colours of the page, light or dark.

They are 360 units wide, about as many pixels as a telephone has: what is readable there
is readable everywhere.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from dipy_ldm.evaluation._html import number
from dipy_ldm.metrics import Interval

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 30, 36
_COLOURS = ("var(--first)", "var(--second)", "var(--third)")
# Of each series, for those who can't tell the colours.
_DASHES = ("", "5 3", "1.5 2.5")


def histograms(series: Mapping[str, npt.ArrayLike], label: str, bins: int = 30) -> str:
    """Draw how values are distributed, one outline for each set."""
    values = {name: np.ravel(np.asarray(v, float)) for name, v in series.items()}
    every = np.concatenate(list(values.values()))
    if not every.size:
        return ""
    edges = np.histogram_bin_edges(every, bins)
    heights = {name: np.histogram(v, edges)[0] / len(v) for name, v in values.items()}
    most = max(h.max() for h in heights.values())
    steps = {
        name: (np.repeat(edges, 2), np.concatenate([[0], np.repeat(h, 2), [0]]))
        for name, h in heights.items()
    }
    return _plot(steps, (edges[0], edges[-1]), (0, most * 1.05), label, "share")


def curves(
    series: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    label: str,
    height_label: str,
    *,
    log: bool = False,
) -> str:
    """Draw curves."""
    drawn = {
        name: (np.asarray(x, float), np.asarray(y, float))
        for name, (x, y) in series.items()
    }
    if log:
        drawn = {n: (x, np.log10(np.maximum(y, 1e-30))) for n, (x, y) in drawn.items()}
    xs, ys = (np.concatenate([pair[i] for pair in drawn.values()]) for i in (0, 1))
    span = np.ptp(ys) or 1.0
    heights = ys.min() - 0.08 * span, ys.max() + 0.08 * span
    return _plot(drawn, (xs.min(), xs.max()), heights, label, height_label, log=log)


def scatter(x: npt.ArrayLike, y: npt.ArrayLike, label: str, height_label: str) -> str:
    """Draw points, and the line where both are equal.

    Shapes: x, y ``(n,)``.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.05 * (high - low or 1.0)
    span = low - margin, high + margin
    points = "".join(
        f'<circle cx="{_across(a, span):.1f}" cy="{_up(b, span):.1f}" r="2.5" '
        'fill="var(--first)" fill-opacity=".6"/>'
        for a, b in zip(x, y, strict=True)
    )
    line = {"equal": (np.array(span), np.array(span))}
    return _plot(line, span, span, label, height_label, further=points)


def gauges(rows: Mapping[str, Mapping[str, Interval]]) -> str:
    """Draw each figure on a scale of its own, beside what it could be at best."""
    sets = list(
        dict.fromkeys(name for intervals in rows.values() for name in intervals)
    )
    height = 22 + len(rows) * (18 + 11 * len(sets))
    parts, y = [_legend(sets)], 34
    for title, intervals in rows.items():
        bounds = [bound for interval in intervals.values() for bound in interval]
        span = min([0.0, *bounds]), max([1e-12, *bounds])
        parts.append(f'<text x="8" y="{y}">{escape(title)}</text>')
        parts.append(_words(_WIDTH - 8, y, number(span[1]), "end"))
        parts += [
            _bar(interval, span, y + 10 + 11 * i, sets.index(name))
            for i, (name, interval) in enumerate(intervals.items())
        ]
        y += 18 + 11 * len(sets)
    return _svg("".join(parts), height, ", ".join(rows))


def _bar(interval, span, y, place):
    low, high, value = (
        8 + (v - span[0]) / (span[1] - span[0]) * (_WIDTH - 16)
        for v in (interval.low, interval.high, interval.value)
    )
    colour = _COLOURS[place % 3]
    zero = 8 - span[0] / (span[1] - span[0]) * (_WIDTH - 16)
    return (
        f'<line x1="8" x2="{_WIDTH - 8}" y1="{y}" y2="{y}" stroke="var(--line)"/>'
        f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="{y - 5}" y2="{y + 5}" '
        'stroke="var(--second)"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
        f'stroke-width="4" stroke-opacity=".45"/>'
        f'<circle cx="{value:.1f}" cy="{y}" r="4" fill="{colour}"/>'
    )


def _plot(series, across, heights, label, height_label, *, log=False, further=""):
    """Draw lines in a frame with ticks and a legend."""
    lines = [
        _line(x, y, across, heights, place)
        for place, (x, y) in enumerate(series.values())
    ]
    legend = _legend(list(series)) if len(series) > 1 else ""
    whole = all(np.all(np.rint(x) == x) for x, _ in series.values())
    frame = _ticks_across(across, whole) + _ticks_up(heights, log)
    names = _words(_WIDTH - _RIGHT, _HEIGHT - 5, label, "end")
    names += _words(4, 25, height_label)
    body = frame + "".join(lines) + further + names + legend
    return _svg(body, _HEIGHT, f"{height_label} by {label}")


def _line(x, y, across, heights, place):
    points = " ".join(
        f"{_across(a, across):.1f},{_up(b, heights):.1f}" for a, b in zip(x, y)
    )
    return (
        f'<polyline points="{points}" fill="none" stroke="{_COLOURS[place % 3]}" '
        f'stroke-width="1.8" stroke-dasharray="{_DASHES[place % 3]}"/>'
    )


def _legend(names: Sequence[str]) -> str:
    parts, x = [], 8
    for place, name in enumerate(names):
        colour, dash = _COLOURS[place % 3], _DASHES[place % 3]
        parts.append(
            f'<line x1="{x}" x2="{x + 18}" y1="9" y2="9" stroke="{colour}" '
            f'stroke-width="3" stroke-dasharray="{dash}"/>'
            f'<text x="{x + 23}" y="13">{escape(name)}</text>'
        )
        x += 38 + 6 * len(name)
    return "".join(parts)


def _ticks_across(span, whole):
    ticks = "".join(
        _words(_across(value, span), _HEIGHT - _BOTTOM + 14, number(value), "middle")
        for value in _nice(span, whole=whole)
    )
    y = _HEIGHT - _BOTTOM
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" '
        f'stroke="var(--second)"/>{ticks}'
    )


def _ticks_up(span, log):
    return "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_up(v, span):.1f}" '
        f'y2="{_up(v, span):.1f}" stroke="var(--line)"/>'
        + _words(_LEFT - 4, _up(v, span) + 4, number(10**v if log else v), "end")
        for v in _nice(span, most=4)
    )


def _nice(span, most=5, whole=False):
    """Return round numbers within a span."""
    low, high = span
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    step = max(step, 1.0) if whole else step
    return (np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step).tolist()


def _across(value, span):
    share = (value - span[0]) / (span[1] - span[0] or 1)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _up(value, span):
    share = (value - span[0]) / (span[1] - span[0] or 1)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _words(x, y, words, anchor="start"):
    return (
        f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def _svg(body, height, title):
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{body}</svg></figure>\n'
    )
