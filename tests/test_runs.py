"""Whole runs: killed, interrupted, resumed, on one replica and on several, inline and on Ray. Real processes, real signals.

Nothing here sleeps to be right: a test waits until it sees so many commits, or a line of output, and then strikes. A run that
is to be struck has two hundred shards, each of which costs some fsyncs, so that it cannot be over before the blow lands.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from processes import DEADLINE, commits, start, wait_for_commits

import batchnlp
from batchnlp import failpoints, registry
from batchnlp.backends.device import usable_cpus
from batchnlp.data.collect import tables
from batchnlp.data.verify import verify
from batchnlp.engine import signals
from batchnlp.engine.computing import Progress, RunResult
from batchnlp.engine.signals import Interrupt, keep_signals, watch_signals
from batchnlp.errors import Interrupted, SourceError, UsageError

ROWS = 1000
PER_SHARD = 5


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand documents in one row group, three of them without text."""
    texts: list[str | None] = list(tiny.texts(ROWS))
    texts[7], texts[500], texts[999] = None, "", "   "
    path = tmp_path_factory.mktemp("docs") / "docs.parquet"
    pq.write_table(pa.table({"doc_id": [f"d{i}" for i in range(ROWS)], "text": texts}), path)
    return path


def job(docs: Path, out: Path, model: str, runner: str = "inline", **engine: Any) -> dict[str, Any]:
    """A classification in shards of five rows."""
    return {
        "source": {"path": str(docs), "id": "doc_id", "rows_per_shard": PER_SHARD},
        "task": {"kind": "classify", "model": model, "scores": True},
        "engine": {"runner": runner, "dtype": "float32", "device": "cpu", "backend": "torch", **engine},
        "output": {"path": str(out)},
    }


def table(out: Path) -> pa.Table:
    """All results in input order."""
    return pa.concat_tables(tables(str(out))).replace_schema_metadata(None)


def assert_equal(a: pa.Table, b: pa.Table) -> None:
    """Same ids, order, schema and labels; numbers to 1e-5."""
    assert a.schema == b.schema
    for name in ("id", "label", "n_tokens", "n_windows", "truncated"):
        assert a[name].to_pylist() == b[name].to_pylist(), name
    assert a["score"].to_pylist() == pytest.approx(b["score"].to_pylist(), abs=1e-5)


