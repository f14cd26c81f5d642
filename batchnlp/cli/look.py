"""The bodies of the commands that look at jobs and outputs. No torch, but for `plan`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from batchnlp.cli.show import duration, message, print_json, print_table, size
from batchnlp.data import collect as collecting
from batchnlp.data.ledger import Ledger, fingerprints, open_ledgers, sums
from batchnlp.data.lock import running
from batchnlp.data.verify import verify
from batchnlp.job.load import load_spec


def show_plan(path: str, settings: Sequence[str], full: bool, probe: bool, as_json: bool) -> None:
    """Estimates of a job."""
    from batchnlp.engine.estimate import Estimate, estimate
    from batchnlp.engine.planner import prepare

    found: Estimate = estimate(prepare(load_spec(path, settings)), full=full, probe=probe)
    if as_json:
        print_json(asdict(found))
        return
    memory = ", ".join(f"{name} {size(n)}" for name, n in found.memory.items())
    eta = (
        "unknown; --probe measures it"
        if found.seconds is None
        else f"{duration(found.seconds)} at {found.docs_per_second:,.0f} docs/s"
    )
    rows = [
        ("run", f"{found.run} ({found.job})"),
        ("input", f"{found.files} files, {found.rows:,} rows, {found.shards} shards, {found.committed} done"),
        ("sample", f"{found.sampled:,} documents; the figures below stand on them"),
        ("tokens", f"about {found.tokens:,} in all; longest {found.longest:,}, the model takes {found.max_length:,}"),
        ("over the limit", f"about {found.over_limit:,} documents"),
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
        rows = [row for row in rows if row[0] not in unknown]
    print_table("", ("", ""), rows)
    if not found.histogram:
        return
    most = max(found.histogram.values(), default=1)
    print_table(
        "\ntokens a document", ("", "", ""),
        [(name, n, "#" * max(1, round(40 * n / most))) for name, n in found.histogram.items()],
    )  # fmt: skip


def show_status(out: str, as_json: bool) -> None:
    """Where the runs stand: those that are live, and those that are not, or not yet."""
    standing = open_ledgers(out)
    store, names = standing[0].store, [ledger.fingerprint for ledger in standing]
    others = [Ledger(store, name) for name in fingerprints(store) if name not in names]
    runs = [{**_status(ledger), "live": ledger in standing} for ledger in [*standing, *others]]
    if as_json:
        print_json(runs[-1] if len(runs) == 1 else {"runs": runs})
        return
    for run in runs:
        rows = [
            ("run", f"{run['run']} ({run['job']}), {run['status']}{'' if run['live'] else ', not live'}"),
            ("shards", f"{run['shards_done']} of {run['shards']} done"),
            ("rows", f"{run['rows_done']:,} of {run['rows']:,}: {run['ok']:,} results, {run['dead']:,} dead letters"),
            *((f"dead: {code}", f"{n:,}") for code, n in sorted(run["codes"].items())),
        ]
        if run["dead"]:
            rows.append(("see them", f"the Parquet files in {run['dead_letters']}"))
        print_table("", ("", ""), rows)


def _status(ledger: Ledger) -> dict[str, Any]:
    tree, total = ledger.plan_tree() or {}, sums(commits := list(ledger.commits().values()))
    manifest = ledger.manifest()
    holder = running(ledger.store)
    unfinished = f"running (process {holder.pid} on {holder.host})" if holder else "incomplete"
    state = unfinished if manifest is None else "done" if manifest["success"] else "failed"
    return {
        "status": state, "run": ledger.run, "job": tree.get("job"), "output": ledger.store.root,
        "shards": len(tree.get("shards", [])), "shards_done": len(commits), "rows": tree.get("rows", 0),
        "rows_done": total["rows"], "ok": total["ok"], "dead": total["dead"], "codes": total["codes"],
        "dead_letters": ledger.store.path(f"{ledger.control}/dead"),
    }  # fmt: skip


def show_verdict(out: str, as_json: bool) -> int:
    """Verify; the exit code."""
    verdict = verify(out)
    if as_json:
        print_json({"status": "failed" if verdict.problems else "verified", "output": out, **asdict(verdict)})
    else:
        for problem in verdict.problems:
            message(problem)
        what = (
            f"{verdict.rows:,} rows = {verdict.ok:,} results + {verdict.dead:,} dead letters in {verdict.files} files"
        )
        message(f"not verified: {len(verdict.problems)} problems" if verdict.problems else f"verified: {what}")
        if verdict.duplicate_ids:
            message(f"{verdict.duplicate_ids:,} ids of the source are there more than once")
    return 1 if verdict.problems else 0


def write_collected(out: str, target: str | None, format_: str | None, as_json: bool) -> None:
    """Collect into one file."""
    format_ = format_ or _by_name(target) or ("jsonl" if target == "-" else "parquet")
    target = target or f"{os.path.abspath(out)}.{format_}"  # abspath: "." has no name
    for run in map(_status, open_ledgers(out)):
        if run["shards_done"] < run["shards"]:
            message(f"run {run['run']} is not complete: {run['shards_done']} of {run['shards']} shards")
    rows = collecting.collect(out, target, cast(collecting.Format, format_))
    message(f"{rows:,} rows in {'stdout' if target == '-' else target}")
    if as_json and target != "-":
        print_json({"status": "done", "rows": rows, "file": target, "format": format_})


def _by_name(target: str | None) -> str | None:
    suffix = os.path.splitext(target or "")[1].lower()
    return {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(suffix)
