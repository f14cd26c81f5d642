"""What people see of a scenario (a table) and programs (one object); the verdict on its floors; a plot."""

from __future__ import annotations

from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from harness.rounds import Match

BAR, ROW, LEFT, WIDE = 18, 26, 200, 640  # pixels
INK, OURS, THEIRS = "#222", "#2b6cb0", "#b8c4d0"


def verdict(match: Match) -> tuple[dict[str, Any], list[str]]:
    """(each floor's metric with its value, None where a peer did not run; those that are missed)."""
    values = {metric: match.metric(metric) for metric in match.scenario.floors}
    missed = [
        name for name, value in values.items() if value is not None and not match.scenario.floors[name].holds(value)
    ]
    return values, missed


def table(match: Match) -> str:
    """Contenders, then floors."""
    scenario = match.scenario
    first = next(iter(scenario.contenders))
    lines = [
        f"\n{scenario.name}: {scenario.about}",
        f"{'contender':24} {scenario.unit + '/s':>18} {first + ' / it':>14}  settings",
    ]
    for name, outcome in match.outcomes.items():
        if outcome.reason:
            lines.append(f"{name:24} {'did not run':>18} {'':14}  {outcome.reason}")
            continue
        ratio = match.ratio(first, name)
        said = ", ".join(f"{key} {value}" for key, value in outcome.facts["settings"].items())
        lines.append(f"{name:24} {median(outcome.rates):>18,.1f} {ratio or 0:>14.2f}  {said}")
    if scenario.limit and (limits := [rate for rate in match.rate("limit") if rate]):
        lines.append(
            f"{'limit':24} {median(limits):>18,.1f} {match.ratio(first, 'limit') or 0:>14.2f}  {' + '.join(scenario.limit)}"
        )
    values, missed = verdict(match)
    lines.append(f"{'metric':40} {'value':>12}  floor")
    for metric, value in values.items():
        word = "not measured" if value is None else "MISSED" if metric in missed else "ok"
        lines.append(
            f"{metric:40} {'-' if value is None else f'{value:12.5g}':>12}  {scenario.floors[metric]!s:10} {word}"
        )
    return "\n".join(lines)


def tree(match: Match) -> dict[str, Any]:
    """All that was measured."""
    values, missed = verdict(match)
    contenders = {
        name: {
            "reason": outcome.reason, "rate": median(outcome.rates) if outcome.rates else None, "rates": outcome.rates,
            "settings": outcome.facts.get("settings"), "tried": outcome.facts.get("tried"), "versions": outcome.versions,
            "facts": {key: outcome.of(key) for key in _numbers(outcome.rounds)},
        }
        for name, outcome in match.outcomes.items()
    }  # fmt: skip
    return {
        "scenario": match.scenario.name, "contenders": contenders, "metrics": values, "missed": missed,
        "ours_failed": match.ours_failed, "idle_cpu": round(match.idle_cpu, 4),
    }  # fmt: skip


def _numbers(rounds: list[Any]) -> list[str]:
    facts = next((facts for facts in rounds if facts), {})
    return [key for key, value in facts.items() if isinstance(value, int | float)]


def plot(match: Match, target: Path, note: str) -> None:
    """A bar chart: how many times the rate of each contender the first one's is; a bar of 1 is the first itself."""
    first = next(iter(match.scenario.contenders))
    names = [name for name, outcome in match.outcomes.items() if outcome.rates]
    bars = [(name, match.ratio(first, name) or 0.0) for name in names]
    if match.scenario.limit and (ratio := match.ratio(first, "limit")):
        bars.append(("limit", ratio))
    most = max((ratio for _, ratio in bars), default=1.0)
    height = ROW * len(bars) + 58
    title = escape(f"{match.scenario.name}: {first} ÷ each, {match.scenario.unit}/s")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDE + 80} {height}" font-family="sans-serif" '
        f'font-size="13" fill="{INK}">',
        f'<title>{escape(match.scenario.about)}</title><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="20" font-weight="bold">{title}</text>',
        f'<text x="8" y="{height - 8}" font-size="11">{escape(note)}</text>',
    ]  # fmt: skip
    for i, (name, ratio) in enumerate(bars):
        y = 32 + i * ROW
        width = max(WIDE * ratio / most, 1)
        colour = OURS if name == first else THEIRS
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>'
            f'<text x="{LEFT + width + 6:.1f}" y="{y + 14}">{ratio:.2f}</text>'
        )
    x = LEFT + WIDE / most
    parts.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="28" y2="{32 + ROW * len(bars)}" stroke="{INK}" stroke-dasharray="3 3"/></svg>'
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(parts) + "\n", encoding="utf-8")
