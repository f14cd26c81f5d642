"""What a row of the matrix is, what it gives, and how all of them are told."""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import pyarrow as pa

from batchnlp.data.collect import read_dead, tables
from batchnlp.data.verify import verify

COLUMNS = ("fault", "injected", "rows in", "rows out", "dead", "twice", "lost", "s", "over clean", "")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault."""

    injected: int  # faults that really happened
    rows_in: int
    rows_out: int  # results
    dead: int
    duplicates: int = 0  # ids that are there more than once, over results and dead letters
    lost: int = 0  # ids of the input that are nowhere
    seconds: float = 0.0
    clean: float = 0.0  # seconds of the same run undisturbed; 0 where there is nothing to compare
    broken: tuple[str, ...] = ()  # bounds of the matrix that did not hold, a sentence each

    @classmethod
    def of(
        cls, out: Path, ids: Iterable[str], injected: int, *, seconds: float = 0.0, clean: float = 0.0,
        broken: Sequence[str] = (),
    ) -> Outcome:  # fmt: skip
        """Counted from the files of the output `out`, whose input had these ids; what `verify` finds is broken too."""
        want = Counter(ids)
        results = _ids(out, dead=False)
        dead = _ids(out, dead=True)
        found = results + dead
        return cls(
            injected, want.total(), results.total(), dead.total(), (found - want).total(), (want - found).total(),
            seconds, clean, (*broken, *verify(str(out)).problems),
        )  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether the fault happened, nothing was lost or doubled, and every bound held."""
        return self.injected > 0 and not (self.duplicates or self.lost or self.broken)


def _ids(out: Path, *, dead: bool) -> Counter[str]:
    read = {"read": read_dead} if dead else {}
    return Counter(str(id_) for table in tables(str(out), **read) for id_ in table["id"].cast(pa.string()).to_pylist())


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row works, and what it may draw from."""

    folder: Path  # its own, empty
    models: Path  # shared by all rows
    random: Random
    seed: int


Row = Callable[[Place], Outcome]
ROWS: dict[str, Row] = {}  # by the fault's name, in the order of the table


def row(fault: str) -> Callable[[Row], Row]:
    """The decorated function is the row of this fault."""

    def put(function: Row) -> Row:
        assert fault not in ROWS, fault
        ROWS[fault] = function
        return function

    return put


def play(fault: str, place: Place) -> Outcome:
    """One row; an exception breaks it and not the table."""
    began = time.monotonic()
    try:
        return ROWS[fault](place)
    except Exception as error:  # noqa: BLE001 - what a row could not do is told with all the others
        traceback.print_exc()
        seconds = time.monotonic() - began
        return Outcome(
            0, 0, 0, 0, seconds=seconds, broken=(" ".join(f"{type(error).__name__}: {error}".split())[:300],)
        )


def line(fault: str, outcome: Outcome) -> list[str]:
    """A line of the table."""
    over = f"{outcome.seconds / outcome.clean:.2f}" if outcome.clean else ""
    numbers = outcome.injected, outcome.rows_in, outcome.rows_out, outcome.dead, outcome.duplicates, outcome.lost
    verdict = "ok" if outcome.whole else "; ".join(outcome.broken) or "FAILED"
    return [fault, *(f"{n:,}" for n in numbers), f"{outcome.seconds:.0f}" if outcome.seconds else "", over, verdict]


def draw(found: dict[str, Outcome]) -> str:
    """The table, as Markdown."""
    lines = [COLUMNS, tuple("-" * 3 for _ in COLUMNS), *(tuple(line(*one)) for one in found.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(found: dict[str, Outcome], seconds: float) -> str:
    """The last line of all: one JSON object."""
    rows = [{"fault": fault, "ok": outcome.whole, **asdict(outcome)} for fault, outcome in found.items()]
    return json.dumps({
        "chaos": "failed" if any(not one["ok"] for one in rows) else "passed", "seconds": round(seconds, 1),
        **{name: sum(getattr(one, name) for one in found.values()) for name in ("injected", "duplicates", "lost")},
        "rows": rows,
    })  # fmt: skip
