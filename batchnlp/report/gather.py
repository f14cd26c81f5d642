"""From an output to what its report says: ledger, commits, notes of invocations, a sample of the results.

Nothing here fails because something is damaged, missing or not done yet: what cannot be known is left out, and said. The time
it takes does not grow with the rows: commits are read one by one, as `status` does, and of the results a sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from batchnlp import __version__
from batchnlp.data import invocations
from batchnlp.data.collect import read_dead
from batchnlp.data.ledger import Ledger
from batchnlp.data.status import Status, ledgers, read, status_of
from batchnlp.errors import OutputError
from batchnlp.job.spec import JobSpec, LimitsSpec
from batchnlp.report import history
from batchnlp.report.agreement import agreement
from batchnlp.report.changes import changes, settings_changed
from batchnlp.report.page import Comparison, Digest, Load, Other, Page, Reason, Results, Samples, Worked
from batchnlp.report.results import samples, summarise
from batchnlp.report.speed import Log, speed, stretches, timeline
from batchnlp.report.verdict import judge
from batchnlp.types import Resolved

DEAD_FILES = 20  # that are opened to find an example of each reason
LONGEST = 2_000  # characters of a setting


class Looked:
    """A run, and all that a look at its files tells."""

    def __init__(self, ledger: Ledger, live: bool) -> None:
        self.ledger, self.log = ledger, Log()
        self.status: Status = status_of(ledger, live, self.log.add)
        self.entries = invocations.read(ledger)
        self.work = stretches(self.log, self.entries)
        self.unread: list[str] = []  # of the results
        tree = read(ledger.plan_tree, [])
        self.tree: dict[str, Any] = tree or {}
        plan = read(ledger.plan, [])
        self.schema: pa.Schema | None = plan[0].schema if plan else None
        self.resolved: Resolved | None = plan[1] if plan else None
        judged = read(ledger.outcome, []) or {}  # its limits are those that it was judged by; the plan's may be older
        self.spec: dict[str, Any] = judged.get("spec") or self.tree.get("spec") or {}
        self.kind = str(self._section("task").get("kind", ""))
        self.kept = tuple(self._section("source").get("keep") or ())

    @property
    def ended(self) -> float:
        """When something last happened; 0 where nobody knows."""
        ends = [entry.ended or entry.leased or entry.began for entry in self.entries]
        return max([*ends, *self.log.at], default=0.0)

    @property
    def allowed(self) -> int | None:
        """Dead letters that the job allows."""
        with suppress(ValidationError):
            if self.status.rows is not None:
                rows = self.status.rows + self.status.changes.get("unchanged", 0)
                return LimitsSpec.model_validate(self._section("limits")).failed_allowed(rows)
        return None

    def digest(self) -> Digest:
        """The run in numbers; this is where the results are read."""
        s, results = self.status, Results()
        if self.schema is not None:
            rows = self.log.per_shard(self.log.ok)
            results = summarise(self.ledger, self.kind, self.schema, self.kept, rows, self.unread)
        return Digest(
            job=s.job or "?", run=s.run, output=s.output, task=self.kind, model=str(self._section("task").get("model", "?")),
            state=s.status, live=s.live, ended=self.ended, rows=s.rows, rows_done=s.rows_done, ok=s.ok, dead=s.dead,
            codes=dict(sorted(s.codes.items(), key=lambda item: -item[1])), shards=s.shards, shards_done=s.shards_done,
            files=len(self.tree.get("files") or ()), speed=speed(self.work, self.log, self.entries), results=results,
            settings=self._settings(), versions=self._versions(),
            reused=s.changes.get("unchanged", 0), deleted=s.deleted, reasons=s.changes,
        )  # fmt: skip

    def samples(self, shown: Sequence[str]) -> Samples:
        """Some rows, with those of the source's columns that are asked for."""
        if self.schema is None:
            return Samples((), ())
        unknown = [name for name in shown if name not in self.kept]
        if unknown:
            raise OutputError(f"{unknown[0]!r} is no kept column", f"there are: {', '.join(self.kept) or 'none'}")
        rows = self.log.per_shard(self.log.ok)
        return samples(self.ledger, self.schema, self.kept, rows, shown, self.unread)

    def reasons(self) -> tuple[Reason, ...]:
        """Dead letters by code, with an example of each that a few files hold."""
        examples: dict[str, dict[str, Any]] = {}
        wanted = set(self.status.codes)
        for row in self._dead_rows():
            examples.setdefault(row["code"], row)
            if examples.keys() >= wanted:
                break
        by_count = sorted(self.status.codes.items(), key=lambda item: (-item[1], item[0]))
        return tuple(_reason(code, n, examples.get(code, {})) for code, n in by_count)

    def worked(self) -> tuple[Worked, ...]:
        """The invocations, oldest first."""
        return tuple(
            Worked(e.began, e.ended, e.status, e.message, self.log.by(e.invocation), e.host) for e in self.entries
        )

    def loads(self) -> tuple[Load, ...]:
        """What the last invocation gave to warehouses."""
        last = self.entries[-1].result.get("sinks", []) if self.entries else []
        return tuple(
            Load(
                f"{s['kind']} {s['table']}", s["status"], s.get("rows", 0), s.get("seconds", 0.0), s.get("message", "")
            )
            for s in last
        )

    def other(self) -> Other:
        """In a line, where another run is the subject."""
        s = self.status
        return Other(s.run, s.job or "?", s.status, s.live, s.rows_done, s.dead)

    def _dead_rows(self) -> Iterator[dict[str, Any]]:
        shards = [shard for shard, dead in zip(self.log.shards, self.log.dead, strict=True) if dead]
        for shard in shards[:DEAD_FILES]:
            table = read(partial(self._dead, shard), self.unread)
            if table is not None:
                yield from table.to_pylist()

    def _dead(self, shard: int) -> pa.Table | None:
        return read_dead(self.ledger, self.ledger.committed(shard))

    def _section(self, name: str) -> dict[str, Any]:
        return dict(self.spec.get(name) or {})

    def _settings(self) -> dict[str, str]:
        """What the job says otherwise than by default, what `auto` became, and which model it was."""
        spec = self.spec
        with suppress(ValidationError):
            spec = JobSpec.model_validate(spec).model_dump(mode="json", exclude_defaults=True)
        found = dict(_flat(spec))
        if self.resolved is not None:
            found |= {f"resolved: {name}": str(getattr(self.resolved, name)) for name in ("device", "dtype", "backend")}
            found["resolved: tokens_per_batch"] = str(self.resolved.tokens_per_batch or "as the backend likes")
        replicas = [
            e.result["resolved"]["replicas"] for e in self.entries if "replicas" in e.result.get("resolved", {})
        ]
        model = self.tree.get("model") or {}
        found |= {f"model: {name}": str(model[name]) for name in ("revision", "weights") if model.get(name)}
        return found | ({"resolved: replicas": str(replicas[-1])} if replicas else {})

    def _versions(self) -> dict[str, str]:
        known = [entry.versions for entry in self.entries if entry.versions]
        return known[-1] if known else {"batchnlp": str(self.tree.get("version", "?"))}


