"""Numbers and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def count(value: float) -> str:
    """1,234."""
    return f"{value:,.0f}"


def number(value: float) -> str:
    """1,234; 12.3; 0.0123: three figures, whole numbers whole."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def brief(value: float) -> str:
    """For axes: 950, 1.5k, 20M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def share(value: float) -> str:
    """12 %, 3.4 %, 0.05 %; never 0 % or 100 % of what is not nothing or all."""
    percent = 100 * value
    if value in (0, 1):
        return f"{percent:.0f} %"
    if 0 < percent < 0.01:
        return "< 0.01 %"
    if 99.99 < percent < 100:
        return "> 99.99 %"
    digits = 0 if 10 <= percent < 99.5 else 1 if 1 <= percent < 99.9 else 2
    return f"{percent:.{digits}f} %"


def points(value: float) -> str:
    """The difference of two shares: +3.1 points; empty where it is none to speak of."""
    told = f"{100 * value:+.1f}" if abs(value) < 0.1 else f"{100 * value:+.0f}"
    return f"{told} points" if float(told) else ""


def difference(before: float, after: float) -> str:
    """+0.031; empty where it is none to speak of."""
    told = f"{after - before:+.3f}"
    return told if float(told) else ""


def ratio(before: float, after: float) -> str:
    """+12 %, 3.4 times; empty where it is the same, or there is nothing to divide by."""
    if not before or not after or f"{after / before:.2f}" == "1.00":
        return ""
    times = after / before
    return f"{times:.2g} times" if times >= 2 else f"{100 * (times - 1):+.0f} %"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours:,} h {minutes_left:02} min" if hours else f"{minutes} min {rest:02} s"


def stamp(time: float) -> str:
    """Tue 9 Jun 2026, 02:13 UTC; a dash where nobody knows."""
    if not time:
        return "-"
    at = datetime.fromtimestamp(time, UTC)
    return f"{at:%a} {at.day} {at:%b %Y, %H:%M} UTC"


def clock(time: float) -> str:
    """02:13."""
    return f"{datetime.fromtimestamp(time, UTC):%H:%M}"
