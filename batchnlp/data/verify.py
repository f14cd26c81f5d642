"""Prove a finished output, from the files alone: no model, no torch.

For every shard and for the whole run: rows in = results + dead letters, by count and by a hash over the ids; every
file is there with its size and checksum; the manifest says the same as the commits; generated ids are unique, also
over several runs that stand in one output; `_SUCCESS` is there if and only if all of them succeeded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from batchnlp.data.changes import in_log
from batchnlp.data.commits import Tally
from batchnlp.data.deletes import deletes
from batchnlp.data.ledger import SUCCESS, Ledger, open_ledgers
from batchnlp.data.parts import NULL_ID, hash_each
from batchnlp.data.store import Store, open_store, sha256_of
from batchnlp.errors import CorruptError, OutputError
from batchnlp.types import Part, PartFile, Plan, many

Ids = npt.NDArray[np.uint64]  # hashes of ids


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
    return verify_store(open_store(root))


def verify_store(store: Store) -> Verdict:
    """The same for the output that `store` opens."""
    verdict = Verdict()
    ledgers = open_ledgers(store)
    with ledgers[0].store.snapshot():
        hashes = [_check_run(ledger, verdict) for ledger in ledgers]
    _check_ids(ledgers, hashes, verdict)
    _check_success(ledgers, verdict)
    return verdict


def _check_run(ledger: Ledger, verdict: Verdict) -> Ids:
    """Check one run; the hashes of its ids."""
    hashes: list[Ids] = [np.empty(0, np.uint64)]
    commits: dict[int, Part] = {}
    try:
        plan, _ = ledger.plan()
    except (CorruptError, OutputError) as error:
        verdict.problems.append(f"run {ledger.run}: {error}")
        return hashes[0]
    missing: list[int] = []
    for shard in plan.shards:
        try:
            part = ledger.find(shard.index)
        except CorruptError as error:
            verdict.problems.append(f"run {ledger.run}: {error}")
            continue
        if part is None:
            missing.append(shard.index)
            continue
        commits[shard.index] = part
        verdict.problems += _check_part(ledger, part, shard.rows, hashes)
    if missing:
        which = f"{len(missing)} of {many(len(plan.shards), 'shard')} (the first: {missing[0]}) are"
        which = f"shard {missing[0]} is" if len(missing) == 1 else which
        verdict.problems.append(f"run {ledger.run}: {which} not committed; run the job again")
    for extra in sorted(set(ledger.committed_shards()) - set(range(len(plan.shards)))):
        verdict.problems.append(f"run {ledger.run}: the commit of shard {extra} belongs to another plan")
    _check_whole(ledger, plan, commits, verdict)
    return np.concatenate(hashes)


def _check_ids(ledgers: list[Ledger], hashes: list[Ids], verdict: Verdict) -> None:
    """Ids that are there more than once, in a run or in several. Those of a source may be; generated ones must not."""
    log = in_log(ledgers[-1])  # in which a row that changes comes again
    verdict.duplicate_ids = sum(_duplicates([found]) for found in hashes) if log else _duplicates(hashes)
    generated: list[Ids] = []
    for ledger, found in zip(ledgers, hashes, strict=True):
        if not _generates_ids(ledger):
            continue
        if double := _duplicates([found]):
            verdict.problems.append(f"run {ledger.run}: {double} generated ids are there twice")
        if generated and (shared := int(np.isin(np.unique(found), np.concatenate(generated)).sum())):
            what = f"run {ledger.run}: {shared} generated ids are in a run before it as well"
            verdict.problems.append(f"{what}; the same rows were appended twice, or name source.id")
        generated.append(found)


def _generates_ids(ledger: Ledger) -> bool:
    try:
        return not (ledger.plan_tree() or {})["facts"]["source"].get("id")
    except (CorruptError, LookupError, AttributeError, TypeError):
        return False  # the plan is a problem already, or no ids were found


def _check_success(ledgers: list[Ledger], verdict: Verdict) -> None:
    """`_SUCCESS` says of all live runs together what their manifests say."""
    should = all(ledger.succeeded() for ledger in ledgers)
    there = ledgers[0].store.read(SUCCESS) is not None
    if should and not there:
        verdict.problems.append(f"all runs are complete, but {SUCCESS} is missing; run the job again")
    if there and not should:
        verdict.problems.append(f"{SUCCESS} is there, but not all runs are complete and within their limits")


def _check_part(ledger: Ledger, part: Part, rows: int, hashes: list[Ids]) -> list[str]:
    name = f"run {ledger.run}, shard {part.shard}"
    problems = []
    if part.rows != rows or part.ok + part.dead != rows:
        problems.append(f"{name}: {rows} rows in, {part.ok} results, {part.dead} dead letters")
    found: list[int] = []
    counts = {"rows": 0, "dead": 0}
    for file in part.files:
        problems += _check_file(ledger, file)
        if file.kind in counts and not problems:
            with ledger.store.open(file.name) as handle, pq.ParquetFile(handle) as parquet:
                several = file.kind == "dead" and "rows" in parquet.schema_arrow.names
                table = parquet.read(columns=["id", "rows"] if several else ["id"])
            found += hash_each(table["id"])
            counts[file.kind] += sum(rows or 1 for rows in table["rows"].to_pylist()) if several else len(table)
    if not problems and (counts["rows"], counts["dead"]) != (part.ok, part.dead):
        what = f"{counts['rows']} results and {counts['dead']} dead letters, not {part.ok} and {part.dead}"
        problems.append(f"{name}: its files hold {what}")
    if not problems and f"{sum(found) % 2**64:016x}" != part.ids_hash:
        problems.append(f"{name}: the ids are not those that went in")
    hashes.append(np.array([one for one in found if one != NULL_ID], np.uint64))
    return problems


def _check_file(ledger: Ledger, file: PartFile) -> list[str]:
    path = ledger.store.path(file.name)
    if damage := ledger.damage(file):
        return [f"{path} {damage}"]
    try:
        with ledger.store.open(file.name) as handle:
            whole = sha256_of(handle) == file.sha256
    except OSError as error:
        return [f"{path} cannot be read: {error.strerror}"]
    return [] if whole else [f"{path} is damaged: its checksum differs"]


def _check_whole(ledger: Ledger, plan: Plan, commits: dict[int, Part], verdict: Verdict) -> None:
    total = Tally.of(commits.values()).sums()
    changes = (ledger.plan_tree() or {}).get("changes")
    if changes is not None and plan.rows + changes["unchanged"] != changes["rows"]:
        what = f"{changes['rows']:,} rows in, {plan.rows:,} to compute and {changes['unchanged']:,} that stand"
        verdict.problems.append(f"run {ledger.run}: {what}")
    verdict.rows += plan.rows
    verdict.ok += total["ok"]
    verdict.dead += total["dead"]
    verdict.files += sum(len(part.files) for part in commits.values())
    try:
        deleted = deletes(ledger)
        verdict.files += len(deleted)
        manifest = ledger.manifest()
    except CorruptError as error:
        verdict.problems.append(f"run {ledger.run}: {error}")
        return
    if manifest is None:
        verdict.problems.append(f"run {ledger.run} is not complete: no manifest; run the job again")
        return
    if any(manifest[key] != total[key] for key in ("rows", "ok", "dead")) or manifest["rows"] != plan.rows:
        verdict.problems.append(f"run {ledger.run}: the manifest's sums are not those of the commits")
    listed = {(f.get("name"), f.get("sha256")) for f in manifest["files"]}
    for file in deleted:
        verdict.problems += _check_file(ledger, file)
    if listed != {(f.name, f.sha256) for f in [*(f for part in commits.values() for f in part.files), *deleted]}:
        verdict.problems.append(f"run {ledger.run}: the manifest lists other files than the commits")


def _duplicates(hashes: list[Ids]) -> int:
    every = np.concatenate(hashes)
    return len(every) - len(np.unique(every))
