"""Prove a finished output, from the files alone: no model, no torch.

For every shard and for the whole run: rows in = results + dead letters, by count and by a hash over the ids; every
file is there with its size and checksum; the manifest says the same as the commits; generated ids are unique.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from batchnlp.data.ledger import SUCCESS, Ledger, open_ledgers, sums
from batchnlp.data.parts import hash_each
from batchnlp.data.store import sha256_file
from batchnlp.types import Part, PartFile, Plan


@dataclass(slots=True)
class Verdict:
    """What `verify` found; `problems` is empty when all is well."""

    rows: int = 0
    ok: int = 0
    dead: int = 0
    files: int = 0
    duplicate_ids: int = 0
    problems: list[str] = field(default_factory=list)


def verify(root: str) -> Verdict:
    """Check everything that can be checked without the input."""
    verdict = Verdict()
    ledgers = open_ledgers(root)
    for ledger in ledgers:
        plan, _ = ledger.plan()
        commits = ledger.commits()
        hashes: list[np.ndarray[Any, Any]] = []
        for shard in plan.shards:
            part = commits.get(shard.index)
            if part is None:
                verdict.problems.append(f"run {ledger.run}: shard {shard.index} is not committed; run the job again")
                continue
            verdict.problems += _check_part(ledger, part, shard.rows, hashes)
        _check_whole(ledger, plan, commits, verdict)
        double = _duplicates(hashes)
        verdict.duplicate_ids += double
        if double and not (ledger.plan_tree() or {})["facts"]["source"].get("id"):
            verdict.problems.append(f"run {ledger.run}: {double} generated ids are there twice")
    return verdict


def _check_part(ledger: Ledger, part: Part, rows: int, hashes: list[np.ndarray[Any, Any]]) -> Iterator[str] | list[str]:
    name = f"run {ledger.run}, shard {part.shard}"
    problems = []
    if part.rows != rows or part.ok + part.dead != rows:
        problems.append(f"{name}: {rows} rows in, {part.ok} results, {part.dead} dead letters")
    found: list[int] = []
    for file in part.files:
        problems += _check_file(ledger, file)
        if file.kind != "order" and not problems:
            found += hash_each(pq.read_table(ledger.store.path(file.name), columns=["id"], partitioning=None)["id"])
    if not problems and f"{sum(found) % 2**64:016x}" != part.ids_hash:
        problems.append(f"{name}: the ids are not those that went in")
    hashes.append(np.array(found, np.uint64))
    return problems


def _check_file(ledger: Ledger, file: PartFile) -> list[str]:
    path = ledger.store.path(file.name)
    if not os.path.isfile(path):
        return [f"{path} is missing"]
    if os.path.getsize(path) != file.size:
        return [f"{path} has {os.path.getsize(path):,} bytes instead of {file.size:,}"]
    if sha256_file(path) != file.sha256:
        return [f"{path} is damaged: its checksum differs"]
    return []


def _check_whole(ledger: Ledger, plan: Plan, commits: dict[int, Part], verdict: Verdict) -> None:
    total = sums(commits.values())
    verdict.rows += plan.rows
    verdict.ok += total["ok"]
    verdict.dead += total["dead"]
    verdict.files += sum(len(part.files) for part in commits.values())
    manifest = ledger.manifest()
    if manifest is None:
        verdict.problems.append(f"run {ledger.run} is not complete: no manifest; run the job again")
        return
    if any(manifest[key] != total[key] for key in ("rows", "ok", "dead")) or manifest["rows"] != plan.rows:
        verdict.problems.append(f"run {ledger.run}: the manifest's sums are not those of the commits")
    listed = {(f["name"], f["sha256"]) for f in manifest["files"]}
    if listed != {(f.name, f.sha256) for part in commits.values() for f in part.files}:
        verdict.problems.append(f"run {ledger.run}: the manifest lists other files than the commits")
    if manifest["success"] and ledger.store.read(SUCCESS) is None:
        verdict.problems.append(f"run {ledger.run} is complete, but {SUCCESS} is missing; run the job again")


def _duplicates(hashes: list[np.ndarray[Any, Any]]) -> int:
    every = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    return len(every) - len(np.unique(every))
