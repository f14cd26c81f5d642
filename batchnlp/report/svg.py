"""Charts as inline SVG: shapes in percent of the width, so that they fit a telephone, and text that keeps its size.

Colours are classes of the style sheet. All text goes through `Markup.format`, which escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from batchnlp.report.page import Histogram, Timeline
from batchnlp.report.words import brief, clock, count, duration, number, share

HEIGHT = 150  # of the plot; its labels come below
FOOT = 22
HEAD = 16
TICKS = 6


def track(value: float, before: float | None = None, *, label: str = "", kind: str = "bar") -> Markup:
    """A horizontal bar of a share of the width, with a mark where it was before."""
    parts = [_rect(kind, 0, 1, value, 10)]
    if before is not None:
        parts.append(Markup('<rect class="before" x="{}" y="0" width="2" height="12"/>').format(_percent(before)))
    return _svg(12, label, parts, "track")


def split(parts: Sequence[tuple[str, float, str]]) -> Markup:
    """One bar made of (class, share, what it is)."""
    shapes, at = [], 0.0
    for kind, value, title in parts:
        if value > 0:
            shapes.append(_rect(kind, at, 0, max(value, 0.004), 14, title))
        at += value
    return _svg(14, ", ".join(title for _, value, title in parts if value > 0), shapes, "split")


def columns(spread: Histogram, before: Histogram | None = None, limit: int = 0) -> Markup:
    """A histogram; of the one before a mark a bin, and a line where the model's limit is."""
    bins, edges = len(spread.counts), spread.edges
    now = [n / max(spread.of, 1) for n in spread.counts]
    was = dict(zip(before.edges, before.counts, strict=False)) if before else {}
    then = [was.get(edge, 0) / max(before.of, 1) if before else 0.0 for edge in edges[:-1]]
    top = max(*now, *then, 1e-9)
    shapes = []
    for i in range(bins):
        title = f"{brief(edges[i])} to {brief(edges[i + 1])}: {count(spread.counts[i])} ({share(now[i])})"
        shapes.append(_column("column", i / bins, now[i] / top, 1 / bins, title))
        if then[i]:
            shapes.append(_mark(i / bins, then[i] / top, 1 / bins))
    if limit and edges[0] <= limit < edges[-1]:
        shapes += _limit_line(_place(limit, edges), f"the model takes {count(limit)}")
    shapes += _axis((i / bins, number(edges[i])) for i in range(0, bins + 1, _step(bins)))
    label = f"{spread.title}: median {brief(spread.median)}, largest {brief(spread.largest)} {spread.unit}"
    return _svg(HEAD + HEIGHT + FOOT, label, shapes, "plot")


def curve(line: Timeline) -> Markup:
    """Rates over the time at work, with their mean, and a line where an invocation went on."""
    top = max(*line.rates, line.mean) * 1.05 or 1.0
    step, tall = 100 / len(line.rates), float(HEIGHT)
    points = [
        f"{(i + side) * step:.3f},{tall * (1 - rate / top):.2f}" for i, rate in enumerate(line.rates) for side in (0, 1)
    ]
    path = " ".join(points)
    plot = Markup(
        '<svg x="0" y="{}" width="100%" height="{}" viewBox="0 0 100 {}" preserveAspectRatio="none">'
        '<polygon class="area" points="0,{} {} 100,{}"/><polyline class="line" points="{}"/></svg>'
    ).format(HEAD, HEIGHT, HEIGHT, HEIGHT, path, HEIGHT, path)
    mean = HEAD + tall * (1 - line.mean / top)
    shapes = [
        plot, Markup('<line class="mean" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(mean),
        _text("100%", mean - 5, "end", f"mean {brief(line.mean)}"),
    ]  # fmt: skip
    for at, _ in line.starts[1:]:
        shapes.append(_vertical("pause", at / max(line.seconds, 1e-9)))
    shapes += _axis(_times(line))
    label = f"documents a second over {duration(line.seconds)} of work, mean {brief(line.mean)}"
    return _svg(HEAD + HEIGHT + FOOT, label, shapes, "plot")


def _times(line: Timeline) -> Iterable[tuple[float, str]]:
    """The time at which each invocation began, where there is room, and how long they worked."""
    last = -1.0
    for at, time in line.starts:
        place = at / max(line.seconds, 1e-9)
        if place - last > 0.15 and place < 0.75:
            yield place, clock(time)
            last = place
    yield 1.0, f"{duration(line.seconds)} of work"


def _step(bins: int) -> int:
    """Bins a label: an even number, because every other edge is a round one."""
    step = 2
    while bins / step > TICKS:
        step += 2
    return step


def _place(value: float, edges: Sequence[float]) -> float:
    """Where a value is among bins of equal width, between 0 and 1."""
    i = max(i for i, edge in enumerate(edges[:-1]) if edge <= value)
    return (i + (value - edges[i]) / (edges[i + 1] - edges[i])) / (len(edges) - 1)


def _axis(ticks: Iterable[tuple[float, str]]) -> list[Markup]:
    shapes = [Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(HEAD + HEIGHT)]
    for at, label in ticks:
        anchor = "start" if at < 0.02 else "end" if at > 0.98 else "middle"
        shapes.append(_text(_percent(at), HEAD + HEIGHT + 16, anchor, label))
    return shapes


def _limit_line(at: float, label: str) -> list[Markup]:
    anchor = "end" if at > 0.6 else "start"
    inside = -5 if anchor == "end" else 5
    text = Markup('<text class="limit" x="{}" dx="{}" y="11" text-anchor="{}">{}</text>')
    return [_vertical("limit", at), text.format(_percent(at), inside, anchor, label)]


def _vertical(kind: str, at: float) -> Markup:
    return Markup('<line class="{0}" x1="{1}" x2="{1}" y1="0" y2="{2}"/>').format(kind, _percent(at), HEAD + HEIGHT)


def _column(kind: str, x: float, height: float, width: float, title: str) -> Markup:
    tall = max(height * HEIGHT, 1.0 if height else 0.0)
    return Markup('<rect class="{}" x="{}" y="{:.1f}" width="{}" height="{:.1f}"><title>{}</title></rect>').format(
        kind, _percent(x + width * 0.06), HEAD + HEIGHT - tall, _percent(width * 0.88), tall, title
    )


def _mark(x: float, height: float, width: float) -> Markup:
    return Markup('<rect class="before" x="{}" y="{:.1f}" width="{}" height="2"/>').format(
        _percent(x), HEAD + HEIGHT * (1 - height) - 1, _percent(width)
    )


def _rect(kind: str, x: float, y: float, width: float, height: float, title: str = "") -> Markup:
    inner = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2">{}</rect>').format(
        kind, _percent(x), y, _percent(width), height, inner
    )


def _text(x: str, y: float, anchor: str, text: str) -> Markup:
    return Markup('<text x="{}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _percent(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.3f}%"


def _svg(height: int, label: str, shapes: Iterable[Markup], kind: str) -> Markup:
    return Markup('<svg class="{}" role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
        kind, label, height, Markup("").join(shapes)
    )