def page(root: str, shown: Sequence[str] = ()) -> Page:
    """The report on the run of an output in which something last happened. OutputError where there is no run.

    `shown`: kept columns that sample rows show too; they may hold the documents' text.
    """
    looked = [Looked(ledger, live) for ledger, live in ledgers(root)]
    subject = _last(looked)
    digest = subject.digest()
    by_ledger: Callable[[Ledger], Digest] = lambda ledger: Looked(ledger, live=True).digest()  # noqa: E731
    before = history.last_before(digest, subject.ledger.store, by_ledger)
    changed = tuple(changes(before, digest)) if before else ()
    others = tuple(one.other() for one in looked if one is not subject)
    loads, worked, allowed = subject.loads(), subject.worked(), subject.allowed
    sampled, reasons = subject.samples(shown), subject.reasons()
    notes = {*subject.log.notes, *(note for entry in subject.entries[-1:] for note in entry.result.get("notes", ()))}
    return Page(
        made=time.time(), version=__version__, digest=digest, allowed=allowed, before=before, changes=changed,
        verdict=judge(digest, subject.status, allowed, changed, loads, others, worked),
        limit=int((subject.tree.get("model") or {}).get("max_length") or 0),
        settings_changed=tuple(settings_changed(before, digest)) if before else (), timeline=timeline(subject.work),
        reasons=reasons, samples=sampled, worked=worked, loads=loads, others=others, notes=tuple(sorted(notes)),
        unread=tuple(dict.fromkeys(subject.unread)),
    )  # fmt: skip


def comparison(before: str, after: str) -> Comparison:
    """The report on what differs between the last runs of two outputs."""
    a, b = (_last([Looked(ledger, live) for ledger, live in ledgers(root)]) for root in (before, after))
    old, new = a.digest(), b.digest()
    agree = agreement(a.ledger, b.ledger, (a.kind, b.kind), (a.log.per_shard(a.log.ok), b.log.per_shard(b.log.ok)))
    return Comparison(
        time.time(), __version__, old, new, tuple(changes(old, new)), tuple(settings_changed(old, new)), agree
    )


def _last(looked: Sequence[Looked]) -> Looked:
    """The run in which something last happened; where nobody knows, the newest that is live."""
    return max(looked, key=lambda one: (one.ended, one.status.live, looked.index(one)))


def _reason(code: str, n: int, row: Mapping[str, Any]) -> Reason:
    line = row.get("line")
    where = f", line {line:,}" if line else f", row {row['row']:,}" if row.get("row") is not None else ""
    place = f"{row['file']}{where}" if row.get("file") else ""
    return Reason(code, n, row.get("stage") or "", row.get("message") or "", str(row.get("id") or ""), place)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of a job; what is a mapping below the second level stays one."""
    for key, value in tree.items():
        if isinstance(value, dict) and not prefix:
            yield from _flat(value, f"{key}.")
        elif value not in (None, [], {}):
            text = _setting(value)
            yield f"{prefix}{key}", text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
