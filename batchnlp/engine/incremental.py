"""Incremental runs: what a run is based on, what of its corpus it computes, and what it leaves for the next one.

The base is the newest live run that succeeded, and part of the fingerprint: the same corpus on another base is another run.
A plan reads the corpus once. Before plan.json is there, all that it says is there too: what is known of the rows now (the
state for the next run, which counts once this run has succeeded) and the ids that are gone. So no crash skips a row, or
computes one twice, and the state is never written: it is the file of the run that is the base.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchnlp.data.changes import Before, Bits, Changes, Record, Spill, changes_of, compare
from batchnlp.data.collect import read_dead
from batchnlp.data.deletes import deletes, set_deletes
from batchnlp.data.hashing import id_keys
from batchnlp.data.known import KnownRows, known_rows, known_schema, parquet_writer
from batchnlp.data.ledger import Ledger, fingerprints, live, set_live
from batchnlp.data.parts import is_log, log_columns, partition_folders
from batchnlp.data.sources import selection
from batchnlp.data.store import CONTROL, Store, sha256_of
from batchnlp.data.sweep import drop
from batchnlp.engine.computing import RunResult
from batchnlp.engine.planner import Prepared, enough_rows, identified, make_plan
from batchnlp.errors import CorruptError, OutputError
from batchnlp.job.identity import digest, fingerprint
from batchnlp.types import DELETE, PartFile, Plan, Segment, Shard

STATE = f"{CONTROL}/state"
READ = 50  # rows read for each row that a shard may have
ROWS = 8192  # that are written at a time where most columns are null
DUPLICATE = "duplicate_id"  # of dead letters: another row of that id stands
Tell = Callable[[int, int], None]  # (rows compared, of how many)


def on_base(prepared: Prepared, store: Store) -> Prepared:
    """The job as the run that goes on from the newest good one, or is that one; as it is in another mode."""
    if prepared.spec.output.mode != "incremental":
        return prepared
    refuse_others(prepared, store)
    facts = _inputs(prepared.facts)
    base, revision = _newest(store), 0
    name = None if base is None else base.fingerprint
    if base is not None:
        theirs = (base.plan_tree() or {})["facts"]
        revision = int(base.plan()[0].schema.metadata[b"batchnlp.revision"])
        if fingerprint(_inputs(theirs)) == fingerprint(facts):
            name = theirs["base"]
        else:
            revision += 1
    found = identified(prepared, {**facts, "base": name})
    metadata = {**found.schema.metadata, b"batchnlp.revision": str(revision).encode()}
    return replace(found, schema=found.schema.with_metadata(metadata))


def refuse_others(prepared: Prepared, store: Store) -> None:
    """A log goes on from runs of the same job: OutputError where something else stands in the output."""
    for name in live(store):
        ledger = Ledger(store, name)
        if not ledger.begun():
            continue
        tree = ledger.plan_tree() or {}
        if not is_log(ledger.plan()[0].schema):
            hint = "use another output.path: an incremental job begins in one of its own"
            raise OutputError(f"{store.root} holds results that are no log of changes", hint)
        if tree.get("job") != prepared.about["job"]:
            hint = "use another output.path, or that job's name"
            raise OutputError(f"{store.root} is the log of the job {tree.get('job')}", hint)


def plan_changes(
    prepared: Prepared, store: Store, replicas: int, *, keep: bool, tell: Tell = lambda rows, total: None
) -> tuple[Plan, Changes]:
    """The plan, with the rows that must be computed alone, and all rows by reason. Without `keep` nothing is written into
    the output. Raises SourceError where ids are not unique, OutputError where their type has changed."""
    whole = make_plan(prepared, replicas)
    with ExitStack() as stack:
        before = _before(prepared, store)
        if before is not None:
            stack.callback(before.rows.close)
        folder = stack.enter_context(_scratch(prepared, store) if keep else tempfile.TemporaryDirectory())
        if not keep and any(file.compression for file in prepared.source.files):
            prepared.source.spool_into(folder)
        found, bits = Changes(rows=whole.rows), Bits(whole.rows)
        spill = Spill(os.path.join(folder, "rows"), max(whole.rows, before.rows.rows if before else 0))
        for rows in _scan(prepared, whole.shards, found, bits, tell):
            spill.add(rows)
        record = stack.enter_context(_recorded(prepared, store, whole)) if keep else Record()
        compare(spill, before, found, bits.set, record)
    if not found.unchanged:
        return whole, found
    most = 1 if prepared.spec.source.rows_per_shard else enough_rows(prepared, found.computed, replicas)
    shards = (Shard(i, tuple(segments)) for i, segments in enumerate(_selected(whole.shards, bits, most)))
    return replace(whole, shards=tuple(shards)), found


def write_deletes(prepared: Prepared, ledger: Ledger, plan: Plan) -> None:
    """Publish the ids that had a result and have none any more: rows that are gone, and rows that fail now."""
    with closing(_deleted(prepared, ledger)) as deleted:
        tables = (_delete_rows(ids, plan.schema) for ids in deleted)
        if (first := next(tables, None)) is None:
            set_deletes(ledger, None)
            return
        folders = partition_folders(first.slice(0, 1), prepared.spec.output.partition_by)  # of nulls
        name, rows = "/".join([*folders, f"part-delete-{ledger.run}.parquet"]), 0
        with parquet_writer(ledger.store, name, plan.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
                rows += len(table)
    with ledger.store.open(name) as handle:
        file = PartFile(name, rows, ledger.store.size(name) or 0, sha256_of(handle), "delete")
    set_deletes(ledger, file)


def told(result: RunResult, ledger: Ledger) -> RunResult:
    """A result, with what has become of all rows of the corpus."""
    changes, deleted = changes_of(ledger) or Changes(), sum(file.rows for file in deletes(ledger))
    rows, stand = result.rows + changes.unchanged, changes.unchanged
    return replace(result, rows=rows, reused=stand, deleted=deleted, changes=asdict(changes))


def make_live(ledger: Ledger) -> None:
    """A run that has succeeded comes after the good ones before it; all that is then no part of the log is dropped."""
    store, now = ledger.store, live(ledger.store)
    good = [name for name in now if name != ledger.fingerprint and Ledger(store, name).succeeded()]
    stays = [*good, ledger.fingerprint]
    if stays != now:
        set_live(store, stays)
    for other in {*now, *fingerprints(store)} - {*stays}:  # also those that a crash here once left over
        drop(Ledger(store, other))


def sweep_states(ledger: Ledger) -> None:
    """Remove what no run goes on from any more, now that this one is the newest that succeeded. That of its base stays: a
    shard of this run may have to be computed again."""
    facts = (ledger.plan_tree() or {})["facts"]
    stays = {f"{name[:16]}.parquet" for name in (ledger.fingerprint, facts["base"]) if name}
    for folder in ledger.store.names(STATE):
        for name in ledger.store.names(f"{STATE}/{folder}"):
            if name not in stays:
                ledger.store.remove(f"{STATE}/{folder}/{name}")
        ledger.store.prune(f"{STATE}/{folder}")


# --- the base


def _inputs(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != "base"}


def _newest(store: Store) -> Ledger | None:
    """The newest live run that succeeded."""
    ledgers = (Ledger(store, name) for name in reversed(live(store)))
    return next((ledger for ledger in ledgers if ledger.succeeded()), None)


def _recipe(facts: dict[str, Any], schema: pa.Schema) -> str:
    """What results depend on apart from the row itself, and what they look like."""
    return digest([facts["recipe"], str(schema.remove_metadata())])


def _state_of(name: str, facts: dict[str, Any], plan: Plan) -> str:
    """Where what a run knows of its rows is kept."""
    return f"{STATE}/{_recipe(facts, plan.schema)[:8]}/{name[:16]}.parquet"


def _gone(name: str) -> str:
    return f"{CONTROL}/{name}/gone.parquet"


def _before(prepared: Prepared, store: Store) -> Before | None:
    if (name := prepared.facts["base"]) is None:
        return None
    ledger = Ledger(store, name)
    (plan, _), facts = ledger.plan(), (ledger.plan_tree() or {})["facts"]
    hint = "nobody knows what has changed without it; use another output.path, which computes all rows"
    rows = KnownRows(_local(store, _state_of(name, facts, plan), hint), hint)
    if rows.id_type != prepared.source.id_type:
        rows.close()
        message = f"source.id is {prepared.source.id_type} now, and {rows.id_type} in the log of {store.root}"
        raise OutputError(message, "use another output.path")
    same = _recipe(facts, plan.schema) == _recipe(prepared.facts, prepared.schema)
    return Before(rows, _failed(ledger), same)


def _failed(ledger: Ledger) -> pa.Table:
    """key and id of the dead letters of a run that is complete, in the order of the keys."""
    found = []
    for file in (ledger.manifest() or {"files": []})["files"]:
        if file["kind"] == "dead":
            found.append(_dead_ids(ledger, file["name"]))
    return (
        _by_key(pa.concat_tables(found)) if found else _by_key(pa.table({"id": pa.array([], pa.string()), "code": []}))
    )


def _local(store: Store, name: str, hint: str) -> str:
    """Where a file can be read from its middle on this host."""
    try:
        return store.local(name)
    except OSError as error:
        raise CorruptError(f"{store.path(name)} cannot be read: {error.strerror}", hint) from None


def _dead_ids(ledger: Ledger, name: str) -> pa.Table:
    try:
        with ledger.store.open(name) as handle, pq.ParquetFile(handle, page_checksum_verification=True) as parquet:
            return parquet.read(["id", "code"])
    except (OSError, pa.ArrowException) as error:
        hint = f"batchnlp verify {ledger.store.root} tells what else is damaged"
        raise CorruptError(f"{ledger.store.path(name)} cannot be read: {' '.join(str(error).split())}", hint) from None


def _by_key(dead: pa.Table) -> pa.Table:
    """key and id of dead letters that have an id nobody else has."""
    dead = dead.filter(pc.and_(pc.is_valid(dead["id"]), pc.not_equal(dead["code"].cast(pa.string()), DUPLICATE)))
    ids = pc.unique(dead["id"].cast(pa.large_string()))
    keys = id_keys(ids)
    order = pa.array(np.argsort(keys, kind="stable"))
    return pa.table({"key": pa.array(keys), "id": ids}).take(order).combine_chunks()


# --- the corpus


@contextmanager
def _recorded(prepared: Prepared, store: Store, plan: Plan) -> Iterator[Record]:
    """Files for what is known of the rows now, and for what is gone; they are there when all of it is written."""
    schema, name = known_schema(prepared.source.id_type), prepared.fingerprint
    state = parquet_writer(store, _state_of(name, prepared.facts, plan), schema)
    with state as rows, parquet_writer(store, _gone(name), pa.schema([schema.field("id")])) as ids:
        yield Record(
            lambda some: rows.write_table(some.select(schema.names).cast(schema)),
            lambda some: ids.write_table(pa.table([some], ["id"])),
        )


@contextmanager
def _scratch(prepared: Prepared, store: Store) -> Iterator[str]:
    """A folder that is empty, whatever a crash has left in it."""
    name = f"{CONTROL}/{prepared.fingerprint}/compare"
    store.remove(name)
    try:
        yield store.scratch(name)
    finally:
        store.remove(name)


def _scan(
    prepared: Prepared, shards: tuple[Shard, ...], found: Changes, bits: Bits, tell: Tell
) -> Iterator[pa.Table]:  # fmt: skip
    """All rows that have an id, with their numbers in the corpus as `at`; those that have none are computed each time."""
    at = 0
    for shard in shards:
        docs = prepared.source.read(shard)
        rows = known_rows(docs).append_column("at", pa.array(np.arange(at, at + len(docs))))
        if docs.ids.null_count:
            without = rows.filter(pc.is_null(rows["id"]))
            found.new += len(without)
            bits.set(without["at"].to_numpy())
            rows = rows.filter(pc.is_valid(rows["id"]))
        yield rows
        at += len(docs)
        tell(at, found.rows)


def _selected(shards: tuple[Shard, ...], bits: Bits, most: int) -> Iterator[list[Segment]]:
    """The segments of shards with the selected rows alone; what is left of several shards goes into one."""
    group: list[Segment] = []
    load, rows, read, at = 0.0, 0, 0, 0
    for shard in shards:
        segments: list[Segment] = []
        for segment in shard.segments:
            chosen = bits.between(at, at + segment.rows)
            at += segment.rows
            if chosen.any():
                selected = "" if chosen.all() else selection.pack(chosen)
                segments.append(replace(segment, rows=int(chosen.sum()), selected=selected))
        count = sum(segment.rows for segment in segments)
        share = count / max(shard.rows, 1)
        if group and count and (rows + count > most or load + share > 1 or read + shard.rows > most * READ):
            yield group
            group, load, rows, read = [], 0.0, 0, 0
        if count:
            group, load, rows, read = group + segments, load + share, rows + count, read + shard.rows
    if group:
        yield group


# --- deletes


def _delete_rows(ids: pa.Array, schema: pa.Schema) -> pa.Table:
    columns = [ids, *(pa.nulls(len(ids), field.type) for field in list(schema)[1:-2])]
    return pa.table([*columns, *log_columns(schema, len(ids), DELETE)], names=schema.names).cast(schema)


def _deleted(prepared: Prepared, ledger: Ledger) -> Generator[pa.Array]:
    """The ids that are to go, in arrays."""
    before = _before(prepared, ledger.store)
    if before is None:
        return
    try:
        with (
            ledger.store.open(_gone(ledger.fingerprint)) as handle,
            pq.ParquetFile(handle, page_checksum_verification=True) as gone,
        ):
            yield from (batch.column("id") for batch in gone.iter_batches(ROWS) if len(batch))
        yield from _failing(ledger, before)
    finally:
        before.rows.close()


def _failing(ledger: Ledger, before: Before) -> Iterator[pa.Array]:
    """Rows that fail now and had a result."""
    parts = (part for part in ledger.commits().values() if part.dead)
    found = [table.select(["id", "code"]) for part in parts if (table := read_dead(ledger, part)) is not None]
    if not found:
        return
    dead = _by_key(pa.concat_tables(found))
    for ids in before.rows.ids(dead["key"].combine_chunks()):
        names = ids.cast(pa.large_string())
        now = pc.is_in(names, value_set=dead["id"].combine_chunks())
        then = pc.is_in(names, value_set=before.failed["id"].combine_chunks())
        some = ids.filter(pc.and_not(now, then))
        if len(some):
            yield some
