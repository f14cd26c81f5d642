"""Results by content: the same for whoever asks, within a bound, and whole whatever happens to whom."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_readers
from churn import LIMIT, churn, found, keys, opened, results
from nightly import ENGINE, same
from writing import LONG

import batchnlp
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.data import cache as caches
from batchnlp.data.collect import tables
from batchnlp.engine.computing import RunResult
from batchnlp.errors import SpecError
from batchnlp.job.load import build_spec


def size_of(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


# --- the directory


def test_what_was_added_is_found_by_others_of_the_same_recipe(tmp_path: Path) -> None:
    opened(tmp_path).add(keys(range(10)), results(range(10)))
    opened(tmp_path).add(keys(range(20, 25)), results(range(20, 25)))
    want = {**{i: str(i) for i in range(5, 10)}, **{i: str(i) for i in range(20, 22)}}
    assert found(opened(tmp_path), range(5, 22)) == {i - 5: label for i, label in want.items()}
    assert found(opened(tmp_path, "s" * 64), range(5, 22)) == {}
    assert found(opened(tmp_path), range(0)) == {}


def test_half_a_key_is_not_enough(tmp_path: Path) -> None:
    mine = keys(range(1))
    opened(tmp_path).add(mine, results(range(1)))
    other = pa.array([mine[0].as_py()[:8] + b"another!"], pa.binary(16))
    assert opened(tmp_path).find(other)[0].tolist() == []


def test_a_block_that_is_damaged_is_no_result_and_goes(tmp_path: Path) -> None:
    opened(tmp_path).add(keys(range(10)), results(range(10)))
    [block] = tmp_path.rglob("*.arrow")
    data = bytearray(block.read_bytes())
    at = data.rindex(b"7") if b"7" in data else len(data) // 2
    data[at] ^= 1
    block.write_bytes(data)
    assert found(opened(tmp_path), range(10)) == {}
    assert not block.exists()
    opened(tmp_path).add(keys(range(10)), results(range(10)))
    block.write_bytes(block.read_bytes()[:100])
    assert found(opened(tmp_path), range(10)) == {}


def test_a_block_that_is_gone_is_no_result(tmp_path: Path) -> None:
    opened(tmp_path).add(keys(range(10)), results(range(10)))
    cache = opened(tmp_path)
    next(tmp_path.rglob("*.arrow")).unlink()
    assert found(cache, range(10)) == {}


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    block = 1000
    one = opened(tmp_path, "a" * 64)
    one.add(keys(range(block)), results(range(block)))
    limit = int(3.5 * size_of(tmp_path))
    for i in range(1, 3):
        some = range(i * block, (i + 1) * block)
        opened(tmp_path, limit=limit).add(keys(some), results(some))
    for i, path in enumerate(sorted(tmp_path.rglob("*.arrow"), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (i, i))
    assert len(found(opened(tmp_path, "a" * 64), range(block))) == block  # used now
    for i in range(3, 12):
        some = range(i * block, (i + 1) * block)
        opened(tmp_path, limit=limit).add(keys(some), results(some))
        assert size_of(tmp_path) <= limit
    assert len(found(opened(tmp_path), range(11 * block, 12 * block))) == block
    assert not found(opened(tmp_path), range(block, 2 * block))
    opened(tmp_path, limit=100).add(keys(range(block)), results(range(block)))
    assert size_of(tmp_path) <= limit, "what is larger than all that may be is not written"


def test_what_crashes_left_goes_too(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    old, new = (next(tmp_path.iterdir()) / f".tmp-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.add(keys(range(10)), results(range(10)))
    assert (old.exists(), new.exists()) == (False, True)


def test_a_directory_that_cannot_be_is_refused_and_a_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"cache\.path: .* cannot be used"):
        opened(tmp_path / "file")
    cache = opened(tmp_path / "cache")

    def full(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caches, "fsync", full)
    cache.add(keys(range(10)), results(range(10)))
    assert cache.note == "the cache takes no more results: No space left on device"
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_many_runs_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    problems = context.Queue()
    children = [context.Process(target=churn, args=(str(tmp_path), seed, problems)) for seed in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 4, problems.get(timeout=5)
    assert size_of(tmp_path) <= LIMIT + 4 * LIMIT // 8
    assert not list(tmp_path.rglob(".tmp-*"))


# --- jobs


Run = Callable[..., RunResult]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a job over some texts, each time into another output, with one cache."""
    count = [0]

    def started(texts: list[str | None], model: str, kind: str = "classify", **task: Any) -> RunResult:
        count[0] += 1
        source, out = tmp_path / f"{count[0]}.parquet", tmp_path / f"out{count[0]}"
        pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "n": range(len(texts))}), source)
        return batchnlp.run({
            "source": {"path": str(source), "id": "n"}, "task": {"kind": kind, "model": model, **task},
            "engine": ENGINE, "output": {"path": str(out)}, "cache": str(tmp_path / "cache"),
            "limits": {"max_failed": "50%"},
        })  # fmt: skip

    return started


