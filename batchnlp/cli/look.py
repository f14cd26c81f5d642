"""The bodies of the commands that look at jobs and outputs. No torch, but for `plan`."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from batchnlp.cli.show import duration, message, print_json, print_table, reasons_of, size
from batchnlp.data import collect as collecting
from batchnlp.data.commits import Tally
from batchnlp.data.ledger import open_ledgers
from batchnlp.data.status import ledgers, status_of
from batchnlp.data.verify import verify
from batchnlp.errors import OutputError
from batchnlp.job.spec import JobSpec
from batchnlp.types import many

if TYPE_CHECKING:
    from batchnlp.engine.estimate import Estimate


def show_plan(
    spec: JobSpec, as_json: bool, *, full: bool = False, probe: bool = False, explain: bool = False
) -> None:  # fmt: skip
    """Estimates of a job."""
    from batchnlp.engine.estimate import estimate
    from batchnlp.engine.planner import prepare

    found = estimate(prepare(spec), full=full, probe=probe, explain=explain)
    if as_json:
        print_json(asdict(found))
        return
    print_table("", ("", ""), _plan_rows(found))
    if not found.histogram:
        return
    most = max(found.histogram.values(), default=1)
    print_table(
        "\ntokens a document", ("", "", ""),
        [(name, n, "#" * max(1, round(40 * n / most))) for name, n in found.histogram.items()],
    )  # fmt: skip


def _plan_rows(found: Estimate) -> list[tuple[str, str]]:
    """The figures of an estimate, each with its name."""
    memory = ", ".join(f"{name} {size(n)}" for name, n in found.memory.items())
    eta = (
        "unknown; --probe measures it"
        if found.seconds is None
        else f"{duration(found.seconds)} at {found.docs_per_second:,.0f} docs/s"
    )
    if found.seconds is not None and found.committed == found.shards:
        eta = f"none, all is done; a row more at {found.docs_per_second:,.0f} docs/s"
    whole = found.sampled >= found.rows
    about, on = ("", "all of them") if whole else ("about ", "the figures below stand on them")
    rows = [
        ("run", f"{found.run} ({found.job})"),
        ("input", ", ".join(many(*of) for of in ((found.files, "file"), (found.rows, "row"), (found.shards, "shard")))),
        *(
            [("done already", f"{many(found.rows_done, 'row')} in {many(found.committed, 'shard')}")]
            * bool(found.committed)
        ),
        *((reason.replace("_", " "), many(n, "row")) for reason, n in reasons_of(found.changes or {})),
        ("sample", f"{many(found.sampled, 'document')}; {on}"),
        ("tokens", f"{about}{found.tokens:,} in all; longest {found.longest:,}, the model takes {found.max_length:,}"),
        ("over the limit", f"{about}{many(found.over_limit, 'document')}"),
        ("duplicates", f"{found.duplicate_share:.1%}"),
        ("dead letters", ", ".join(f"{code} {n:,}" for code, n in found.dead.items()) or "none"),
        ("padding", f"{found.padding:.1%} at {found.resolved['tokens_per_batch']:,} tokens a batch"),
        ("engine", f"{found.replicas} x {found.resolved['device']}, {found.resolved['why']}"),
        ("memory a replica", memory),
        ("time", eta),
        *(("note", note) for note in found.notes),
    ]
    if found.resolved["backend"] == "http":
        unknown = "tokens", "over the limit", "padding", "memory a replica", "time"  # but to the server
        return [row for row in rows if row[0] not in unknown]
    return rows


def show_status(out: str, as_json: bool) -> None:
    """Where the runs stand: those that are live, and those that are not, or not yet."""
    runs = [status_of(ledger, live) for ledger, live in ledgers(out)]
    if as_json:
        print_json(asdict(runs[-1]) if len(runs) == 1 else {"runs": [asdict(run) for run in runs]})
        return
    for i, run in enumerate(runs):
        rows = [
            ("run", f"{run.run} ({run.job}), {run.status}{'' if run.live else ', not live'}"),
            *(("damage", damage) for damage in run.damage),
            *([("below its gates", run.gates)] if run.gates else []),
            ("shards", f"{run.shards_done:,} of {_known(run.shards)} done"),
            ("rows", f"{run.rows_done:,} of {_known(run.rows)}: {_sum(run.ok, run.dead)}"),
            *((reason.replace("_", " "), f"{n:,}") for reason, n in reasons_of(run.changes)),
            *((f"dead: {code}", f"{n:,}") for code, n in sorted(run.codes.items())),
        ]
        if run.dead:
            see = f"batchnlp collect {shlex.quote(out)} --dead -o -"
            rows.append(("see them", see if run.live else f"the Parquet files in {run.dead_letters}"))
        if run.retries:
            rows.append(("tried again", "once" if run.retries == 1 else f"{run.retries:,} times"))
        print_table("" if i == 0 else " ", ("", ""), rows)


def _known(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _sum(ok: int, dead: int) -> str:
    return f"{many(ok, 'result')} + {many(dead, 'dead letter')}"


def show_verdict(out: str, as_json: bool) -> int:
    """Verify; the exit code."""
    verdict = verify(out)
    if as_json:
        print_json({"status": "failed" if verdict.problems else "verified", "output": out, **asdict(verdict)})
    else:
        for problem in verdict.problems:
            message(problem)
        what = f"{many(verdict.rows, 'row')} = {_sum(verdict.ok, verdict.dead)} in {many(verdict.files, 'file')}"
        bad = many(len(verdict.problems), "problem")
        message(f"not verified: {bad}" if verdict.problems else f"verified: {what}")
        if verdict.duplicate_ids:
            message(f"repeated ids of the source: {verdict.duplicate_ids:,}")
    return 1 if verdict.problems else 0


def write_collected(out: str, target: str | None, format_: str | None, dead: bool, as_json: bool) -> None:
    """Collect results or dead letters into one file."""
    format_ = format_ or _by_name(target)
    beside = out.rstrip("/").rpartition("/")[2] if "://" in out else os.path.abspath(out)  # abspath: "." has no name
    target = target or f"{beside}{'.dead' if dead else ''}.{format_}"
    lost = 0
    for ledger in open_ledgers(out):
        done, shards = ledger.commits(), len(ledger.plan()[0].shards)
        lost += Tally.of(done.values()).dead
        if len(done) < shards:
            message(f"run {ledger.run} is not complete: {len(done):,} of {many(shards, 'shard')}")
    rows = collecting.collect(out, target, cast(collecting.Format, format_), dead=dead)
    message(
        f"{many(rows, 'dead letter') if dead else many(rows, 'row')} {'on stdout' if target == '-' else f'in {target}'}"
    )
    if lost and not dead:
        message(
            f"{many(lost, 'dead letter')} beside them: batchnlp collect {shlex.quote(out)} --dead tells which, and why"
        )
    if as_json and target != "-":
        print_json({"status": "done", "rows": rows, "dead": lost, "file": target, "format": format_})


def _by_name(target: str | None) -> str:
    """The format that a file's name says; jsonl for stdout, parquet for a name that is ours to choose."""
    if target in (None, "-"):
        return "jsonl" if target else "parquet"
    found = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    suffix = os.path.splitext(str(target))[1].lower()
    if suffix not in found:
        raise OutputError(f"the name {target} says no format", "end it in .parquet, .csv or .jsonl, or add --format")
    return found[suffix]
