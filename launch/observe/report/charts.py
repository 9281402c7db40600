"""Charts as inline SVG: no library, no script, colours from the page's CSS so that light and dark both work.

Every chart is the text of one <svg> element, in a <div> that scrolls. Text from elsewhere (names, hosts,
reasons) is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import msgspec

WIDTH, HEIGHT = 860, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 38
CHARACTER, LONGEST = 7, 28
"""Upper bound of a label character's average width in pixels, and the most characters of a label."""
MOST_POINTS = 600
"""The most points drawn per line; more would be closer together than a pixel."""


class Series(msgspec.Struct, frozen=True):
    name: str
    points: Sequence[tuple[float, float]]
    """(x, y), with x increasing."""
    dots: bool = False


class Mark(msgspec.Struct, frozen=True):
    """A vertical line at `x`, such as an interruption."""

    x: float
    text: str
    series: int | None = None
    """Index of the curve it belongs to, whose colour it takes, if several share the chart."""


class Bar(msgspec.Struct, frozen=True):
    """A bar in a row of a timeline."""

    row: str
    begin: float
    end: float
    kind: str
    """The CSS class that colours it."""
    text: str


def lines(title: str, series: Sequence[Series], marks: Sequence[Mark], logarithmic: bool) -> str:
    """A line chart of the finite points (of the positive ones, if `logarithmic`) by step; "" without any."""
    series = [msgspec.structs.replace(one, points=_finite(one.points, logarithmic)) for one in series]
    series = [one for one in series if one.points]
    if not series:
        return ""
    xs = [0.0, *(x for one in series for x, _ in one.points), *(mark.x for mark in marks)]
    ys = [y for one in series for _, y in one.points]
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = min(ys), max(ys)
    if logarithmic and high_y / low_y < 20:
        logarithmic = False
    scale_y = math.log10 if logarithmic else float
    y_ticks = _powers(low_y, high_y) if logarithmic else ticks(low_y, high_y)
    low_y, high_y = min(low_y, y_ticks[0]), max(high_y, y_ticks[-1])
    place_x = _scale(low_x, high_x, LEFT, WIDTH - RIGHT)
    place_y = _scale(scale_y(low_y), scale_y(high_y), HEIGHT - BOTTOM, TOP)
    parts = [_open(title, WIDTH, HEIGHT)]
    for tick in y_ticks:
        y = place_y(scale_y(tick))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    parts += _x_axis(low_x, high_x, place_x, HEIGHT, "step")
    for mark in marks:
        x = place_x(mark.x)
        parts.append(
            f'<line class="mark{f" s{mark.series % 8}" if mark.series is not None else ""}" '
            f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>{escape(mark.text)}</title></line>"
        )
    for index, one in enumerate(series):
        drawn = [(place_x(x), place_y(scale_y(y))) for x, y in thinned(one.points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        parts.append(
            f'<polyline class="line s{index % 8}" points="{path}">'
            f"<title>{escape(one.name)}</title></polyline>"
        )
        if one.dots or len(drawn) == 1:
            for (x, y), (at, value) in zip(drawn, thinned(one.points), strict=True):
                text = f"{one.name} {_number(value)} at step {_number(at)}"
                parts.append(
                    f'<circle class="dot s{index % 8}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                    f"<title>{escape(text)}</title></circle>"
                )
    return _close(parts) + (legend([one.name for one in series]) if len(series) > 1 else "")


def legend(names: Sequence[str]) -> str:
    """The names with their colours, below a chart."""
    items = "".join(f'<span><i class="s{i % 8}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<p class="legend">{items}</p>'


def timeline(title: str, bars: Sequence[Bar], begin: float, end: float, unit: float, unit_name: str) -> str:
    """Bars on rows over time; bars, `begin` and `end` in seconds; the axis counts units from `begin`."""
    rows = list(dict.fromkeys(bar.row for bar in bars))
    if not rows or end <= begin:
        return ""
    labels = short_names(rows)
    left, high = 30 + CHARACTER * max(map(len, labels)), 24
    height = TOP + high * len(rows) + BOTTOM
    place = _scale(0, (end - begin) / unit, left, WIDTH - RIGHT)
    parts = [_open(title, WIDTH, height)]
    parts += _x_axis(0, (end - begin) / unit, place, height, unit_name)
    for index, row in enumerate(rows):
        y = TOP + high * index
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(labels[index])}'
            f"<title>{escape(row)}</title></text>"
        )
        for bar in bars:
            if bar.row != row:
                continue
            x = place((bar.begin - begin) / unit)
            width = max(1.5, place((bar.end - begin) / unit) - x)
            parts.append(
                f'<rect class="bar {bar.kind}" x="{x:.1f}" y="{y + 2}" width="{width:.1f}" '
                f'height="{high - 6}" rx="2">'
                f"<title>{escape(bar.text)}</title></rect>"
            )
    return _close(parts)


def short_names(names: Sequence[str]) -> list[str]:
    """Host names, as short as is clear: without a domain that all share, then only their last characters."""
    heads = [name.partition(".")[0] for name in names]
    if len({name.partition(".")[2] for name in names}) == 1 and len(set(heads)) == len(names):
        names = heads
    return [_tail(name) for name in names]


def _tail(name: str) -> str:
    """The end of a long name, where node0001 and node0002 differ."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def shares(title: str, parts: Sequence[tuple[str, str, float, str]]) -> str:
    """One bar, split into parts (name, CSS class, amount, tooltip) in proportion to their amounts."""
    whole = sum(amount for _, _, amount, _ in parts)
    if whole <= 0:
        return ""
    drawn, x = [_open(title, WIDTH, 46, "shares")], 0.0
    for name, kind, amount, text in parts:
        width = WIDTH * amount / whole
        if width > 0:
            drawn.append(
                f'<rect class="bar {kind}" x="{x:.1f}" y="8" width="{width:.2f}" height="30">'
                f"<title>{escape(name)}: {escape(text)}</title></rect>"
            )
        x += width
    return _close(drawn)


def heatmap(title: str, names: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
    """A confusion matrix, with each row (true class) divided by its sum."""
    cell = 30 if len(names) <= 24 else 14
    labels = [_tail(name) for name in names]
    longest = CHARACTER * max(map(len, labels))
    # Labels on top lean 60° to the right, so the last one reaches beyond the last column.
    left, top, right = 14 + longest, 14 + round(0.87 * longest), 10 + round(0.5 * longest)
    size = cell * len(names)
    parts = [_open(title, left + size + right, top + size + 10, "heatmap")]
    for row, name in enumerate(names):
        y = top + cell * row
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{y + cell * 0.65:.0f}" text-anchor="end">'
            f"{escape(labels[row])}</text>"
        )
        x = left + cell * row + cell * 0.65
        parts.append(
            f'<text class="tick" transform="translate({x:.0f},{top - 6}) rotate(-60)">'
            f"{escape(labels[row])}</text>"
        )
        whole = sum(matrix[row])
        for column, count in enumerate(matrix[row]):
            share = count / whole if whole else 0.0
            text = f"{name} taken for {names[column]}: {100 * share:.1f}% ({count:,.0f} pixels)"
            kind = "right" if row == column else "wrong"
            parts.append(
                f'<rect class="cell {kind}" x="{left + cell * column}" y="{y}" '
                f'width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{max(0.04, share**0.6):.3f}"><title>{escape(text)}</title></rect>'
            )
            if cell >= 30 and share >= 0.005:
                kind = "value strong" if share >= 0.5 else "value"
                middle = left + cell * column + cell / 2 - 0.5
                parts.append(
                    f'<text class="{kind}" x="{middle:.1f}" y="{y + 19}" '
                    f'text-anchor="middle">{100 * share:.0f}</text>'
                )
    return _close(parts)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about MOST_POINTS of the points: the lowest and the highest of each stretch."""
    if len(points) <= MOST_POINTS:
        return list(points)
    stretch = math.ceil(len(points) / (MOST_POINTS / 2))
    kept = []
    for begin in range(0, len(points), stretch):
        part = points[begin : begin + stretch]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """About so many evenly spaced round numbers, which enclose low to high."""
    if high <= low:
        spread = abs(low) or 1.0
        low, high = low - spread / 2, low + spread / 2
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def _finite(points: Sequence[tuple[float, float]], positive: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not positive)]


def _scale(low: float, high: float, begin: float, end: float):  # type: ignore[no-untyped-def]
    spread = (high - low) or 1.0
    return lambda value: begin + (end - begin) * (value - low) / spread


def _x_axis(low, high, place, height: float, name: str) -> list[str]:  # type: ignore[no-untyped-def]
    parts = []
    for tick in ticks(low, high, 8):
        if low - 1e-9 <= tick <= high + 1e-9:
            parts.append(
                f'<text class="tick" x="{place(tick):.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">'
                f"{_number(tick)}</text>"
            )
    middle = (place(low) + place(high)) / 2
    parts.append(
        f'<text class="tick" x="{middle:.0f}" y="{height - 6}" text-anchor="middle">{escape(name)}</text>'
    )
    return parts


def _open(title: str, width: float, height: float, kind: str = "chart") -> str:
    """The start of a chart's HTML. A chart scrolls where the page is too narrow for it to be legible."""
    size = f' style="max-width:{width:.0f}px;min-width:min(480px,{width:.0f}px)"' if kind == "heatmap" else ""
    return (
        f'<div class="wide"><svg class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}"{size}>'
    )


def _close(parts: Sequence[str]) -> str:
    return "".join([*parts, "</svg></div>"])


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.4g}"
