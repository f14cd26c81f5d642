"""What people see: one live line a run, a summary after it, small tables. Messages go to stderr.

Off a terminal the line becomes a plain one, printed ever more rarely, so that a night's log stays readable.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from batchnlp.cli.streams import Messages, discard, log_line, logs_json
from batchnlp.engine.computing import Progress, RunResult
from batchnlp.types import many

FIRST_PLAIN = 5.0  # seconds until the first plain line; each wait is half as long again, up to
LAST_PLAIN = 60.0
WIDE = 10_000  # columns: off a terminal a line is as long as it is


def console(*, stderr: bool = True) -> Console:
    """A console that honours NO_COLOR and knows whether it is a terminal."""
    file = cast(TextIO, Messages(sys.stderr)) if stderr and sys.stderr is not None else None
    return Console(stderr=stderr, file=file, soft_wrap=True, highlight=False)


def message(text: str, level: str = "info", **facts: Any) -> None:
    """One line on stderr; `facts` are for a log."""
    if not logs_json():
        console().print(Text(text))
    elif sys.stderr is not None:
        stream = Messages(sys.stderr)
        stream.write(log_line(text, level, **facts))
        stream.flush()


def print_json(value: Any) -> None:
    """One object on one line of stdout; where nobody reads it, what was done stays done."""
    try:
        sys.stdout.write(json.dumps(value, default=str) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)


def duration(seconds: float) -> str:
    """1:02:03, or 4.2 s."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def line_of(p: Progress) -> str:
    """The live line; before the rows are counted nothing but what goes on."""
    if not p.total and p.note:
        return p.note
    seconds = max(p.seconds, 1e-9)
    rate = p.rows_now / seconds
    left = (p.total - p.rows) / rate if rate else 0.0
    padding = 1 - p.tokens / p.executed if p.executed else 0.0
    return " · ".join([  # what matters most comes first: a terminal cuts off what it has no room for
        *([p.note] if p.note else []), f"{p.rows:,}/{p.total:,} rows {p.rows / max(p.total, 1):4.0%}",
        f"{rate:,.0f} docs/s", f"ETA {duration(left)}" if rate else "ETA ?", f"dead {p.dead:,}",
        f"{p.tokens / seconds:,.0f} tokens/s", f"padding {padding:.1%}", f"device busy {min(p.busy / seconds, 1):.0%}",
    ])  # fmt: skip


class LiveLine:
    """One line that changes on a terminal; plain lines elsewhere. `line` makes it of what `update` is given."""

    def __init__(self, line: Callable[[Any], str] = line_of) -> None:
        self._line = line
        self._console = console()
        self._live = Live("starting", console=self._console, transient=True, refresh_per_second=4)
        self._next, self._wait = FIRST_PLAIN, FIRST_PLAIN

    def __enter__(self) -> LiveLine:
        if self._console.is_terminal and not logs_json():
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def update(self, progress: Any) -> None:
        """Draw or print."""
        if progress.message and not logs_json():
            self._console.print(Text(progress.message))
        elif progress.message:
            message(progress.message)
        if self._live.is_started:
            self._live.update(Text(self._line(progress), overflow="ellipsis", no_wrap=True))
        elif progress.seconds >= self._next:
            message(self._line(progress), progress=asdict(progress))
            self._wait = min(self._wait * 1.5, LAST_PLAIN)
            self._next = progress.seconds + self._wait


def print_summary(r: RunResult) -> None:
    """How the run went, on stderr."""
    gates = [verdict["why"] for verdict in r.evaluation.get("gates", ())]
    lines = [*_counts(r), *_speed(r), *r.notes, *gates, *map(sink_line, r.sinks)]
    if r.cached:
        lines.append(f"from the cache: {many(r.cached, 'row')}")
    if r.resumed:
        lines.append(f"shards: {r.resumed:,} done before, {r.shards:,} now")
    if r.replaced:
        lines.append(f"replaced: {', '.join(f'run {run}' for run in r.replaced)}")
    if logs_json():
        message(lines[0], "info" if r.status == "done" else "error", results=asdict(r))
        return
    for line in lines:
        message(line)


def _counts(r: RunResult) -> Iterator[str]:
    total = f"{many(r.rows, 'row')} = {many(r.rows - r.dead - r.reused, 'result')} + {many(r.dead, 'dead letter')}"
    if r.changes:
        total += f" + {r.reused:,} that stand; {r.deleted:,} deleted"
    yield f"{r.status}: {total} in {r.output}"
    if r.message:
        yield r.message
    if r.changes:
        yield "changes: " + ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in reasons_of(r.changes))
    if r.codes:
        yield "dead letters: " + ", ".join(f"{code} {n:,}" for code, n in sorted(r.codes.items()))


def _speed(r: RunResult) -> Iterator[str]:
    if not r.shards:
        return
    took, s = r.resolved, r.seconds
    yield (
        f"{r.docs_per_second:,.1f} docs/s · {r.tokens_per_second:,.0f} tokens/s · padding {r.padding:.1%} · "
        f"device busy {r.device_busy:.0%} · {took['replicas']} x {took['device']} · {took['why']}"
    )
    yield (
        f"start-up {s['start']:.1f} s · encode {s['encode']:.1f} s · forward {s['forward']:.1f} s · "
        f"write {s['write']:.1f} s · idle {s['idle']:.1f} s · total {s['total']:.1f} s (stages overlap)"
    )


def reasons_of(changes: Mapping[str, int]) -> list[tuple[str, int]]:
    """What has become of the rows of a corpus, without their sum."""
    return [(reason, n) for reason, n in changes.items() if reason != "rows"]


def sink_line(sink: Mapping[str, Any]) -> str:
    """What a warehouse was given."""
    name = f"{sink['kind']} {sink['table']}"
    if sink["status"] == "failed":
        return f"{name}: not loaded: {sink['message']}"
    if sink["status"] == "held":
        return f"{name}: holds these results already"
    deleted = f", {sink['deleted']:,} deleted" if sink.get("deleted") else ""
    return f"{name}: {sink['rows']:,} rows loaded{deleted} in {duration(sink['seconds'])}"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A small table on stdout; nothing in it is cut off."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    out = console(stderr=False)
    if out.is_terminal:
        out.print(table)
        return
    out.width = WIDE
    with out.capture() as drawn:
        out.print(table)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in drawn.get().splitlines())