def test_a_run_tells_that_its_cache_is_full(run: Run, classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caches, "fsync", full)
    result = run(list(tiny.texts(5)), classifier)
    assert (result.status, result.notes) == ("done", ["the cache takes no more results: No space left on device"])


def rows_of(result: RunResult) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for table in tables(result.output) for row in table.to_pylist()}


def test_another_job_computes_only_what_nobody_has(run: Run, classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str | None] = [*tiny.texts(20), None, ""]
    first = run(texts, classifier)
    assert (first.cached, first.dead) == (0, 2)
    asked: list[int] = []
    forward = TorchEncoder.forward
    monkeypatch.setattr(
        TorchEncoder,
        "forward",
        lambda self, pieces, known=None: (asked.append(len(pieces)), forward(self, pieces, known))[1],
    )
    again = run([*texts[5:], "one that is new"], classifier)
    assert (again.cached, again.dead) == (15, 2)
    assert sum(asked) <= 3, "the new one, and windows of it"
    want = {i: {**row, "id": i} for i, (_, row) in enumerate(sorted(rows_of(first).items())[5:])}
    got = rows_of(again)
    new = got.pop(17)
    assert same(got, want)
    assert new["n_tokens"] > 0
    asked.clear()
    whole = run(texts[:20], classifier)
    assert (whole.cached, sum(asked)) == (20, 0)
    assert same(rows_of(whole), rows_of(first))
    for more in ({"on_long": "truncate"}, {"scores": True}):
        assert run(texts, classifier, **more).cached == 0


def check(run: Run, texts: list[str | None], model: str, **task: Any) -> None:
    """Half of the texts from the cache, among the others, comes to the same as all of them computed."""
    whole = run(texts, model, **{**task, "max_length": task.get("max_length", 40)})
    mixed = [
        text
        for pair in zip(texts, [f"{text} more" if text else "more" for text in texts], strict=True)
        for text in pair
    ]
    half = run(mixed, model, **{**task, "max_length": task.get("max_length", 40)})
    assert half.cached == whole.rows - whole.dead
    want, got = rows_of(whole), rows_of(half)
    assert same({i: {**got[2 * i], "id": i} for i in want}, want)


@pytest.mark.parametrize("kind", ["embed", "ner", "qa"])
def test_readers_give_the_same_from_the_cache(run: Run, kind: str, encoder: str, tmp_path: Path) -> None:
    texts: list[str | None] = [*tiny.texts(8), None]
    if kind == "embed":
        whole, again = run(texts, encoder, "embed"), run(texts, encoder, "embed")
        assert again.cached == 8
        assert [row["embedding"] for row in rows_of(again).values()] == [
            row["embedding"] for row in rows_of(whole).values()
        ]
        return
    model = tiny_readers.save_reader(tmp_path / "model", labels=tiny_readers.BIO if kind == "ner" else None)
    more = {"question": "who plays a game?"} if kind == "qa" else {}
    check(run, texts, str(model), kind=kind, **more)


@pytest.mark.parametrize("kind", ["summarize", "generate", "translate"])
def test_writers_give_the_same_from_the_cache(run: Run, kind: str, bart: str, gpt2: str, t5: str) -> None:
    model = {"summarize": bart, "generate": gpt2, "translate": t5}[kind]
    more: dict[str, Any] = {"source_language": "en", "target_language": "de"} if kind == "translate" else {}
    texts: list[str | None] = ["The game server", LONG if kind != "generate" else "a kernel", None, "small"]
    whole = run(texts, model, kind, max_new_tokens=6, **more)
    mixed = [texts[0], "another one", *texts[1:]]
    half = run(mixed, model, kind, max_new_tokens=6, **more)
    assert (half.cached, half.dead) == (3, 1)
    want, got = rows_of(whole), rows_of(half)
    assert [{**got[i], "id": 0} for i in (0, 2, 4)] == [{**want[i], "id": 0} for i in (0, 1, 3)]


def test_drawn_answers_belong_to_their_row(run: Run, gpt2: str) -> None:
    texts: list[str | None] = ["a kernel", "a kernel", "small"]
    first = run(texts, gpt2, "generate", max_new_tokens=6, sample=True)
    again = run(texts[1:], gpt2, "generate", max_new_tokens=6, sample=True)
    assert again.cached == 1, "the second row's id has another text now"
    assert rows_of(again)[0]["text"] == rows_of(first)[0]["text"]


def test_a_cache_is_a_local_directory() -> None:
    tree = {"source": {"path": "a"}, "task": {"kind": "embed", "model": "m"}, "output": {"path": "o"}}
    spec = build_spec({**tree, "cache": "some/where"})
    assert spec.cache is not None
    assert (spec.cache.path, spec.cache.max_bytes) == ("some/where", 10_000_000_000)
    with pytest.raises(SpecError, match="a cache is a local directory"):
        build_spec({**tree, "cache": {"path": "s3://bucket/cache"}})