@pytest.fixture(scope="module")
def undisturbed(docs: Path, classifier: str, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What an inline run gives that nobody touches."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    result = batchnlp.run(job(docs, out, classifier))
    assert (result.status, result.rows, result.dead, result.shards) == ("done", ROWS, 3, ROWS // PER_SHARD)
    assert result.codes == {"null_text": 1, "empty_text": 1, "blank_text": 1}
    return table(out)


def assert_resumes(spec: dict[str, Any], out: Path, undisturbed: pa.Table) -> RunResult:
    """The same command completes the run without touching what is committed."""
    before = commits(out)
    assert 0 < len(before) < ROWS // PER_SHARD
    result = batchnlp.run(spec)
    after = commits(out)
    assert (result.status, result.rows, result.dead) == ("done", ROWS, 3)
    assert {shard: after[shard] for shard in before} == before
    # Attempts that were finished but not committed are adopted; everything else runs exactly once.
    assert result.resumed >= len(before)
    assert result.resumed + result.shards == ROWS // PER_SHARD
    assert verify(str(out)).problems == []
    assert_equal(table(out), undisturbed)
    assert batchnlp.run(spec).shards == 0
    return result


def test_sigkill_of_the_driver_inline(docs: Path, classifier: str, tmp_path: Path, undisturbed: pa.Table) -> None:
    """And the run that resumes takes another batch size, because it is asked to."""
    spec = job(docs, out := tmp_path / "out", classifier)
    process = start(tmp_path, spec)
    wait_for_commits(out, 3, process)
    process.kill()
    process.communicate()
    spec["engine"]["tokens_per_batch"] = 77
    assert assert_resumes(spec, out, undisturbed).resolved["tokens_per_batch"] == 77


def test_sigkill_of_the_driver_around_its_records(
    docs: Path, classifier: str, tmp_path: Path, undisturbed: pa.Table
) -> None:
    """One kill after the other in the same output; fifty at random times are in `make chaos`."""
    print("seed", seed := time.time_ns() % 1000)  # noqa: T201 - what a failure needs to be seen again
    draw = random.Random(seed)
    spec, before = job(docs, out := tmp_path / "out", classifier), dict[int, str]()
    for point in ("commit", "committed", "published", "manifest", "success"):
        times = draw.randint(1, 40) if point[0] in "cp" else 1
        process = start(tmp_path, spec, **{failpoints.VARIABLE: f"{point}=kill@{times}"})
        process.communicate(timeout=DEADLINE)
        assert process.returncode == -signal.SIGKILL, point
        assert before.items() <= commits(out).items(), "what is committed is not touched"
        before = commits(out)
    assert batchnlp.run(spec).status == "done"
    assert commits(out) == before
    assert (out / "_SUCCESS").exists()
    assert verify(str(out)).problems == []
    assert_equal(table(out), undisturbed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_drains(
    number: signal.Signals, code: int, docs: Path, classifier: str, tmp_path: Path, undisturbed: pa.Table
) -> None:
    spec = job(docs, out := tmp_path / "out", classifier)
    process = start(tmp_path, spec)
    wait_for_commits(out, 2, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, stderr
    assert "finishing what is under way" in stderr
    last = json.loads(stdout.splitlines()[-1])
    assert last["status"] == "stopped"
    assert last["rows"] == len(commits(out)) * PER_SHARD
    assert_resumes(spec, out, undisturbed)


@pytest.fixture
def ray_cluster() -> Iterator[Any]:
    """Two nodes on this machine, each with half of its CPUs, and this process connected to them."""
    import ray
    from ray.cluster_utils import Cluster

    import batchnlp.engine.ray_runner  # noqa: F401 - its settings must come before ray's own import

    half = max(usable_cpus() // 2, 1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": half, "include_dashboard": False})
    cluster.add_node(num_cpus=half)
    cluster.wait_for_nodes()
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_ray_and_two_replicas_equal_inline(docs: Path, classifier: str, tmp_path: Path, undisturbed: pa.Table) -> None:
    """One local Ray, whatever RAY_ADDRESS says; and the same command again has nothing to do, so starts no Ray."""
    spec = job(docs, out := tmp_path / "out", classifier, "ray", replicas=2)
    process = start(tmp_path, spec, RAY_ADDRESS="127.0.0.1:1")
    stdout, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, stderr
    last = json.loads(stdout.splitlines()[-1])
    assert (last["status"], last["rows"], last["dead"]) == ("done", ROWS, 3)
    assert verify(str(out)).problems == []
    assert_equal(table(out), undisturbed)
    assert batchnlp.run(spec).message == "all is done already"


def test_sigkill_of_the_driver_on_ray(docs: Path, classifier: str, tmp_path: Path, undisturbed: pa.Table) -> None:
    """Its workers may write on for seconds: zombies, which must not disturb the run that resumes."""
    spec = job(docs, out := tmp_path / "out", classifier, "ray", replicas=2)
    process = start(tmp_path, spec)
    wait_for_commits(out, 3, process)
    process.kill()
    process.communicate()
    assert_resumes({**spec, "engine": {**spec["engine"], "runner": "inline"}}, out, undisturbed)


def test_sigkill_of_a_replica(docs: Path, classifier: str, tmp_path: Path, undisturbed: pa.Table) -> None:
    """The run goes on by itself: leases return, a fresh replica takes over, nothing is committed twice."""
    spec = job(docs, out := tmp_path / "out", classifier, "ray", replicas=2)
    process = start(tmp_path, spec)
    wait_for_commits(out, 3, process)
    victim = replicas_of(process.pid)[0]
    victim.kill()
    stdout, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, stderr
    last = json.loads(stdout)  # and nothing else is there, whatever Ray has to say
    assert (last["status"], last["shards"], last["resumed"]) == ("done", ROWS // PER_SHARD, 0)
    assert verify(str(out)).problems == []
    assert_equal(table(out), undisturbed)


def test_sigkill_of_replicas_in_each_of_their_phases(
    docs: Path, classifier: str, tmp_path: Path, undisturbed: pa.Table
) -> None:
    """Seven of them in one run, which goes on by itself; nothing that is committed is computed again."""
    spec = job(docs, out := tmp_path / "out", classifier, "ray", replicas=2)
    phases = {"load": 1, "read": 6, "encode": 3, "forward": 5, "write": 2, "written": 4, "handed": 3}
    points = ";".join(f"{name}=kill@{times}#{tmp_path / name}" for name, times in phases.items())
    process = start(tmp_path, spec, **{failpoints.VARIABLE: points})
    stdout, stderr = process.communicate(timeout=2 * DEADLINE)
    assert process.returncode == 0, stderr
    last = json.loads(stdout.splitlines()[-1])
    assert (last["status"], last["shards"], last["resumed"]) == ("done", ROWS // PER_SHARD, 0)
    assert f"{len(phases)} replicas lost" in last["notes"]
    under_way = [int(count) for count in re.findall(r"was lost, with (\d+) shards? under way", stderr)]
    assert len(under_way) == len(phases)
    assert max(under_way) <= 5, "read, waiting, in the model, waiting, being written"
    assert verify(str(out)).problems == []
    assert_equal(table(out), undisturbed)


def replicas_of(driver: int) -> list[psutil.Process]:
    """The Ray workers of a driver that run a replica."""
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        title = " ".join(child.cmdline())
        if title.startswith("ray::Replica"):
            found.append(child)
    assert found, "no replica is running"
    return found


def test_two_nodes(ray_cluster: Any, docs: Path, classifier: str, tmp_path: Path, undisturbed: pa.Table) -> None:
    """`engine.address` joins an existing cluster; a replica on each of its nodes, one of which dies in mid-run."""
    import ray

    spec = job(docs, out := tmp_path / "out", classifier, "ray", replicas=2, address=ray_cluster.address)
    killed: list[int] = []

    def strike(progress: Progress) -> None:
        if progress.rows_now and not killed:
            killed.append(len(commits(out)))
            here = ray.get_runtime_context().get_node_id()
            other = next(node for node in ray_cluster.list_all_nodes() if node.node_id != here)
            ray_cluster.remove_node(other, allow_graceful=False)

    result = batchnlp.run(spec, strike)
    assert (result.status, result.rows, result.dead) == ("done", ROWS, 3)
    assert killed[0] < ROWS // PER_SHARD
    assert verify(str(out)).problems == []
    assert_equal(table(out), undisturbed)


@pytest.mark.parametrize("asked", ["auto", 2])
def test_a_node_that_joins_in_mid_run_is_used(
    asked: str | int,
    docs: Path,
    classifier: str,
    tmp_path: Path,
    undisturbed: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where more replicas were asked for than there was room for: it starts with what is there, and says so."""
    import ray
    from ray.cluster_utils import Cluster

    from batchnlp.engine import ray_runner

    monkeypatch.setattr(ray_runner, "LOOK_SECONDS", 0.05)
    monkeypatch.setenv(failpoints.VARIABLE, "forward=sleep:0.1")  # of the cluster's workers
    cpus = usable_cpus() if asked == "auto" else max(usable_cpus() // 2, 1)  # of one replica
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
    monkeypatch.delenv(failpoints.VARIABLE)
    spec = job(docs, out := tmp_path / "out", classifier, "ray", replicas=asked, address=cluster.address)
    said: list[str] = []

    def join(progress: Progress) -> None:
        said.extend([progress.message] * bool(progress.message))
        if progress.rows_now and len(cluster.list_all_nodes()) == 1:
            cluster.add_node(num_cpus=cpus)

    try:
        result = batchnlp.run(spec, join)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert ("a node has joined: 2 replicas now" if asked == "auto" else "there is room for 1 of 2 replicas") in said
    assert (result.status, result.rows, result.resolved["replicas"]) == ("done", ROWS, 2)
    assert verify(str(out)).problems == []
    assert_equal(table(out), undisturbed)


@pytest.mark.skipif(usable_cpus() < 2, reason="half of one CPU is one")
def test_a_replica_that_no_node_can_hold_waits_for_one_that_can(
    ray_cluster: Any, docs: Path, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an autoscaler brings one; where none comes, Ray itself would wait for ever."""
    from batchnlp.engine import ray_runner

    spec = job(docs, tmp_path / "out", classifier, "ray", replicas=1, address=ray_cluster.address)
    cpus, half = usable_cpus(), usable_cpus() // 2
    with monkeypatch.context() as patch:
        patch.setattr(ray_runner, "ROOM_SECONDS", 0.0)
        want = (
            rf"asks for {cpus} CPUs \+ 0 GPUs, and no node .* has them: 2 x {half} CPUs .* \(with more engine\.replicas"
        )
        with pytest.raises(UsageError, match=want):
            batchnlp.run(spec)
    notes: list[str] = []

    def scale(progress: Progress) -> None:
        if not notes:
            ray_cluster.add_node(num_cpus=cpus)
        notes.append(progress.note)

    assert batchnlp.run(spec, scale).status == "done"
    assert notes[0] == f"waiting for a node with {cpus} CPUs + 0 GPUs"
    assert "starting" in notes, "then it loads its model like any other"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_told_at_once(address: str) -> None:
    from batchnlp.engine.ray_runner import start_ray

    with pytest.raises(UsageError, match=r"no Ray cluster at .*:1: .*Connection refused \(check engine\.address"):
        start_ray(address, 1, 0)


def test_a_replica_lost_while_stopping_has_no_successor(docs: Path, classifier: str, tmp_path: Path) -> None:
    spec = job(one_shard(docs, tmp_path), out := tmp_path / "out", classifier, "ray", replicas=1, tokens_per_batch=1)
    spec["source"]["rows_per_shard"] = 30 * ROWS
    process = start(tmp_path, spec)
    wait_for_line(process, COMPUTES)
    process.send_signal(signal.SIGTERM)
    wait_for_line(process, "finishing")
    (victim,) = replicas_of(process.pid)
    victim.kill()
    victim.wait(DEADLINE)
    while process.poll() is None:
        assert not [title for title in titles(process.pid) if "ray::Replica" in title]
        time.sleep(0.05)
    assert process.returncode == 143
    assert commits(out) == {}


def one_shard(docs: Path, tmp_path: Path) -> Path:
    """Thirty thousand rows, no two alike: with one document a batch, half a minute at least."""
    many, table = tmp_path / "many.parquet", pa.concat_tables([pq.read_table(docs)] * 30)
    texts = [f"{text} {i}" for i, text in enumerate(table["text"].to_pylist())]
    ids = [f"{id_}-{i}" for i, id_ in enumerate(table["doc_id"].to_pylist())]
    pq.write_table(pa.table({"doc_id": ids, "text": texts}), many)
    return many


COMPUTES = r" [1-9][\d,]* tokens/s"


def wait_for_line(process: subprocess.Popen[str], pattern: str) -> None:
    """Until the process says so on stderr."""
    assert process.stderr is not None
    while not re.search(pattern, line := process.stderr.readline()):
        assert line, f"ended without {pattern}"


@pytest.mark.parametrize(
    ("sign", "number", "code"),
    [("gcs_server", signal.SIGTERM, 143), ("ray::Replica", signal.SIGTERM, 143), ("ray::Replica", signal.SIGINT, 130)],
    ids=["Ray starts", "model loads", "model loads, Ctrl-C"],
)
def test_signal_during_start_up(
    sign: str, number: signal.Signals, code: int, docs: Path, classifier: str, tmp_path: Path, undisturbed: pa.Table
) -> None:
    spec = job(docs, out := tmp_path / "out", classifier, "ray", replicas=1)
    process = start(tmp_path, spec)
    limit = time.monotonic() + DEADLINE
    while not any(sign in title for title in titles(process.pid)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no start"
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, stderr
    assert "finishing what is under way" in stderr
    assert "Traceback" not in stderr
    last = json.loads(stdout.splitlines()[-1])
    assert (last["status"], last["rows"], last["shards"]) == ("stopped", 0, 0)
    assert commits(out) == {}
    assert batchnlp.run({**spec, "engine": {**spec["engine"], "runner": "inline"}}).shards == ROWS // PER_SHARD
    assert_equal(table(out), undisturbed)


def titles(driver: int) -> list[str]:
    """What the processes below the driver call themselves."""
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.Error):
            found.append(" ".join(child.cmdline()))
    return found


def test_a_second_run_is_locked_out(docs: Path, classifier: str, tmp_path: Path) -> None:
    spec = job(docs, out := tmp_path / "out", classifier)
    process = start(tmp_path, spec)
    wait_for_commits(out, 1, process)
    second = start(tmp_path, spec)
    _, stderr = second.communicate(timeout=DEADLINE)
    process.kill()
    process.communicate()
    assert second.returncode == 75
    assert f"in use by process {process.pid}" in stderr


def test_second_signal_leaves_at_once(docs: Path, classifier: str, tmp_path: Path, undisturbed: pa.Table) -> None:
    """With one shard under way, which the first signal would wait for."""
    spec = job(one_shard(docs, tmp_path), out := tmp_path / "out", classifier, tokens_per_batch=1)
    spec["source"]["rows_per_shard"] = 30 * ROWS
    process = start(tmp_path, spec)
    wait_for_line(process, COMPUTES)
    process.send_signal(signal.SIGINT)
    wait_for_line(process, "finishing")
    while process.poll() is None:  # two that come together are one
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    stdout, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    last = json.loads(stdout)
    assert (last["status"], last["exit_code"]) == ("stopped", 130), "programs are told too"
    assert not list(out.glob("part-*"))
    assert not (out / "_SUCCESS").exists()


def test_second_signal_leaves_although_a_child_has_just_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Child:
        killed = False

        def kill(self) -> None:
            self.killed = True

    class Gone(Child):
        def kill(self) -> None:
            raise psutil.NoSuchProcess(1)

    def leave(code: int) -> None:
        raise SystemExit(code)

    last, interrupt = Child(), Interrupt()
    monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: [Gone(), last])
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(signals, "ONE", 0.0)
    interrupt.notice(signal.SIGINT)
    with pytest.raises(SystemExit, match="130"):
        interrupt.notice(signal.SIGINT)
    assert last.killed


def start_as_ray_does(meanwhile: list[signal.Signals]) -> None:
    with keep_signals():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        for number in meanwhile:
            signal.raise_signal(number)


def test_a_signal_that_ray_s_own_handler_took_is_ours_again() -> None:
    with watch_signals() as interrupt:
        interrupt.defer()
        ours = signal.getsignal(signal.SIGTERM)
        start_as_ray_does([])
        assert signal.getsignal(signal.SIGTERM) == ours
        with pytest.raises(Interrupted):
            start_as_ray_does([signal.SIGTERM])
        assert interrupt.exit_code == 143
        assert signal.getsignal(signal.SIGTERM) == ours


class BrokenRunner:
    """Everything about it fails."""

    closed = 0

    def __init__(self, *args: Any) -> None:
        pass

    def ready(self, timeout: float) -> bool:
        return True

    def wait(self, timeout: float) -> list[Any]:
        raise SourceError("the real error")

    def progress(self, timeout: float = 0.0) -> dict[str, float]:
        raise RuntimeError("another one, of no interest")

    def close(self) -> None:
        BrokenRunner.closed += 1


def test_the_error_that_ends_a_run_is_the_one_that_is_told(
    docs: Path, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.RUNNERS, "inline", f"{__name__}:BrokenRunner")
    with pytest.raises(SourceError, match="the real error"):
        batchnlp.run(job(docs, tmp_path / "out", classifier))
    assert BrokenRunner.closed == 1


def test_an_error_nobody_foresaw_brings_its_traceback_from_the_replica() -> None:
    from batchnlp.engine.ray_runner import RayTaskError, _cause

    unforeseen = _cause(RayTaskError("work", "File there.py, line 7", ZeroDivisionError("by zero")))
    assert isinstance(unforeseen, ZeroDivisionError)
    assert "File there.py, line 7" in unforeseen.__notes__[0]
    foreseen = _cause(RayTaskError("work", "File there.py, line 7", SourceError("no such column")))
    assert not hasattr(foreseen, "__notes__"), "one line is enough"
