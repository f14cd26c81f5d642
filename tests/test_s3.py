"""Jobs whose results go to S3, spoken by a real server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny
from commands import invoke, last_json
from conftest import Corpus
from poison import WORD, poison
from s3_server import client, s3_server

import batchnlp
from batchnlp.data.collect import collect
from batchnlp.data.ledger import open_ledgers
from batchnlp.data.object_store import ObjectStore
from batchnlp.data.verify import verify
from batchnlp.engine.retry import retry_job
from batchnlp.errors import OutputError, SourceError


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    name, files = f"b-{abs(hash(request.node.name)) % 10**8}", client()
    files.mkdir(name)
    yield name
    files.rm(name, recursive=True)


def job(path: str, out: str, model: str, **more: Any) -> dict[str, Any]:
    return {
        "source": {"path": path, "id": "doc_id", "keep": ["lang"], "rows_per_shard": 5, **more.pop("source", {})},
        "task": {"kind": "classify", "model": model}, "engine": {"runner": "inline", "device": "cpu", "dtype": "float32"},
        "output": {"path": out, **more.pop("output", {})}, **more,
    }  # fmt: skip


def rows(out: str, folder: Path) -> list[dict[str, Any]]:
    collect(out, str(folder / "all.jsonl"), "jsonl")
    return [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]


def test_the_same_results_as_on_a_disk(bucket: str, corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    texts: list[str | None] = [*tiny.texts(24), None]
    local, out = str(tmp_path / "local"), f"s3://{bucket}/deep/out"
    source = str(corpus(texts))
    batchnlp.run(job(source, local, classifier, limits={"max_failed": 1}))
    result = batchnlp.run(job(source, out, classifier, limits={"max_failed": 1}))
    assert (result.status, result.rows, result.dead, result.output, result.notes) == ("done", 25, 1, out, [])
    assert rows(out, tmp_path) == rows(local, tmp_path)
    verdict = verify(out)
    assert (verdict.problems, verdict.rows, verdict.dead) == ([], 25, 1)
    files = client()
    left = {name.removeprefix(f"{bucket}/deep/out/") for name in files.find(f"{bucket}/deep/out")}
    assert not [name for name in left if "staging" in name or "lock" in name or "probe" in name], left
    assert "_SUCCESS" in left
    again = batchnlp.run(job(source, out, classifier, limits={"max_failed": 1}))
    assert (again.status, again.shards) == ("done", 0)


def test_partitions_and_modes(bucket: str, corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    out, one, two = f"s3://{bucket}/out", str(corpus(name="one")), str(corpus(name="two"))
    split = {"partition_by": ["lang"]}
    batchnlp.run(job(one, out, classifier, output=split))
    assert len(rows(out, tmp_path)) == 25
    with pytest.raises(OutputError, match="holds the results of another job"):
        batchnlp.run(job(two, out, classifier, output=split))
    batchnlp.run(job(two, out, classifier, output={**split, "mode": "append"}))
    assert len(rows(out, tmp_path)) == 50
    source = {"filter": [["lang", "==", "de"]]}
    result = batchnlp.run(job(two, out, classifier, output={**split, "mode": "overwrite"}, source=source))
    assert len(result.replaced) == 2
    assert {row["lang"] for row in rows(out, tmp_path)} == {"de"}
    names = client().find(f"{bucket}/out")
    parts = [name for name in names if name.endswith(".parquet") and "_batchnlp" not in name]
    assert {name.split("/")[2] for name in parts} == {"lang=de"}
    assert verify(out).problems == []


def test_a_run_that_was_cut_off_resumes(
    bucket: str, corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, source = f"s3://{bucket}/out", str(corpus())
    publish, published = ObjectStore.publish, []

    def crash(self: ObjectStore, name: str, target: str) -> None:
        if len(published) == 2:
            raise KeyboardInterrupt
        published.append(target)
        publish(self, name, target)

    monkeypatch.setattr(ObjectStore, "publish", crash)
    with pytest.raises(KeyboardInterrupt):
        batchnlp.run(job(source, out, classifier))
    monkeypatch.setattr(ObjectStore, "publish", publish)
    done = len(open_ledgers(out)[0].committed_shards())
    assert done >= 3, "the one that was committed and not published counts"
    result = batchnlp.run(job(source, out, classifier))
    assert (result.status, result.rows) == ("done", 25)
    assert result.resumed >= done
    assert verify(out).problems == []


def test_the_command_line_takes_uris(bucket: str, corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    out, files = f"s3://{bucket}/out", client()
    batchnlp.run(job(str(corpus([*tiny.texts(9), ""])), out, classifier, limits={"max_failed": 1}))
    upload = files.call_s3("create_multipart_upload", Bucket=bucket, Key="out/part-9.parquet")["UploadId"]

    def call(*args: str) -> Any:
        command = [sys.executable, "-m", "batchnlp", *args, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True, timeout=120)
        return json.loads(done.stdout.splitlines()[-1])

    assert call("status", out)["status"] == "done"
    assert call("verify", out)["status"] == "verified"
    assert call("collect", out, "--dead")["file"] == "out.dead.parquet"
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps({"id": row["id"], "truth": row["label"]}) + "\n"
                                                    for row in rows(out, tmp_path)))  # fmt: skip
    judged = call("evaluate", out, "--labels", "labels.jsonl:truth")
    assert (judged["metrics"]["accuracy"]["value"], judged["file"].startswith(out)) == (1.0, True)
    left = [f"part-9.parquet?uploadId={upload}"]  # from 2010: this server tells no other date
    assert call("gc", out, "--dry-run") == {"status": "done", "output": out, "removed": [], "found": left}
    assert call("gc", out)["removed"] == left
    assert "Uploads" not in files.call_s3("list_multipart_uploads", Bucket=bucket)


def test_a_job_is_run_judged_and_retried(
    bucket: str, corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, spec = f"s3://{bucket}/out", tmp_path / "job.yaml"
    sink = {"kind": "duckdb", "database": str(tmp_path / "w.duckdb"), "table": "topics"}
    evaluate = {"evaluate": {"labels": "lang"}, "gates": {"accuracy": {"min": 0}}}
    texts = [f"{text} {WORD}" if i == 3 else text for i, text in enumerate(tiny.texts(10))]
    folder = corpus(texts)
    table = pq.read_table(folder)
    pq.write_table(
        table.set_column(
            table.schema.get_field_index("lang"), "lang", [["games", "science", "web", "games", "science"] * 2]
        ),
        folder / "all.parquet",
    )
    tree = job(str(folder / "all.parquet"), out, classifier, limits={"max_failed": 1}, sinks=[sink], **evaluate)
    spec.write_text(json.dumps(tree))
    with poison(monkeypatch):
        judged = invoke("evaluate", spec, "--json", "--set", "engine.backend=torch")
    assert judged.exit_code == 0, judged.output
    assert last_json(judged)["judged"] == 9
    (retried,) = retry_job(out)
    assert (retried.status, [one["rows"] for one in retried.sinks]) == ("done", [1]), retried.sinks
    assert len(rows(out, tmp_path)) == 10
    assert verify(out).problems == []


def test_sources_and_outputs_on_one_store(bucket: str, corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    files, folder = client(), corpus()
    files.put(f"{folder}/", f"{bucket}/in", recursive=True)
    first, second = f"s3://{bucket}/in/results", f"s3://{bucket}/in/more"
    assert batchnlp.run(job(f"s3://{bucket}/in", first, classifier)).rows == 25
    assert batchnlp.run(job(f"s3://{bucket}/in/**/*.parquet", second, classifier)).rows == 25, "outputs are no corpus"
    assert batchnlp.run(job(f"s3://{bucket}/in", first, classifier)).shards == 0
    with pytest.raises(SourceError, match="lies in the output"):
        batchnlp.run(job(f"{first}/part-*.parquet", first, classifier))
    with pytest.raises(SourceError, match="control files"):
        batchnlp.run(job(f"{first}/_batchnlp", second, classifier))


def test_results_go_on_into_a_warehouse(bucket: str, corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    import duckdb

    sink = {"kind": "duckdb", "database": str(tmp_path / "w.duckdb"), "table": "topics", "key": "id"}
    batchnlp.run(job(str(corpus()), f"s3://{bucket}/out", classifier, sinks=[sink]))
    with duckdb.connect(sink["database"]) as database:
        assert database.execute("select count(*), count(distinct id) from topics").fetchone() == (25, 25)


def test_the_secret_is_nowhere(
    bucket: str, corpus: Corpus, classifier: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither in what is written nor in what is said, of a run on Ray that fails at last."""
    out = f"s3://{bucket}/out"
    tree = job(str(corpus([*tiny.texts(20), None, ""])), out, classifier, limits={"max_failed": 0})
    result = batchnlp.run({**tree, "engine": {**tree["engine"], "runner": "ray", "replicas": 2}})
    assert (result.status, result.rows, result.dead) == ("failed", 22, 2)
    command = [sys.executable, "-m", "batchnlp", "status", out, "--json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    files = client()
    held = [name for name in files.find(bucket) if secret.encode() in files.cat_file(name)]
    assert held == []
    assert secret not in said.stdout + said.stderr + "".join(capfd.readouterr()) + repr(result)


def test_what_cannot_be_written_is_refused_before_anything_starts(bucket: str, corpus: Corpus, classifier: str) -> None:
    with pytest.raises(OutputError, match="there is no such bucket"):
        batchnlp.run(job(str(corpus()), "s3://no-such-bucket-here/out", classifier))
    with pytest.raises(OutputError, match="holds no run"):
        verify(f"s3://{bucket}/none")


def test_a_second_run_names_the_first(bucket: str, corpus: Corpus, classifier: str) -> None:
    from batchnlp.data.lock import Lock
    from batchnlp.errors import LockedError

    out = f"s3://{bucket}/out"
    lock = Lock(ObjectStore.at(out), "first")
    lock.acquire()
    try:
        with pytest.raises(LockedError, match=f"in use by process {os.getpid()}"):
            batchnlp.run(job(str(corpus()), out, classifier))
    finally:
        lock.release()
