"""Faults of stores, disks and files: what is written to, and what is read from."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import tiny
from flaky_files import FlakyFiles
from rivals import rivals
from test_full_disk import no_small_disk, on_a_small_disk

import batchnlp
from batchnlp.data import object_store
from batchnlp.data.collect import read_dead, tables
from batchnlp.data.object_store import ObjectStore
from batchnlp.data.verify import verify, verify_store
from batchnlp.errors import OutputError, StoppedError
from chaos.table import Outcome, Place, row

Rows = list[dict[str, Any]]


def model(place: Place) -> str:
    """A classifier of two layers."""
    path = place.models / "classifier"
    return str(path) if path.is_dir() else tiny.save_classifier(path, ("games", "science", "web"))


def corpus(place: Place, rows: int, name: str = "in") -> tuple[Path, list[str]]:
    """(a directory with Parquet files of a hundred rows, the ids)"""
    folder = place.folder / name
    folder.mkdir()
    ids, texts = [f"{name}-{i:05}" for i in range(rows)], tiny.texts(rows)
    for start in range(0, rows, 100):
        part = slice(start, start + 100)
        pq.write_table(pa.table({"doc_id": ids[part], "text": texts[part]}), folder / f"{start:05}.parquet")
    return folder, ids


def job(place: Place, source: Path, out: str, *, per_shard: int | None = 10, **more: Any) -> dict[str, Any]:
    """A classification in shards of ten rows."""
    return {
        "source": {"path": str(source), "id": "doc_id", "rows_per_shard": per_shard, **more},
        "task": {"kind": "classify", "model": model(place)}, "engine": {"runner": "inline", "backend": "torch"},
        "output": {"path": out}, "limits": {"max_failed": "100%"},
    }  # fmt: skip


def again(run: Callable[[], Any], most: int = 50) -> int:
    """The same command until it is done; how often it stopped."""
    for stopped in range(most):
        try:
            run()
        except (StoppedError, OutputError):
            continue
        return stopped
    raise AssertionError(f"not done after {most} runs")


@row("object store: 20 % errors, lost answers, delayed writers")
def weather(place: Place) -> Outcome:
    """A real job over a store in memory; it is done again until it says that it is done."""
    source, ids = corpus(place, 2000)
    files = FlakyFiles(place.seed, errors=0.2)
    began = time.monotonic()
    with mock.patch.object(ObjectStore, "at", files.store), mock.patch.object(object_store, "PAUSE", 0.001):
        again(lambda: batchnlp.run(job(place, source, "mem://out")))
    seconds = time.monotonic() - began
    files.errors = 0.0
    files.settle()
    calm = files.store("mem://out")
    found = Counter(_ids(calm))
    want = Counter(ids)
    return Outcome(
        files.failed, len(ids), found.total(), 0, (found - want).total(), (want - found).total(), seconds,
        broken=tuple(verify_store(calm).problems),
    )  # fmt: skip


def _ids(calm: ObjectStore) -> list[str]:
    from batchnlp.data.ledger import open_ledgers

    found: list[str] = []
    for ledger in open_ledgers(calm):
        for part in ledger.commits().values():
            for file in (file for file in part.files if file.kind == "rows"):
                with calm.open(file.name) as handle:
                    found += pq.ParquetFile(handle).read(["id"])["id"].to_pylist()
    return found


@row("two runs into the same output at the same time")
def two_runs(place: Place) -> Outcome:
    """A hundred times; and ten times with the lock taken away."""
    source, ids = corpus(place, 60)
    began, outcomes, broken = time.monotonic(), list[Outcome](), list[str]()
    locked = 0
    with rivals() as pair:
        for i in range(110):
            out = place.folder / f"out{i}"
            ended = sorted(pair.run(job(place, source, str(out), per_shard=1), lock=i < 100))
            names = [name for name, _ in ended]
            locked += i < 100 and names == ["LockedError", "done"]
            if "done" not in names or (i < 100 and names not in (["LockedError", "done"], ["done", "done"])):
                broken.append(f"round {i} ended with {names}")
            if i < 100 and names[0] == "LockedError" and f"process {ended[1][1]} on " not in ended[0][1]:
                broken.append(f"round {i} does not name the holder: {ended[0][1]}")
            outcomes.append(Outcome.of(out, ids, 1))
    if locked < 50:
        broken.append(f"only {locked} of 100 runs met the lock of the other")
    return Outcome(
        110, sum(o.rows_in for o in outcomes), sum(o.rows_out for o in outcomes), sum(o.dead for o in outcomes),
        sum(o.duplicates for o in outcomes), sum(o.lost for o in outcomes), time.monotonic() - began,
        broken=(*broken, *(text for o in outcomes for text in o.broken)),
    )  # fmt: skip


@row("disk full (a small tmpfs)")
def full_disk(place: Place) -> Outcome:
    """It stops, shows nothing half, and goes on when there is room."""
    if why := no_small_disk():
        raise AssertionError(why)
    source, ids = corpus(place, 200)
    began = time.monotonic()
    seen = on_a_small_disk(job(place, source, str(place.folder / "disk" / "out"), per_shard=2), place.folder, 600)
    full, after = seen["full"], seen["again"]
    wrong = {
        "it did not stop with exit code 3": full.get("exit_code") != 3,
        "its message is not clear": not full.get("said", "").startswith("no space left below"),
        "a partial file was visible": bool(full["broken"]),
        "it did not resume": after["status"] != "done" or not after["success"],
        "no shard was done before": not full["committed"],
    }
    broken = [text for text, true in wrong.items() if true] + seen["problems"]
    done = len(ids) if after["status"] == "done" and not seen["problems"] else 0
    return Outcome(1, len(ids), done, 0, 0, len(ids) - done, time.monotonic() - began, broken=tuple(broken))


@row("a clock that jumps by a day, back and forth")
def clock(place: Place) -> Outcome:
    """Every time that it is looked at."""
    source, ids = corpus(place, 1000)
    now, random, jumps = time.time, Random(place.seed), [0]

    def leap() -> float:
        jumps[0] += 1
        return now() + 86_400 * random.choice([-1, 0, 1])

    began = time.monotonic()
    with mock.patch.object(time, "time", leap):
        batchnlp.run(job(place, source, str(place.folder / "out")))
    return Outcome.of(place.folder / "out", ids, jumps[0], seconds=time.monotonic() - began)


def _salvaged(place: Place, source: Path, ids: list[str], injected: int, lost: int, **more: Any) -> Outcome:
    """Refused by default; salvaged, `lost` of the ids are counted in letters, and all others are there."""
    out, broken = place.folder / "out", list[str]()
    began = time.monotonic()
    try:
        batchnlp.run(job(place, source, str(place.folder / "refused"), **more))
        broken.append("a damaged file was not refused")
    except batchnlp.errors.BatchnlpError as error:
        if error.exit_code not in (2, 3) or "cannot be read" not in str(error):
            broken.append(f"refused with {error}")
    batchnlp.run(job(place, source, str(out), on_bad_file="salvage", **more))
    results = Counter(str(id_) for table in tables(str(out)) for id_ in table["id"].to_pylist())
    letters: Rows = [letter for table in tables(str(out), read_dead) for letter in table.to_pylist()]
    dead = sum(letter["rows"] for letter in letters)
    missing = Counter(ids) - results
    if dead != lost:
        broken.append(f"{dead} rows are counted as lost, {lost} are")
    return Outcome(
        injected, len(ids), results.total(), dead, (results - Counter(ids)).total(), missing.total() - lost,
        time.monotonic() - began, broken=(*broken, *verify(str(out)).problems),
    )  # fmt: skip


@row("corrupt Parquet page, salvaged")
def page(place: Place) -> Outcome:
    """One row group of ten in each of five files."""
    source, ids = corpus(place, 500)
    for path in sorted(source.iterdir()):
        table = pq.read_table(path)
        options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
        pq.write_table(table, path, row_group_size=10, **options)
        word = table["text"][55].as_py().encode()
        path.write_bytes(path.read_bytes().replace(word, word.swapcase()))
    return _salvaged(place, source, ids, 5, 50)


@row("truncated gzip, salvaged")
def stream(place: Place) -> Outcome:
    """Cut off at a random place."""
    rows, source = 5000, place.folder / "in"
    source.mkdir()
    ids = [f"in-{i:05}" for i in range(rows)]
    lines = [json.dumps({"doc_id": i, "text": t}) for i, t in zip(ids, tiny.texts(rows), strict=True)]
    raw = gzip.compress("\n".join(lines).encode())
    cut = raw[: place.random.randrange(len(raw) // 4, len(raw) - 100)]
    (source / "a.jsonl.gz").write_bytes(cut)
    return _uncounted(place, source, ids)


def _uncounted(place: Place, source: Path, ids: list[str]) -> Outcome:
    """What is whole stands at the beginning, and one letter for the rest."""
    outcome = _salvaged(place, source, ids, 1, 1, per_shard=None)
    found = [str(id_) for table in tables(str(place.folder / "out")) for id_ in table["id"].to_pylist()]
    prefix = found == ids[: len(found)] and len(found) > len(ids) // 10
    broken = outcome.broken if prefix else (*outcome.broken, "what is whole is not the beginning of the file")
    return Outcome(
        1, len(ids), len(found), 1, outcome.duplicates, 0 if prefix else outcome.lost, outcome.seconds, broken=broken
    )


@row("malformed lines in JSON, CSV and text")
def lines(place: Place) -> Outcome:
    """Exactly those rows are dead letters, with file and line."""
    source = place.folder / "in"
    source.mkdir()
    good = [json.dumps({"doc_id": f"j{i}", "text": f"a game {i}"}).encode() for i in range(2000)]
    bad = [b"{", b"\xff\xfe", b'{"doc_id": "x%d", "text": 5}', b'{"doc_id": "y%d", "text": "a\\ud800"}', b"[1]", b"\0"]
    at = sorted(place.random.sample(range(2000), 60))
    for n, i in enumerate(at):
        good[i] = bad[n % len(bad)].replace(b"%d", b"%d" % n)
    (source / "a.jsonl").write_bytes(b"\n".join(good))
    out = place.folder / "out"
    began = time.monotonic()
    tree = job(place, source, str(out), per_shard=500)
    batchnlp.run(tree)
    letters: Rows = [letter for table in tables(str(out), read_dead) for letter in table.to_pylist()]
    broken = [] if [letter["line"] - 1 for letter in letters] == at else ["other lines are dead than were struck"]
    results = sum(len(table) for table in tables(str(out)))
    return Outcome(
        60, 2000, results, len(letters), 0, 2000 - results - len(letters), time.monotonic() - began,
        broken=(*broken, *verify(str(out)).problems),
    )  # fmt: skip


@row("ids that are there twice, in a file and across files")
def twice(place: Place) -> Outcome:
    """Refused; kept once; numbered."""
    source, ids = corpus(place, 1000)
    table = pq.read_table(source / "00300.parquet")
    repeated = [*ids[:50], *table["doc_id"].to_pylist()[50:99], ids[350]]
    pq.write_table(table.set_column(0, "doc_id", pa.array(repeated)), source / "00300.parquet")
    given = [*ids[:300], *repeated, *ids[400:]]
    began, broken = time.monotonic(), list[str]()
    try:
        batchnlp.run(job(place, source, str(place.folder / "refused")))
        broken.append("ids that are there twice were not refused")
    except batchnlp.errors.SourceError:
        pass
    out = place.folder / "out"
    batchnlp.run(job(place, source, str(out), on_duplicate_id="keep_first") | {"limits": {"max_failed": 0}})
    outcome = Outcome.of(out, given, 51, seconds=time.monotonic() - began, broken=broken)
    kept = [str(id_) for t in tables(str(out)) for id_ in t["id"].to_pylist()]
    if len(kept) != len(set(kept)) or outcome.dead != 51:
        return Outcome(51, 1000, len(kept), outcome.dead, broken=("an id is in the results twice",))
    return outcome
